"""Where the virtual environments of the engines are, which `make engines` creates (create_environments.py).

There is one subfolder per engine, in the folder that the environment variable ROPEWALK_ENGINES names. By default the
folder belongs to this installation of ropewalk: `.engines` of the source checkout, or `ropewalk-engines` beside the
installed package. It is never the current folder, where `verify` would run whatever someone has put there.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import ropewalk
from ropewalk.errors import InputError, MissingPackageError
from ropewalk.serving.engines.base import Engine


def find_python(engine: Engine, python: str | None = None) -> str:
    """Return the path of a Python that has the engine installed.

    That is `python` if given, else the engine's environment, else (for transformers) the Python that runs this.
    Raises InputError for a `python` that cannot be executed, MissingPackageError if there is none.
    """
    if python is not None:
        if not os.access(python, os.X_OK) or Path(python).is_dir():
            raise InputError("python", python, f"the path of a Python that has {engine.title} installed")
        return python
    in_environment = environment_folder(engine) / "bin" / "python"
    if in_environment.exists():
        return str(in_environment)
    if engine.name == "transformers" and importlib.util.find_spec("transformers"):
        return sys.executable
    install = f"run `make engines` to install it in {environment_folder(engine)}, or use --python or --url"
    raise MissingPackageError(f"ropewalk verify --engine {engine.name}", engine.title, install)


def installed_packages(python: str) -> list[str]:
    """Return name and version of each distribution beside a Python; empty if its site-packages are elsewhere."""
    environment = Path(python).parent.parent  # not resolved: in an environment, python is a link
    return sorted(path.stem for path in environment.glob("lib/python*/site-packages/*.dist-info"))


def environment_folder(engine: Engine) -> Path:
    """Return the folder of the environment of an engine, which may not exist."""
    named = os.environ.get("ROPEWALK_ENGINES")
    return (Path(named).absolute() if named else _default_folder()) / engine.name


def _default_folder() -> Path:
    checkout = find_checkout()
    return checkout / ".engines" if checkout else Path(ropewalk.__file__).parent.with_name("ropewalk-engines")


def find_checkout() -> Path | None:
    """Return the source checkout that this package is imported from, or None for an installed package."""
    folder = Path(ropewalk.__file__).parents[2]
    return folder if (folder / "pyproject.toml").is_file() else None
