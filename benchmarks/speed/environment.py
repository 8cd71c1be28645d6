"""Everything that timings depend on besides the code: the device, versions of packages, and settings of the system."""

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

import ropewalk
from ropewalk.errors import InputError
from ropewalk.ops.backends import VARIABLE

_ENVIRONMENT_VARIABLES = (
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
    """Return the torch device with this name. Raises InputError if it does not exist or cannot compute."""
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()  # fails on the meta device, whose tensors have no values
    except Exception:  # builds of torch without a device raise AssertionError, ModuleNotFoundError and others
        raise InputError("device", name, "a torch device that exists here, such as cpu or cuda:0") from None
    return device


def describe_device(device: torch.device) -> str:
    """Return the name of a GPU, or the model of a CPU with the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{platform.processor() or platform.machine()} {device.type}"
    threads = torch.get_num_threads()
    return f"{cpu_model()}, {threads} {'thread' if threads == 1 else 'threads'}"


def cpu_model() -> str:
    """Return the model name of the CPU, or its architecture if the system does not report one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def file_name_for(device_description: str) -> str:
    """Return a description as part of a file name: lower case, words joined by hyphens, without (R) and (TM)."""
    without_marks = re.sub(r"\((r|tm|c)\)", " ", device_description.lower())
    return re.sub(r"[^a-z0-9]+", "-", without_marks).strip("-")


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a CUDA device the current one inside: Triton launches kernels there, wherever the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python, ropewalk, the installed ones among `packages`, and the CUDA of the torch build."""
    versions = {"python": platform.python_version(), "ropewalk": ropewalk.__version__}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    return versions


def system_settings() -> dict[str, Any]:
    """Return `system`, `threads`, the `environment` variables that are set, and the mode of `large_pages`."""
    return {
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ[name] for name in _ENVIRONMENT_VARIABLES if name in os.environ},
        "large_pages": _large_page_mode(),
    }


def _large_page_mode() -> str | None:
    """Return when Linux uses large pages: always, madvise (on request) or never; None on other systems."""
    try:
        modes = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="utf-8")
    except OSError:
        return None
    selected = re.search(r"\[(\w+)\]", modes)
    return selected[1] if selected else None
