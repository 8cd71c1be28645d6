"""`ropewalk curve`: perplexity against length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ropewalk.cli.options import DtypeOption, JsonOption, ModelArgument, ScalingsOption
from ropewalk.cli.output import console, err_console, print_json
from ropewalk.cli.progress import token_progress
from ropewalk.errors import InputError
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
    longppl: Annotated[
        bool,
        typer.Option(
            "--longppl",
            help="Also measure LongPPL, the perplexity over key tokens: those that only the long context predicts.",
        ),
    ] = False,
    evaluator: Annotated[
        str,
        typer.Option(
            help="With --longppl: another model, or a scaling of this one, that finds the key tokens; by default this "
            "model under the scaling that `ropewalk plan` chooses, which favors similar scalings."
        ),
    ] = "",
    json: JsonOption = False,
) -> None:
    """Measure perplexity against length, and the cost on short text, under one or several scalings.

    Perplexity hardly separates scalings that retrieve well from others; LongPPL is made for that (arXiv 2410.23771).
    """
    if evaluator and not longppl:
        raise InputError("evaluator", evaluator, "--longppl beside it")
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
        evaluator=evaluator if longppl else None,
    )
    run_and_show(run, json)


def run_and_show(run: CurveRun, json: bool) -> None:
    """Measure the rows that the folder lacks, with a progress bar, and print all rows of the run."""
    from ropewalk.report import curve as curves

    model = run.store.header["model"]
    about: Any = {"model": model, "text": run.text.name, "original_length": run.original_length}
    figure_path = run.store.folder / "curve.png"
    longppl_path = run.store.folder / "longppl.png"

    def draw() -> None:
        curves.draw_curve(run.rows(), figure_path, **about)

    def show_row(row: CurveRow) -> None:
        draw()
        if not err_console.is_terminal:
            err_console.print(f"{curves.row_label(row)} at {row['length']:,} tokens: perplexity {row['ppl']:.3f}")

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
    longppl_rows = [row for row in rows if row["longppl"] is not None] if run.evaluator else []
    if longppl_rows:
        curves.draw_longppl(longppl_rows, longppl_path, **about)
    taxes = run.short_taxes()
    if json:
        print_json({**run.store.document(rows), "short_tax": taxes})
        return
    console.print(curves.curve_table(rows))
    if longppl_rows:
        console.print(curves.longppl_table(longppl_rows))
        console.print(curves.evaluator_sentence(longppl_rows))
    elif run.evaluator:
        console.print(f"No key tokens were found by the model {run.evaluator.name}, so there is no LongPPL.")
    if taxes:
        console.print(curves.short_tax_table(taxes))
    console.print(curves.curve_sentence(rows, run.original_length))
    pictures = f"{figure_path} and {longppl_path}" if longppl_rows else str(figure_path)
    console.print(f"Results: {run.store.json_path}, curve.csv and {pictures}")
