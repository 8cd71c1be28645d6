"""The engines' own virtual environments: where they are, and how `make engines` makes them.

    python -m ropewalk.serving.verify.environments [NAME ...]

Each stands in `.engines/NAME` of the current folder, or of the folder that ROPEWALK_ENGINES names.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import venv
from pathlib import Path

from ropewalk.errors import InputError
from ropewalk.serving.engines import ENGINES, find_engine
from ropewalk.serving.engines.base import Engine

# Of no use to text, and built for another torch they break the import of those who look whether they are there.
_UNWANTED = ("torchvision", "torchaudio", "torchcodec")


def python_of(engine: Engine, python: str | None = None) -> str:
    """The python that has this engine: the one given, the engine's own environment, or this one.

    Raises InputError when there is none.
    """
    if python is not None:
        if not os.access(python, os.X_OK) or Path(python).is_dir():
            raise InputError("python", python, f"a python that has {engine.title} installed")
        return python
    own = _folder(engine) / "bin" / "python"
    if own.exists():
        return str(own)
    if engine.name == "transformers" and importlib.util.find_spec("transformers"):
        return sys.executable
    allowed = f"`make engines`, which installs {engine.title}, --python with one that has it, or --url"
    raise InputError("engine", f"{engine.name}, which is not at {_folder(engine)}", allowed)


def make(engine: Engine) -> None:
    """Make the engine's environment, unless it is there as its requirements say."""
    folder, wanted = _folder(engine), "\n".join(engine.requirements)
    stamp = folder / "requirements"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    print(f"{engine.title}: {', '.join(engine.requirements)} in {folder}", file=sys.stderr)
    venv.create(folder, with_pip=True, clear=True, symlinks=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # One after the other: what is built against torch looks for it while it is being installed.
    for count in range(1, len(engine.requirements) + 1):
        subprocess.run([*pip, "install", *engine.requirements[:count]], check=True)
    subprocess.run([*pip, "uninstall", "--yes", *_UNWANTED], check=True, stderr=subprocess.DEVNULL)
    stamp.write_text(wanted, encoding="utf-8")


def _folder(engine: Engine) -> Path:
    return Path(os.environ.get("ROPEWALK_ENGINES", ".engines")).absolute() / engine.name


if __name__ == "__main__":
    for each in [find_engine(name) for name in sys.argv[1:]] or ENGINES.values():
        # transformers 5 is in this environment already.
        if each.requirements and (each.name != "transformers" or each.name in sys.argv):
            make(each)
