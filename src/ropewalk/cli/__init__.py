"""The command line: one file a command, each a module of this folder with a `command`, or a `group` of them."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from typing import Any

import typer

from ropewalk.errors import InputError

INTERRUPTED = 130
_VALUE_LEFT_OUT = {"--ray": "auto"}  # options that may stand without their value, and what they then mean
_UsageError: Any = typer.BadParameter.__base__  # of click, which newer versions of typer carry inside


def _app() -> typer.Typer:
    app = typer.Typer(
        name="ropewalk",
        help="Long context for language models with rotary position embeddings.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for found in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{found.name}")
        if hasattr(module, "command"):
            app.command(found.name)(module.command)
        if hasattr(module, "group"):
            app.add_typer(module.group, name=found.name)
    app.callback()(lambda: None)  # with it, a single command would still be named
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 the work failed, 2 the call was wrong."""
    sys.exit(_run(arguments))


def _run(arguments: list[str] | None) -> int:
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # the progress bars of libraries, which fill a log with noise
    try:
        done = _app()(_completed(sys.argv[1:] if arguments is None else arguments), standalone_mode=False)
    except InputError as error:
        return _say(f"error: {error}", 2)
    except _UsageError as error:
        return _say(f"error: {error.format_message()}", 2)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted", INTERRUPTED)
    except (OSError, RuntimeError, MemoryError) as error:
        return _say(f"failed: {type(error).__name__}: {error}", 1)
    return done if isinstance(done, int) else 0


def _completed(arguments: list[str]) -> list[str]:
    whole = []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        whole.append(argument)
        if argument in _VALUE_LEFT_OUT and following.startswith("-"):
            whole.append(_VALUE_LEFT_OUT[argument])
    return whole


def _say(message: str, status: int) -> int:
    print("ropewalk: " + " ".join(message.split()), file=sys.stderr)
    return status
