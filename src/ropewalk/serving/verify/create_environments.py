"""Create the environments of the engines that `ropewalk verify` and the tests run.

    python -m ropewalk.serving.verify.create_environments [ENGINE ...]

The named engines get one, by default all that need one (environments.py says where). The exit status is 69
(os.EX_UNAVAILABLE) if pip cannot install a package, so that a caller can tell a missing network from an error.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import venv

import ropewalk
from ropewalk.serving.engines import ENGINES, find_engine
from ropewalk.serving.engines.base import Engine
from ropewalk.serving.verify.environments import environment_folder, find_checkout

# Engines pull these in, built for another torch. Text models do not need them, and libraries that check whether they
# are installed then fail to import them.
_UNINSTALL = ("torchvision", "torchaudio", "torchcodec")


def create_environments(names: list[str]) -> None:
    """Create the environments of the named engines, by default of all that need one."""
    # transformers 5 is installed with ropewalk, so it gets an environment only if it is named.
    engines = [find_engine(name) for name in names] or [e for e in ENGINES.values() if e.name != "transformers"]
    for engine in engines:
        if engine.requirements:
            create_environment(engine)


def create_environment(engine: Engine) -> None:
    """Create the environment of an engine, unless it exists with the same requirements."""
    plugin = _find_own_source() if engine.has_plugin else []
    folder, requirements = environment_folder(engine), "\n".join([*engine.requirements, *plugin])
    installed = folder / "requirements"
    if installed.exists() and installed.read_text(encoding="utf-8") == requirements:
        return
    print(f"{engine.title}: {', '.join(engine.requirements)} in {folder}", file=sys.stderr)
    venv.create(folder, with_pip=True, clear=True, symlinks=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # Install one requirement after the other: packages that are built against torch import it during installation.
    # The earlier ones are named again each time, so that pip keeps their versions.
    for count in range(1, len(engine.requirements) + 1):
        subprocess.run([*pip, "install", *engine.requirements[:count]], check=True)
    subprocess.run([*pip, "uninstall", "--yes", *_UNINSTALL], check=True, stderr=subprocess.DEVNULL)
    if plugin:
        subprocess.run([*pip, "install", "--no-deps", *plugin], check=True)
    installed.write_text(requirements, encoding="utf-8")


def _find_own_source() -> list[str]:
    """Return the arguments of `pip install` for this version of ropewalk: its checkout, or the release."""
    checkout = find_checkout()
    return ["--editable", str(checkout)] if checkout else [f"ropewalk=={ropewalk.__version__}"]


def main(names: list[str]) -> None:
    """Create the environments, and exit with os.EX_UNAVAILABLE if pip fails."""
    try:
        create_environments(names)
    except subprocess.CalledProcessError as error:
        print(f"pip failed with status {error.returncode}: {shlex.join(error.cmd)}", file=sys.stderr)
        sys.exit(os.EX_UNAVAILABLE)


if __name__ == "__main__":
    main(sys.argv[1:])
