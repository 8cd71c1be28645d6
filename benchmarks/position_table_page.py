"""The page of docs with the measurements of `benchmarks.position_table` and `benchmarks.position_retrieval`.

python -m benchmarks.position_table_page > docs/position-table.md
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks import position_retrieval, position_table
from benchmarks.common import load_result
from benchmarks.position_retrieval import DEPTHS, TASKS
from benchmarks.position_table import NATIVE_WINDOW
from benchmarks.position_variants import VARIANTS

Row = Mapping[str, Any]
COST_REFERENCE = "yarn:factor=2"
_LABELS = (NATIVE_WINDOW, *(variant.label for variant in VARIANTS))


def main() -> None:
    """Print the page."""
    print(render_page(load_result(position_table.RESULT), load_result(position_retrieval.RESULT)))


def render_page(document: Mapping[str, Any], retrieval: Mapping[str, Any]) -> str:
    """Return the page in Markdown of results/position_table.json and results/position_retrieval.json."""
    rows, length = document["rows"], document["original_length"]
    perplexity = [row for row in rows if row["part"] == "perplexity"]
    cost = [row for row in rows if row["part"] == "cost"]
    sections = [
        "# Scalings and position methods compared",
        "<!-- Written by `python -m benchmarks.position_table_page > docs/position-table.md`. Do not edit. -->",
        f"{document['model']}, trained on L = {length:,} tokens. What the methods do: [methods](methods.md), "
        "[positions](positions.md). Perplexity and cost: `python -m benchmarks.position_table --texts pydoc book.txt`, "
        f"{_origin(document)}, [results](../benchmarks/results/position_table.json). Retrieval: `python -m "
        f"benchmarks.position_retrieval`, {_origin(retrieval)}, "
        "[results](../benchmarks/results/position_retrieval.json).",
        "## Summary",
        "\n".join(f"- {line}" for line in _summarize(perplexity, retrieval["rows"])),
        "## Perplexity",
        f"Of the tokens 0 to {_k(length)}, {_k(length)} to {_k(2 * length)} and {_k(2 * length)} to {_k(4 * length)} "
        f"of each text. `{NATIVE_WINDOW}`: the model as it is, which reads its last {length:,} tokens again for every "
        "1,024; a method is better past L if it is below that. Bold: below it. pydoc is the text of the help pages of "
        "the Python that ran, so its numbers compare within this table only. Position methods do not change the first "
        "L tokens; within a longer text, other kernel calls read them, which round differently in bfloat16.",
        *_render_perplexity(perplexity, length),
        "## Retrieval",
        f"Numbers found at {DEPTHS} depths, from the beginning of the text to its end; each digit is how many were "
        "found at one depth. Empty: not measured, or longer than the factor is for.",
        _render_retrieval(retrieval["rows"]),
        "## Cost",
        f"One text at a time, with PyTorch's attention (sdpa), beside `{COST_REFERENCE}`. Every static scaling costs "
        "what that one costs, and what the model costs without a scaling: only the tables differ. Memory is the most "
        "that was in use beside the weights.",
        _render_cost(cost),
    ]
    return "\n\n".join(sections)


def _origin(document: Mapping[str, Any]) -> str:
    """Return on which device, in which dtype and when a document was measured."""
    devices = dict.fromkeys(f"{row['device']}, {row['dtype']}" for row in document["rows"])
    return f"{'; '.join(devices)}, {document['date']}, torch {document['versions']['torch']}"


def _summarize(perplexity: Sequence[Row], retrieval: Sequence[Row]) -> list[str]:
    lines = []
    for dtype in dict.fromkeys(row["dtype"] for row in perplexity):
        table = _perplexity_table(row for row in perplexity if row["dtype"] == dtype)
        native = table[NATIVE_WINDOW]
        texts = list(native)
        for index, name in ((1, "from L to 2 L"), (2, "from 2 L to 4 L")):
            better = [
                label
                for label, by_text in table.items()
                if all(by_text[text][index] < native[text][index] for text in texts if text in by_text)
                and set(by_text) == set(texts)
            ]
            lines.append(f"Perplexity {name} below the native window on {_and(texts)} ({dtype}): {_names(better)}.")
        worse = [
            label
            for label, by_text in table.items()
            if any(by_text[text][0] > native[text][0] * 1.001 for text in by_text)
        ]
        lines.append(
            f"Perplexity of the first L tokens more than 0.1 % above the unscaled model ({dtype}): {_names(worse)}."
        )
    for task in TASKS:
        of_task = [row for row in retrieval if row["task"] == task]
        for length in dict.fromkeys(row["length"] for row in of_task):
            counts = {label: _found(of_task, label, length) for label in _LABELS}
            measured = [label for label, (_, total) in counts.items() if total]
            found = [label for label in measured if counts[label][0] == counts[label][1]]
            methods = "1 method" if len(measured) == 1 else f"{len(measured)} methods"
            lines.append(f"Every number found, {task}, {length:,} tokens, of the {methods} measured: {_names(found)}.")
    return lines


def _render_perplexity(rows: Sequence[Row], length: int) -> list[str]:
    sections = []
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        table = _perplexity_table(row for row in rows if row["dtype"] == dtype)
        native = table[NATIVE_WINDOW]
        ranges = [f"0-{_k(length)}", f"{_k(length)}-{_k(2 * length)}", f"{_k(2 * length)}-{_k(4 * length)}"]
        lines = [[dtype, *(f"{text} {part}" for text in native for part in ranges)]]
        for label, by_text in table.items():
            cells = []
            for text, reference in native.items():
                for index, value in enumerate(by_text.get(text, ())):
                    is_better = index > 0 and value < reference[index]
                    cells.append(f"**{_number(value)}**" if is_better else _number(value))
                cells += [""] * (len(reference) - len(by_text.get(text, ())))
            lines.append([f"`{label}`", *cells])
        sections.append(_render_table(lines))
    return sections


def _render_retrieval(rows: Sequence[Row]) -> str:
    lengths = sorted({row["length"] for row in rows})
    lines = [["", *(f"{task} {length:,}" for task in TASKS for length in lengths)]]
    for label in _LABELS:
        cells = []
        for task in TASKS:
            for length in lengths:
                matching = [row for row in rows if (row["task"], row["method"], row["length"]) == (task, label, length)]
                by_depth = [sum(found) for found in zip(*(row["found"] for row in matching), strict=True)]
                hits, total = _found(matching, label, length)
                cells.append(f"{hits}/{total} `{''.join(map(str, by_depth))}`" if total else "")
        if any(cells):
            lines.append([f"`{label}`", *cells])
    return _render_table(lines)


def _render_cost(rows: Sequence[Row]) -> str:
    plain = next(row for row in rows if row["method"] == COST_REFERENCE)
    context = plain["context"]
    lines = [["", f"reading {context:,} tokens", "each token after", "memory"]]
    for row in rows:
        if row["method"] == "none":  # measured first, so that it warms up the device
            continue
        prefill, token, peak = row["prefill_seconds"], row["seconds_per_token"], row["peak_bytes"]
        memory = "" if peak is None else f"{peak / 2**30:.2f} GiB ({peak / plain['peak_bytes']:.2f})"
        lines.append(
            [
                f"`{row['method']}`",
                f"{prefill * 1e3:.0f} ms ({prefill / plain['prefill_seconds']:.2f})",
                f"{token * 1e3:.1f} ms ({token / plain['seconds_per_token']:.2f})",
                memory,
            ]
        )
    return _render_table(lines)


def _perplexity_table(rows: Iterable[Row]) -> dict[str, dict[str, list[float]]]:
    """Return the perplexities by method and text, in the order of the table."""
    table: dict[str, dict[str, list[float]]] = {label: {} for label in _LABELS}
    for row in rows:
        table[row["method"]][row["text"]] = row["perplexity"]
    return {label: by_text for label, by_text in table.items() if by_text}


def _found(rows: Sequence[Row], label: str, length: int) -> tuple[int, int]:
    """Return how many numbers a method found at a length, and how many there were."""
    found = [hit for row in rows if (row["method"], row["length"]) == (label, length) for hit in row["found"]]
    return sum(found), len(found)


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.3g}"


def _k(tokens: int) -> str:
    return f"{tokens / 1024:g}k"


def _names(labels: Sequence[str]) -> str:
    return ", ".join(f"`{label}`" for label in labels) or "none of them"


def _and(texts: Sequence[str]) -> str:
    return " and ".join(texts)


def _render_table(lines: Sequence[Sequence[str]]) -> str:
    heading, *rest = lines
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heading, ["---"] * len(heading), *rest))


if __name__ == "__main__":
    main()
