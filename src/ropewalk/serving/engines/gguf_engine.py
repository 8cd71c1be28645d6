"""Engines that load a GGUF file: candidates for a scaling, in its metadata or in frequency divisor tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ropewalk import config as configs
from ropewalk.config import LayerRope, ModelConfig
from ropewalk.config.gguf import FIXED_PAIR_DIVISOR, from_gguf_fields
from ropewalk.config.gguf_architectures import (
    SLIDING_ROPE_FREQ_BASE,
    SOFTMAX_SCALED_GGUF_ARCHITECTURES,
    YARN_BETA_DEFAULTS,
    YARN_LOG_MULTIPLIER_SCALE,
)
from ropewalk.config.gguf_header import (
    ROPE_FACTORS_LONG,
    ROPE_FACTORS_SHORT,
    ROPE_FREQS,
    ROPE_TENSORS,
    read_gguf_header,
)
from ropewalk.config.scaled_fields import expected_scalings
from ropewalk.errors import InputError
from ropewalk.frequencies import Frequencies
from ropewalk.scaling import Scaling
from ropewalk.scaling.abf import ABF
from ropewalk.scaling.linear import Linear
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.yarn import YaRN, yarn_mscale
from ropewalk.serving.engines.base import Candidate, Config, Engine
from ropewalk.serving.engines.checkpoint_folder import locate_gguf
from ropewalk.serving.engines.equivalents import base_of_slowest_pair
from ropewalk.serving.engines.gguf_file import copy_gguf

# The fields that hold a scaling, without the architecture's name in front. An export replaces all of them.
_SCALING_FIELDS = (
    "rope.freq_base", "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.attn_factor",
    "rope.scaling.alpha", "rope.scaling.yarn_log_multiplier", "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
)  # fmt: skip
_ORIGINAL_LENGTH = "rope.scaling.original_context_length"
_TOLERANCE = 1e-9  # relative; a number this close to 1 is not written


class GgufEngine(Engine):
    """An engine that loads a GGUF file.

    Its configuration is a dict with `fields` and `divisors`, the two results of `config.gguf_header.read_gguf_header`.
    """

    checkpoint_format = "gguf"

    def load_config(self, model: str) -> tuple[Config, ModelConfig]:
        fields, divisors = read_gguf_header(require_gguf(model))
        return {"fields": fields, "divisors": divisors}, from_gguf_fields(fields, divisors, model)

    def candidates(
        self, config: Config, model_config: ModelConfig, scaling: Scaling, length: int
    ) -> Iterator[Candidate]:
        layer, architecture = model_config.main_layer, model_config.model_type
        expected = expected_scalings(model_config, scaling)[model_config.main_layer_type]
        if expected.is_dynamic and not isinstance(expected, LongRoPE):
            return  # GGUF has no dynamic method
        frequencies = configs.compute_layer_frequencies(expected, layer, length)
        original = expected.original_length or layer.rope.original_length
        present = {key.removeprefix(f"{architecture}.") for key in config["fields"]}
        for encoded_as, scaling_fields, divisors in _encodings(architecture, expected, frequencies, layer):
            fields = {"rope.freq_base": layer.rope.base} if "rope.freq_base" in present else {}
            fields |= scaling_fields
            has_sliding_base = architecture in SLIDING_ROPE_FREQ_BASE and len(model_config.ropes) > 1
            if "rope.freq_base" in scaling_fields and has_sliding_base:
                fields["rope.freq_base_swa"] = model_config.ropes["sliding_attention"].rope.base  # must not change
            context = max(length, model_config.max_length or 0)
            fields["context_length"] = context
            if original and (original != context or _ORIGINAL_LENGTH in present):
                fields[_ORIGINAL_LENGTH] = original
            changes = _find_changes(architecture, config, fields, divisors)
            yield Candidate(encoded_as, _apply_changes(config, changes), changes)

    def write_checkpoint(self, model: str, candidate: Candidate, out: Path, length: int) -> Path:
        source = require_gguf(model)
        copy_gguf(source, out / source.name, candidate.changes)
        return self.exported_path(model, out)

    def exported_path(self, model: str, folder: Path) -> Path:
        return folder / require_gguf(model).name


def require_gguf(model: str) -> Path:
    """Return the GGUF file that MODEL names. Raises InputError, with the command that converts a folder, for others."""
    path = locate_gguf(model)
    if path is None:
        convert = "python convert_hf_to_gguf.py FOLDER --outfile MODEL.gguf"
        raise InputError("model", model, "a .gguf file", f"llama.cpp converts a folder: {convert}")
    return path


def _encodings(
    architecture: str, scaling: Scaling, frequencies: Frequencies, layer: LayerRope
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield (encoded_as, fields, divisors) that may encode the frequencies, the most readable one first.

    `fields` are named without the architecture in front. `divisors` are the tensors that divide the frequency of each
    pair, by name.
    """
    rope = layer.rope
    divisors = np.full(rope.dim // 2, FIXED_PAIR_DIVISOR)
    np.divide(rope.inv_freq, frequencies.inv_freq, out=divisors, where=frequencies.inv_freq > 0)
    factor = float(divisors[-1])  # linear and yarn divide the slowest pair by their factor
    attention = _attention_fields(frequencies.attention_factor)
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": factor} if abs(factor - 1) > _TOLERANCE else {}
    yield "" if isinstance(scaling, NoScaling | Linear) else "linear", {**linear, **attention}, {}
    if rope.dim >= 4 and factor < FIXED_PAIR_DIVISOR:
        base = {"rope.freq_base": base_of_slowest_pair(rope, frequencies)}
        yield "" if isinstance(scaling, ABF) else "rope.freq_base", {**base, **attention}, {}
        if factor > 1:
            fields = _yarn_fields(architecture, scaling, factor, frequencies)
            yield "" if isinstance(scaling, YaRN) else "yarn", fields, {}
    longrope = {"rope.scaling.type": "longrope", **attention}
    if isinstance(scaling, LongRoPE):
        yield "", longrope, {ROPE_FACTORS_SHORT: scaling.short_factor, ROPE_FACTORS_LONG: scaling.long_factor}
    yield "rope_freqs tensor", attention, {ROPE_FREQS: divisors.tolist()}
    equal_lists = dict.fromkeys((ROPE_FACTORS_SHORT, ROPE_FACTORS_LONG), divisors.tolist())
    yield "rope_factors tensors", longrope, equal_lists


def _yarn_fields(architecture: str, scaling: Scaling, factor: float, frequencies: Frequencies) -> dict[str, Any]:
    """Return the fields of YaRN with a given factor, and with the attention and softmax factors of `frequencies`."""
    fields: dict[str, Any] = {"rope.scaling.type": "yarn", "rope.scaling.factor": factor}
    if architecture in YARN_BETA_DEFAULTS:
        beta_fast, beta_slow = YARN_BETA_DEFAULTS[architecture]
        fields["rope.scaling.yarn_beta_fast"] = float(getattr(scaling, "beta_fast", beta_fast))
        fields["rope.scaling.yarn_beta_slow"] = float(getattr(scaling, "beta_slow", beta_slow))
    attention_factor = frequencies.attention_factor
    # The softmax factor is the square of the attention factor times m(s, mscale_all_dim): see config/gguf.py.
    softmax_mscale = math.sqrt(frequencies.softmax_factor) / attention_factor
    default_factor = yarn_mscale(factor)
    if architecture in SOFTMAX_SCALED_GGUF_ARCHITECTURES and abs(softmax_mscale - 1) > _TOLERANCE:
        mscale_all_dim = (softmax_mscale - 1) / (0.1 * math.log(factor))
        multiplier = mscale_all_dim / YARN_LOG_MULTIPLIER_SCALE.get(architecture, 1.0)
        fields["rope.scaling.yarn_log_multiplier"] = multiplier
        # llama.cpp uses mscale = 1, but mscale = mscale_all_dim for deepseek2.
        default_factor = 1.0 if architecture == "deepseek2" else default_factor / yarn_mscale(factor, mscale_all_dim)
    return {**fields, **_attention_fields(attention_factor / default_factor)}


def _attention_fields(factor: float) -> dict[str, float]:
    """Return the field of an attention factor; none is needed for 1."""
    return {"rope.scaling.attn_factor": factor} if abs(factor - 1) > _TOLERANCE else {}


def _find_changes(
    architecture: str, config: Config, fields: Mapping[str, Any], divisors: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fields and tensors to change so that the file has these, and no others that hold a scaling.

    Numbers are rounded to float32, as GGUF stores them. None removes a field or tensor.
    """
    new = {f"{architecture}.{key}": _round_to_float32(value) for key, value in fields.items()}
    changes: dict[str, Any] = {}
    for key in (*(f"{architecture}.{name}" for name in _SCALING_FIELDS), *new):
        if config["fields"].get(key) != new.get(key):
            changes[key] = new.get(key)
    for name in ROPE_TENSORS:
        values = tuple(_round_to_float32(value) for value in divisors[name]) if name in divisors else None
        if config["divisors"].get(name) != values:
            changes[name] = values
    return changes


def _round_to_float32(value: Any) -> Any:
    return float(np.float32(value)) if isinstance(value, float) else value


def _apply_changes(config: Config, changes: Config) -> dict[str, Any]:
    changed = {"fields": dict(config["fields"]), "divisors": dict(config["divisors"])}
    for key, value in changes.items():
        part = changed["divisors" if key in ROPE_TENSORS else "fields"]
        part.pop(key, None)
        if value is not None:
            part[key] = value
    return changed
