"""`ropewalk doctor`: faults in the RoPE fields of a configuration."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ropewalk.cli.options import EngineOption, JsonOption, ModelArgument, TargetOption, parse_optional_length
from ropewalk.cli.output import console, print_bold, print_json

if TYPE_CHECKING:
    from ropewalk.serving.doctor import Finding

_MAX_VALUE_CHARACTERS = 200
_COLORS = {"wrong": "red", "suspicious": "yellow"}


def command(
    model: ModelArgument,
    engine: EngineOption = "",
    target: TargetOption = "",
    json: JsonOption = False,
) -> int:
    """Check the RoPE fields of a configuration: what is wrong or suspicious, what it causes, and how to fix it.

    The exit status is 1 if something is wrong.
    """
    from ropewalk.serving.doctor import ExaminedConfig, examine

    report = examine(ExaminedConfig.from_model(model, parse_optional_length(target, "target"), engine))
    if json:
        print_json({**report.to_dict(), "model": model})
        return int(report.is_wrong)
    for finding in report.findings:
        _print_finding(finding)
    if not report.findings:
        print_bold("nothing found", color="green")
    for name, difference in report.engines.items():
        console.print(f"{name} {difference}")
    return int(report.is_wrong)


def _print_finding(finding: Finding) -> None:
    print_bold(finding.severity, f" {finding.kind}", _COLORS[finding.severity])
    field = finding.field if finding.found is None else f"{finding.field} = {_to_short_json(finding.found)}"
    lines = [("field", field), ("means", finding.means)]
    if finding.cosine is not None:
        rotation = f"at {finding.position:,} tokens, cosine {finding.cosine:.4f} with the expected rotation"
        if finding.scores is not None and abs(finding.scores - 1) > 1e-6:
            rotation += f", attention scores times {finding.scores:.4f}"
        lines.append(("rotation", rotation))
    lines += _describe_changes("fix", finding.fix)
    if finding.question:
        lines.append(("question", finding.question))
    for alternative in finding.alternatives:
        reach = f" ({alternative.means})" if alternative.means else ""
        lines.append(("answer", alternative.answer + reach))
        lines += _describe_changes("", alternative.fix)
    for label, text in lines:
        console.print(f"    {label:<9}{text}")


def _describe_changes(label: str, changes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a line for each field to write, under a label."""
    return [
        (label, f"remove {name}" if value is None else f"{name} = {_to_short_json(value)}")
        for name, value in changes.items()
    ]


def _to_short_json(value: Any) -> str:
    text = jsonlib.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _MAX_VALUE_CHARACTERS else f"{text[: _MAX_VALUE_CHARACTERS - 3]}..."
