"""Is the method that `ropewalk plan --measure` chooses as good as the best of an exhaustive grid?

    python -m benchmarks.measured_plan [--device cuda] [--targets 12288 16384 24576] [--minutes 1] [--text pydoc]

For each target, smollm2 is planned by measurement. Then every method of the grid at every factor reads windows of the
text, and perplexity is taken over the same key tokens: those that the whole grid finds together (the long loss is the
median over the grid, the short one that of the unscaled model), at least 100 of each window. `behind_percent` is the
perplexity of the chosen method over the best of the grid. The chosen one, the best and the plan without a measurement
are asked for the same passkeys. Writes results/measured_plan.json after each target.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch

import ropewalk as rw
from benchmarks.common import save_result
from ropewalk.evaluate.key_tokens import KeyTokenRule, read_short_losses, select_key_tokens
from ropewalk.evaluate.measured_plan import MeasuredPlan, measure_plan
from ropewalk.evaluate.perplexity import compute_nll, perplexity_of
from ropewalk.evaluate.plan_measurements import select_window
from ropewalk.evaluate.tasks.passkey import Passkey
from ropewalk.evaluate.text_generator import TextGenerator
from ropewalk.evaluate.texts import read_text
from ropewalk.scaling.policies import DEFAULT_POLICY, parse_policy

METHODS = ("yarn", "ntk-by-parts", "ntk", "linear")
MARGINS = (1.0, 1.25, 1.5, 2.0)  # of the factor over target / trained length
MIN_KEY_TOKENS = 100


def list_grid(target: int, original_length: int) -> list[str]:
    """Return the specs of the grid."""
    factors = dict.fromkeys(round(4 * margin * target / original_length) / 4 for margin in MARGINS)
    return [f"{method}:factor={factor:g}" for method in METHODS for factor in factors]


def measure_windows(model: Any, windows: list[torch.Tensor], specs: list[str]) -> tuple[dict[str, float], list[int]]:
    """Return the perplexity of each spec on the key tokens of the windows, and how many each window has."""
    rule, key_losses, counts = KeyTokenRule.for_length(len(windows[0])), {spec: [] for spec in specs}, []
    for window_T in windows:
        losses = {}
        for spec in specs:
            with rw.extended(model, spec, length=len(window_T)):
                losses[spec] = compute_nll(model, window_T, first=rule.short_context)
        with rw.extended(model, "none"):
            short_nll_T = read_short_losses(model, window_T, rule)
        long_nll_T = np.median(list(losses.values()), axis=0)
        indices = select_key_tokens(long_nll_T, short_nll_T, rule, at_least=MIN_KEY_TOKENS) - rule.short_context
        counts.append(len(indices))
        for spec in specs:
            key_losses[spec].append(losses[spec][indices])
    return {spec: perplexity_of(float(np.concatenate(each).mean())) for spec, each in key_losses.items()}, counts


def find_passkeys(model: Any, tokenizer: Any, spec: str, target: int, count: int) -> int:
    """Return how many passkeys the model finds."""
    generator, task = TextGenerator(model, tokenizer), Passkey()
    with generator.scaled(rw.parse(spec), parse_policy(DEFAULT_POLICY)):
        answers = list(generator.generate(task.make_samples(tokenizer, target, count, 1)))
    return round(sum(task.score(sample, answer)["found"] for sample, answer in answers))


def compare(model: Any, tokenizer: Any, text: str, target: int, minutes: float, windows: int, passkeys: int) -> Any:
    """Return the chosen method, the grid and both of their passkeys."""
    started = time.perf_counter()
    plan = measure_plan((model, tokenizer), target, minutes, text)
    assert isinstance(plan, MeasuredPlan)
    plan_seconds = time.perf_counter() - started
    ids_T = torch.tensor(tokenizer(read_text(text).content, verbose=False)["input_ids"])
    read = [select_window(ids_T, target, index) for index in range(windows)]
    fixed = rw.plan(model, target)
    grid = list_grid(target, plan.original_length)
    specs = list(dict.fromkeys([str(plan.method), str(fixed.scaling), *grid]))
    perplexities, key_counts = measure_windows(model, read, specs)
    best = min(grid, key=lambda spec: perplexities[spec])
    found = {
        spec: find_passkeys(model, tokenizer, spec, target, passkeys)
        for spec in dict.fromkeys([str(plan.method), best, str(fixed.scaling)])
    }
    return {
        "target": target,
        "chosen": str(plan.method),
        "reasons": plan.reasons,
        "measured": [each.to_dict() for each in plan.measured],
        "plan_seconds": round(plan_seconds, 1),
        "without_measurement": str(fixed.scaling),
        "grid_best": best,
        "key_tokens": key_counts,
        "perplexities": perplexities,
        "behind_percent": 100 * (perplexities[str(plan.method)] / perplexities[best] - 1),
        "passkeys_found": found,
        "passkeys": passkeys,
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--device", default=None)
    parser.add_argument("--targets", type=int, nargs="+", default=[12_288, 16_384, 24_576])
    parser.add_argument("--minutes", type=float, default=1.0, help="for each plan")
    parser.add_argument("--windows", type=int, default=2, help="of the text that the grid reads")
    parser.add_argument("--passkeys", type=int, default=8)
    parser.add_argument("--text", default="pydoc")
    args = parser.parse_args()
    model, tokenizer = rw.load(args.model, device=args.device)
    device = torch.cuda.get_device_name() if model.device.type == "cuda" else "cpu"
    text = args.text.split("/")[-1]
    document: dict[str, Any] = {"device": device, "dtype": str(model.dtype), "text": text, "minutes": args.minutes}
    document["targets"] = []
    for target in args.targets:
        row = compare(model, tokenizer, args.text, target, args.minutes, args.windows, args.passkeys)
        document["targets"].append(row)
        save_result("measured_plan", document)
        print(
            f"{target:,} tokens: {row['chosen']}, {row['behind_percent']:+.2f} % over the grid's best, "
            f"{row['grid_best']}; passkeys {row['passkeys_found']} of {row['passkeys']}; {row['seconds']} s",
            *row["reasons"],
            sep="\n  - ",
            flush=True,
        )


if __name__ == "__main__":
    main()
