"""Choose the method and the factor for a target length by short runs on a model and a text.

measure_plan("Qwen/Qwen3-8B", target=131_072, minutes=20, text="book.txt", out="runs/plan").reasons

The choice, in this order:
1. Passkeys at the target. A method is out if its loss is more than 0.05 nats per token above the lowest one, and it
   also misses a passkey that the method with the lowest loss finds, or is more than two standard errors above it.
2. Perplexity on key tokens at the target (LongPPL). Keep the best method and those above it by at most 1 % or one
   standard error, whichever is larger.
3. Short text. Keep the cheapest method and those that cost at most half a percentage point more.
4. Take the plan without a measurement if it is left, else the method with the lowest perplexity.
With fewer than four passkeys measured, the plan without a measurement stays as it is, unless it was dropped.

The margin of `ropewalk.plan` without a measurement was measured on one small model; this function measures yours.
`plan_measurements` says how key tokens are found without favoring a method.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ropewalk.config import ModelConfig
from ropewalk.errors import InputError, check_number
from ropewalk.evaluate.model_source import ModelSource, describe_source, load_source, source_digest
from ropewalk.evaluate.paired import paired_difference
from ropewalk.evaluate.perplexity import perplexity_of
from ropewalk.evaluate.plan_measurements import MeasurementRun, Measurements, Method, Step
from ropewalk.evaluate.short_tax import ShortTax, compute_short_tax
from ropewalk.evaluate.texts import Text, read_text
from ropewalk.planning import (
    MARGIN,
    Plan,
    build_planned_fields,
    has_published_scaling,
    note_dual_chunk_attention,
    plan,
    read_source,
)
from ropewalk.planning import round_up_factor as round_up
from ropewalk.positions import PositionMethod
from ropewalk.positions.rerope import LeakyReRoPE
from ropewalk.scaling import Scaling
from ropewalk.scaling.by_parts import NTKByParts
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.yarn import DynamicYaRN, YaRN

_MARGINS = (MARGIN, 1.0, 1.5, 2.0)  # factors over the smallest that covers the target, the most promising first
_TOLERANCE = 0.01  # nats on key tokens, 1 % of perplexity: methods within it are equal
_LOSS_OF_ONE_HALF = math.log(2)  # nats
_PASSKEY_TOLERANCE = 0.05  # nats per token of the number: methods within it are equal
_MIN_PASSKEYS = 4  # without as many, the measurements do not overrule the plan
_SHORT_TOLERANCE = 0.5  # percent of perplexity on short text: methods within it cost the same


@dataclass(frozen=True)
class MeasuredMethod:
    """What was measured of one method.

    Attributes:
        method: the method.
        perplexity: on the key tokens of the windows that all remaining methods have read; of a dropped method, on
            those of the first window.
        behind: by how much its perplexity exceeds the best one on the same windows, in percent.
        behind_error: standard error of `behind` over the key tokens.
        passkeys: whether each was found, by depth from the beginning of the text: every token of the number has a
            probability above one half. Empty if no passkey was measured.
        passkey_loss: mean loss on the tokens of the numbers, in nats; None if no passkey was measured.
        short_tax: what it costs on short text; None if that was not measured.
        remained: False if it was dropped after the first window.
        is_behind_on_passkeys: whether its loss on passkeys takes it out of the choice.
    """

    method: Method
    perplexity: float
    behind: float
    behind_error: float | None
    passkeys: tuple[bool, ...]
    passkey_loss: float | None
    short_tax: ShortTax | None
    remained: bool
    is_behind_on_passkeys: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return what was measured as a dict that is ready for JSON."""
        return {
            "scaling": str(self.method),
            "longppl": self.perplexity,
            "behind_percent": self.behind,
            "behind_standard_error": self.behind_error,
            "passkeys": [int(found) for found in self.passkeys],
            "passkey_loss": self.passkey_loss,
            "short_tax": self.short_tax,
            "remained": self.remained,
        }


@dataclass(frozen=True)
class MeasuredPlan(Plan):
    """A plan that was chosen by measurement.

    Attributes:
        measured: what was measured of each method, in the order of preference; the first is the chosen one.
        method: the chosen method; not the same as `scaling` only if no configuration can hold it.
    """

    measured: tuple[MeasuredMethod, ...]
    method: Method

    def to_dict(self) -> dict[str, Any]:
        measured = [each.to_dict() for each in self.measured]
        return {**super().to_dict(), "method": str(self.method), "measured": measured}


def measure_plan(
    model: ModelSource,
    target: int,
    minutes: float,
    text: str | Text,
    *,
    out: str | Path | None = None,
    dtype: str | None = None,
    runtime_methods: bool = False,
    on_step: Callable[[Step, Any, float], None] | None = None,
) -> Plan:
    """Choose the method and the factor with which a model reads `target` tokens, by measuring them on a text.

    Args:
        model: a name that `ropewalk.load` accepts, or a loaded (model, tokenizer).
        target: tokens to read.
        minutes: time for the measurements, without loading the model. A step that has begun is finished.
        text: a name that `read_text` accepts, or a text, of at least `target` tokens.
        out: folder for the measurements, which the same call continues; by default they are not stored.
        dtype: see `ropewalk.load`; of a model that is given by its name.
        runtime_methods: whether dynamic-yarn and leaky-rerope may be chosen, too, which no configuration can hold.
        on_step: called after each step with its value and the share of the time that is used.

    Returns a `MeasuredPlan`, or the plan as it is if the model needs no other scaling. Raises InputError for wrong
    arguments and a text that is too short, and what `ropewalk.plan` raises.
    """
    check_number("measure", minutes, minimum=0, exclusive=True)
    if not text:
        raise InputError("text", text, "a text, with --measure")
    source = model if isinstance(model, str) else model[0]
    planned = plan(source, target)
    if not planned.needed:
        return planned
    text = read_text(text) if isinstance(text, str) else text
    model_config, config = read_source(source)
    layer = model_config.main_layer
    baseline, smallest_factor = layer.scaling, target / planned.scaling.resolve_original_length(layer.rope)
    results = Measurements({}, None) if out is None else open_measurements(model, dtype, text, target, Path(out))
    candidates = list_candidates(planned.scaling, baseline, smallest_factor, runtime_methods)
    fields = {method: _find_fields(model_config, config, method, target) for method in candidates}
    run = MeasurementRun(
        [method for method in candidates if runtime_methods or method == planned.scaling or fields[method]],
        baseline,
        results,
        target=target,
        original_length=planned.original_length,
        seconds=60 * minutes,
    )
    if run.next_step() is not None:
        loaded_model, tokenizer = load_source(model, dtype)
        ids_T = torch.tensor(tokenizer(text.content, verbose=False)["input_ids"])
        if len(ids_T) < target:
            raise InputError("text", text.name, f"a text of at least {target:,} tokens", f"it has {len(ids_T):,}")
        run.run(loaded_model, tokenizer, ids_T, on_step)
    measured = rank_methods(run)
    if not measured:
        reason = f"{minutes:g} minutes were too short to measure a single method"
        return dataclasses.replace(planned, reasons=(*planned.reasons, reason))
    chosen = measured[0].method
    is_published = has_published_scaling(source, model_config, target)
    reasons = (
        planned.reasons[0],
        *_explain(run, measured, planned.scaling, is_published, minutes, text),
        *note_dual_chunk_attention(config, target),
    )
    values = {f.name: getattr(planned, f.name) for f in dataclasses.fields(Plan)}
    if found := fields[chosen]:
        values.update(scaling=chosen, rope_parameters=found[0], max_position_embeddings=found[1])
    elif chosen != planned.scaling:
        note = f"no configuration can hold {chosen}: ropewalk.extend applies it; the fields are of {planned.scaling}"
        reasons = (*reasons, note)
    return MeasuredPlan(**{**values, "reasons": reasons}, measured=measured, method=chosen)


def list_candidates(planned: Scaling, baseline: Scaling, smallest_factor: float, runtime_methods: bool) -> list[Method]:
    """Return the methods to compare, the most promising first, without duplicates.

    Args:
        planned: what `ropewalk.plan` chooses without a measurement.
        baseline: the model's own scaling.
        smallest_factor: target over the original length of the planned scaling.
        runtime_methods: whether methods that no configuration can hold are among them.
    """
    factors = [round_up(smallest_factor * margin) for margin in _MARGINS]
    candidates: list[Method] = [planned]
    if getattr(planned, "factor", None) is not None:
        candidates += [dataclasses.replace(planned, factor=factor) for factor in factors]  # type: ignore[call-arg]
    if runtime_methods and baseline == NoScaling():
        candidates += [DynamicYaRN(), LeakyReRoPE()]
    if isinstance(planned, YaRN) and baseline == NoScaling():
        original = planned.original_length
        candidates += [YaRN(factor=factor, original_length=original) for factor in factors]
        candidates += [NTKByParts(factor=factor, original_length=original) for factor in factors]
    return list(dict.fromkeys(candidates))


def _find_fields(
    model_config: ModelConfig, config: Mapping[str, Any] | None, method: Method, target: int
) -> tuple[dict[str, Any], int] | None:
    """Return the `rope_parameters` and the length to declare for a method, or None if no configuration can hold it."""
    if isinstance(method, PositionMethod):
        return None
    try:
        rope_parameters, declared_length = build_planned_fields(model_config, config, method, target)
    except InputError:
        return None
    return None if rope_parameters is None else (rope_parameters, declared_length)


def rank_methods(run: MeasurementRun) -> tuple[MeasuredMethod, ...]:
    """Return what was measured, the chosen method first, then the others by perplexity."""
    remaining, depths = run.remaining_methods(), run.compared("passkey")
    if not remaining:
        return ()
    first, key_losses = run.key_losses(0), _pool_key_losses(run)
    answers = {name: [run.results.values[Step("passkey", name, depth)] for depth in depths] for name in remaining}
    passkey_losses = {name: [float(np.mean(losses)) for losses in answers[name]] for name in remaining}
    found = {name: [max(losses) < _LOSS_OF_ONE_HALF for losses in answers[name]] for name in remaining}
    best = min(remaining, key=lambda name: float(key_losses[name].mean()))
    contenders = _without_those_behind_on_passkeys(passkey_losses, found)
    measured = {}
    for name in first:
        remained = name in remaining
        losses, best_losses = (key_losses[name], key_losses[best]) if remained else (first[name], first[best])
        difference = paired_difference(losses.tolist(), best_losses.tolist())
        measured[name] = MeasuredMethod(
            method=run.methods[name],
            perplexity=perplexity_of(float(losses.mean())),
            behind=difference.percent,
            behind_error=difference.percent_error,
            passkeys=tuple(found.get(name, ())),
            passkey_loss=float(np.mean(passkey_losses[name])) if remained and depths else None,
            short_tax=_short_tax(run, name) if remained else None,
            remained=remained,
            is_behind_on_passkeys=remained and name not in contenders,
        )
    chosen = measured[_choose(next(iter(run.methods)), measured, key_losses, contenders)]
    others = [each for each in measured.values() if each is not chosen]
    others.sort(key=lambda each: (not each.remained, each.perplexity))
    return (chosen, *others)


def _pool_key_losses(run: MeasurementRun) -> dict[str, NDArray[Any]]:
    """Return the losses of each remaining method on the key tokens of all windows that all of them have read."""
    windows = [run.key_losses(window) for window in run.compared("target")]
    return {name: np.concatenate([losses[name] for losses in windows]) for name in run.remaining_methods()}


def _choose(
    planned: str,
    measured: Mapping[str, MeasuredMethod],
    key_losses: Mapping[str, NDArray[Any]],
    contenders: Sequence[str],
) -> str:
    """Return the method to use, by the rules at the top of this file.

    Args:
        planned: spec of the plan without a measurement.
        measured: what was measured, by spec, in the order of the candidates.
        key_losses: losses of the remaining methods on key tokens, in nats.
        contenders: the remaining methods that are not behind on passkeys.
    """
    count = len(measured[contenders[0]].passkeys)
    if count < _MIN_PASSKEYS and planned in key_losses:
        return planned
    best = min(contenders, key=lambda name: float(key_losses[name].mean()))
    equal = [
        name
        for name in contenders
        if not _is_behind(key_losses[name].tolist(), key_losses[best].tolist(), _TOLERANCE, errors=1)
    ]
    costs = {name: tax["percent"] if (tax := measured[name].short_tax) else 0.0 for name in equal}
    cheap = [name for name in equal if costs[name] <= min(costs.values()) + _SHORT_TOLERANCE]
    return planned if planned in cheap else min(cheap, key=lambda name: float(key_losses[name].mean()))


def _without_those_behind_on_passkeys(
    passkey_losses: Mapping[str, Sequence[float]], found: Mapping[str, Sequence[bool]]
) -> list[str]:
    """Return the methods that are not behind the best one on passkeys, by the first rule at the top of this file.

    A factor that is too small misses only the passkeys at the beginning of the text. The standard error over the depths
    is then as large as the difference, so a missed passkey counts by itself.

    Args:
        passkey_losses: the loss on each passkey, in nats per token, by spec.
        found: whether each passkey was found, by spec.
    """
    best = min(passkey_losses, key=lambda name: sum(passkey_losses[name]))
    if not passkey_losses[best]:
        return list(passkey_losses)

    def is_behind(name: str) -> bool:
        misses_one = any(theirs and not mine for mine, theirs in zip(found[name], found[best], strict=True))
        errors = 0 if misses_one else 2
        return _is_behind(passkey_losses[name], passkey_losses[best], _PASSKEY_TOLERANCE, errors)

    return [name for name in passkey_losses if not is_behind(name)]


def _is_behind(losses: Sequence[float], best: Sequence[float], tolerance: float, errors: int) -> bool:
    """Return whether losses exceed those of the best by more than a tolerance and a number of standard errors."""
    difference = paired_difference(losses, best)
    return difference.mean > max(tolerance, errors * (difference.standard_error or 0.0))


def _short_tax(run: MeasurementRun, name: str) -> ShortTax | None:
    windows = run.compared("short")
    if not windows:
        return None
    baseline = [run.results.values[Step("short", str(run.baseline), window)] for window in windows]
    losses = baseline  # of methods that leave short text as it is
    if run.changes_short_text(name):
        losses = [run.results.values[Step("short", name, window)] for window in windows]
    return compute_short_tax(name, run.short_length, losses, baseline)


def _explain(
    run: MeasurementRun,
    measured: Sequence[MeasuredMethod],
    planned: Scaling,
    is_published: bool,
    minutes: float,
    text: Text,
) -> tuple[str, ...]:
    """Return why the first method is chosen, in numbers, one sentence each."""
    chosen, windows = measured[0], run.compared("target")
    count = sum(len(next(iter(run.key_losses(window).values()))) for window in windows)
    used, skipped = run.results.used_seconds() / 60, len(run.methods) - len(measured)
    shown_windows = "1 window" if len(windows) == 1 else f"{len(windows)} windows"
    read = f"{count:,} key tokens of {shown_windows} of {run.target:,} tokens of {text.name}"
    reasons = [
        f"measured for {used:.1f} of {minutes:g} minutes: {len(measured)} methods on {read}"
        + (f"; {skipped} more did not fit into the time" if skipped else ""),
        _describe(chosen),
    ]
    has_too_few_passkeys = len(chosen.passkeys) < _MIN_PASSKEYS and chosen.method == planned
    if has_too_few_passkeys:
        reasons.append(f"{len(chosen.passkeys)} passkeys are too few to overrule the plan: give it more minutes")
    best = min((each for each in measured if each.remained), key=lambda each: each.perplexity)
    if best is not chosen:
        why = "" if has_too_few_passkeys else f"; {_compare(chosen, best)}"
        reasons.append(f"lowest perplexity: {_describe(best)}{why}")
    origin = "its makers publish" if is_published else "without a measurement the plan is"
    other = next((each for each in measured if each.method == planned), None)
    if chosen.method == planned:
        reasons += [f"{origin} the same"] if is_published else []
    elif other is None or other is best:
        reasons.append(f"{origin} {planned}")
    else:
        reasons.append(f"{origin} {_describe(other)}")
    return tuple(reasons)


def _describe(each: MeasuredMethod) -> str:
    """Return what was measured of a method, in one clause."""
    parts = [f"{each.method}: perplexity {each.perplexity:.3f}"]
    if each.behind > 0:
        uncertainty = "" if each.behind_error is None else f" with a standard error of {each.behind_error:.1f}"
        parts.append(f"{each.behind:.1f} % behind the best{uncertainty}")
    if each.passkeys:
        found = f"{sum(each.passkeys)} of {len(each.passkeys)} passkeys at the target"
        parts.append(f"{found} (loss {each.passkey_loss:.3f} per token)")
    if each.short_tax:
        error = each.short_tax["standard_error"]
        uncertainty = "" if error is None else f" with a standard error of {error:.1f}"
        parts.append(f"{each.short_tax['percent']:+.1f} % perplexity on short text{uncertainty}")
    return ", ".join(parts)


def _compare(chosen: MeasuredMethod, best: MeasuredMethod) -> str:
    """Return why a method with a higher perplexity is chosen."""
    if best.is_behind_on_passkeys:
        return "its loss on passkeys is too far above the lowest"
    return "the chosen one is as good within the error, and costs no more on short text or is the plan"


def open_measurements(model: ModelSource, dtype: str | None, text: Text, target: int, folder: Path) -> Measurements:
    """Return what `measure_plan` has stored in a folder for a model, a text and a target; it may hold others, too."""
    header = {
        "dtype": describe_source(model, dtype)["dtype"],
        "model_digest": source_digest(model),
        "text_sha256": text.digest,
        "target": target,
    }
    name = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:12]
    return Measurements(header, folder.expanduser() / f"plan-{name}.json")
