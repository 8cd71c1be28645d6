from __future__ import annotations

import json as jsonlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ropewalk.cli.output import Json, Model, print_json, results
from ropewalk.lengths import parse_length

if TYPE_CHECKING:
    from ropewalk.serving.doctor import Finding


def command(
    model: Model,
    engine: Annotated[str, typer.Option(help="Who shall serve; `ropewalk engines` lists them.")] = "",
    target: Annotated[str, typer.Option(help="Tokens that shall be read: 32768, 32k, 1m.")] = "",
    json: Json = False,
) -> int:
    """Say what is wrong or suspicious in a configuration, what it does, and what to write instead."""
    from ropewalk.serving.doctor import examine, load

    report = examine(load(model, parse_length(target, "target") if target else None, engine))
    if json:
        print_json({**report.to_dict(), "model": model})
        return int(report.wrong)
    for finding in report.findings:
        _show(finding)
    if not report.findings:
        results.print("[bold green]nothing found[/bold green]")
    for name, said in report.engines.items():
        results.print(f"{name} {said}", highlight=False, markup=False)
    return int(report.wrong)


def _show(finding: Finding) -> None:
    colour = "red" if finding.severity == "wrong" else "yellow"
    results.print(f"[bold {colour}]{finding.severity}[/bold {colour}] [bold]{finding.kind}[/bold]", highlight=False)

    def line(name: str, text: str) -> None:
        results.print(f"    {name:<9}{text}", highlight=False, markup=False)

    line("field", finding.field + ("" if finding.found is None else f" = {_written(finding.found)}"))
    line("means", finding.means)
    if finding.cosine is not None:
        changed = finding.scores is not None and abs(finding.scores - 1) > 1e-6
        scores = f", scores times {finding.scores:.4f}" if changed else ""
        line("rotation", f"at {finding.position:,} tokens, cosine {finding.cosine:.4f} with what is meant{scores}")
    for field, value in finding.fix.items():
        line("fix", f"take {field} away" if value is None else f"{field} = {_written(value)}")


def _written(value: Any) -> str:
    text = jsonlib.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 200 else f"{text[:197]}..."
