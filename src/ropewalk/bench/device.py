"""What numbers are of: the device and the versions."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import torch

from ropewalk.errors import InputError


def find_device(name: str) -> torch.device:
    """The device of that name. Raises InputError for one that is not there."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):  # a torch that was built without it asserts
        raise InputError("device", name, "a device of torch that is here, as cpu or cuda:0") from None
    return device


def device_name(device: torch.device) -> str:
    """Of a GPU its name; of a CPU its model and how many threads torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{platform.processor() or platform.machine()} {device.type}"
    threads = torch.get_num_threads()
    return f"{_cpu()}, {threads} {'thread' if threads == 1 else 'threads'}"


def slug(name: str) -> str:
    """A name for a file: lower case, words joined by hyphens, no trade marks."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm|c)\)", " ", name.lower())).strip("-")


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of python and of the packages that are here; of torch also the CUDA that it was built for."""
    known = {"python": platform.python_version()}
    for package in packages:
        try:
            known[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return known | ({"cuda": torch.version.cuda} if torch.version.cuda else {})


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
