"""`ropewalk bench rotate`, `bench curve`, `bench decode`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ropewalk.cli.output import Json, Model, people, print_json, results
from ropewalk.errors import InputError, check_length
from ropewalk.lengths import parse_length
from ropewalk.scaling import parse

if TYPE_CHECKING:
    from benchmarks.speed.results import Results

Out = Annotated[str, typer.Option(help="Folder for DEVICE-DATE.json.")]
Rounds = Annotated[int, typer.Option(help="Times that all are measured, in turn.")]
Dtype = Annotated[str, typer.Option(help="bfloat16, float16 or float32; chosen by the device if not given.")]
Device = Annotated[str, typer.Option(help="As torch names it; a GPU where there is one if not given.")]

_OUT = "benchmarks/results"
_DTYPES = ("float32", "bfloat16", "float16")
_OF_A_CASE = 2**28  # bytes as whose moving the fixed work of a case (compiling, short rounds) counts in the bar

group = typer.Typer(help="Measure how fast the rotation and whole models are, against others.", no_args_is_help=True)


@group.command("rotate")
def rotate(
    shapes: Annotated[str, typer.Option(help="llama-3-8b,qwen3-32b,deepseek-v3,smollm2; all if not given.")] = "",
    tokens: Annotated[str, typer.Option(help="Lengths of a prefill; none for decoding alone.")] = "4k,32k",
    batches: Annotated[str, typer.Option(help="Rows of a decoding step; none for prefill alone.")] = "1,16,256",
    dtype: Annotated[str, typer.Option(help=f"Of q and k: {', '.join(_DTYPES)}.")] = "float32,bfloat16",
    device: Device = "",
    rounds: Rounds = 20,
    out: Out = _OUT,
    json: Json = False,
) -> None:
    """One rotation of q and k: ours, transformers', torch.compile's, flash-attn's, Liger's, vLLM's, FlashInfer's.

    All are checked against float64, then timed in turn, beside a plain copy of the same bytes: the limit.
    """
    import torch
    from benchmarks.speed.device import find_device
    from benchmarks.speed.figure import draw_speed
    from benchmarks.speed.peers import PEERS
    from benchmarks.speed.results import Results
    from benchmarks.speed.rotate import measure
    from benchmarks.speed.shapes import SHAPES, Case
    from benchmarks.speed.show import rotate_tables

    from ropewalk.models.load import default_device
    from ropewalk.ops import backend_for
    from ropewalk.registry import find_by_name

    check_length("rounds", rounds, "rounds")
    place = find_device(device or str(default_device()))
    steps = [(1, _prefill(part)) for part in _parts(tokens)]
    steps += [(_batch(part), 1) for part in _parts(batches)]
    cases = [
        Case(find_by_name("shapes", shape, SHAPES), batch, length, getattr(torch, _dtype(kind)), place)
        for kind in _parts(dtype)
        for shape in _parts(shapes) or SHAPES
        for batch, length in steps
    ]
    cases = list(dict.fromkeys(cases))
    if not cases:
        raise InputError("tokens", "none, and no batches or dtype", "at least one case to measure")
    packages = tuple(dict.fromkeys(peer.package for peer in PEERS.values() if peer.package))
    kept = Results(out, "rotate", place, _command(), packages, {"rotation": backend_for(place.type).variant})
    with _progress(kept, sum(_OF_A_CASE + case.moved for case in cases)) as (say, advance):
        for case in cases:
            say(str(case))
            kept.add(measure(case, rounds))
            advance(_OF_A_CASE + case.moved)
    rows = kept.run["rows"]
    contestants = [found for row in rows for found in row.get("contestants", {}).values()]
    ours = [found for found in contestants if found["role"] == "ours"]
    _need_one(kept, "seconds", ours or rows)
    if find_spec("matplotlib"):
        draw_speed(rows, kept.path.with_suffix(".png"), kept.document["device"])
    else:
        people.print("no picture: matplotlib is not installed")
    _show(kept, json, rotate_tables(rows))


@group.command("curve")
def curve(
    model: Model = "smollm2",
    scaling: Annotated[str, typer.Option(help="name:option=value,... or JSON.")] = "yarn:factor=4",
    tokens: Annotated[str, typer.Option(help="Lengths to read: 4k,32k.")] = "4k",
    dtype: Dtype = "",
    device: Device = "",
    rounds: Rounds = 8,
    out: Out = _OUT,
    json: Json = False,
) -> None:
    """A whole pass over a text: scaling on against off, fused against unfused."""
    _models(
        "curve",
        model,
        scaling,
        [parse_length(part, "tokens") for part in _parts(tokens)],
        dtype,
        device,
        rounds,
        out,
        json,
    )


@group.command("decode")
def decode(
    model: Model = "smollm2",
    scaling: Annotated[str, typer.Option(help="name:option=value,... or JSON.")] = "yarn:factor=4",
    context: Annotated[str, typer.Option(help="Tokens in the KV cache: 4k,32k.")] = "4k",
    dtype: Dtype = "",
    device: Device = "",
    rounds: Rounds = 24,
    out: Out = _OUT,
    json: Json = False,
) -> None:
    """Tokens per second behind a context: scaling on against off, fused against unfused."""
    _models(
        "decode",
        model,
        scaling,
        [parse_length(part, "context") for part in _parts(context)],
        dtype,
        device,
        rounds,
        out,
        json,
    )


def _models(
    bench: str, name: str, spec: str, lengths: list[int], dtype: str, device: str, rounds: int, out: str, json: bool
) -> None:
    from benchmarks.speed import models
    from benchmarks.speed.device import find_device
    from benchmarks.speed.results import Results
    from benchmarks.speed.show import models_tables

    from ropewalk.models.load import choose_dtype, default_device, load
    from ropewalk.ops import backend_for

    check_length("rounds", rounds, "rounds")
    if not lengths:
        raise InputError("context" if bench == "decode" else "tokens", "none", "at least one length")
    lengths = list(dict.fromkeys(lengths))
    scaling = parse(spec)
    place = find_device(device or str(default_device()))
    kind = choose_dtype(dtype or None, place)
    about = {"model": name, "dtype": kind, "scaling": str(scaling), "rotation": backend_for(place.type).variant}
    kept = Results(out, bench, place, _command(), (), about)
    people.print(f"loading {name} ...")
    model, _ = load(name, dtype=kind, device=str(place))
    with _progress(kept, sum(lengths) * len(models.WAYS) * (1 + rounds)) as (say, advance):
        for length in lengths:
            say(f"{length:,} tokens")
            kept.add(models.measure(bench, model, scaling, length, rounds, partial(advance, length)))
    _need_one(kept, "ways", kept.run["rows"])
    _show(kept, json, models_tables(kept.run))


@contextmanager
def _progress(kept: Results, total: int) -> Iterator[tuple[Callable[[str], None], Callable[[int], None]]]:
    """A bar with the time that is left; gives what says what is being measured, and what moves the bar on.

    What others' code prints meanwhile goes to standard error.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        TextColumn("{task.percentage:.0f}%"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    bars = Progress(*columns, console=people, disable=not people.is_terminal)
    with redirect_stdout(sys.stderr), bars as progress:
        bar = progress.add_task("", total=total)

        def say(current: str) -> None:
            progress.update(bar, description=current)
            if not people.is_terminal:
                people.print(current, highlight=False)

        def advance(done: int) -> None:
            progress.update(bar, advance=done)

        try:
            yield say, advance
        except KeyboardInterrupt:
            progress.stop()
            people.print(f"{len(kept.run['rows'])} measurements are safe in {kept.path}", highlight=False)
            raise


def _need_one(kept: Results, key: str, measured: Sequence[Mapping[str, Any]]) -> None:
    """Raises RuntimeError with the reasons where nothing of ours has its numbers under `key`."""
    if not any(key in found for found in measured):
        reasons = dict.fromkeys(found["reason"] for found in measured)
        raise RuntimeError(f"nothing of ours could be timed: {'; '.join(reasons)} ({kept.path})")


def _show(kept: Results, json: bool, tables: Iterable[Table | str]) -> None:
    if json:
        print_json(kept.document)
        return
    for table in tables:
        results.print(table, highlight=False)
    results.print(f"Results: {kept.path}", highlight=False)


def _command() -> str:
    return shlex.join(["ropewalk", *sys.argv[1:]])


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _prefill(text: str) -> int:
    tokens = parse_length(text, "tokens")
    if tokens == 1:
        raise InputError("tokens", text, "a prefill of 2 tokens or more; --batches is for decoding")
    return tokens


def _batch(text: str) -> int:
    if not text.isdecimal():
        raise InputError("batches", text, "whole numbers of rows, as 1,16,256")
    return check_length("batches", int(text), "rows")


def _dtype(text: str) -> str:
    if text not in _DTYPES:
        raise InputError("dtype", text, ", ".join(_DTYPES))
    return text
