"""`ropewalk eval`: answers of a model to tasks over long texts."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ropewalk.cli.options import ApiKeyOption, DtypeOption, JsonOption, ModelArgument, ScalingsOption
from ropewalk.cli.output import console, err_console, print_json
from ropewalk.cli.progress import token_progress
from ropewalk.errors import InputError
from ropewalk.lengths import format_length, parse_lengths
from ropewalk.scaling.policies import POLICIES
from ropewalk.server_address import check_server_url, read_api_key

if TYPE_CHECKING:
    from ropewalk.evaluate.evaluation import Evaluation
    from ropewalk.evaluate.executors import Executor
    from ropewalk.evaluate.grid import Cell
    from ropewalk.evaluate.sample import SampleResult
    from ropewalk.evaluate.worker import CellSummary

_CONCURRENT_REQUESTS = 4  # default number of prompts that a server answers at the same time


def command(
    model: ModelArgument,
    scaling: ScalingsOption,
    lengths: Annotated[str, typer.Option(help="Lengths of the prompts, such as 4k,8k,12k.", show_default=False)],
    task: Annotated[
        list[str],
        typer.Option(help="Task, name:option=value,...; repeat it for several. `ropewalk tasks` lists them."),
    ],
    out: Annotated[str, typer.Option(help="Folder for the results.", show_default=False)],
    samples: Annotated[int, typer.Option(help="Samples for each task, length and scaling.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of everything random in the samples.")] = 0,
    policy: Annotated[
        str, typer.Option(help=f"How dynamic scalings follow the text: {', '.join(POLICIES)}.")
    ] = "stepped",
    chat: Annotated[
        str,
        typer.Option(
            help="Put prompts into the model's chat template: on, off, or auto for all tasks but lm_eval and "
            "perplexity if the model has a template."
        ),
    ] = "auto",
    dtype: DtypeOption = "",
    jobs: Annotated[
        int,
        typer.Option(
            help="Number of workers, each with its own copy of the model; with --url, of concurrent requests. "
            "0 means one worker, with --ray as many as the cluster has room for, and with --url four requests."
        ),
    ] = 0,
    ray: Annotated[
        str, typer.Option(help="Run on a Ray cluster: HOST:PORT, or without a value the cluster of this machine.")
    ] = "",
    url: Annotated[
        str,
        typer.Option(help="Let this server answer, such as http://127.0.0.1:8000/v1; MODEL names the tokenizer."),
    ] = "",
    api_key_env: ApiKeyOption = "",
    gpus_per_worker: Annotated[float, typer.Option(help="With --ray: GPUs to reserve for each worker.")] = 0,
    json: JsonOption = False,
) -> None:
    """Test a model on tasks over long texts, under one or several scalings."""
    from ropewalk.completions import CompletionsClient
    from ropewalk.evaluate.evaluation import Evaluation
    from ropewalk.report.evaluation import results_document, summary_table

    if jobs < 0:
        raise InputError("jobs", jobs, "a number of workers, or 0")
    if url and (len(scaling) > 1 or ray):
        server_url = check_server_url("url", url)  # without credentials, since the message repeats it
        raise InputError("url", server_url, "one scaling, the one that the server was started with, and no --ray")
    if api_key_env and not url:
        raise InputError("api_key_env", "a name", "--url beside it")
    evaluation = Evaluation(
        model,
        scaling,
        task,
        parse_lengths(lengths),
        out,
        samples=samples,
        seed=seed,
        policy=policy,
        dtype=dtype or None,
        chat=chat,
        server=CompletionsClient(url, api_key=read_api_key(api_key_env)) if url else None,
        command=shlex.join(["ropewalk", *sys.argv[1:]]),
    )
    with evaluation.store:
        if ray:
            from ropewalk.evaluate.executors.ray import ray_executor

            executor = ray_executor(model, evaluation.dtype, ray, jobs, gpus_per_worker)
        elif jobs > 1 and not url:
            from ropewalk.evaluate.executors.processes import process_executor

            executor = process_executor(model, evaluation.dtype, jobs)
        else:
            executor = evaluation.default_executor(jobs or _CONCURRENT_REQUESTS)
        _run_with_progress(evaluation, executor)
        cells = evaluation.results()
        if json:
            print_json(results_document(evaluation.store, cells))
            return
    console.print(summary_table(cells))
    console.print(f"Results: {evaluation.store.path}, samples.jsonl, cells.csv")
    console.print(f"Pictures and a page: ropewalk report {shlex.quote(out)}")


def _run_with_progress(evaluation: Evaluation, executor: Executor) -> None:
    """Compute the remaining cells, with a progress bar over the tokens of their prompts."""
    from ropewalk.evaluate.worker import CellSummary

    total = len(evaluation.cells)
    finished = total - len(evaluation.remaining_cells())

    def show_result(cell: Cell, result: SampleResult | CellSummary) -> None:
        nonlocal finished
        name = f"{cell.task} {format_length(cell.length)} {cell.column}"
        if not isinstance(result, CellSummary):
            update(cell.length, detail=name)
            return
        finished += 1
        update(label=f"{finished} of {total} cells", detail=name)
        if not err_console.is_terminal:
            scores = ", ".join(f"{score} {value:.3f}" for score, value in result.scores.items())
            err_console.print(f"{finished} of {total} cells: {name}: {scores}")

    try:
        with token_progress(evaluation.remaining_tokens(), f"{finished} of {total} cells") as update:
            update(detail="loading the model")
            evaluation.run(executor, show_result)
    except KeyboardInterrupt:
        err_console.print(
            f"finished samples are safe in {evaluation.store.folder}; the same command continues from there"
        )
        raise
