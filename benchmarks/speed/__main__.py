"""The commands `python -m benchmarks.speed rotate`, `curve` and `decode`."""

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

from ropewalk import cli
from ropewalk.cli.options import JsonOption, ModelArgument
from ropewalk.cli.output import console, err_console, print_json
from ropewalk.errors import InputError, check_length
from ropewalk.lengths import parse_length, parse_lengths
from ropewalk.registry import find_by_name
from ropewalk.scaling import parse

if TYPE_CHECKING:
    from benchmarks.speed.results import ResultsFile

OutOption = Annotated[str, typer.Option(help="Folder for DEVICE-DATE.json.")]
RoundsOption = Annotated[int, typer.Option(help="How often each implementation or variant is timed.")]
DtypeOption = Annotated[str, typer.Option(help="bfloat16, float16 or float32; by default what suits the device.")]
DeviceOption = Annotated[str, typer.Option(help="A torch device; by default a GPU if there is one.")]
ScalingOption = Annotated[str, typer.Option(help="Scaling as name:option=value,... or JSON.")]

_RESULTS_FOLDER = "benchmarks/results"
_DTYPES = ("float32", "bfloat16", "float16")
# In the progress bar the fixed costs of a case, such as compilation, count as much as moving this many bytes.
_CASE_OVERHEAD_BYTES = 2**28

app = typer.Typer(
    name="benchmarks.speed",
    help="Measure how fast the rotation and whole models are, compared with other projects.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command("rotate")
def rotate(
    shapes: Annotated[str, typer.Option(help="llama-3-8b,qwen3-32b,deepseek-v3,smollm2; by default all.")] = "",
    tokens: Annotated[str, typer.Option(help="Lengths in prefill; empty for decoding only.")] = "4k,32k",
    batches: Annotated[str, typer.Option(help="Batch sizes in decoding; empty for prefill only.")] = "1,16,256",
    dtype: Annotated[str, typer.Option(help=f"Dtypes of q and k: {', '.join(_DTYPES)}.")] = "float32,bfloat16",
    device: DeviceOption = "",
    rounds: RoundsOption = 20,
    out: OutOption = _RESULTS_FOLDER,
    json: JsonOption = False,
) -> None:
    """Rotate q and k of one layer with ropewalk, transformers, torch.compile, flash-attn, Liger, vLLM and FlashInfer.

    Each result is checked against float64. Then all alternate with a plain copy of the same bytes, which is the limit.
    """
    import torch

    from benchmarks.speed.cases import MODEL_SHAPES, Case
    from benchmarks.speed.environment import find_device
    from benchmarks.speed.figure import draw_rotation_speed
    from benchmarks.speed.implementations import IMPLEMENTATIONS
    from benchmarks.speed.results import ResultsFile
    from benchmarks.speed.rotation import measure_rotation
    from benchmarks.speed.tables import rotation_tables
    from ropewalk.models.load import default_device
    from ropewalk.ops import backend_for

    check_length("rounds", rounds, "rounds")
    torch_device = find_device(device or str(default_device()))
    batches_and_tokens = [(1, _parse_prefill_length(part)) for part in _split(tokens)]
    batches_and_tokens += [(_parse_batch(part), 1) for part in _split(batches)]
    model_shapes = [find_by_name("shapes", name, MODEL_SHAPES) for name in _split(shapes) or MODEL_SHAPES]
    torch_dtypes = [getattr(torch, _check_dtype(name)) for name in _split(dtype)]
    cases = [
        Case(shape, batch, length, torch_dtype, torch_device)
        for torch_dtype in torch_dtypes
        for shape in model_shapes
        for batch, length in batches_and_tokens
    ]
    cases = list(dict.fromkeys(cases))
    if not cases:
        raise InputError("tokens", "no lengths, batches or dtypes", "at least one case to measure")
    packages = [implementation.package for implementation in IMPLEMENTATIONS.values() if implementation.package]
    details = {"rotation": backend_for(torch_device.type).variant}
    file = ResultsFile(out, "rotate", torch_device, _command_line(), dict.fromkeys(packages), details)
    with _progress_bar(file, sum(_CASE_OVERHEAD_BYTES + case.bytes_moved for case in cases)) as (describe, advance):
        for case in cases:
            describe(str(case))
            file.add_row(measure_rotation(case, rounds))
            advance(_CASE_OVERHEAD_BYTES + case.bytes_moved)
    rows = file.run["rows"]
    contestants = [found for row in rows for found in row.get("contestants", {}).values()]
    ours = [found for found in contestants if found["role"] == "ours"]
    _check_something_was_timed(file, "seconds", ours or rows)
    if find_spec("matplotlib"):
        draw_rotation_speed(rows, file.path.with_suffix(".png"), file.document["device"])
    else:
        err_console.print("matplotlib is not installed, so no picture is drawn")
    _show_results(file, json, rotation_tables(rows))


@app.command("curve")
def curve(
    model: ModelArgument = "smollm2",
    scaling: ScalingOption = "yarn:factor=4",
    tokens: Annotated[str, typer.Option(help="Lengths of the text, such as 4k,32k.")] = "4k",
    dtype: DtypeOption = "",
    device: DeviceOption = "",
    rounds: RoundsOption = 8,
    out: OutOption = _RESULTS_FOLDER,
    json: JsonOption = False,
) -> None:
    """Time a forward pass over a whole text: scaling on against off, fused against unfused rotation."""
    lengths = _parse_model_lengths(tokens, "tokens")
    _benchmark_model("curve", model, scaling, lengths, dtype, device, rounds, out, json)


@app.command("decode")
def decode(
    model: ModelArgument = "smollm2",
    scaling: ScalingOption = "yarn:factor=4",
    context: Annotated[str, typer.Option(help="Tokens in the KV cache, such as 4k,32k.")] = "4k",
    dtype: DtypeOption = "",
    device: DeviceOption = "",
    rounds: RoundsOption = 24,
    out: OutOption = _RESULTS_FOLDER,
    json: JsonOption = False,
) -> None:
    """Time decoding after a context: scaling on against off, fused against unfused rotation."""
    lengths = _parse_model_lengths(context, "context")
    _benchmark_model("decode", model, scaling, lengths, dtype, device, rounds, out, json)


def _benchmark_model(
    bench: str, name: str, spec: str, lengths: list[int], dtype: str, device: str, rounds: int, out: str, json: bool
) -> None:
    from benchmarks.speed.environment import find_device
    from benchmarks.speed.models import VARIANTS, measure_model
    from benchmarks.speed.results import ResultsFile
    from benchmarks.speed.tables import model_tables
    from ropewalk.models.load import choose_dtype, default_device, load
    from ropewalk.ops import backend_for

    check_length("rounds", rounds, "rounds")
    lengths = list(dict.fromkeys(lengths))
    scaling = parse(spec)
    torch_device = find_device(device or str(default_device()))
    dtype_name = choose_dtype(dtype or None, torch_device)
    rotation = backend_for(torch_device.type).variant
    details = {"model": name, "dtype": dtype_name, "scaling": str(scaling), "rotation": rotation}
    file = ResultsFile(out, bench, torch_device, _command_line(), (), details)
    err_console.print(f"loading {name} ...")
    model, _ = load(name, dtype=dtype_name, device=str(torch_device))
    passes_per_length = len(VARIANTS) * (1 + rounds)  # one to warm up
    with _progress_bar(file, sum(lengths) * passes_per_length) as (describe, advance):
        for length in lengths:
            describe(f"{length:,} tokens")
            file.add_row(measure_model(bench, model, scaling, length, rounds, partial(advance, length)))
    _check_something_was_timed(file, "ways", file.run["rows"])
    _show_results(file, json, model_tables(file.run))


@contextmanager
def _progress_bar(file: ResultsFile, total: int) -> Iterator[tuple[Callable[[str], None], Callable[[int], None]]]:
    """Show a bar with the remaining time; yield functions that describe the current step and advance the bar.

    Inside, print() writes to standard error: other projects print messages, which must not mix with `--json`.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        TextColumn("{task.percentage:.0f}%"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    is_terminal = err_console.is_terminal
    with redirect_stdout(sys.stderr), Progress(*columns, console=err_console, disable=not is_terminal) as progress:
        task = progress.add_task("", total=total)

        def describe(step: str) -> None:
            progress.update(task, description=step)
            if not is_terminal:
                err_console.print(step)

        def advance(amount: int) -> None:
            progress.update(task, advance=amount)

        try:
            yield describe, advance
        except KeyboardInterrupt:
            progress.stop()
            err_console.print(f"{len(file.run['rows'])} measurements are saved in {file.path}")
            raise


def _check_something_was_timed(file: ResultsFile, key: str, entries: Sequence[Mapping[str, Any]]) -> None:
    """Raise RuntimeError with all reasons if no entry has the timings under `key`."""
    if not any(key in entry for entry in entries):
        reasons = dict.fromkeys(entry["reason"] for entry in entries)
        raise RuntimeError(f"nothing of ropewalk could be timed: {'; '.join(reasons)} ({file.path})")


def _show_results(file: ResultsFile, json: bool, tables: Iterable[Table | str]) -> None:
    if json:
        print_json(file.document)
        return
    for table in tables:
        console.print(table)
    console.print(f"Results: {file.path}")


def _command_line() -> str:
    return shlex.join(["python", "-m", "benchmarks.speed", *sys.argv[1:]])


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _parse_model_lengths(text: str, option: str) -> list[int]:
    lengths = parse_lengths(text, option)
    if not lengths:
        raise InputError(option, "none", "at least one length")
    return lengths


def _parse_prefill_length(text: str) -> int:
    tokens = parse_length(text, "tokens")
    if tokens == 1:
        raise InputError("tokens", text, "at least 2 tokens in prefill; --batches is for decoding")
    return tokens


def _parse_batch(text: str) -> int:
    if not text.isdecimal():
        raise InputError("batches", text, "whole numbers of rows, such as 1,16,256")
    return check_length("batches", int(text), "rows")


def _check_dtype(text: str) -> str:
    if text not in _DTYPES:
        raise InputError("dtype", text, ", ".join(_DTYPES))
    return text


if __name__ == "__main__":
    sys.exit(cli.run(sys.argv[1:], app))
