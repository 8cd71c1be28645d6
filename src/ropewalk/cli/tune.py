"""`ropewalk tune`: learn or search a scaling for a model."""

from __future__ import annotations

from typing import Annotated

import typer

from ropewalk.cli.options import DtypeOption, JsonOption, ModelArgument, TargetOption
from ropewalk.cli.output import console, err_console, print_json
from ropewalk.cli.progress import share_progress, token_progress
from ropewalk.lengths import parse_length


def command(
    model: ModelArgument,
    target: TargetOption,
    text: Annotated[
        list[str],
        typer.Option(
            help="Text to learn from, a little over three times the target: a file, a folder, "
            "hf:DATASET[:SPLIT[:FIELD]], or pydoc; repeat it for several.",
            show_default=False,
        ),
    ],
    out: Annotated[str, typer.Option(help="Folder for the scaling, the losses and the proof.", show_default=False)],
    method: Annotated[
        str, typer.Option(help="gradient, search or evolution, as in gradient:window=4096 or search:minutes=30.")
    ] = "gradient",
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="With gradient: a set of frequencies for each layer.")
    ] = False,
    steps: Annotated[int | None, typer.Option(help="Steps of gradient.", show_default="60")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda:0; by default a GPU if there is one.")] = "",
    dtype: DtypeOption = "",
    samples: Annotated[int, typer.Option(help="Prompts of each task and length in the proof.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    json: JsonOption = False,
) -> None:
    """Learn or search a scaling for a model, and compare it with formulas on held-out text."""
    from ropewalk.report.proof import draw_proof, proof_tables
    from ropewalk.tuning.run import TuneRun, is_main_process

    run = TuneRun(
        model,
        parse_length(target, "target"),
        text,
        out,
        method=method,
        per_layer=per_layer,
        steps=steps,
        dtype=dtype or None,
        device=device or None,
        samples=samples,
        seed=seed,
    )
    if not is_main_process():  # the first process shows the progress and the result
        run.tune()
        return
    try:
        with share_progress(f"tuning with {run.method}") as update:
            scaling = run.tune(update)
        err_console.print(f"the scaling is in {run.scaling_path}: {scaling}", markup=False)
        proof_run = run.open_proof(scaling)
        with token_progress(proof_run.remaining_tokens(), "comparing with formulas") as update_tokens:
            proof = proof_run.run(lambda tokens, label: update_tokens(tokens, detail=label))
    except KeyboardInterrupt:
        err_console.print(f"what is done is safe in {out}; the same command continues from there", markup=False)
        raise
    if json:
        print_json({"scaling": scaling.to_dict(), "proof": proof.to_dict()})
    else:
        for table in proof_tables(proof):
            console.print(table)
        console.print(proof.sentence, markup=False)
        console.print(f"Results: {run.scaling_path}, {proof_run.folder / 'proof.json'} and its pictures", markup=False)
    draw_proof(proof, proof_run.folder)  # last: without matplotlib, the numbers are still shown
