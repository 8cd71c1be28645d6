"""Choose the scaling and the factor for a target length, and estimate the memory of the KV cache.

plan("Qwen/Qwen3-8B", target=131_072).rope_parameters
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from ropewalk import config as configs
from ropewalk.config import AttentionShape
from ropewalk.config.published import PublishedModel, find_published_model
from ropewalk.errors import check_length
from ropewalk.rope import Rope
from ropewalk.scaling import from_rope_dict
from ropewalk.scaling.base import Scaling
from ropewalk.scaling.linear import Linear
from ropewalk.scaling.llama3 import Llama3
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.yarn import YaRN

# A factor that just covers the target fails to retrieve some facts: at 12,000 tokens, SmolLM2 (L = 8,192) finds 5 of 8
# passkeys with the factor target/L, 6 with 1.1 times that, and 7 from 1.25 times on (benchmarks/passkey.py;
# docs/dynamic.md has more lengths).
MARGIN = 1.25
_FACTOR_STEP = 0.25  # factors are rounded up to a multiple of it, so that configurations stay readable


@dataclass(frozen=True)
class Plan:
    """The result of `plan`.

    Attributes:
        target: tokens to read.
        original_length: tokens the model was trained on.
        scaling: the scaling to use; the model's present one if it needs no other.
        needed: whether the model needs another scaling.
        reasons: why, one sentence each.
        rope_parameters: the dict for transformers, nested if layer types differ; None if nothing changes.
        max_position_embeddings: the length to declare beside it, in tokens.
        kv_cache_bytes: memory of the KV cache for one text of the target length; None if its sizes are unknown.
    """

    target: int
    original_length: int
    scaling: Scaling
    needed: bool
    reasons: tuple[str, ...]
    rope_parameters: dict[str, Any] | None
    max_position_embeddings: int
    kv_cache_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as a dict that is ready for JSON."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**values, "scaling": self.scaling.to_dict(), "spec": str(self.scaling), "reasons": list(self.reasons)}


def plan(model_or_config: Any, target: int) -> Plan:
    """Choose the scaling and the factor with which a model reads `target` tokens.

    The factor is the smallest that works: the ratio of the target to the length the model reads now, times the margin
    that retrieval needs, rounded up to a quarter. A model trained with linear, yarn or llama3 keeps that method with a
    larger factor. The lists of longrope cannot be extended, so yarn replaces them. If the makers of the model publish a
    scaling for the target, it is chosen, with a factor no larger than the target needs.

    Args:
        model_or_config: a model, or anything that `ropewalk.config.read` accepts.
        target: tokens to read.

    Raises InputError for a target below 1 or a model without rotary embedding.
    """
    check_length("target", target)
    model_config = configs.read(model_or_config)
    layer = model_config.main_layer
    is_scaled = layer.scaling != NoScaling()
    original = layer.scaling.resolve_original_length(layer.rope)
    current_length = original * layer.scaling.extension_factor(layer.rope)
    if is_scaled and model_config.max_length:
        current_length = max(current_length, model_config.max_length)
    memory = compute_kv_cache_bytes(model_config.attention, target) if model_config.attention else None
    if target <= current_length:
        scaling_note = f"its own scaling {layer.scaling} covers that" if is_scaled else "it needs no scaling"
        reason = f"the model reads {current_length:,.0f} tokens as it is, and the target is {target:,}: {scaling_note}"
        return Plan(target, original, layer.scaling, False, (reason,), None, round(current_length), memory)

    ratio = target / current_length
    factor = _round_up(ratio * MARGIN)
    published = find_published_model(model_or_config if isinstance(model_or_config, str) else "", model_config)
    if published and published.long and target <= published.long["length"] and not is_scaled:
        scaling, choice_reasons = _choose_published(published, target)
    else:
        scaling, method_reason = _choose_method(layer.scaling, factor, layer.rope)
        factor_reason = f"factor {factor:g}: that ratio times {MARGIN:g}, the margin that retrieval needs, rounded up"
        choice_reasons = (f"{factor_reason} to a quarter", method_reason)
    reasons = (
        f"the model reads {current_length:,.0f} tokens as it is, and the target is {target:,}: {ratio:.2f} times that",
        *choice_reasons,
        # benchmarks/results/short_text: ropewalk curve smollm2 at 8k, none, yarn 2, yarn 4, dynamic-yarn
        "a static scaling also changes texts that fit without it: on SmolLM2-135M, yarn 2 raises the perplexity of "
        "8,192 tokens by 3.5 %, yarn 4 by 16 %; dynamic-yarn leaves it as it is",
    )
    rope_parameters = configs.build_rope_parameters(scaling, layer.rope, layer.rope_dict)
    declared_length = configs.compute_max_position_embeddings(scaling, layer.rope, rope_parameters or {})
    if is_scaled and (model_config.max_length or 0) > original:  # the model declares the length after scaling
        declared_length = round(current_length * factor)
    if model_config.main_layer_type != configs.ALL_LAYERS:
        nested = {layer_type: dict(other.rope_dict) for layer_type, other in model_config.ropes.items()}
        rope_parameters = {**nested, model_config.main_layer_type: rope_parameters}
    return Plan(target, original, scaling, True, reasons, rope_parameters, declared_length, memory)


def compute_kv_cache_bytes(shape: AttentionShape, length: int) -> int:
    """Return the memory, in bytes, of the keys and values of one text of `length` tokens."""
    return sum(layer.count_numbers(length) for layer in shape.layers) * shape.bytes_per_number


def _choose_method(current: Scaling, factor: float, rope: Rope) -> tuple[Scaling, str]:
    """Return a scaling that extends the current one by `factor`, and the reason for its method."""
    if isinstance(current, YaRN | Llama3 | Linear):
        extended = dataclasses.replace(current, factor=_round_up(current.factor * factor))
        reason = f"the model was trained with {current}: the same method, its factor grown from {current.factor:g}"
        return extended, reason
    reason = "yarn: the best static method at every length measured; needs no training and every engine reads it"
    return YaRN(factor=_round_up(factor * current.extension_factor(rope))), reason


def _choose_published(model: PublishedModel, target: int) -> tuple[Scaling, tuple[str, str]]:
    """Return the published scaling for long texts, with the factor the target needs, and the reasons."""
    assert model.long is not None  # checked by the caller
    published: Any = from_rope_dict(model.long["rope_scaling"], strict=True)
    original = model.long["rope_scaling"]["original_max_position_embeddings"]
    factor = min(published.factor, _round_up(target / original))
    scaling = dataclasses.replace(published, factor=factor, original_length=original)
    factor_reason = f"factor {factor:g}: the target over the {original:,} tokens that its makers name, rounded up"
    source = model.long["source"]
    return scaling, (factor_reason, f"its makers publish {published} for {model.long['length']:,} tokens: {source}")


def _round_up(factor: float) -> float:
    return math.ceil(factor / _FACTOR_STEP) * _FACTOR_STEP
