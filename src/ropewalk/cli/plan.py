"""`ropewalk plan`: the scaling that a target length needs."""

from __future__ import annotations

import json as jsonlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ropewalk.cli.options import DtypeOption, JsonOption, ModelArgument, TargetOption
from ropewalk.cli.output import console, err_console, print_bold, print_json
from ropewalk.errors import InputError
from ropewalk.lengths import parse_length
from ropewalk.planning import Plan, plan

if TYPE_CHECKING:
    from ropewalk.evaluate.plan_measurements import Step


def command(
    model: ModelArgument,
    target: TargetOption,
    measure: Annotated[
        float,
        typer.Option(
            metavar="MINUTES",
            help="Compare methods and factors on this model and the text for this many minutes, instead of using the "
            "fixed margin.",
            show_default=False,
        ),
    ] = 0.0,
    text: Annotated[
        str, typer.Option(help="With --measure: a file, a folder, hf:DATASET[:SPLIT[:FIELD]], or pydoc.")
    ] = "",
    out: Annotated[
        str, typer.Option(help="With --measure: folder of the measurements; the same command continues from there.")
    ] = "ropewalk-plan",
    runtime_methods: Annotated[
        bool,
        typer.Option(
            "--runtime-methods",
            help="With --measure: also compare dynamic-yarn and leaky-rerope, which no configuration can hold.",
        ),
    ] = False,
    dtype: DtypeOption = "",
    json: JsonOption = False,
) -> None:
    """Recommend a scaling and its factor for a target length, with reasons and KV cache size.

    Loads no weights unless --measure is given. The changes to config.json, or to the fields of a GGUF file, are
    checked before they are printed: read back, they must give the planned frequencies.
    """
    from ropewalk.serving.planned_changes import find_planned_changes

    tokens = parse_length(target, "target")
    if not measure:
        if text or runtime_methods:
            option = "text" if text else "runtime_methods"
            raise InputError(option, text or runtime_methods, "--measure MINUTES beside it")
        result = plan(model, tokens)
    else:
        result = _measure(model, tokens, measure, text, out, dtype, runtime_methods)
    changes = find_planned_changes(model, result)
    if json:
        print_json({**result.to_dict(), "changes": changes})
        return
    method = getattr(result, "method", result.scaling)
    print_bold(str(method) if result.needed else "nothing to do")
    for reason in result.reasons:
        console.print(f"  - {reason}")
    if measured := getattr(result, "measured", ()):
        from ropewalk.report.measured_plan import measured_table

        console.print(measured_table(measured))
    if changes:
        is_gguf = any("." in name for name in changes)  # llama.rope.scaling.type, for example
        file = "fields of the GGUF file" if is_gguf else "config.json for transformers 5"
        console.print(f"{file} (null removes a field):")
        print(jsonlib.dumps(changes, indent=2))
    if result.kv_cache_bytes is not None:
        from ropewalk.report.formatting import format_number

        gibibytes = format_number(result.kv_cache_bytes / 2**30)
        console.print(f"KV cache for one sequence of {result.target:,} tokens: {gibibytes} GiB")


def _measure(model: str, target: int, minutes: float, text: str, out: str, dtype: str, runtime_methods: bool) -> Plan:
    """Measure with a progress bar, which shows the share of the time that is used."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from ropewalk.evaluate.measured_plan import measure_plan

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err_console, disable=not err_console.is_terminal) as progress:
        task = progress.add_task(f"loading {model}", total=1.0)

        def show(step: Step, value: Any, used: float) -> None:
            line = _describe_step(step, value)
            progress.update(task, completed=used, description=line)
            if not err_console.is_terminal:
                err_console.print(f"{100 * used:3.0f} % of the time: {line}")

        try:
            return measure_plan(
                model,
                target,
                minutes,
                text,
                out=out,
                dtype=dtype or None,
                runtime_methods=runtime_methods,
                on_step=show,
            )
        except KeyboardInterrupt:
            err_console.print(f"the measurements are safe in {out}; the same command continues from there")
            raise


def _describe_step(step: Step, value: Any) -> str:
    """Return a step and its result as a line."""
    if step.kind == "context":
        return f"window {step.number + 1} is read in short contexts"
    if step.kind == "passkey":
        return f"{step.method}: loss {sum(value) / len(value):.4f} on passkey {step.number + 1}"
    text = "window" if step.kind == "target" else "short text"
    return f"{step.method}: loss {value.mean() if step.kind == 'target' else value:.4f} on {text} {step.number + 1}"
