"""Choose the scaling and the factor for a target length, and estimate the memory of the KV cache.

plan("Qwen/Qwen3-8B", target=131_072).rope_parameters
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropewalk import config as configs
from ropewalk.config import AttentionShape, ModelConfig
from ropewalk.config.architectures import NO_ROPE_IN_FULL_ATTENTION_MODEL_TYPES
from ropewalk.config.published import PublishedModel, find_published_model
from ropewalk.config.scaled_fields import build_scaled_rope_parameters, gives_scaling
from ropewalk.errors import InputError, UnsupportedModelError, check_length
from ropewalk.positions.rerope import LeakyReRoPE
from ropewalk.rope import Rope
from ropewalk.scaling import from_rope_dict
from ropewalk.scaling.base import Scaling
from ropewalk.scaling.linear import Linear
from ropewalk.scaling.llama3 import Llama3
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.ntk import DynamicNTK
from ropewalk.scaling.proportional import Proportional
from ropewalk.scaling.yarn import YaRN

# A factor that just covers the target fails to retrieve some facts: at 12,000 tokens, SmolLM2 (L = 8,192) finds 5 of 8
# passkeys with the factor target/L, 6 with 1.1 times that, and 7 from 1.25 times on (benchmarks/passkey.py;
# docs/dynamic.md has more lengths).
MARGIN = 1.25
_FACTOR_STEP = 0.25  # factors are rounded up to a multiple of it, so that configurations stay readable
# Configurations store attention factors with at least this relative precision.
_ATTENTION_FACTOR_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Plan:
    """The result of `plan`.

    Attributes:
        target: tokens to read.
        original_length: tokens the model was trained on.
        scaling: the scaling to use; the model's present one if it needs no other.
        needed: whether the model needs another scaling.
        reasons: why, one sentence each.
        rope_parameters: the dict for transformers, nested if layer types differ; None if nothing changes. In a
            multimodal configuration it belongs in the part that configures the text decoder, such as `text_config`.
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


def plan(
    model_or_config: Any, target: int, *, measure: float | None = None, text: Any = None, out: str | Path | None = None
) -> Plan:
    """Choose the scaling and the factor with which a model reads `target` tokens.

    The factor is the smallest that works: the ratio of the target to the length the model reads now, times the margin
    that retrieval needs, rounded up to a quarter. A model trained with linear, yarn, llama3 or proportional keeps that
    method with a larger factor. The lists of longrope cannot be extended, so yarn replaces them. If the makers of the
    model publish a scaling for the target, it is chosen, with a factor no larger than the target needs.

    The planned fields are put into the configuration and read again: they must give the planned frequencies.

    With `measure`, several methods and factors are compared on the model and a text instead of using the margin
    (`ropewalk.evaluate.measured_plan`, which has more options).

    Args:
        model_or_config: a model, or anything that `ropewalk.config.read` accepts; with `measure`, the name of a model
            or a loaded (model, tokenizer).
        target: tokens to read.
        measure: minutes for measurements.
        text: with `measure`, the text to measure on: a name that `ropewalk.evaluate.texts.read_text` accepts.
        out: with `measure`, a folder that keeps the measurements, from which the same call continues.

    Raises InputError for a target below 1, a model without rotary embedding, or one whose configuration cannot express
    the scaling.
    """
    check_length("target", target)
    if measure is not None:
        from ropewalk.evaluate.measured_plan import measure_plan  # imports torch

        return measure_plan(model_or_config, target, measure, text, out=out)
    for field, value in (("text", text), ("out", out)):
        if value is not None:
            raise InputError(field, value, "minutes to measure beside it")
    model_config, config = read_source(model_or_config)
    layer = model_config.main_layer
    is_scaled = layer.scaling != NoScaling()
    original = layer.scaling.resolve_original_length(layer.rope)
    memory = compute_kv_cache_bytes(model_config.attention, target) if model_config.attention else None
    published = _find_published(model_or_config, model_config)
    current_length = compute_current_length(model_config)
    notes = note_dual_chunk_attention(config, target)
    if is_scaled and published and published.matches(model_config):
        current_length = max(current_length, _published_length(published))
    if target <= current_length:
        scaling_note = f"its own scaling {layer.scaling} covers that" if is_scaled else "it needs no scaling"
        reason = f"the model reads {current_length:,} tokens as it is, and the target is {target:,}: {scaling_note}"
        return Plan(target, original, layer.scaling, False, (reason, *notes), None, current_length, memory)

    _check_reads_whole_text(model_config)
    ratio = target / current_length
    if published and has_published_scaling(model_or_config, model_config, target):
        scaling, choice_reasons = _choose_published(published, target)
    else:
        scaling, choice_reasons = _choose_scaling(model_config, ratio)
    reasons = (
        f"the model reads {current_length:,} tokens as it is, and the target is {target:,}: {ratio:.2f} times that",
        *choice_reasons,
        *(notes or _note_position_method(layer.scaling, current_length, target)),
        # benchmarks/results/position_table.json and short_text/curve.json: a book, and the help texts of two Pythons
        "a static scaling also changes texts that fit without it: on SmolLM2-135M, yarn 2 raises the perplexity of "
        "8,192 tokens by 1 to 5 %, depending on the text, yarn 4 by 15 to 16 %; dynamic-yarn leaves it as it is",
    )
    rope_parameters, declared_length = build_planned_fields(model_config, config, scaling, target)
    return Plan(target, original, scaling, True, reasons, rope_parameters, declared_length, memory)


def build_planned_fields(
    model_config: ModelConfig, config: Mapping[str, Any] | None, scaling: Scaling, target: int
) -> tuple[dict[str, Any] | None, int]:
    """Return the `rope_parameters` with which a configuration has a scaling, and the length to declare, in tokens.

    Args:
        model_config, config: the configuration, parsed and as transformers has it; see `read_source`.
        scaling: the scaling of the layers that attend to the whole text.
        target: tokens to read.

    Raises InputError for an architecture whose configuration cannot express the scaling.
    """
    rope_parameters = build_scaled_rope_parameters(model_config, scaling)
    declared_length = _choose_declared_length(model_config, scaling, rope_parameters, target)
    if config is not None and not gives_scaling(config, model_config, scaling, rope_parameters, declared_length):
        expected = f"an architecture whose configuration can express {scaling}"
        raise InputError("model", model_config.model_type, expected, "extend applies it without the configuration")
    return rope_parameters, declared_length


def compute_kv_cache_bytes(shape: AttentionShape, length: int) -> int:
    """Return the memory, in bytes, of the keys and values of one text of `length` tokens."""
    return sum(layer.count_numbers(length) for layer in shape.layers) * shape.bytes_per_number


def compute_current_length(model_config: ModelConfig) -> int:
    """Return the tokens that a model reads as it is, with the scaling of its configuration."""
    layer = model_config.main_layer
    scaled_length = layer.scaling.scaled_length(layer.rope)
    if layer.scaling != NoScaling() and model_config.max_length:
        return max(round(scaled_length), model_config.max_length)
    return round(scaled_length)


def read_source(source: Any) -> tuple[ModelConfig, Mapping[str, Any] | None]:
    """Return the parsed configuration of a source, and the one of transformers that it contains.

    The latter is None for a ModelConfig and for a GGUF file.
    """
    if isinstance(source, str | Path):
        path = configs.locate(str(source))
        if path is not None and path.suffix == ".gguf":
            return configs.read(path), None
        source = configs.fetch_hub_config(str(source)) if path is None else configs.read_json_object(path)
    model_config = configs.read(source)
    if isinstance(source, ModelConfig):
        return model_config, None
    return model_config, source if isinstance(source, Mapping) else getattr(source, "config", source).to_dict()


def note_dual_chunk_attention(config: Mapping[str, Any] | None, target: int) -> tuple[str, ...]:
    """Return a sentence about dual chunk attention if the model needs it for the target."""
    dual_chunk = configs.get_text_config_dict(config).get("dual_chunk_attention_config") if config else None
    length = dual_chunk.get("original_max_position_embeddings") if isinstance(dual_chunk, Mapping) else None
    if not isinstance(length, int) or target <= length:
        return ()
    return (
        f"past {length:,} tokens the model relies on dual chunk attention (dual_chunk_attention_config): a reader "
        "without it, such as transformers or llama.cpp, meets distances that the model was not trained on; extend with "
        "dual-chunk gives it to transformers",
    )


def _note_position_method(scaling: Scaling, current_length: int, target: int) -> tuple[str, ...]:
    """Return a sentence about the position method that is an alternative; none if the frequencies are dynamic."""
    if scaling.is_dynamic:
        return ()
    method = LeakyReRoPE().resolve(current_length, target)
    return (
        f"on transformers, leaky-rerope is an alternative: it leaves texts of up to {current_length:,} tokens as they "
        f"are; in longer ones, keys fewer than {method.window:,} tokens back keep their distance, and at the target "
        f"farther distances grow {method.factor:g} times more slowly; a saved configuration cannot hold it",
    )


def _check_reads_whole_text(model_config: ModelConfig) -> None:
    """Raise UnsupportedModelError if only layers with a window have a rotary embedding."""
    layers = model_config.attention.layers if model_config.attention else ()
    windows = {layer.window for layer in layers if layer.kv_heads}
    has_local_ropes = all(map(configs.is_local, model_config.ropes)) and None in windows
    has_no_global_rope = model_config.model_type in NO_ROPE_IN_FULL_ATTENTION_MODEL_TYPES and windows != {None}
    if has_local_ropes or has_no_global_rope:
        reason = "its layers that attend to the whole text have no rotary embedding, so no scaling extends it"
        raise UnsupportedModelError(model_config.model_type, reason)


def _choose_scaling(model_config: ModelConfig, ratio: float) -> tuple[Scaling, tuple[str, ...]]:
    """Return a scaling that extends the current one by the margin times `ratio`, and the reasons."""
    layer = model_config.main_layer
    factor, current = round_up_factor(ratio * MARGIN), layer.scaling
    reasons = [
        f"factor {factor:g}: that ratio times {MARGIN:g}, the margin that retrieval needs, rounded up to a quarter"
    ]
    if "mrope_section" in layer.rope_dict:
        reasons.append("positions of images and videos grow more slowly than tokens: texts with many need less")
    trained = f"the model was trained with {current}: the same method, its"
    if isinstance(current, DynamicNTK) and current.alpha is not None:  # alpha divides the slowest frequency
        scaling: Scaling = dataclasses.replace(current, alpha=round_up_factor(current.alpha * factor))
        return scaling, (*reasons, f"{trained} alpha grown from {current.alpha:g}")
    if isinstance(current, YaRN | Llama3 | Linear | Proportional):
        scaling = dataclasses.replace(current, factor=round_up_factor(current.factor * factor))
        if isinstance(current, YaRN) and isinstance(scaling, YaRN):
            attention_factor = _find_explicit_attention_factor(current, layer.rope)
            scaling = dataclasses.replace(scaling, attention_factor=attention_factor)
        return scaling, (*reasons, f"{trained} factor grown from {current.factor:g}")
    method = "yarn: as good as any static method that every engine reads, in what was measured; needs no training"
    return _replace_by_yarn(model_config, factor), (*reasons, method)


def _replace_by_yarn(model_config: ModelConfig, factor: float) -> YaRN:
    """Return the YaRN that extends a model by `factor`: one without a scaling, or with the lists of LongRoPE."""
    layer = model_config.main_layer
    current, rope = layer.scaling, layer.rope
    extension = current.extension_factor(rope)
    if not isinstance(current, LongRoPE) or extension > 1:
        return YaRN(factor=round_up_factor(factor * extension))
    original = current.resolve_original_length(rope)
    if (model_config.max_length or 0) > original:
        return YaRN(factor=round_up_factor(factor * compute_current_length(model_config) / original))
    # A declared length that includes the lists, as with the rope_freqs tensor of Llama 3.1: the slowest frequency tells
    # by how much they extend the model.
    divisor = float(rope.inv_freq[-1] / current.frequencies(rope, original).inv_freq[-1])
    return YaRN(factor=round_up_factor(factor * divisor), original_length=round(original / divisor))


def _find_explicit_attention_factor(scaling: YaRN, rope: Rope) -> float | None:
    """Return the attention factor of YaRN if it is a choice of its own; None if it is that of the formula.

    Some configurations store the value of the formula (OLMo 3). It must follow a larger factor.
    """
    formula = dataclasses.replace(scaling, attention_factor=None).frequencies(rope).attention_factor
    stored = scaling.attention_factor
    is_formula = stored is not None and abs(stored / formula - 1) < _ATTENTION_FACTOR_TOLERANCE
    return None if is_formula else stored


def has_published_scaling(model_or_config: Any, model_config: ModelConfig, target: int) -> bool:
    """Return whether the makers of an unscaled model publish a scaling for `target` tokens, which `plan` then uses."""
    published = _find_published(model_or_config, model_config)
    is_scaled = model_config.main_layer.scaling != NoScaling()
    return published is not None and not is_scaled and target <= _published_length(published)


def _find_published(model_or_config: Any, model_config: ModelConfig) -> PublishedModel | None:
    return find_published_model(model_or_config if isinstance(model_or_config, str) else "", model_config)


def _published_length(model: PublishedModel) -> int:
    """Return the tokens that the makers' scaling for long texts is for; 0 without one."""
    if model.long is None:
        return 0
    rope_dict = model.long["rope_scaling"]
    scaled_length: float = rope_dict["factor"] * rope_dict["original_max_position_embeddings"]
    return max(int(model.long["length"]), round(scaled_length))


def _choose_published(model: PublishedModel, target: int) -> tuple[Scaling, tuple[str, ...]]:
    """Return the published scaling for long texts, with the factor the target needs, and the reasons."""
    assert model.long is not None  # checked by the caller
    published: Any = from_rope_dict(model.long["rope_scaling"], strict=True)
    original = model.long["rope_scaling"]["original_max_position_embeddings"]
    factor = min(published.factor, round_up_factor(target / original))
    scaling = dataclasses.replace(published, factor=factor, original_length=original)
    factor_reason = f"factor {factor:g}: the target over the {original:,} tokens that its makers name, rounded up"
    if factor < target / original:
        factor_reason = f"factor {factor:g}: the largest that its makers recommend for this length"
    source = model.long["source"]
    return scaling, (factor_reason, f"its makers publish {published} for {model.long['length']:,} tokens: {source}")


def _choose_declared_length(
    model_config: ModelConfig, scaling: Scaling, rope_parameters: Mapping[str, Any] | None, target: int
) -> int:
    """Return the max_position_embeddings to declare beside rope_parameters, in tokens."""
    layer = model_config.main_layer
    main_dict = (rope_parameters or {}).get(model_config.main_layer_type, rope_parameters or {})
    original = layer.scaling.resolve_original_length(layer.rope)
    if layer.scaling != NoScaling() and (model_config.max_length or 0) > original:  # it declares the scaled length
        return max(target, round(scaling.scaled_length(layer.rope)))
    declared = configs.compute_max_position_embeddings(scaling, layer.rope, main_dict)
    return max(declared, target) if main_dict.get("original_max_position_embeddings") else declared


def round_up_factor(factor: float) -> float:
    """Return the factor rounded up to a multiple of a quarter."""
    return math.ceil(factor / _FACTOR_STEP) * _FACTOR_STEP
