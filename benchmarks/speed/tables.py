"""Results as tables for the terminal. Ratios are relative speeds: above 1 is faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from benchmarks.speed.cases import describe_phase
from benchmarks.speed.timing import Quartiles
from ropewalk.report.tables import make_table

_STYLE = {"box": SIMPLE_HEAD, "show_edge": False, "title_justify": "left"}
_LEGEND = (
    "±: half the distance between the quartiles. x copy: speed relative to a plain copy, into new memory, or into "
    "existing memory for implementations in place. x large: relative to a copy into new memory in large pages, which "
    "ropewalk requests. x peer: relative to the fastest peer, in place or not like the implementation if there is one. "
    "launch: until the call returns. CUDA graph: per call when the kernels are replayed without the host."
)


def rotation_tables(rows: Sequence[Mapping[str, Any]]) -> list[Table | str]:
    """Return a table per case, an explanation of the columns, and why implementations were not timed."""
    return [*[table for row in rows for table in _case_tables(row)], _LEGEND, *_explain_missing(rows)]


def _case_tables(row: Mapping[str, Any]) -> list[Table | str]:
    """Return the table of a case and, if it was measured on a CUDA device, one of the parts of the calls."""
    parts = {
        name: [part for part in ("launch", "graph") if part in found]
        for name, found in row.get("contestants", {}).items()
    }
    return [_case_table(row), _parts_table(row)] if any(parts.values()) else [_case_table(row)]


def _parts_table(row: Mapping[str, Any]) -> Table:
    cells = []
    for name, found in row["contestants"].items():
        launch, graph = (_format_seconds(found[part]) if part in found else ("", "") for part in ("launch", "graph"))
        ratio = f"{found['graph_of_limit']['median']:.2f}" if "graph_of_limit" in found else ""
        if launch[0] or graph[0]:
            cells.append([Text(name, "bold" if found["role"] == "ours" else ""), *launch, *graph, ratio])
    return make_table("", ["", "launch", "±", "CUDA graph", "±", "x copy"], cells, **_STYLE)


def _case_table(row: Mapping[str, Any]) -> Table | str:
    phase = describe_phase(row["batch"], row["tokens"])
    title = f"{row['shape']}, {phase}, {row['dtype']}, {row['bytes'] / 2**20:,.3g} MiB moved"
    if "reason" in row:
        return f"{title}, not measured: {row['reason']}"
    timed = {name: found for name, found in row["contestants"].items() if "seconds" in found}
    ratios = {"x copy": "of_limit", "x large": "of_large_pages", "x peer": "of_best_peer"}
    if not any("of_large_pages" in found for found in timed.values()):
        del ratios["x large"]
    cells = []
    for name, found in timed.items():
        ratio_cells = [f"{found[key]['median']:.2f}" if key in found else "" for key in ratios.values()]
        cells.append(
            [
                Text(name, "bold" if found["role"] == "ours" else ""),
                *_format_seconds(found["seconds"]),
                f"{found['gb_per_second']:.1f}",
                *ratio_cells,
                found.get("best_peer", ""),
            ]
        )
    headings = ["", "time", "±", "GB/s", *ratios, "the peer"]
    return make_table(
        f"{title}, {row['rounds']} rounds",
        headings,
        cells,
        text_columns=(0, len(headings) - 1),
        padding=0,  # the box separates columns by a space, and the table has to fit into 80 characters
        **_STYLE,
    )


def _explain_missing(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line per implementation that was not timed in some case, with the distinct reasons."""
    reasons: dict[str, dict[str, None]] = {}
    for row in rows:
        for name, found in row.get("contestants", {}).items():
            if "reason" in found:
                reasons.setdefault(name, {})[found["reason"]] = None
    return [f"{name}, not timed: {'; '.join(distinct)}" for name, distinct in reasons.items()]


def model_tables(run: Mapping[str, Any]) -> list[Table | str]:
    """Return two tables per length: the timings of all variants, and their comparisons."""
    tables: list[Table | str] = []
    for row in run["rows"]:
        title = f"{run['model']} in {run['dtype']}, {run['scaling']}, {row['tokens']:,} tokens"
        if "reason" in row:
            tables.append(f"{title}, not measured: {row['reason']}")
            continue
        timings = [
            [variant, *_format_seconds(found["seconds"]), f"{found['tokens_per_second']['median']:,.4g}"]
            for variant, found in row["ways"].items()
        ]
        comparisons = [
            [name, f"{ratio['median']:.3f}", f"{ratio['low']:.3f} to {ratio['high']:.3f}"]
            for name, ratio in row["speed"].items()
        ]
        tables.append(make_table(title, ["", "time", "±", "tokens/s"], timings, **_STYLE))
        tables.append(make_table("", ["", "speed", "quartiles"], comparisons, **_STYLE))
    return tables


def _format_seconds(seconds: Quartiles) -> tuple[str, str]:
    """Return the median in s, ms or µs, and half the distance between the quartiles relative to it."""
    median = seconds["median"]
    if median >= 1:
        formatted = f"{median:.4g} s"
    elif median >= 1e-3:
        formatted = f"{median * 1e3:.4g} ms"
    else:
        formatted = f"{median * 1e6:.4g} µs"
    return formatted, f"{(seconds['high'] - seconds['low']) / 2 / median:.0%}"
