from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ropewalk.cli.output import JsonOption, ModelArgument, console, err_console, print_json
from ropewalk.errors import InputError
from ropewalk.lengths import parse_length
from ropewalk.scaling import Scaling, parse
from ropewalk.scaling.policies import DEFAULT_POLICY, POLICIES, Policy, parse_policy

if TYPE_CHECKING:
    from ropewalk.evaluate.curve_store import CurveStore
    from ropewalk.evaluate.perplexity import CurveRow, Key, Point
    from ropewalk.evaluate.texts import Text


def command(
    model: ModelArgument,
    scaling: Annotated[list[str], typer.Option(help="name:option=value,... or JSON; give it once for each.")],
    lengths: Annotated[str, typer.Option(help="Lengths to measure at: 2k,4k,8k,16k.", show_default=False)],
    text: Annotated[str, typer.Option(help="File, folder, hf:DATASET[:SPLIT[:FIELD]], or pydoc.", show_default=False)],
    out: Annotated[str, typer.Option(help="Folder for curve.json, curve.csv and curve.png.", show_default=False)],
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32; chosen by the device if not given.")] = "",
    cached: Annotated[bool, typer.Option("--cached", help="Read through the KV cache too, as a chat does.")] = False,
    chunk: Annotated[str, typer.Option(help="With --cached: tokens at a time.")] = "512",
    policy: Annotated[str, typer.Option(help=f"With --cached: {', '.join(POLICIES)}; options as above.")] = "stepped",
    json: JsonOption = False,
) -> None:
    """Measure perplexity against length under one or several scalings."""
    numbers = [parse_length(part, "lengths") for part in lengths.split(",") if part.strip()]
    chunks = [None, parse_length(chunk, "chunk")][: 1 + cached]
    run(model, [parse(spec) for spec in scaling], numbers, text, out, dtype or None, json, chunks, parse_policy(policy))


def run(
    name: str,
    scalings: list[Scaling],
    lengths: list[int],
    text_name: str,
    out: str,
    dtype: str | None,
    json: bool,
    chunks: Sequence[int | None] = (None,),
    policy: Policy = DEFAULT_POLICY,
) -> None:
    """Measure what `out` does not hold yet; then show all of it.

    `chunks`: None to read the text at once, a number to read it through the KV cache, so many tokens at a time.
    """
    from ropewalk.evaluate.curve_store import CurveStore
    from ropewalk.evaluate.perplexity import passes
    from ropewalk.evaluate.texts import read_text
    from ropewalk.models.load import choose_dtype, load_config
    from ropewalk.report.curve import curve_sentence, curve_table, draw_curve

    if not lengths:
        raise InputError("lengths", "none", "at least one length")
    if not scalings:
        raise InputError("scaling", "none", "at least one scaling")
    kind = choose_dtype(dtype)
    text = read_text(text_name)
    model_config = load_config(name)
    original_length = model_config.main_layer.rope.original_length
    store = CurveStore(out, {"model": name, "text": text.name, "dtype": kind, "text_sha256": text.digest})
    scalings, lengths = list(dict.fromkeys(scalings)), sorted(set(lengths))

    def ahead(done: Collection[Key]) -> list[list[Point]]:
        return [group for chunk in chunks for group in passes(model_config, lengths, scalings, done, chunk, policy)]

    points = [point for group in ahead(()) for point in group]
    points.sort(key=lambda point: (scalings.index(point.scaling), point.chunk or 0, point.length))
    asked = [point.key for point in points]

    def draw() -> None:
        rows = [store.rows[point] for point in asked if point in store.rows]
        draw_curve(rows, store.figure_path, model=name, text=text.name, original_length=original_length)

    total = sum(group[-1].length for group in ahead(store.rows))
    if total:
        _measure(name, kind, text, lengths, scalings, chunks, policy, store, draw, total)
    rows = [store.rows[point] for point in asked]
    draw()
    if json:
        print_json(store.document(rows))
        return
    console.print(curve_table(rows))
    console.print(curve_sentence(rows, original_length), highlight=False)
    console.print(f"Results: {store.json_path}, curve.csv and {store.figure_path}", highlight=False)


def _measure(
    name: str,
    dtype: str,
    text: Text,
    lengths: list[int],
    scalings: list[Scaling],
    chunks: Sequence[int | None],
    policy: Policy,
    store: CurveStore,
    draw: Callable[[], None],
    total: int,
) -> None:
    """Read the text and keep every row as it comes, with a progress bar over `total` tokens."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from ropewalk.evaluate.perplexity import perplexity_curve
    from ropewalk.models.load import load
    from ropewalk.report.curve import label

    err_console.print(f"loading {name} ...")
    model, tokenizer = load(name, dtype=dtype)
    tokens = tokenizer(text.content, verbose=False)["input_ids"]

    def keep(row: CurveRow) -> None:
        store.add(row)
        draw()
        if not err_console.is_terminal:
            err_console.print(f"{label(row)} at {row['length']:,} tokens: perplexity {row['ppl']:.3f}", highlight=False)

    columns = (
        TextColumn("reading"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} tokens"),
        TextColumn("{task.fields[speed]:,.0f} tokens/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err_console, disable=not err_console.is_terminal) as progress:
        bar = progress.add_task("", total=total, speed=0.0)

        def tell(read: float) -> None:
            progress.update(bar, advance=read, speed=progress.tasks[bar].speed or 0.0)

        try:
            for chunk in chunks:
                perplexity_curve(
                    model,
                    tokens,
                    lengths,
                    scalings,
                    chunk=chunk,
                    policy=policy,
                    done=store.rows,
                    on_row=keep,
                    on_tokens=tell,
                )
        except KeyboardInterrupt:
            progress.stop()
            err_console.print(f"{len(store.rows)} rows are safe in {store.folder}; the same command goes on from there")
            raise
