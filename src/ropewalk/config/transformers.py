"""The configuration of transformers, version 4 and 5, in and out; read as a plain dict, so without transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ropewalk.config.architectures import (
    DEFAULT_LOCAL_ROPE_THETA,
    DEFAULT_PARTIAL_ROTARY_FACTOR,
    DEFAULT_ROPE_THETA,
    DEFAULT_SLIDING_WINDOW_PATTERN,
    INTERLEAVED_MODEL_TYPES,
)
from ropewalk.config.model import (
    ALL_LAYERS,
    AttentionShape,
    LayerRope,
    ModelConfig,
    check_layer_count,
    is_local,
)
from ropewalk.errors import InputError, check_number
from ropewalk.rope import Layout, Rope
from ropewalk.scaling import from_rope_dict
from ropewalk.scaling.base import Scaling
from ropewalk.scaling.linear import Linear

_HEADS = ("num_attention_heads", "n_head", "n_heads")
_TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")
SCALING_KEYS = {
    "rope_type", "type", "factor", "alpha", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
    "truncate", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor", "rope_theta",
    "attn_factor", "short_mscale", "long_mscale",
}  # fmt: skip


def from_dict(config: Mapping[str, Any]) -> ModelConfig:
    """Read the dict of a transformers configuration, version 4 or 5 (its text part, for a composite one).

    Raises InputError when it has no rope fields or contradicts itself.
    """
    config = get_text_config_dict(config)
    model_type = str(config.get("model_type", ""))
    written = config.get("rope_scaling") or config.get("rope_parameters") or {}  # transformers 5 takes them so
    if not isinstance(written, Mapping):
        raise InputError("rope_parameters", written, "a dict")
    if not (written or get_rope_theta(config, {}) or model_type in DEFAULT_ROPE_THETA):
        raise InputError("model", model_type or "a configuration", "one with rope fields (rope_theta, rope_parameters)")
    max_length = _whole(
        config, "max_position_embeddings", "n_positions", "max_seq_len", "model_max_length", "seq_length"
    )
    ropes = {
        kind: _layer_rope(_seen_by(config, kind), rope_dict, model_type, max_length)
        for kind, rope_dict in _by_layer_type(config, written).items()
    }
    return ModelConfig(model_type, ropes, max_length, _attention_shape(config))


def find_text_config_key(config: Mapping[str, Any]) -> str | None:
    """The key of a composite configuration under which its text decoder, or what holds that, is described."""
    return next((name for name in _TEXT_PARTS if isinstance(config.get(name), Mapping)), None)


def get_text_config_dict(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that describes the text decoder; itself for a plain one."""
    inner = find_text_config_key(config)
    return config if inner is None else get_text_config_dict(config[inner])


def build_rope_parameters(
    scaling: Scaling, rope: Rope, written: Mapping[str, Any] | None = None, length: int | None = None
) -> dict[str, Any] | None:
    """The whole `rope_parameters` dict that says `scaling` to transformers 5; None when it cannot be said.

    `written`: the dict it replaces, whose keys that are the model's own (mrope_section and the like) are kept.
    `length`: fixes a dynamic scaling at the frequencies of that length.
    """
    said = scaling.to_rope_parameters(rope, length)
    written = dict(written or {})
    partial = written.pop("partial_rotary_factor", None)
    if _rope_type(written) == "proportional":
        partial = None  # there it is the scaling's p, not the rope's
    if said is None or (said["rope_type"] == "proportional" and partial not in (None, 1, 1.0)):
        return None
    own = {key: value for key, value in written.items() if key not in SCALING_KEYS}
    if partial is not None:
        own["partial_rotary_factor"] = partial
    return {"rope_theta": rope.base, **own, **said}


def compute_max_position_embeddings(
    scaling: Scaling, rope: Rope, said: Mapping[str, Any], length: int | None = None
) -> int:
    """The `max_position_embeddings` that goes with a dict `said` by `rope_parameters`, tokens.

    It is the length reached where the dict holds the original length. Where it does not (linear, dynamic), readers
    take the original length from this very field, and vLLM multiplies it by the factor: so it stays the original.
    """
    original = scaling.resolve_original_length(rope)
    reached = round(original * scaling.extension_factor(rope, length))
    return reached if said.get("original_max_position_embeddings") else original


def get_rope_theta(config: Mapping[str, Any], rope_dict: Mapping[str, Any]) -> Any:
    """The base as it is written, in a rope dict or beside it; None where it is left to the architecture."""
    return rope_dict.get("rope_theta") or _first(
        config, "rope_theta", "rotary_emb_base", "rope_base", "global_rope_theta"
    )


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


def _by_layer_type(config: Mapping[str, Any], written: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The rope dicts by layer type: version 5 nests them, version 4 of Gemma 3 and ModernBERT has a second base."""
    nested = {kind: rope_dict for kind, rope_dict in written.items() if isinstance(rope_dict, Mapping)}
    if nested:
        return nested
    model_type = str(config.get("model_type"))
    local = _first(config, "rope_local_base_freq", "local_rope_theta") or DEFAULT_LOCAL_ROPE_THETA.get(model_type)
    if model_type == "olmo3":  # one base, and its sliding layers take no scaling
        local = get_rope_theta(config, written) or DEFAULT_ROPE_THETA[model_type]
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
    interleaved = config.get("rope_interleave", model_type in INTERLEAVED_MODEL_TYPES)
    layout: Layout = "interleaved" if interleaved else "half"
    rope = Rope(
        dim=_rotary_dim(config, {} if proportional else rope_dict, model_type, whole=proportional),
        base=get_rope_theta(config, rope_dict) or DEFAULT_ROPE_THETA.get(model_type, 10_000.0),
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
        partial = DEFAULT_PARTIAL_ROTARY_FACTOR.get(model_type, 1.0)
    if check_number("partial_rotary_factor", partial, minimum=0, exclusive=True) > 1:
        raise InputError("partial_rotary_factor", partial, "a number above 0, at most 1")
    return head_dim if whole else int(head_dim * partial)


def _head_dim(config: Mapping[str, Any]) -> int | None:
    given = _whole(config, "head_dim", "attention_head_dim", "kv_channels")
    hidden, heads = _whole(config, "hidden_size", "n_embd", "d_model"), _whole(config, *_HEADS)
    return given or (hidden // heads if hidden and heads else None)


def _attention_shape(config: Mapping[str, Any]) -> AttentionShape | None:
    layers, heads, head_dim = _whole(config, "num_hidden_layers", "n_layer"), _whole(config, *_HEADS), _head_dim(config)
    if not (layers and heads and head_dim):
        return None
    check_layer_count(layers)
    window = _whole(config, "sliding_window") if config.get("use_sliding_window", True) else None
    pattern = config.get("sliding_window_pattern", DEFAULT_SLIDING_WINDOW_PATTERN.get(str(config.get("model_type"))))
    pattern = pattern if isinstance(pattern, int) and pattern > 0 else layers + 1  # every pattern-th layer sees all
    kinds = config.get("layer_types") or [
        "sliding_attention" if window and (i + 1) % pattern else "full_attention" for i in range(layers)
    ]
    if not isinstance(kinds, list | tuple) or not all(isinstance(kind, str) for kind in kinds):
        raise InputError("layer_types", kinds, "a list of names, one for each layer")
    latent = _whole(config, "kv_lora_rank")
    return AttentionShape(
        layer_types=tuple(kinds),
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
