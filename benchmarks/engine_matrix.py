"""Which engine supports which scaling method, and which of it is verified on the real engine?

    python -m benchmarks.engine_matrix > docs/matrix.md

The support follows from the engines' files; the verification from benchmarks/results/verify, which
`python -m benchmarks.verify_engines` writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common import RESULTS_FOLDER
from ropewalk.report.formatting import shorten_middle
from ropewalk.scaling import REGISTRY
from ropewalk.serving.engines import ENGINES
from ropewalk.serving.support import SERVED_LENGTH, MethodSupport, list_support, read_verify_results

_MAX_SPEC_CHARACTERS = 40

_INTRODUCTION = f"""\
# Methods and engines

<!-- Written by `python -m benchmarks.engine_matrix > docs/matrix.md`. Do not edit. -->

How each serving engine can be given each scaling method, for a model like Llama 3 8B that was trained on 8,192 tokens
and is served at {SERVED_LENGTH:,}:

- **native**: the engine has the method.
- The name of another method or field: the engine computes the same frequencies when the scaling is written that way.
- **no**: the engine cannot compute these frequencies.

`ropewalk export` writes the configuration. ✓ marks what `ropewalk verify` confirmed on the running engine, ✗ what it
refuted. Everything else follows from the engine's source code, in the version listed at the end."""


def main() -> None:
    """Print the page."""
    print(render_page(read_verify_results(RESULTS_FOLDER / "verify")))


def render_page(verify_results: Sequence[Mapping[str, Any]]) -> str:
    """Return the page in Markdown. `verify_results`: documents of `ropewalk verify --json`."""
    support = list_support(verify_results)
    sections = [
        _INTRODUCTION,
        _render_matrix(support),
        "## What is not supported\n\nIn parentheses: the nearest scaling that the engine supports.",
        _render_unsupported(support),
        "## Verified on the running engine\n\n"
        "The difference between the engine's log-probabilities and those of the exact scaling, divided by the\n"
        "difference that rounding alone makes. See [verify](verify.md).",
        _render_verified(verify_results),
        "## Source files that were read",
        _render_sources(),
    ]
    return "\n\n".join(sections)


def _render_matrix(support: Sequence[MethodSupport]) -> str:
    rows = []
    for method in REGISTRY:
        cells = {entry.engine: entry for entry in support if entry.method == method}
        rows.append([f"`{method}`", *(_render_cell(cells[engine]) for engine in ENGINES)])
    return _render_table(["", *(engine.title for engine in ENGINES.values())], rows)


def _render_cell(entry: MethodSupport) -> str:
    text = {"own": "native", "through": entry.detail, "no": "no"}[entry.how]
    mark = " ✗" if entry.refuted else " ✓" if entry.proven else ""
    return text + mark


def _render_unsupported(support: Sequence[MethodSupport]) -> str:
    lines = []
    for engine in ENGINES.values():
        entries = [entry for entry in support if entry.engine == engine.name and entry.how == "no"]
        methods = [f"`{entry.method}`" + (f" ({entry.detail})" if entry.detail else "") for entry in entries]
        if methods:
            lines.append(f"- {engine.title}: {'; '.join(methods)}")
    return "\n".join(lines)


def _render_verified(verify_results: Sequence[Mapping[str, Any]]) -> str:
    headings = ["engine", "version", "scaling", "written as", "tokens", "difference / rounding", "verdict", "date"]
    rows = []
    for result in verify_results:
        rows.append(
            [
                result["engine"],
                result["version"],
                f"`{shorten_middle(result['scaling'], _MAX_SPEC_CHARACTERS)}`",
                result.get("through") or "native",
                f"{result['length']:,}",
                f"{result['ratio']:.2g}" if "ratio" in result else "",
                result["verdict"],
                result["date"],
            ]
        )
    return _render_table(headings, rows)


def _render_sources() -> str:
    lines = []
    for engine in ENGINES.values():
        lines.append(f"- {engine.title} {engine.version}: " + ", ".join(f"`{source}`" for source in engine.sources))
    return "\n".join(lines)


def _render_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main()
