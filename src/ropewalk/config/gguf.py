"""Interpret the header of a GGUF file as llama.cpp does.

- `rope.scaling.*` defines the scaling, `rope.scaling.attn_factor` an attention factor. With YaRN, llama.cpp multiplies
  it by 0.1 ln s + 1; it reads the betas of YaRN for a few architectures only (gguf_architectures.py).
- The tensor `rope_freqs` divides the frequencies; `rope_factors_short` and `rope_factors_long` are the two lists of
  LongRoPE.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ropewalk.config.gguf_architectures import (
    FIXED_SLIDING_BASE_GGUF_ARCHITECTURES,
    INTERLEAVED_GGUF_ARCHITECTURES,
    ROPE_GGUF_ARCHITECTURES,
    ROPE_SWITCH_GGUF_ARCHITECTURES,
    SLIDING_ROPE_FREQ_BASE,
    SOFTMAX_SCALED_GGUF_ARCHITECTURES,
    UNSCALED_SLIDING_GGUF_ARCHITECTURES,
    YARN_BETA_DEFAULTS,
    YARN_LOG_MULTIPLIER_SCALE,
)
from ropewalk.config.gguf_attention_shape import compute_gguf_head_dim, parse_gguf_attention_shape
from ropewalk.config.gguf_header import ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, ROPE_FREQS, read_gguf_header
from ropewalk.config.gguf_layer_types import get_gguf_field
from ropewalk.config.model_config import ALL_LAYERS, LayerRope, ModelConfig
from ropewalk.errors import IncompleteConfigError, InputError, UnsupportedModelError
from ropewalk.rope import Layout, Rope
from ropewalk.scaling.base import Scaling
from ropewalk.scaling.linear import Linear
from ropewalk.scaling.longrope import MAX_DIVISOR, LongRoPE
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.proportional import Proportional
from ropewalk.scaling.yarn import YaRN, yarn_mscale, yarn_mscale_ratio

FIXED_PAIR_DIVISOR = 1e30  # llama.cpp's converter writes this divisor for a pair that is not rotated
SCALING_TYPES = ("none", "linear", "yarn", "longrope")


def from_gguf(path: str | Path) -> ModelConfig:
    """Parse the header of a GGUF file. Raises InputError if it is missing, corrupt or has no rope fields."""
    return from_gguf_fields(*read_gguf_header(path), str(path))


def from_gguf_fields(
    fields: Mapping[str, Any], divisors: Mapping[str, tuple[float, ...]], source: str = "GGUF metadata"
) -> ModelConfig:
    """Parse the metadata and the rope tensors of a GGUF file, as returned by `read_gguf_header`.

    Args:
        fields: the metadata.
        divisors: the tensors that divide the frequencies, by name.
        source: the name of the file in error messages.

    Raises IncompleteConfigError without rope fields, and InputError for fields of the wrong type.
    """
    try:
        return _GgufParser(fields, divisors, source).parse()
    except InputError:
        raise
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise InputError("model", source, f"a GGUF file with fields of the right types ({error})") from None


class _GgufParser:
    """Parses the fields of one file.

    Attributes:
        architecture: the name of the architecture, which is also the prefix of its fields.
    """

    def __init__(self, fields: Mapping[str, Any], divisors: Mapping[str, tuple[float, ...]], source: str) -> None:
        self.fields, self.divisors, self.source = fields, divisors, source
        self.architecture = str(fields.get("general.architecture", ""))

    def get(self, key: str, default: Any = None) -> Any:
        """Return a field of the architecture, or the default."""
        return get_gguf_field(self.fields, key, default)

    def parse(self) -> ModelConfig:
        head_dim = compute_gguf_head_dim(self.fields)
        dim = self.get("rope.dimension_count") or self.get("attention.key_length") or head_dim
        context = self.get("context_length")
        has_rope = self.get("rope.freq_base") is not None or self.architecture in ROPE_GGUF_ARCHITECTURES
        if self.architecture in ROPE_SWITCH_GGUF_ARCHITECTURES and self.get("rope.scaling.finetuned") is False:
            raise UnsupportedModelError(self.source, "it has no rotary embedding (rope.scaling.finetuned is false)")
        if not dim or not context or not has_rope:
            raise IncompleteConfigError("model", self.source, "a GGUF file of a model with rope fields")
        stated_length = self.get("rope.scaling.original_context_length")
        layout: Layout = "interleaved" if self.architecture in INTERLEAVED_GGUF_ARCHITECTURES else "half"
        rope = Rope(int(dim), float(self.get("rope.freq_base", 10_000.0)), int(stated_length or context), layout)
        scaling, main_rope = self.parse_scaling(rope), rope
        if isinstance(scaling, Linear) and self.architecture == "gemma3" and not stated_length:
            # Gemma 3 declares the length after scaling.
            main_rope = dataclasses.replace(rope, original_length=round(context / scaling.factor))
        main_layer = LayerRope(main_rope, scaling)
        ropes = {ALL_LAYERS: main_layer}
        compressed_base = self.get("attention.compress_rope_freq_base")
        if compressed_base is not None:
            ropes = self.parse_compression_groups(main_layer, float(compressed_base))
        if self.architecture in SLIDING_ROPE_FREQ_BASE and self.get("attention.sliding_window"):
            ropes = {"full_attention": main_layer, "sliding_attention": self.parse_sliding_layer(rope)}
        return ModelConfig(self.architecture, ropes, int(context), parse_gguf_attention_shape(self.fields))

    def parse_scaling(self, rope: Rope) -> Scaling:
        """Return the scaling of the layers that attend to the whole text."""
        scaling_type = self.get("rope.scaling.type", "linear")
        if scaling_type not in SCALING_TYPES:
            raise InputError("rope.scaling.type", scaling_type, ", ".join(SCALING_TYPES))
        factor = float(self.get("rope.scaling.factor", self.get("rope.scale_linear")) or 1.0)
        attention_factor = float(self.get("rope.scaling.attn_factor", 1.0))
        scaling: Scaling = NoScaling()
        if scaling_type == "yarn":
            scaling = self.parse_yarn(factor, attention_factor)
            attention_factor = scaling.frequencies(rope).attention_factor
        else:
            if factor != 1 and scaling_type != "none":
                scaling = Linear(factor=factor)
            is_scaled = scaling != NoScaling() or attention_factor != 1
            if self.architecture in SOFTMAX_SCALED_GGUF_ARCHITECTURES and is_scaled:
                expected = f"yarn, because llama.cpp also scales the softmax of {self.architecture}"
                raise InputError("rope.scaling.type", scaling_type, expected)

        if ROPE_FREQS in self.divisors:
            return _divide_frequencies(rope, scaling, attention_factor, self.divisors[ROPE_FREQS])
        ones = (1.0,) * (rope.dim // 2)
        if self.divisors:
            short, long = (self.divisors.get(name, ones) for name in (ROPE_FACTORS_SHORT, ROPE_FACTORS_LONG))
            return _divide_frequencies(rope, scaling, attention_factor, short, long)
        if scaling_type == "yarn" or attention_factor == 1:
            return scaling
        return _divide_frequencies(rope, scaling, attention_factor, ones)

    def parse_compression_groups(self, layer: LayerRope, base: float) -> dict[str, LayerRope]:
        """Return the two embeddings of DeepSeek V4: only layers with compressed keys are scaled, by another base.

        Source: deepseek4.cpp in src/models of llama.cpp, which divides the attention factor of YaRN out again.
        """
        scaling = layer.scaling
        if isinstance(scaling, YaRN):
            scaling = dataclasses.replace(scaling, attention_factor=1.0)
        main = dataclasses.replace(layer.rope, original_length=int(self.get("context_length")))
        return {
            "compress": LayerRope(dataclasses.replace(layer.rope, base=base), scaling),
            "main": LayerRope(main, NoScaling()),
        }

    def parse_yarn(self, factor: float, attn_factor: float) -> YaRN:
        """Return YaRN with that factor and that value of the field rope.scaling.attn_factor."""
        beta_fast, beta_slow = YARN_BETA_DEFAULTS.get(self.architecture, (32.0, 1.0))
        if self.architecture in YARN_BETA_DEFAULTS:
            beta_fast = float(self.get("rope.scaling.yarn_beta_fast", beta_fast))
            beta_slow = float(self.get("rope.scaling.yarn_beta_slow", beta_slow))
        multiplier_scale = YARN_LOG_MULTIPLIER_SCALE.get(self.architecture, 0.0)
        log_multiplier = float(self.get("rope.scaling.yarn_log_multiplier", 0.0)) * multiplier_scale
        log_multiplier = float(f"{log_multiplier:.7g}")  # 1, not 10 times the float32 nearest to 0.1
        attention_factor = attn_factor * yarn_mscale(factor)
        if log_multiplier:
            # llama.cpp uses 1 for mscale here, except for deepseek2, where mscale equals mscale_all_dim.
            mscale = log_multiplier if self.architecture == "deepseek2" else 1.0
            attention_factor = attn_factor * yarn_mscale_ratio(factor, mscale, log_multiplier)
        mscale_all_dim = 0.0
        if self.architecture in SOFTMAX_SCALED_GGUF_ARCHITECTURES and factor > 1:
            # Find c with m(s, c) = attention_factor m(s, log_multiplier), the number that llama.cpp squares.
            mscale_all_dim = (attention_factor * yarn_mscale(factor, log_multiplier) - 1) / (0.1 * math.log(factor))
            if abs(mscale_all_dim) < 1e-6:  # the rounding error of float32 fields
                mscale_all_dim = 0.0
        return YaRN(
            factor=factor,
            beta_fast=beta_fast,
            beta_slow=beta_slow,
            attention_factor=None if attn_factor == 1 and not log_multiplier else attention_factor,
            mscale_all_dim=mscale_all_dim or None,
        )

    def parse_sliding_layer(self, rope: Rope) -> LayerRope:
        """Return the rotary embedding of the sliding-window layers: another base, no factor, no divisors."""
        base = SLIDING_ROPE_FREQ_BASE[self.architecture] or rope.base
        if self.architecture not in FIXED_SLIDING_BASE_GGUF_ARCHITECTURES:
            base = float(self.get("rope.freq_base_swa", base))
        dim = int(self.get("rope.dimension_count_swa", rope.dim))
        sliding_rope = Rope(dim, base, rope.original_length, rope.layout)
        attention_factor = float(self.get("rope.scaling.attn_factor", 1.0))
        if attention_factor == 1 or self.architecture in UNSCALED_SLIDING_GGUF_ARCHITECTURES:
            return LayerRope(sliding_rope, NoScaling())
        ones = (1.0,) * (dim // 2)
        return LayerRope(sliding_rope, LongRoPE(ones, ones, attention_factor=attention_factor))


def _divide_frequencies(
    rope: Rope, scaling: Scaling, attention_factor: float, *divisor_lists: tuple[float, ...]
) -> Scaling:
    """Return the scaling that results when the frequencies of `scaling` are also divided by a list.

    Args:
        rope: the unscaled embedding.
        scaling: the scaling before the division.
        attention_factor: the attention factor of the result.
        divisor_lists: the divisors, dim/2 numbers; optionally followed by those past the original length.
    """
    pairs = rope.dim // 2
    scaled_inv_freq = scaling.frequencies(rope).inv_freq
    combined = []
    for divisors in divisor_lists:
        if len(divisors) != pairs:
            raise InputError("divisors", f"{len(divisors)} numbers", f"{pairs} numbers, one for each pair")
        combined.append(tuple((np.array(divisors) * (rope.inv_freq / scaled_inv_freq)).tolist()))

    rotated_pairs = sum(divisor < FIXED_PAIR_DIVISOR / 2 for divisor in combined[0])
    if not 0 < rotated_pairs < pairs:
        return LongRoPE(combined[0], combined[-1], attention_factor=attention_factor)
    # Some pairs are not rotated. Proportional expresses this, but with one divisor for all others.
    rotated_divisors, fixed_divisors = set(combined[0][:rotated_pairs]), combined[0][rotated_pairs:]
    if any(divisor < FIXED_PAIR_DIVISOR / 2 for divisor in fixed_divisors):
        raise InputError(ROPE_FREQS, "divisors that fix some pairs", "rotated pairs before those only")
    if len(combined) == 1 and len(rotated_divisors) == 1 and attention_factor == 1:
        p = math.nextafter(2 * rotated_pairs / rope.dim, 1.0)  # rounding down would rotate one pair less
        return Proportional(p=p, factor=rotated_divisors.pop())
    limited = [tuple(min(divisor, MAX_DIVISOR) for divisor in divisors) for divisors in combined]
    return LongRoPE(limited[0], limited[-1], attention_factor=attention_factor)
