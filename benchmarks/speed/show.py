"""What was measured, as tables for people. Every ratio is of speeds: above 1 is the faster one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.speed.timing import Spread
from rich.box import SIMPLE_HEAD
from rich.table import Table


def rotate_tables(rows: Sequence[Mapping[str, Any]]) -> list[Table | str]:
    """A table of each case; at the end what its columns say, and why some were not timed."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        for name, found in row.get("contestants", {}).items():
            if (reason := found.get("reason")) and reason not in reasons.setdefault(name, []):
                reasons[name].append(reason)
    said = [
        "±: half the distance of the quartiles. x copy: speed against a plain copy, into new memory, or for what works "
        "in place into existing memory. x large: against a copy into new memory in large pages, which ours asks "
        "for. x peer: speed against the fastest peer, of those that work alike if any do.",
        *(f"{name}, not timed: {'; '.join(why)}" for name, why in reasons.items() if why),
    ]
    return [*map(_case_table, rows), *said]


def _case_table(row: Mapping[str, Any]) -> Table | str:
    phase = f"decode, batch {row['batch']}" if row["tokens"] == 1 else f"prefill, {row['tokens']:,} tokens"
    title = f"{row['shape']}, {phase}, {row['dtype']}, {row['bytes'] / 2**20:,.3g} MiB moved"
    if "reason" in row:
        return f"{title}, not measured: {row['reason']}"
    title += f", {row['rounds']} rounds"
    ratios = {"x copy": "of_limit", "x large": "of_large_pages", "x peer": "of_best_peer"}
    if not any("of_large_pages" in found for found in row["contestants"].values()):
        del ratios["x large"]
    # Without padding: the box leaves a space between columns, and 80 characters have to do.
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("", no_wrap=True)
    for column in ("time", "±", "GB/s", *ratios):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("the peer", no_wrap=True)
    for name, found in row["contestants"].items():
        if "seconds" in found:
            table.add_row(
                f"[bold]{name}[/bold]" if found["role"] == "ours" else name,
                *_times(found["seconds"]),
                f"{found['gb_per_second']:.1f}",
                *(f"{found[ratio]['median']:.2f}" if ratio in found else "" for ratio in ratios.values()),
                found.get("best_peer", ""),
            )
    return table


def models_tables(run: Mapping[str, Any]) -> list[Table | str]:
    """Of each length what the ways of going take, and their comparisons."""
    tables: list[Table | str] = []
    for row in run["rows"]:
        title = f"{run['model']} in {run['dtype']}, {run['scaling']}, {row['tokens']:,} tokens"
        if "reason" in row:
            tables.append(f"{title}, not measured: {row['reason']}")
            continue
        ways = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        ways.add_column("", no_wrap=True)
        for column in ("time", "±", "tokens/s"):
            ways.add_column(column, justify="right", no_wrap=True)
        for way, found in row["ways"].items():
            ways.add_row(way, *_times(found["seconds"]), f"{found['tokens_per_second']['median']:,.4g}")
        compared = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        compared.add_column("", no_wrap=True)
        compared.add_column("speed", justify="right")
        compared.add_column("quartiles", justify="right")
        for name, ratio in row["speed"].items():
            compared.add_row(name, f"{ratio['median']:.3f}", f"{ratio['low']:.3f} to {ratio['high']:.3f}")
        tables += [ways, compared]
    return tables


def _times(seconds: Spread) -> tuple[str, str]:
    """The median, in the unit that suits it, and half the distance of the quartiles as a part of it."""
    median = seconds["median"]
    unit, times = ("s", 1.0) if median >= 1 else ("ms", 1e3) if median >= 1e-3 else ("µs", 1e6)
    return f"{median * times:.4g} {unit}", f"{(seconds['high'] - seconds['low']) / 2 / median:.0%}"
