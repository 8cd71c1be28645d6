from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ropewalk.cli.output import Json, Model, print_json, results
from ropewalk.policy import POLICIES, parse_policy
from ropewalk.report.lengths import parse_length

if TYPE_CHECKING:
    from ropewalk.evaluate.crews import Crew
    from ropewalk.evaluate.run import Evaluation


def command(
    model: Model,
    scaling: Annotated[list[str], typer.Option(help="name:option=value,... or JSON; give it once for each.")],
    lengths: Annotated[str, typer.Option(help="Lengths of the prompts: 4k,8k,12k.", show_default=False)],
    task: Annotated[list[str], typer.Option(help="name:option=value,...; give it once for each.")],
    out: Annotated[str, typer.Option(help="Folder for the results.", show_default=False)],
    samples: Annotated[int, typer.Option(help="Questions in each cell.")] = 10,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    policy: Annotated[
        str, typer.Option(help=f"Of dynamic scalings: {', '.join(POLICIES)}; options as above.")
    ] = "stepped",
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32; chosen by the device if not given.")] = "",
    json: Json = False,
) -> None:
    """Ask a model questions over long texts, under one or several scalings."""
    from ropewalk.evaluate.run import Evaluation
    from ropewalk.report.evaluation import document, summary_table

    numbers = [parse_length(part, "lengths") for part in lengths.split(",") if part.strip()]
    evaluation = Evaluation(
        model,
        scaling,
        task,
        numbers,
        out,
        samples=samples,
        seed=seed,
        policy=parse_policy(policy),
        dtype=dtype or None,
        command=shlex.join(["ropewalk", *sys.argv[1:]]),
    )
    with evaluation.store:
        _run(evaluation, None)
        cells = evaluation.results()
    if json:
        print_json(document(evaluation.store.model, cells))
        return
    results.print(summary_table(cells))
    results.print(f"Results: {evaluation.store.path}, samples.jsonl and cells.csv; ropewalk report {out} draws them")


def _run(evaluation: Evaluation, crew: Crew | None) -> None:
    """Do what is missing."""
    evaluation.run(crew)
