"""What numbers are of: the device, the versions and what else moves them."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ropewalk.errors import InputError
from ropewalk.ops.backends import VARIABLE

_VARIABLES = (
    VARIABLE,
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_PROC_BIND",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_LAUNCH_BLOCKING",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TRITON_INTERPRET",
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
)


def find_device(name: str) -> torch.device:
    """The device of that name. Raises InputError for one that is not there."""
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()  # meta has tensors, and no numbers in them
    except Exception:  # whatever a torch that was built without it raises: AssertionError, ModuleNotFoundError, ...
        raise InputError("device", name, "a device of torch that is here, as cpu or cuda:0") from None
    return device


def device_name(device: torch.device) -> str:
    """Of a GPU its name; of a CPU its model and how many threads torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{platform.processor() or platform.machine()} {device.type}"
    threads = torch.get_num_threads()
    return f"{cpu_model()}, {threads} {'thread' if threads == 1 else 'threads'}"


def current(device: torch.device) -> AbstractContextManager[object]:
    """While it lasts, a CUDA device is the current one: kernels of Triton go there, wherever their tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


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


def surroundings() -> dict[str, Any]:
    """What else numbers depend on: `system`, `threads`, the `environment` that is set, `large_pages`."""
    return {
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "large_pages": _large_pages(),
    }


def _large_pages() -> str | None:
    """Which memory Linux gives in large pages: always, madvise (what asks for them) or never; None elsewhere."""
    try:
        modes = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="utf-8")
    except OSError:
        return None
    chosen = re.search(r"\[(\w+)\]", modes)
    return chosen and chosen[1]


def cpu_model() -> str:
    """What the processor calls itself, or its kind where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
