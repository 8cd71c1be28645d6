"""Compare an engine under test with the reference: its cos and sin tables, and its log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ropewalk import config as configs
from ropewalk.config.scaled_fields import expected_scalings
from ropewalk.evaluate.texts import BUILT_IN, read_text
from ropewalk.scaling import Scaling
from ropewalk.scaling.none import NoScaling
from ropewalk.serving.verify.engine_under_test import EngineUnderTest, LocalEngine
from ropewalk.serving.verify.length_rule import LengthRule, TablePart
from ropewalk.serving.verify.prompts import Prompts, build_prompts
from ropewalk.serving.verify.run_engine import TOP_K, EngineOutput, TopLogprobs
from ropewalk.serving.verify.tables import TableDeviation, choose_positions, largest_deviation
from ropewalk.serving.verify.verdict import Verdict, judge

_MAX_CHARACTERS_PER_TOKEN = 32  # generous, so that the text has enough tokens
_MAX_TABLE_CONTROL = 4.0  # roundings that float32 explains in a table; a float16 table is off by 4,000
# Noise of a log-probability that float32 angles explain, in nats per 1,024 tokens: the error of an angle grows with the
# position.
_LOGPROB_NOISE, _LOGPROB_NOISE_TOKENS = 2.0**-17, 1024
# An engine that is wrong also without scaling has a large control, which would hide the fault. The control is therefore
# limited to 10 times the noise that is explained otherwise, and is at least one float32 rounding.
_MAX_CONTROL_RATIO, _MIN_CONTROL = 10.0, 2.0**-24


class Comparison(NamedTuple):
    """One comparison of an engine with the reference.

    Attributes:
        verdict: the conclusion.
        details: the part of the JSON result that describes this comparison, verdict included.
    """

    verdict: Verdict
    details: dict[str, Any]


@dataclass(frozen=True)
class EngineRun:
    """Outputs of an engine under test, and the inputs that they belong to.

    Attributes:
        engine: the engine under test.
        expected: scaling that it should apply.
        rule: how the engine should follow the length of a request if the scaling is dynamic.
        prompts: inputs for the log-probabilities.
        positions: positions of the tables without scaling.
        scaled: output under the scaling.
        unscaled: output without scaling; None if the engine cannot be run without it.
    """

    engine: EngineUnderTest
    expected: Scaling
    rule: LengthRule
    prompts: Prompts
    positions: list[int]
    scaled: EngineOutput
    unscaled: EngineOutput | None

    @property
    def table_parts(self) -> list[TablePart]:
        """The parts of the tables with the scaling."""
        return self.rule.table_parts(self.engine.length, self.positions)


def run_with_and_without_scaling(engine: EngineUnderTest, expected: Scaling) -> EngineRun:
    """Run the engine on the built-in text with the expected scaling, and without scaling if possible."""
    reference = engine.reference
    original_length = reference.model_config.main_layer.rope.original_length
    rule = engine.find_length_rule(expected)
    text = read_text(BUILT_IN).content[: _MAX_CHARACTERS_PER_TOKEN * engine.length]
    token_ids = reference.tokenizer(text, verbose=False)["input_ids"]
    prompts = build_prompts(
        token_ids,
        engine.length - 1,  # leaves room for the predicted token
        original_length,
        restart_past_original=rule.follows_text,
        factor_lengths=rule.request_factors.lengths if rule.request_factors else (),
    )
    positions = choose_positions(engine.length, original_length)
    unscaled: EngineOutput | None
    if isinstance(engine, LocalEngine) and engine.served is None and expected == NoScaling():
        scaled = unscaled = engine.run_unscaled(prompts, positions)  # the same checkpoint: run it once
    else:
        rows = [row for part in rule.table_parts(engine.length, positions) for row in part.rows]
        scaled = engine.run_scaled(expected, prompts, rows)
        unscaled = engine.run_unscaled(prompts, positions)
    return EngineRun(engine, expected, rule, prompts, positions, scaled, unscaled)


def compare_logprobs(run: EngineRun, *, in_batch: bool = False) -> Comparison:
    """Compare log-probabilities at all depths; the difference is the mean over the depths, in nats.

    `in_batch`: compare those of the prompts that were sent at once, instead of those sent one after the other.
    """
    reference, prompts = run.engine.reference, run.prompts
    scaled_top, single_token_top = prompts.split(run.scaled.top_logprobs)
    exact_DV = reference.log_probs(run.expected, prompts, run.rule)
    exact_unscaled_DV = reference.log_probs(NoScaling(), prompts, run.rule)

    differences = logprob_differences(exact_DV, run.scaled.batch_top_logprobs if in_batch else scaled_top)
    single_token_differences = logprob_differences(reference.single_token_log_probs(prompts), single_token_top)
    single_token_noise = float(np.mean(single_token_differences))
    # None for 0: the scaling changes nothing, so nothing can tell an engine that ignores it.
    difference_if_ignored = (
        float(np.mean(logprob_differences(exact_unscaled_DV, select_top_logprobs(exact_DV)))) or None
    )

    angle_noise = _LOGPROB_NOISE * max(1.0, run.engine.length / _LOGPROB_NOISE_TOKENS)
    explained_noise = max(single_token_noise, angle_noise)
    hint = "an engine that computes in float32"
    if run.unscaled is None:
        controls, control = None, explained_noise
        hint += ", or control_url,"
    else:
        unscaled_top = run.unscaled.batch_top_logprobs if in_batch else prompts.split(run.unscaled.top_logprobs)[0]
        controls = logprob_differences(exact_unscaled_DV, unscaled_top)
        control = max(min(float(np.mean(controls)), _MAX_CONTROL_RATIO * explained_noise), _MIN_CONTROL)
    verdict = judge(
        "nats", float(np.mean(differences)), control, difference_if_ignored, f"{hint} gives a clearer verdict"
    )
    details = {
        **asdict(verdict),
        "ignored": difference_if_ignored,
        "alone": single_token_noise,
        "depths": list(prompts.depths),
        "factors": run.rule.find_factors(prompts.depths),
        "differences": differences,
        "controls": controls,
    }
    return Comparison(verdict, details)


def logprob_differences(reference_DV: NDArray[np.float32], engine_top: Sequence[TopLogprobs]) -> list[float]:
    """Return for each depth the median of |engine's log p - reference's log p| over the engine's top tokens, in nats.

    The median has the same scale for confident and for uncertain predictions, and tokens that rounding moved into or
    out of the top list do not change it.

    Args:
        reference_DV: log-probabilities of the whole vocabulary, [depths, vocabulary].
        engine_top: top tokens of the engine at each depth.
    """
    medians = []
    for reference_V, top in zip(reference_DV, engine_top, strict=True):
        token_ids = np.array([token for token, _ in top])
        logprobs = np.array([logprob for _, logprob in top])
        medians.append(float(np.median(abs(logprobs - reference_V[token_ids]))))
    return medians


def select_top_logprobs(reference_DV: NDArray[np.float32]) -> list[TopLogprobs]:
    """Return the top tokens of the reference at each depth, in the form in which an engine reports its own."""
    ids_DK = np.argsort(-reference_DV, axis=-1)[:, :TOP_K]
    return [
        list(zip(ids_K.tolist(), reference_V[ids_K].tolist(), strict=True))
        for ids_K, reference_V in zip(ids_DK, reference_DV, strict=True)
    ]


def compare_tables(run: EngineRun) -> Comparison | None:
    """Compare cos and sin tables; the difference is the largest deviation, in roundings of float32.

    None for an engine whose tables cannot be read.
    """
    if not run.scaled.tables or run.unscaled is None or not run.unscaled.tables:
        return None
    unscaled_part = TablePart(run.engine.length, 0, run.positions)
    deviation = _table_deviation(run, run.expected, run.scaled.tables, run.table_parts)
    control = _table_deviation(run, NoScaling(), run.unscaled.tables, [unscaled_part])
    verdict = judge("roundings of float32", deviation.roundings, min(control.roundings, _MAX_TABLE_CONTROL))
    details = {
        **asdict(verdict),
        "positions": sum(len(part.positions) for part in run.table_parts),
        "position": deviation.position,
        "pair": deviation.pair,
        "off_by": deviation.absolute,
    }
    return Comparison(verdict, details)


def _table_deviation(
    run: EngineRun, scaling: Scaling, tables: list[dict[str, Any]], parts: Sequence[TablePart]
) -> TableDeviation:
    """Return the largest deviation of the tables from those that the model has with the scaling."""
    model_config = run.engine.reference.model_config
    scalings = expected_scalings(model_config, scaling)
    deviations, end = [], 0
    for part in parts:
        start, end = end, end + len(part.positions)
        rows = [{name: table[name][start:end] for name in ("cos", "sin")} for table in tables]
        frequencies = [
            configs.compute_layer_frequencies(scalings[layer_type], layer, part.frequency_length)
            for layer_type, layer in model_config.ropes.items()
        ]
        deviations.append(largest_deviation(rows, frequencies, part.positions))
    return max(deviations, key=attrgetter("roundings"))
