from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ropewalk.config import LayerRope, ModelConfig, get_text_config_dict
from ropewalk.errors import InputError
from ropewalk.scaling import Scaling
from ropewalk.scaling.linear import Linear
from ropewalk.scaling.llama3 import Llama3
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.ntk import DynamicNTK
from ropewalk.scaling.proportional import Proportional
from ropewalk.scaling.yarn import YaRN
from ropewalk.serving.engines.base import Config, map_scalings, with_main_scaling
from ropewalk.serving.engines.folder_engine import FolderEngine
from ropewalk.serving.engines.legacy_config import interpret_legacy_config
from ropewalk.serving.engines.rope_dict import read_deepseek_yarn, read_longrope, require_number, with_one_list
from ropewalk.serving.engines.tables import EngineTable, load_table
from ropewalk.serving.engines.trained_config import interpret_as_trained

_ORIGINAL_LENGTH = "original_max_position_embeddings"
_DEFAULT_ROPE_THETA = 10_000.0  # of nn.RoPE
_YARN_TYPES = ("yarn", "deepseek_yarn", "telechat3-yarn")
_SUPPORTED_TYPES = "default, linear, dynamic, yarn, longrope, llama3, proportional, mrope"


class MLXLM(FolderEngine):
    """MLX-LM, where the file of each architecture lists the fields that it reads. All others are ignored.

    Which fields a file reads is in tables/mlx-lm.json.
    """

    name = "mlx-lm"
    title = "MLX-LM"
    version = "0.32.2"
    sources = ("mlx_lm/models/*.py", "mlx_lm/utils.py")
    reads_rope_parameters = False
    reads_attention_factor = False
    derives_longrope_attention_factor = True

    def argv(self, model: str, length: int) -> list[str]:
        return ["mlx_lm.server", "--model", model]

    def explain(self, config: Config) -> str:
        name, row = self._find_architecture(config)
        text = get_text_config_dict(config)
        field = "rope_scaling" if text.get("rope_scaling") else "rope_parameters"
        is_ignored = row["scaling"] == "none" or (field == "rope_parameters" and row["rope_parameters"] != "scaling")
        return f"mlx_lm/models/{name}.py never reads a scaling from {field}" if is_ignored and text.get(field) else ""

    def writes_rope_parameters(self, config: Config) -> bool:
        _, row = self._find_architecture(config)
        return bool(row["rope_parameters"] == "scaling")

    def needs_rope_scaling(self, model_type: str) -> bool:
        row = self._table.architectures.get(self._table.aliases.get(model_type, model_type), {})
        return super().needs_rope_scaling(model_type) or "rope_scaling" in row.get("required", ())

    def _interpret(self, config: Config, length: int) -> ModelConfig:
        name, row = self._find_architecture(config)
        text = dict(get_text_config_dict(config))
        for field in row["required"]:
            if field not in text or (field == "rope_theta" and text[field] is None):
                raise InputError(field, None, f"a value outside the rope dict, which mlx_lm/models/{name}.py requires")
        rope_parameters = text.get("rope_parameters") or {}
        if rope_parameters and row["rope_parameters"] == "scaling" and not text.get("rope_scaling"):
            model_config = interpret_as_trained(_with_default_base(text, row))
            return map_scalings(model_config, lambda layer: self._interpret_layer(layer, model_config, row))
        if rope_parameters and row["rope_parameters"] == "base":
            if any(isinstance(value, Mapping) for value in rope_parameters.values()):
                return map_scalings(interpret_as_trained(config), lambda layer: NoScaling())
            text["rope_theta"] = rope_parameters.get("rope_theta", text.get("rope_theta"))
        default_base = row["rope_theta"] or _DEFAULT_ROPE_THETA
        model_config = interpret_legacy_config(text, {str(text.get("model_type", "")): default_base})
        layer = model_config.main_layer
        if row["scaling"] == "own":
            return with_main_scaling(model_config, _interpret_own_code(name, layer, model_config, text))
        if row["scaling"] == "none" and not row["accepted_types"]:
            return model_config
        if not layer.rope_dict:
            return model_config
        return with_main_scaling(model_config, self._interpret_layer(layer, model_config, row))

    @property
    def _table(self) -> EngineTable:
        return load_table(self.name)

    def _find_architecture(self, config: Config) -> tuple[str, Mapping[str, Any]]:
        """Return the name of the file that the engine loads a configuration with, and its row of the table.

        Raises InputError if the engine has no such file.
        """
        model_type = config.get("model_type")
        name = self._table.aliases.get(str(model_type), str(model_type))
        row = self._table.architectures.get(name)
        if row is None:
            raise InputError("model_type", model_type, f"an architecture of {self.title} {self.version}")
        if "one_of" in row:
            text_type = str(get_text_config_dict(config).get("model_type"))
            name = text_type if text_type in row["one_of"] else row["one_of"][0]
            row = self._table.architectures[name]
        return name, row

    def _interpret_layer(self, layer: LayerRope, model_config: ModelConfig, row: Mapping[str, Any]) -> Scaling:
        """Return the scaling of one layer type (mlx_lm/models/rope_utils.py, as far as the architecture calls it)."""
        rope_dict, declared = layer.rope_dict, model_config.max_length
        rope_type = str(rope_dict.get("type") or rope_dict.get("rope_type") or "default")
        if row["accepted_types"] and rope_type not in row["accepted_types"]:
            raise InputError("rope_scaling type", rope_type, ", ".join(row["accepted_types"]))
        if row["scaling"] == "linear" and "type" not in rope_dict:
            raise InputError("rope_scaling: type", None, "the rope type under this key")
        if row["scaling"] == "none" or (row["scaling"] == "linear" and rope_type != "linear"):
            return NoScaling()
        if rope_type in ("default", "mrope"):
            return NoScaling()
        if rope_type == "longrope":
            original = int(require_number(rope_dict, _ORIGINAL_LENGTH))
            return with_one_list(read_longrope(rope_dict, original, declared), use_long=True)
        if rope_type == "proportional":
            p, factor = rope_dict.get("partial_rotary_factor", 1.0), rope_dict.get("factor", 1.0)
            return Proportional(float(p), float(factor))
        if rope_type not in ("linear", "dynamic", "llama3", *_YARN_TYPES):
            raise InputError("rope_scaling type", rope_type, _SUPPORTED_TYPES)
        factor = require_number(rope_dict, "factor")
        if rope_type == "linear":
            return Linear(factor)
        if rope_type == "dynamic":
            return DynamicNTK(factor, original_length=declared)
        if rope_type == "llama3":
            low, high = float(rope_dict.get("low_freq_factor", 1.0)), float(rope_dict.get("high_freq_factor", 4.0))
            return Llama3(factor, low, high, original_length=rope_dict.get(_ORIGINAL_LENGTH, 8192))
        return _read_yarn(rope_dict, factor, scales_softmax=row["softmax_factor"])


def _with_default_base(text: Config, row: Mapping[str, Any]) -> Config:
    """Return a text part whose rope_parameters have the base that the architecture's file takes if they have none."""
    rope_parameters = text["rope_parameters"]
    is_nested = any(isinstance(value, Mapping) for value in rope_parameters.values())
    base = text.get("rope_theta") or row["rope_theta"]
    if is_nested or base is None:
        return text
    return {**text, "rope_parameters": {"rope_theta": base, **rope_parameters}}


def _interpret_own_code(name: str, layer: LayerRope, model_config: ModelConfig, text: Config) -> Scaling:
    """Return the scaling of an architecture whose file has rotary code of its own.

    Args:
        name: the file in mlx_lm/models/, without its suffix.
        layer: the main layers, with `rope_scaling` as rope dict.
        model_config: the complete configuration.
        text: the text part of the config.json.
    """
    rope_dict, declared = layer.rope_dict, model_config.max_length
    if name == "phi3":
        return _interpret_phi3(layer, declared)
    if name in ("phimoe", "minicpm3"):
        if not rope_dict and name == "phimoe":
            return NoScaling()
        original = text.get(_ORIGINAL_LENGTH) if name == "phimoe" else rope_dict.get(_ORIGINAL_LENGTH, 4096)
        lists = with_one_list(read_longrope(rope_dict, original, declared), use_long=True)
        mscale = require_number(rope_dict, "long_mscale") if name == "phimoe" else None
        return dataclasses.replace(lists, factor=None, attention_factor=mscale) if mscale else lists
    if name == "deepseek_v2":  # it computes YaRN for every type, and crashes without a rope dict
        return _read_yarn(rope_dict, require_number(rope_dict, "factor"), scales_softmax=True)
    if name.startswith("hunyuan"):
        alpha = rope_dict.get("alpha", 1.0 if name == "hunyuan_v1_dense" else None)
        if alpha is None:
            raise InputError("rope_scaling: alpha", None, "a number, which mlx_lm/models/hunyuan.py requires")
        return DynamicNTK(alpha=float(alpha)) if alpha != 1 else NoScaling()
    return interpret_as_trained(text).main_layer.scaling


def _read_yarn(rope_dict: Mapping[str, Any], factor: float, scales_softmax: bool) -> YaRN:
    """Return YaRN with the defaults of `YarnRoPE`. The key `truncate` is ignored."""
    scaling = read_deepseek_yarn(rope_dict, factor)
    mscale_all_dim = scaling.mscale_all_dim if scales_softmax else None
    original_length = rope_dict.get(_ORIGINAL_LENGTH, 4096)
    return dataclasses.replace(scaling, mscale_all_dim=mscale_all_dim, original_length=original_length)


def _interpret_phi3(layer: LayerRope, declared: int | None) -> Scaling:
    """Return the scaling of Phi-3, whose file has LongRoPE and linear scaling."""
    rope_dict = layer.rope_dict
    if not rope_dict:
        return NoScaling()
    if "type" not in rope_dict or "long_factor" not in rope_dict:
        keys = ", ".join(map(str, rope_dict))
        raise InputError("rope_scaling", keys, "a dict with type and long_factor")
    if rope_dict["type"] == "linear":
        return Linear(require_number(rope_dict, "factor"))
    if rope_dict["type"] not in ("longrope", "su"):
        return NoScaling()  # it prints a warning and serves the model unscaled
    lists = read_longrope(rope_dict, layer.rope.original_length, declared)
    return with_one_list(lists, use_long=True)
