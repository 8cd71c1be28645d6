from __future__ import annotations

from ropewalk.config import LayerRope, ModelConfig, get_text_config_dict
from ropewalk.config.architectures import SOFTMAX_SCALED_MODEL_TYPES
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
from ropewalk.serving.engines.rope_dict import mscale_ratio, read_longrope, require_number, with_one_list
from ropewalk.serving.engines.trained_config import interpret_as_trained

# The three tables below: the arguments (`ModelArgs`) of mlx_lm/models/*.py, by model type.

# Architectures whose file has `rope_parameters`. All others ignore it, among them Llama and Qwen 2.
_READS_ROPE_PARAMETERS = (
    "exaone_moe", "gemma4_text", "glm_moe_dsa", "granitemoehybrid", "laguna", "lfm2", "lfm2_moe", "mellum",
    "minimax_m3_vl", "ministral3", "mistral4", "muse_glimmer", "muse_spark", "olmo_hybrid", "qwen3", "qwen3_5",
    "qwen3_5_text", "spark2_5",
)  # fmt: skip
# Default rope_theta of the others; 10,000 for architectures that are not listed.
_DEFAULT_ROPE_THETA = {
    "afm7": 50_000.0,
    "bailing_moe_v3": 6_000_000.0,
    "cohere": 8_000_000.0,
    "cohere2": 50_000.0,
    "falcon_h1": 1e11,
    "gemma3_text": 1_000_000.0,
    "glm4_moe_lite": 1_000_000.0,
    "gpt_oss": 150_000.0,
    "minicpm": 1_000_000.0,
    "minicpm3": 1_000_000.0,
    "mixtral": 1_000_000.0,
    "nemotron-nas": 500_000.0,
    "plamo3": 1_000_000.0,
    "qwen2": 1_000_000.0,
    "qwen2_moe": 1_000_000.0,
    "starcoder2": 100_000.0,
    "youtu_llm": 1_600_000.0,
}
# Architectures whose file requires rope_theta.
_REQUIRES_ROPE_THETA = (
    "apertus", "baichuan_m1", "bailing_hybrid", "bailing_moe", "bailing_moe_linear", "dots1", "ernie4_5",
    "ernie4_5_moe", "exaone", "exaone4", "gemma3n", "gemma3n_text", "glm4", "glm4_moe", "granite", "granitemoe",
    "helium", "hunyuan", "kimi_linear", "Klear", "llama4", "llama4_text", "longcat_flash", "mimo_v2_flash", "minimax",
    "olmo3", "qwen3_moe", "qwen3_next", "recurrent_gemma", "solar_open", "stablelm", "telechat3",
)  # fmt: skip

_YARN_TYPES = ("yarn", "deepseek_yarn", "telechat3-yarn")
_SUPPORTED_TYPES = "default, linear, dynamic, yarn, longrope, llama3, proportional, mrope"


class MLXLM(FolderEngine):
    """MLX-LM, where the file of each architecture lists the fields that it reads. All others are ignored."""

    name = "mlx-lm"
    title = "MLX-LM"
    version = "0.32.2"
    sources = ("mlx_lm/models/rope_utils.py", "mlx_lm/models/llama.py", "mlx_lm/models/phi3.py")
    reads_rope_parameters = False
    reads_attention_factor = False
    derives_longrope_attention_factor = True

    def argv(self, model: str, length: int) -> list[str]:
        return ["mlx_lm.server", "--model", model]

    def _interpret(self, config: Config, length: int) -> ModelConfig:
        text = get_text_config_dict(config)
        model_type = text.get("model_type")
        if model_type in _READS_ROPE_PARAMETERS and text.get("rope_parameters") and not text.get("rope_scaling"):
            model_config = interpret_as_trained(config)
            return map_scalings(model_config, lambda layer: self._interpret_layer(layer, model_config))
        if model_type in _REQUIRES_ROPE_THETA and text.get("rope_theta") is None:
            raise InputError("rope_theta", None, "a number outside the rope dict")
        model_config = interpret_legacy_config(config, _DEFAULT_ROPE_THETA)
        layer = model_config.main_layer
        if not layer.rope_dict:
            return model_config
        return with_main_scaling(model_config, self._interpret_layer(layer, model_config))

    def _interpret_layer(self, layer: LayerRope, model_config: ModelConfig) -> Scaling:
        """Return the scaling that the engine computes for one layer type."""
        rope_dict, declared = layer.rope_dict, model_config.max_length
        rope_type = str(rope_dict.get("type") or rope_dict.get("rope_type") or "default")
        if model_config.model_type == "phi3":
            return self._interpret_phi3(layer, declared)
        if rope_type in ("default", "mrope"):
            return NoScaling()
        if rope_type == "longrope":
            original = int(require_number(rope_dict, "original_max_position_embeddings"))
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
            return Llama3(factor, low, high, original_length=rope_dict.get("original_max_position_embeddings", 8192))
        scales_softmax = model_config.model_type in SOFTMAX_SCALED_MODEL_TYPES
        return YaRN(
            factor=factor,
            beta_fast=float(rope_dict.get("beta_fast", 32)),
            beta_slow=float(rope_dict.get("beta_slow", 1)),
            attention_factor=mscale_ratio(rope_dict, factor),
            mscale_all_dim=rope_dict.get("mscale_all_dim") if scales_softmax else None,
            original_length=rope_dict.get("original_max_position_embeddings", 4096),
        )

    def _interpret_phi3(self, layer: LayerRope, declared: int | None) -> Scaling:
        """Return the scaling of Phi-3, whose own rotary code only has LongRoPE."""
        rope_dict = layer.rope_dict
        if "type" not in rope_dict or "long_factor" not in rope_dict:
            keys = ", ".join(map(str, rope_dict))
            raise InputError("rope_scaling", keys, "a dict with type and long_factor")
        if rope_dict["type"] not in ("longrope", "su"):
            return NoScaling()  # it prints a warning and serves the model unscaled
        lists = read_longrope(rope_dict, layer.rope.original_length, declared)
        return with_one_list(lists, use_long=True)
