"""Is the method that `ropewalk plan --measure` chooses as good as the best of an exhaustive grid?

    python -m benchmarks.measured_plan [--device cuda] [--targets 12288 16384] [--minutes 1 2] [--text pydoc]

For each target, smollm2 is planned by measurement. Then every method of the grid at every factor reads windows of the
text, and perplexity is taken over the same key tokens: those that the whole grid finds together, as a plan does with
its few methods. `behind_percent` is the perplexity of the chosen method over the best of the grid. The chosen one, the
best and the plan without a measurement are asked for all passkeys. What the plan has measured is not measured again.

Every measurement is stored in the folder of --out, where an interrupted run continues. Writes
results/measured_plan_TARGET.json for each target.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ropewalk as rw
from benchmarks.common import save_result
from ropewalk.evaluate.measured_plan import MeasuredPlan, measure_plan, open_measurements
from ropewalk.evaluate.perplexity import perplexity_of
from ropewalk.evaluate.plan_measurements import PASSKEYS, MeasurementRun, Step
from ropewalk.evaluate.texts import read_text
from ropewalk.positions import parse
from ropewalk.scaling.none import NoScaling

METHODS = ("yarn", "ntk-by-parts", "ntk", "linear")
MARGINS = (1.0, 1.25, 1.5, 2.0)  # of the factor over target / trained length


def list_grid(target: int, original_length: int) -> list[str]:
    """Return the specs of the grid."""
    factors = dict.fromkeys(round(4 * margin * target / original_length) / 4 for margin in MARGINS)
    return [f"{method}:factor={factor:g}" for method in METHODS for factor in factors]


def compare(model: Any, tokenizer: Any, text: str, target: int, minutes: float, windows: int, folder: Path) -> Any:
    """Return the chosen method, the grid, and the passkeys of both. `folder`: for the measurements."""
    source = (model, tokenizer)
    plan = measure_plan(source, target, minutes, text, out=folder / "plan")
    assert isinstance(plan, MeasuredPlan)
    read = read_text(text)
    of_plan, results = (open_measurements(source, None, read, target, folder / name) for name in ("plan", "grid"))
    for step, value in of_plan.values.items():
        if step not in results.values:
            results.add(step, value, of_plan.seconds[step])
    fixed = rw.plan(model, target)
    grid = list_grid(target, plan.original_length)
    specs = list(dict.fromkeys([str(plan.method), str(fixed.scaling), *grid]))
    run = MeasurementRun(
        [parse(spec) for spec in specs],
        NoScaling(),
        results,
        target=target,
        original_length=plan.original_length,
        seconds=math.inf,
    )
    ids_T = torch.tensor(tokenizer(read.content, verbose=False)["input_ids"])

    def measure(kind: str, name: str, number: int) -> Any:
        step = Step(kind, name, number)
        if step not in results.values:
            run.measure(step, model, tokenizer, ids_T)
            print(f"  {kind} {name} {number}: {results.seconds[step]:.0f} s", flush=True)
        return results.values[step]

    for window in range(windows):
        measure("context", str(run.context_reader), window)
        for spec in specs:
            measure("target", spec, window)
    key_losses = [run.key_losses(window) for window in range(windows)]
    mean_losses = {spec: np.concatenate([losses[spec] for losses in key_losses]).mean() for spec in specs}
    perplexities = {spec: perplexity_of(float(loss)) for spec, loss in mean_losses.items()}
    best = min(grid, key=lambda spec: perplexities[spec])
    differences = np.concatenate([losses[str(plan.method)] - losses[best] for losses in key_losses])
    passkeys = {}
    for spec in dict.fromkeys([str(plan.method), best, str(fixed.scaling)]):
        losses = [measure("passkey", spec, depth) for depth in range(PASSKEYS)]
        found = sum(max(each) < math.log(2) for each in losses)
        by_depth = [float(np.mean(each)) for each in losses]
        passkeys[spec] = {"found": found, "of": PASSKEYS, "loss": float(np.mean(by_depth)), "loss_by_depth": by_depth}
    return {
        "target": target,
        "minutes": minutes,
        "chosen": str(plan.method),
        "reasons": plan.reasons,
        "measured": [each.to_dict() for each in plan.measured],
        "plan_seconds": round(of_plan.used_seconds(), 1),
        "without_measurement": str(fixed.scaling),
        "grid_best": best,
        "key_tokens": [len(each[best]) for each in key_losses],
        "perplexities": perplexities,
        "behind_percent": 100 * (perplexities[str(plan.method)] / perplexities[best] - 1),
        "behind_standard_error_percent": 100 * float(differences.std(ddof=1)) / math.sqrt(len(differences)),
        "passkeys": passkeys,
        "seconds": round(results.used_seconds(), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--device", default=None)
    parser.add_argument("--targets", type=int, nargs="+", default=[12_288, 16_384, 24_576])
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0], help="for each plan, or one for all")
    parser.add_argument("--windows", type=int, default=2, help="of the text that the grid reads")
    parser.add_argument("--text", default="pydoc")
    parser.add_argument("--out", type=Path, default=Path("runs/measured_plan"), help="folder of all measurements")
    args = parser.parse_args()
    minutes = args.minutes * len(args.targets) if len(args.minutes) == 1 else args.minutes
    model, tokenizer = rw.load(args.model, device=args.device)
    device = torch.cuda.get_device_name() if model.device.type == "cuda" else "cpu"
    text = args.text.split("/")[-1]
    for target, minutes_of_plan in zip(args.targets, minutes, strict=True):
        row = compare(model, tokenizer, args.text, target, minutes_of_plan, args.windows, args.out)
        save_result(f"measured_plan_{target}", {"device": device, "dtype": str(model.dtype), "text": text, **row})
        print(
            f"{target:,} tokens: {row['chosen']}, {row['behind_percent']:+.2f} % over the grid's best, "
            f"{row['grid_best']}; {row['passkeys']}; {row['seconds']} s",
            *row["reasons"],
            sep="\n  - ",
            flush=True,
        )


if __name__ == "__main__":
    main()
