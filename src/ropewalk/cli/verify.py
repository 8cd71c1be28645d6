from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ropewalk.cli.output import Json, Model, people, print_json, results
from ropewalk.lengths import parse_length

if TYPE_CHECKING:
    from ropewalk.serving.verify import Verification


def command(
    model: Model,
    scaling: Annotated[str, typer.Option(help="What is meant: name:option=value,... or JSON.", show_default=False)],
    engine: Annotated[str, typer.Option(help="transformers, transformers4, vllm, llama.cpp.", show_default=False)],
    length: Annotated[str, typer.Option(help="Tokens to read up to; half as much again as the original length.")] = "",
    served: Annotated[str, typer.Option(help="Config.json, folder or .gguf to check instead of an export.")] = "",
    url: Annotated[str, typer.Option(help="A server that runs with the scaling: http://127.0.0.1:8000/v1.")] = "",
    control_url: Annotated[str, typer.Option(help="The same server without the scaling: a sharper verdict.")] = "",
    python: Annotated[str, typer.Option(help="The python that has the engine, instead of `make engines`' own.")] = "",
    json: Json = False,
) -> int:
    """Run a serving engine and compare it with the exact reference: does it do what was meant?"""
    from ropewalk.serving.verify import verify

    with people.status("starting ...") if people.is_terminal else nullcontext() as status:
        found = verify(
            model,
            scaling,
            engine,
            length=parse_length(length, "length") if length else None,
            served=served or None,
            url=url or None,
            control_url=control_url or None,
            python=python or None,
            say=status.update if status else lambda line: people.print(line, highlight=False),
        )
    if json:
        print_json(found.to_dict())
    else:
        _show(found)
    return 0 if found.passed else 1


def _show(found: Verification) -> None:
    title = f"{found.scaling} on {found.engine} {found.version}, up to {found.length:,} tokens"
    table = Table(title=title + (f", through {found.through}" if found.through else ""))
    for column in ("compared", "difference", "control", "ratio", "verdict"):
        table.add_column(column, justify="left" if column in ("compared", "verdict") else "right")
    for name, part in (("tables", found.tables), ("log-probabilities", found.behaviour)):
        if part is not None:
            table.add_row(f"{name}, {part['unit']}", *_numbers(part), part["verdict"])
    results.print(table)
    ignored = found.behaviour["ignored"]
    if ignored is not None:
        results.print(f"an engine that ignored the scaling would differ by {ignored:.3g} nats", highlight=False)
    results.print(f"[bold]{found.verdict}[/bold]: {found.why}", highlight=False)


def _numbers(part: dict[str, Any]) -> list[str]:
    return [f"{part['difference']:.3g}", f"{part['control']:.3g}", f"{part['ratio']:.3g}"]
