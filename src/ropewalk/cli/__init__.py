"""The command line.

Each command is one module of this folder with a function `command`, whose signature defines its arguments and options
and whose docstring is its help text. A `command` that returns an int sets the exit status.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from typing import Any

import typer

from ropewalk.errors import InputError, MissingPackageError, one_line

EXIT_FAILED = 1
EXIT_INPUT_ERROR = 2
EXIT_INTERRUPTED = 130
_DEFAULT_OPTION_VALUES = {"--ray": "auto"}  # options whose value may be omitted, and the value that they then have
_EXTRAS = {  # which extra of ropewalk installs a package that is imported without a check of its own
    "hf": ("torch", "transformers", "accelerate", "safetensors", "gguf", "filelock", "requests", "huggingface_hub"),
    "eval": ("datasets", "lm_eval", "sacrebleu", "rouge_score"),
    "ray": ("ray",),
    "plot": ("matplotlib", "jinja2"),
}
_UsageError: Any = typer.BadParameter.__base__  # of click, which recent versions of typer bundle under another name


def main(argv: list[str] | None = None) -> None:
    """Run a command and exit: 0 if it is done, 1 if the work failed, 2 if the call was wrong."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: list[str], app: typer.Typer | None = None) -> int:
    """Run a command and return its exit status. Every error is one line on standard error.

    `app`: the commands; by default those of ropewalk.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars of libraries would fill a log file
    try:
        status = (app or _build_app())(_insert_default_values(argv), standalone_mode=False)
        if status == EXIT_INTERRUPTED:
            raise typer.Abort  # as older versions of typer do on Ctrl-C; newer ones return the status
    except MissingPackageError as error:
        return _print_error(str(error), EXIT_INPUT_ERROR)
    except ModuleNotFoundError as error:
        return _print_error(str(_name_missing_package(error, argv)), EXIT_INPUT_ERROR)
    except InputError as error:
        return _print_error(f"error: {error}", EXIT_INPUT_ERROR)
    except _UsageError as error:
        return _print_error(f"error: {error.format_message()}", EXIT_INPUT_ERROR)
    except (KeyboardInterrupt, typer.Abort):
        return _print_error("interrupted", EXIT_INTERRUPTED)
    except (OSError, RuntimeError, MemoryError) as error:
        return _print_error(f"failed: {str(error) or type(error).__name__}", EXIT_FAILED)
    return status if isinstance(status, int) else 0


def _build_app() -> typer.Typer:
    app = typer.Typer(
        name="ropewalk",
        help="Long context for language models with rotary position embeddings.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        if hasattr(module, "command"):
            app.command(module_info.name)(module.command)
    return app


def _insert_default_values(argv: list[str]) -> list[str]:
    """Return the arguments with the default value after each option whose value was omitted; click cannot do this."""
    completed = []
    for argument, following in zip(argv, [*argv[1:], "--"], strict=True):
        completed.append(argument)
        if argument in _DEFAULT_OPTION_VALUES and following.startswith("-"):
            completed.append(_DEFAULT_OPTION_VALUES[argument])
    return completed


def _name_missing_package(error: ModuleNotFoundError, argv: list[str]) -> MissingPackageError:
    """Return an error that says how to install the package; raise the given one if no extra of ropewalk has it."""
    package = (error.name or "").split(".")[0]
    for extra, packages in _EXTRAS.items():
        if package in packages:
            return MissingPackageError(f"ropewalk {argv[0]}", package, f"pip install 'ropewalk[{extra}]'")
    raise error


def _print_error(message: str, status: int) -> int:
    print(f"ropewalk: {one_line(message)}", file=sys.stderr)
    return status
