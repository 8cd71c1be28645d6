"""The metadata of a GGUF file, by llama.cpp's conventions (needs the `gguf` package)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ropewalk.config.model import (
    ALL_LAYERS,
    BASE_OF,
    INTERLEAVED,
    AttentionShape,
    LayerRope,
    ModelConfig,
    check_layers,
)
from ropewalk.errors import InputError
from ropewalk.rope import Layout, Rope
from ropewalk.scaling.base import Scaling
from ropewalk.scaling.linear import Linear
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.yarn import YaRN, magnitude


def from_gguf(path: str | Path) -> ModelConfig:
    """Read the metadata of a GGUF file (needs the `gguf` package).

    llama.cpp's conventions: `rope_freqs` and `rope_factors_*` tensors divide the frequencies, and a YaRN
    attention factor is `rope.scaling.attn_factor` times its own 0.1 ln s + 1.
    Raises InputError for a file that is missing, damaged or has no rope fields.
    """
    fields, divisors = _contents(path)
    try:
        return _from_fields(fields, divisors, str(path))
    except InputError:
        raise
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise InputError("model", str(path), f"a GGUF whose fields are of their types ({error})") from None


def _contents(path: str | Path) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
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


def _from_fields(fields: Mapping[str, Any], divisors: Mapping[str, tuple[float, ...]], path: str) -> ModelConfig:
    architecture = str(fields.get("general.architecture", ""))

    def get(key: str, default: Any = None) -> Any:
        return fields.get(f"{architecture}.{key}", default)

    heads = get("attention.head_count")
    heads = max(heads) if isinstance(heads, list) else heads
    dim = get("rope.dimension_count") or get("attention.key_length") or (heads and get("embedding_length", 0) // heads)
    context = get("context_length")
    if not dim or not context or (get("rope.freq_base") is None and architecture not in BASE_OF):
        raise InputError("model", path, "a GGUF of a model with rope fields")
    original = get("rope.scaling.original_context_length") or context
    layout: Layout = "interleaved" if architecture in INTERLEAVED else "half"
    rope = Rope(int(dim), float(get("rope.freq_base", 10_000.0)), int(original), layout)
    attention = None
    if heads and get("block_count"):
        kv_heads = get("attention.head_count_kv", heads)
        head_dim = get("embedding_length", 0) // heads
        attention = AttentionShape(
            kinds=("full_attention",) * check_layers(int(get("block_count"))),
            kv_heads=max(kv_heads) if isinstance(kv_heads, list) else int(kv_heads),
            key_dim=int(get("attention.key_length", head_dim)),
            value_dim=int(get("attention.value_length", head_dim)),
            sliding_window=None,
            bytes_per_number=2,
        )
    return ModelConfig(
        architecture, {ALL_LAYERS: LayerRope(rope, _scaling(architecture, get, divisors))}, int(context), attention
    )


def _scaling(architecture: str, get: Any, divisors: Mapping[str, tuple[float, ...]]) -> Scaling:
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
