"""`ropewalk curve`: perplexity against length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ropewalk.cli.options import DtypeOption, JsonOption, ModelArgument, ScalingsOption
from ropewalk.cli.output import console, err_console, print_json
from ropewalk.cli.progress import token_progress
from ropewalk.lengths import parse_length, parse_lengths
from ropewalk.scaling.policies import POLICIES

if TYPE_CHECKING:
    from ropewalk.evaluate.curve import CurveRun
    from ropewalk.evaluate.curve_store import CurveRow


def command(
    model: ModelArgument,
    scaling: ScalingsOption,
    lengths: Annotated[str, typer.Option(help="Lengths to measure at, such as 2k,4k,8k,16k.", show_default=False)],
    text: Annotated[
        str,
        typer.Option(help="Text to read: a file, a folder, hf:DATASET[:SPLIT[:FIELD]], or pydoc.", show_default=False),
    ],
    out: Annotated[str, typer.Option(help="Folder for curve.json, curve.csv and curve.png.", show_default=False)],
    dtype: DtypeOption = "",
    cached: Annotated[
        bool, typer.Option("--cached", help="Also read the text in chunks through the KV cache, as a chat does.")
    ] = False,
    chunk: Annotated[str, typer.Option(help="With --cached: tokens per forward call.")] = "512",
    policy: Annotated[
        str, typer.Option(help=f"With --cached: how dynamic scalings follow the text; {', '.join(POLICIES)}.")
    ] = "stepped",
    json: JsonOption = False,
) -> None:
    """Measure perplexity against length under one or several scalings."""
    chunk_tokens = parse_length(chunk, "chunk")
    from ropewalk.evaluate.curve import CurveRun

    run = CurveRun(
        model,
        scaling,
        parse_lengths(lengths),
        text,
        out,
        dtype=dtype or None,
        chunks=[None, chunk_tokens] if cached else [None],
        policy=policy,
    )
    run_and_show(run, json)


def run_and_show(run: CurveRun, json: bool) -> None:
    """Measure the rows that the folder lacks, with a progress bar, and print all rows of the run."""
    from ropewalk.report.curve import curve_sentence, curve_table, draw_curve, row_label

    model = run.store.header["model"]
    figure_path = run.store.folder / "curve.png"

    def draw() -> None:
        draw_curve(run.rows(), figure_path, model=model, text=run.text.name, original_length=run.original_length)

    def show_row(row: CurveRow) -> None:
        draw()
        if not err_console.is_terminal:
            err_console.print(f"{row_label(row)} at {row['length']:,} tokens: perplexity {row['ppl']:.3f}")

    remaining = run.remaining_tokens()
    if remaining:
        err_console.print(f"loading {model} ...")
    try:
        with token_progress(remaining, "reading") as update:
            rows = run.run(show_row, update)
    except KeyboardInterrupt:
        err_console.print(
            f"{len(run.store.rows)} rows are safe in {run.store.folder}; the same command continues from there"
        )
        raise
    draw()
    if json:
        print_json(run.store.document(rows))
        return
    console.print(curve_table(rows))
    console.print(curve_sentence(rows, run.original_length))
    console.print(f"Results: {run.store.json_path}, curve.csv and {figure_path}")
