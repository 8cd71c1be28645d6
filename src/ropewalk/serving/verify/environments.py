"""Virtual environments of the engines: find the Python of an engine, and create environments for `make engines`.

    python -m ropewalk.serving.verify.environments [ENGINE ...]

creates the environments of the named engines, by default of all that need one, one subfolder per engine. The folder is
the one that the environment variable ROPEWALK_ENGINES names. By default it belongs to this installation of ropewalk:
`.engines` of the source checkout, or `ropewalk-engines` beside the installed package. It is never the current folder,
where `verify` would run whatever someone has put there.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import venv
from pathlib import Path

import ropewalk
from ropewalk.errors import InputError, MissingPackageError
from ropewalk.serving.engines import ENGINES, find_engine
from ropewalk.serving.engines.base import Engine

# Engines pull these in, built for another torch. Text models do not need them, and libraries that check whether they
# are installed then fail to import them.
_UNINSTALL = ("torchvision", "torchaudio", "torchcodec")


def find_python(engine: Engine, python: str | None = None) -> str:
    """Return the path of a Python that has the engine installed.

    That is `python` if given, else the engine's environment, else (for transformers) the Python that runs this.
    Raises InputError for a `python` that cannot be executed, MissingPackageError if there is none.
    """
    if python is not None:
        if not os.access(python, os.X_OK) or Path(python).is_dir():
            raise InputError("python", python, f"the path of a Python that has {engine.title} installed")
        return python
    in_environment = _environment_folder(engine) / "bin" / "python"
    if in_environment.exists():
        return str(in_environment)
    if engine.name == "transformers" and importlib.util.find_spec("transformers"):
        return sys.executable
    install = f"run `make engines` to install it in {_environment_folder(engine)}, or use --python or --url"
    raise MissingPackageError(f"ropewalk verify --engine {engine.name}", engine.title, install)


def create_environment(engine: Engine) -> None:
    """Create the environment of an engine, unless it exists with the same requirements."""
    plugin = _find_own_source() if engine.has_plugin else []
    folder, requirements = _environment_folder(engine), "\n".join([*engine.requirements, *plugin])
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


def _environment_folder(engine: Engine) -> Path:
    named = os.environ.get("ROPEWALK_ENGINES")
    return (Path(named).absolute() if named else _default_folder()) / engine.name


def _default_folder() -> Path:
    checkout = _find_checkout()
    return checkout / ".engines" if checkout else Path(ropewalk.__file__).parent.with_name("ropewalk-engines")


def _find_own_source() -> list[str]:
    """Return the arguments of `pip install` for this version of ropewalk: its checkout, or the release."""
    checkout = _find_checkout()
    return ["--editable", str(checkout)] if checkout else [f"ropewalk=={ropewalk.__version__}"]


def _find_checkout() -> Path | None:
    """Return the source checkout that this package is imported from, or None for an installed package."""
    folder = Path(ropewalk.__file__).parents[2]
    return folder if (folder / "pyproject.toml").is_file() else None


def create_environments(names: list[str]) -> None:
    """Create the environments of the named engines, by default of all that need one."""
    # transformers 5 is installed with ropewalk, so it gets an environment only if it is named.
    engines = [find_engine(name) for name in names] or [e for e in ENGINES.values() if e.name != "transformers"]
    for engine in engines:
        if engine.requirements:
            create_environment(engine)


if __name__ == "__main__":
    create_environments(sys.argv[1:])
