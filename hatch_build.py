"""Compiles the rotation on CPUs while ropewalk is installed, for every instruction set that may be met.

Without a C++ compiler ropewalk installs all the same and turns in plain torch; `ropewalk backends` says so.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("src/ropewalk/ops/native/rotate.cpp")
FLAGS = ["-std=c++17", "-O3", "-fopenmp", "-fPIC", "-shared", "-w", "-Wno-psabi"]
WIDE = ["-march=x86-64-v4", "-mprefer-vector-width=512"]
VARIANTS = {
    "x86_64": {"avx512_bf16": [*WIDE, "-mavx512bf16"], "avx512": WIDE, "avx2": ["-march=x86-64-v3"]},
    "aarch64": {"neon": []},
}


class CompileRotation(BuildHookInterface):  # type: ignore[type-arg]
    """Puts libraries beside the source, newer ones only; they go into a wheel, which is then of this platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """`version`: "standard" for a wheel, "editable" for a checkout in use."""
        machine = platform.machine()
        compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
        if self.target_name != "wheel" or sys.platform != "linux" or compiler is None:
            return
        source = Path(self.root) / SOURCE
        for variant, flags in VARIANTS.get(machine, {}).items():
            library = source.with_name(f"rotate_{variant}.so")
            if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
                unfinished = library.with_suffix(f".{os.getpid()}")
                command = [*compiler.split(), *FLAGS, *flags, str(source), "-o", str(unfinished)]
                library.unlink(missing_ok=True)  # what is older than its source must not be loaded
                try:
                    subprocess.run(command, capture_output=True, text=True, check=True)
                    unfinished.replace(library)
                except (OSError, subprocess.CalledProcessError) as error:
                    said = getattr(error, "stderr", "") or str(error)
                    self.app.display_warning(f"rotate.cpp is not compiled for {variant}: {said.strip()[-500:]}")
                    continue
            build_data["artifacts"].append(str(library.relative_to(self.root)))
        if build_data["artifacts"]:
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-linux_{machine}"
