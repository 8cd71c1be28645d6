"""`ropewalk export`: the configuration with which a serving engine applies a scaling."""

from __future__ import annotations

import json as jsonlib
from typing import TYPE_CHECKING, Annotated

import typer

from ropewalk.cli.options import EngineOption, JsonOption, ModelArgument, ScalingOption, parse_optional_length
from ropewalk.cli.output import console, print_bold, print_json
from ropewalk.errors import UnsupportedScalingError

if TYPE_CHECKING:
    from ropewalk.serving.alternative import Alternative, Server
    from ropewalk.serving.export import Export


def command(
    model: ModelArgument,
    scaling: ScalingOption,
    engine: EngineOption,
    out: Annotated[str | None, typer.Option(help="Folder to write; without it, the changes are only printed.")] = None,
    length: Annotated[str, typer.Option(help="Tokens to serve, by default the length that the scaling is for.")] = "",
    json: JsonOption = False,
) -> None:
    """Write the configuration with which a serving engine applies a scaling, and print the command to start it.

    If the engine cannot scale each request by its own length, as a dynamic scaling does, the command prints what to
    serve instead. It then writes nothing and exits with status 2, unless the engine has such a scaling itself.
    """
    from ropewalk.serving.alternative import find_alternative
    from ropewalk.serving.export import export_model

    tokens = parse_optional_length(length, "length")
    try:
        result = export_model(model, scaling, engine, out, tokens)
    except UnsupportedScalingError as error:
        alternative = find_alternative(model, scaling, engine, tokens)
        if json and alternative is not None:
            print_json({"error": str(error), "alternative": alternative.to_dict()})
        elif alternative is not None:
            _print_alternative(alternative)
        raise
    alternative = find_alternative(model, scaling, engine, tokens)
    if json:
        print_json({**result.to_dict(), "alternative": alternative and alternative.to_dict()})
        return
    _print_export(result)
    if alternative is not None:
        _print_alternative(alternative)


def _print_export(result: Export) -> None:
    how = f"written as {result.encoded_as}" if result.encoded_as else "which the engine supports natively"
    print_bold(result.scaling, f" for {result.engine}, {result.length:,} tokens, {how}")
    print(jsonlib.dumps(result.changes, indent=2))
    if result.path is not None:
        console.print(f"written to {result.path}")
    for note in result.notes:
        console.print(f"  - {note}")
    console.print("start it with:")
    print(result.command)


def _print_alternative(alternative: Alternative) -> None:
    from ropewalk.serving.alternative import MEASURED_LENGTH, MEASURED_MODEL, MEASURED_ON, MEASURED_PERPLEXITY

    untouched, extended = alternative.servers
    print_bold("instead", f" of a scaling by the length of each request, {alternative.engine} can serve:")
    console.print(f"1. {alternative.scaling} for all requests covers {extended.length:,} tokens:")
    _print_commands(extended)
    if alternative.measured:
        unscaled = MEASURED_PERPLEXITY["none"]
        costs = ", ".join(
            f"{spec} {perplexity:.2f} ({perplexity / unscaled - 1:+.1%})"
            for spec, perplexity in alternative.measured.items()
        )
        console.print(
            f"   short prompts pay for it; perplexity of {MEASURED_LENGTH:,} tokens with {MEASURED_MODEL}: "
            f"unscaled {unscaled:.2f}, {costs} ({MEASURED_ON})"
        )
    console.print("   on your own model and text:")
    print(f"   {alternative.measure}")
    console.print(
        f"2. two servers behind a router: requests of up to {alternative.route_at:,} tokens, prompt and max_tokens, "
        "to the model without a scaling, all others to the server of 1:"
    )
    _print_commands(untouched)
    if alternative.warning:
        console.print(f"   {alternative.warning}")
    if alternative.follows_requests:
        console.print(f"3. {alternative.follows_requests}")


def _print_commands(server: Server) -> None:
    for line in server.commands:
        print(f"   {line}")
