from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ropewalk.cli.output import JsonOption, ModelArgument, console, err_console, print_json
from ropewalk.errors import InputError
from ropewalk.lengths import length_name, parse_length
from ropewalk.scaling.policies import POLICIES

if TYPE_CHECKING:
    from ropewalk.completions import CompletionsClient
    from ropewalk.evaluate.evaluation import Evaluation
    from ropewalk.evaluate.executors import Executor
    from ropewalk.evaluate.grid import Cell
    from ropewalk.evaluate.sample import SampleResult
    from ropewalk.evaluate.worker import CellSummary

_AT_ONCE = 4  # prompts that a server is asked at a time


def command(
    model: ModelArgument,
    scaling: Annotated[list[str], typer.Option(help="name:option=value,... or JSON; give it once for each.")],
    lengths: Annotated[str, typer.Option(help="Lengths of the prompts: 4k,8k,12k.", show_default=False)],
    task: Annotated[list[str], typer.Option(help="name:option=value,...; give it once for each.")],
    out: Annotated[str, typer.Option(help="Folder for the results.", show_default=False)],
    samples: Annotated[int, typer.Option(help="Questions in each cell.")] = 10,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    policy: Annotated[str, typer.Option(help=f"Of dynamic scalings: {', '.join(POLICIES)}.")] = "stepped",
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32; chosen by the device if not given.")] = "",
    jobs: Annotated[
        int,
        typer.Option(help="Workers, each with the model, or with --url prompts at a time; 0: chosen."),
    ] = 0,
    ray: Annotated[str, typer.Option(help="Work on a Ray cluster: [ADDRESS], or the one at hand.")] = "",
    url: Annotated[
        str, typer.Option(help="Ask this server (http://127.0.0.1:8000/v1); MODEL gives the tokenizer.")
    ] = "",
    gpus_per_worker: Annotated[float, typer.Option(help="With --ray: GPUs for each worker.")] = 0,
    json: JsonOption = False,
) -> None:
    """Ask a model questions over long texts, under one or several scalings."""
    from ropewalk.completions import CompletionsClient
    from ropewalk.evaluate.evaluation import Evaluation
    from ropewalk.report.evaluation import document, summary_table

    if jobs < 0:
        raise InputError("jobs", jobs, "a number of workers")
    if url and (len(scaling) > 1 or ray):
        raise InputError("url", url, "one scaling, the one that the server was started with, and no ray")
    server = CompletionsClient(url) if url else None
    evaluation = Evaluation(
        model,
        scaling,
        task,
        [parse_length(part, "lengths") for part in lengths.split(",") if part.strip()],
        out,
        samples=samples,
        seed=seed,
        policy=policy,
        dtype=dtype or None,
        server=f"{server.model} at {server.url}" if server else None,
        command=shlex.join(["ropewalk", *sys.argv[1:]]),
    )
    with evaluation.store:
        executor = _asking(server, model, jobs) if server else _crew(evaluation, model, jobs, ray, gpus_per_worker)
        _run(evaluation, executor)
        cells = evaluation.results()
        if json:
            print_json(document(evaluation.store, cells))
            return
    console.print(summary_table(cells))
    console.print(f"Results: {evaluation.store.path}, samples.jsonl, cells.csv", highlight=False)
    console.print(f"Pictures and a page: ropewalk report {shlex.quote(out)}", highlight=False)


def _asking(server: CompletionsClient, model: str, jobs: int) -> Executor:
    from ropewalk.evaluate.executors.in_process import in_process_executor
    from ropewalk.evaluate.server_text_generator import ServerTextGenerator
    from ropewalk.evaluate.worker import Worker
    from ropewalk.models.load import load_tokenizer

    return in_process_executor(Worker(ServerTextGenerator(server, load_tokenizer(model), jobs or _AT_ONCE)))


def _crew(evaluation: Evaluation, model: str, jobs: int, ray: str, gpus_per_worker: float) -> Executor | None:
    if ray:
        from ropewalk.evaluate.executors.ray import ray_executor

        return ray_executor(model, evaluation.dtype, ray, jobs, gpus_per_worker)
    if jobs > 1:
        from ropewalk.evaluate.executors.processes import process_executor

        return process_executor(model, evaluation.dtype, jobs)
    return None


def _run(evaluation: Evaluation, executor: Executor | None) -> None:
    """Do what is missing, with a progress bar over the tokens of its prompts."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from ropewalk.evaluate.worker import CellSummary

    left = evaluation.left()
    waiting = {key: cell.samples - len(evaluation.store.sample_results(key)) for key, cell in left}
    total = sum(max(waiting[key], 0) * cell.length for key, cell in left)
    finished = len(evaluation.cells) - len(left)
    columns = (
        TextColumn("{task.fields[cells]}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f}%"),
        TextColumn("{task.fields[speed]:,.0f} tokens/s"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[current]}"),
    )

    def count() -> str:
        return f"{finished} of {len(evaluation.cells)} cells"

    with Progress(*columns, console=err_console, disable=not err_console.is_terminal) as progress:
        bar = progress.add_task("", total=total, cells=count(), speed=0.0, current="loading the model")

        def tell(cell: Cell, news: SampleResult | CellSummary) -> None:
            nonlocal finished
            if isinstance(news, CellSummary):
                finished += 1
                if not err_console.is_terminal:
                    shown = ", ".join(f"{name} {value:.3f}" for name, value in news.scores.items())
                    err_console.print(f"{count()}: {_named(cell)}: {shown}", highlight=False)
            else:
                progress.update(bar, advance=cell.length)
            speed = progress.tasks[bar].speed or 0.0
            progress.update(bar, cells=count(), speed=speed, current=_named(cell))

        try:
            evaluation.run(executor, tell)
        except KeyboardInterrupt:
            progress.stop()
            err_console.print(f"what is done is safe in {evaluation.store.folder}; the same command goes on from there")
            raise


def _named(cell: Cell) -> str:
    return f"{cell.task} {length_name(cell.length)} {cell.column}"
