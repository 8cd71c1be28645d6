"""`ropewalk verify`: whether a serving engine applies a scaling exactly."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from ropewalk.cli.options import ApiKeyOption, JsonOption, ModelArgument, ScalingOption, parse_optional_length
from ropewalk.cli.output import console, err_console, print_bold, print_json

if TYPE_CHECKING:
    from ropewalk.serving.verify import Verification

_ENGINE_HELP = "transformers, transformers4, vllm or llama.cpp; with --url any engine of `ropewalk engines`."
_LENGTH_HELP = "Tokens to verify up to; by default at most 1.5 times the original length."


def command(
    model: ModelArgument,
    scaling: ScalingOption,
    engine: Annotated[str, typer.Option(help=_ENGINE_HELP, show_default=False)],
    length: Annotated[str, typer.Option(help=_LENGTH_HELP)] = "",
    served: Annotated[str, typer.Option(help="Folder, config.json or .gguf to verify instead of an export.")] = "",
    url: Annotated[str, typer.Option(help="Server to verify, started with the scaling: http://HOST:PORT/v1.")] = "",
    control_url: Annotated[str, typer.Option(help="The same server without the scaling, for a clearer verdict.")] = "",
    api_key_env: ApiKeyOption = "",
    python: Annotated[str, typer.Option(help="Python with the engine, by default that of `make engines`.")] = "",
    json: JsonOption = False,
) -> int:
    """Run a serving engine and compare its rotations and log-probabilities with the exact scaling.

    The exit status is 0 only if the engine passes.
    """
    from ropewalk.serving.verify import verify

    with err_console.status("starting ...") if err_console.is_terminal else nullcontext() as status:
        result = verify(
            model,
            scaling,
            engine,
            length=parse_optional_length(length, "length"),
            served=served or None,
            url=url or None,
            control_url=control_url or None,
            api_key_env=api_key_env or None,
            python=python or None,
            on_progress=(lambda line: status.update(Text(line))) if status else err_console.print,
        )
    if json:
        print_json(result.to_dict())
    else:
        _print_result(result)
    return 0 if result.passed else 1


def _print_result(result: Verification) -> None:
    from ropewalk.report.tables import make_table

    rows = []
    comparisons = {
        "tables": result.tables,
        "log-probabilities": result.behaviour,
        "log-probabilities in a batch": result.batch,
    }
    for name, comparison in comparisons.items():
        if comparison is not None:
            numbers = [f"{comparison[key]:.3g}" for key in ("difference", "control", "ratio")]
            rows.append([f"{name}, {comparison['unit']}", *numbers, comparison["verdict"]])
    title = f"{result.scaling} on {result.engine} {result.version}, up to {result.length:,} tokens"
    if result.through:
        title += f", written as {result.through}"
    headings = ["compared", "difference", "control", "ratio", "verdict"]
    console.print(make_table(title, headings, rows, text_columns=(0, 4)))
    if result.behaviour["factors"] is not None:
        requests = Counter(result.behaviour["factors"])
        counts = ", ".join(f"{count} under factor {factor:g}" for factor, count in requests.items())
        console.print(f"requests: {counts}; one after the other, then all at once")
    ignored = result.behaviour["ignored"]
    if ignored is not None:
        console.print(f"an engine that ignored the scaling would differ by {ignored:.3g} nats")
    print_bold(result.verdict, f": {result.why}")
