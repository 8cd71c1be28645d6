"""Compile the rotation for CPUs (native/rotate.cpp) while ropewalk is installed, once per instruction set.

Without a C++ compiler ropewalk still installs and rotates in plain torch. `ropewalk backends` shows which backend runs.
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
COMMON_FLAGS = ["-std=c++17", "-O3", "-fopenmp", "-fPIC", "-shared", "-w", "-Wno-psabi"]
AVX512_FLAGS = ["-march=x86-64-v4", "-mprefer-vector-width=512"]
VARIANT_FLAGS = {
    "x86_64": {"avx512_bf16": [*AVX512_FLAGS, "-mavx512bf16"], "avx512": AVX512_FLAGS, "avx2": ["-march=x86-64-v3"]},
    "aarch64": {"neon": []},
}


class CompileRotation(BuildHookInterface):  # type: ignore[type-arg]
    """Compile one library per instruction set next to the source, and add them to the wheel.

    A library that is newer than the source is kept. A wheel with libraries is specific to this platform.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """`version`: "standard" for a wheel, "editable" for an editable install."""
        compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
        if self.target_name != "wheel" or sys.platform != "linux" or compiler is None:
            return
        machine = platform.machine()
        source = Path(self.root) / SOURCE
        for variant, flags in VARIANT_FLAGS.get(machine, {}).items():
            library = source.with_name(f"rotate_{variant}.so")
            is_outdated = not library.exists() or library.stat().st_mtime < source.stat().st_mtime
            if is_outdated and not self._compile(compiler, source, library, flags):
                continue
            build_data["artifacts"].append(str(library.relative_to(self.root)))
        if build_data["artifacts"]:
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-linux_{machine}"

    def _compile(self, compiler: str, source: Path, library: Path, flags: list[str]) -> bool:
        """Compile `source` to `library` and return whether it worked; show a warning if not."""
        library.unlink(missing_ok=True)  # an outdated library may not match the Python code that calls it
        unfinished = library.with_suffix(f".{os.getpid()}")
        command = [*compiler.split(), *COMMON_FLAGS, *flags, str(source), "-o", str(unfinished)]
        try:
            subprocess.run(command, capture_output=True, text=True, check=True)
            unfinished.replace(library)  # in one step: another process may load the library meanwhile
        except (OSError, subprocess.CalledProcessError) as error:
            message = getattr(error, "stderr", "") or str(error)
            self.app.display_warning(f"cannot compile {library.name} from rotate.cpp: {message.strip()[-500:]}")
            return False
        return True
