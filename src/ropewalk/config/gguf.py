"""The header of a GGUF file, read as llama.cpp reads it.

Read without llama.cpp and without the `gguf` package, so that it costs milliseconds, and so that a damaged file, whose
counts may say anything, costs no more: nothing is allocated by a count, and every step stays inside the file.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ropewalk.config.gguf_architectures import (
    FIXED_SLIDING_BASE_GGUF_ARCHITECTURES,
    INTERLEAVED_GGUF_ARCHITECTURES,
    ROPE_GGUF_ARCHITECTURES,
    SLIDING_ROPE_FREQ_BASE,
    SOFTMAX_SCALED_GGUF_ARCHITECTURES,
    UNSCALED_SLIDING_GGUF_ARCHITECTURES,
    YARN_BETA_DEFAULTS,
    YARN_LOG_MULTIPLIER_SCALE,
)
from ropewalk.config.model import (
    ALL_LAYERS,
    AttentionShape,
    LayerRope,
    ModelConfig,
    check_layer_count,
)
from ropewalk.errors import InputError
from ropewalk.frequencies import Frequencies
from ropewalk.rope import Layout, Rope
from ropewalk.scaling.base import Scaling
from ropewalk.scaling.linear import Linear
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.proportional import Proportional
from ropewalk.scaling.yarn import YaRN, yarn_mscale

ROPE_FREQS = "rope_freqs.weight"
ROPE_FACTORS_SHORT, ROPE_FACTORS_LONG = "rope_factors_short.weight", "rope_factors_long.weight"
FIXED_PAIR_DIVISOR = 1e30  # the divisor of a pair that does not turn


_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY, _FLOAT32 = 8, 9, 0
_LONGEST_KEY, _LONGEST_TEXT, _LONGEST_LIST = 2**16 - 1, 2**24, 2**22
_KINDS = ("none", "linear", "yarn", "longrope")


def from_gguf(path: str | Path) -> ModelConfig:
    """What the header of a GGUF file says, as llama.cpp reads it.

    Raises InputError for a file that is missing, damaged or has no rope fields.
    """
    return from_gguf_fields(*read_gguf_header(path), str(path))


def read_gguf_header(path: str | Path) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
    """The header of a GGUF file.

    Returns the fields of its metadata, but for the tokenizer's, and the tensors that divide the frequencies, by name,
    each dim/2 numbers. Raises InputError for a file that is missing or damaged.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Header(data).contents()
    except (ValueError, struct.error, OSError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("model", str(path), f"a whole GGUF file (reading it failed: {error})") from None


def from_gguf_fields(
    fields: Mapping[str, Any], divisors: Mapping[str, tuple[float, ...]], source: str = "GGUF metadata"
) -> ModelConfig:
    """What such fields and divisors mean (`read_gguf_header`), whether or not they stand in a file.

    llama.cpp's reading: tensors divide the frequencies, `rope.scaling.attn_factor` is an attention factor, which yarn
    multiplies by its own 0.1 ln s + 1, and yarn's betas are read for few architectures. `rope_factors_*` are two
    lists of LongRoPE. Raises InputError, naming `source`, where there are no rope fields or not of their types.
    """
    try:
        return _describe(fields, divisors, source)
    except InputError:
        raise
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise InputError("model", source, f"a GGUF whose fields are of their types ({error})") from None


class _Header:
    """Reads on through the bytes of a GGUF file, version 2 or 3. Raises ValueError or struct.error for damage."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 4
        if data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self.order = "<" if int.from_bytes(data[4:8], "little") & 0xFFFF else ">"
        version = self.number("I")
        if version not in (2, 3):
            raise ValueError(f"version {version}, which is not 2 or 3")

    def contents(self) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
        tensors, fields = self.number("Q"), {}
        for _ in range(self.number("Q")):
            key = self.text(_LONGEST_KEY)
            if key in fields:
                raise ValueError(f"{key!r} stands in it twice")
            fields[key] = self.value(self.number("I"), kept=not key.startswith("tokenizer."))
        places = self.places(tensors)
        alignment = fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"an alignment of {alignment}")
        start = -(-self.at // alignment) * alignment
        divisors = {}
        for name, (shape, kind, offset) in places.items():
            if start + offset > len(self.data):
                raise ValueError(f"it ends before {name}")
            if name in (ROPE_FREQS, ROPE_FACTORS_SHORT, ROPE_FACTORS_LONG):
                if kind != _FLOAT32 or math.prod(shape) > _LONGEST_LIST:
                    raise ValueError(f"{name} is no list of float32")
                divisors[name] = tuple(self.numbers("f", math.prod(shape), start + offset))
        return {key: value for key, value in fields.items() if not key.startswith("tokenizer.")}, divisors

    def places(self, count: int) -> dict[str, tuple[list[int], int, int]]:
        """Shape, type and offset of each tensor."""
        places = {}
        for _ in range(count):
            name, dimensions = self.text(_LONGEST_KEY), self.number("I")
            if name in places or dimensions > 4:
                raise ValueError(f"the tensor {name!r} stands in it twice, or has {dimensions} dimensions")
            places[name] = [self.number("Q") for _ in range(dimensions)], self.number("I"), self.number("Q")
        return places

    def value(self, kind: int, kept: bool) -> Any:
        if kind == _STRING:
            return self.text(_LONGEST_TEXT)
        if kind != _ARRAY:
            return self.number(self.format(kind))
        kind, count = self.number("I"), self.number("Q")
        if count > _LONGEST_LIST:
            raise ValueError(f"a list of {count}")
        if kind == _STRING:
            for _ in range(count):
                self.skip(self.number("Q"))
            return None  # no list of strings says anything about positions
        values = self.numbers(self.format(kind), count, self.at) if kept else None
        self.skip(struct.calcsize(self.format(kind)) * count)
        return values

    def text(self, longest: int) -> str:
        length = self.number("Q")
        if length > longest:
            raise ValueError(f"a string of {length} bytes")
        start = self.at
        self.skip(length)
        return self.data[start : self.at].decode("utf-8")

    def skip(self, size: int) -> None:
        self.at += size
        if self.at > len(self.data):
            raise ValueError("it ends too soon")

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from(self.order + form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def numbers(self, form: str, count: int, start: int) -> list[Any]:
        return list(struct.unpack_from(f"{self.order}{count}{form}", self.data, start))

    def format(self, kind: int) -> str:
        if kind not in _NUMBERS:
            raise ValueError(f"a value of type {kind}")
        return _NUMBERS[kind]


def _describe(fields: Mapping[str, Any], divisors: Mapping[str, tuple[float, ...]], source: str) -> ModelConfig:
    architecture = str(fields.get("general.architecture", ""))

    def get(key: str, default: Any = None) -> Any:
        return fields.get(f"{architecture}.{key}", default)

    heads = get("attention.head_count")
    heads = max(heads) if isinstance(heads, list) else heads
    dim = get("rope.dimension_count") or get("attention.key_length") or (heads and get("embedding_length", 0) // heads)
    context = get("context_length")
    if not dim or not context or (get("rope.freq_base") is None and architecture not in ROPE_GGUF_ARCHITECTURES):
        raise InputError("model", source, "a GGUF of a model with rope fields")
    original = get("rope.scaling.original_context_length") or context
    layout: Layout = "interleaved" if architecture in INTERLEAVED_GGUF_ARCHITECTURES else "half"
    rope = Rope(int(dim), float(get("rope.freq_base", 10_000.0)), int(original), layout)
    main = LayerRope(rope, _scaling(architecture, get, divisors, rope))
    ropes = {ALL_LAYERS: main}
    if architecture in SLIDING_ROPE_FREQ_BASE and get("attention.sliding_window"):
        ropes = {"full_attention": main, "sliding_attention": _local(architecture, get, rope)}
    attention = None
    if heads and get("block_count"):
        kv_heads = get("attention.head_count_kv", heads)
        head_dim = get("embedding_length", 0) // heads
        attention = AttentionShape(
            layer_types=("full_attention",) * check_layer_count(int(get("block_count"))),
            kv_heads=max(kv_heads) if isinstance(kv_heads, list) else int(kv_heads),
            key_dim=int(get("attention.key_length", head_dim)),
            value_dim=int(get("attention.value_length", head_dim)),
            sliding_window=None,
            bytes_per_number=2,
        )
    return ModelConfig(architecture, ropes, int(context), attention)


def _scaling(
    architecture: str, get: Callable[..., Any], divisors: Mapping[str, tuple[float, ...]], rope: Rope
) -> Scaling:
    kind = get("rope.scaling.type", "linear")
    if kind not in _KINDS:
        raise InputError("rope.scaling.type", kind, ", ".join(_KINDS))
    factor = float(get("rope.scaling.factor", get("rope.scale_linear")) or 1.0)
    attention = float(get("rope.scaling.attn_factor", 1.0))
    if kind == "yarn":
        scaling: Scaling = _yarn(architecture, get, factor, attention)
        attention = scaling.frequencies(rope).attention_factor
    else:
        scaling = Linear(factor=factor) if factor != 1 and kind != "none" else NoScaling()
        if architecture in SOFTMAX_SCALED_GGUF_ARCHITECTURES and (scaling != NoScaling() or attention != 1):
            raise InputError("rope.scaling.type", kind, f"yarn, as llama.cpp scales the softmax of {architecture}, too")
    if not divisors:
        return scaling if kind == "yarn" or attention == 1 else _divided(rope, scaling, attention)
    if ROPE_FREQS in divisors:
        return _divided(rope, scaling, attention, divisors[ROPE_FREQS])
    ones = (1.0,) * (rope.dim // 2)
    return _divided(
        rope, scaling, attention, divisors.get(ROPE_FACTORS_SHORT, ones), divisors.get(ROPE_FACTORS_LONG, ones)
    )


def _yarn(architecture: str, get: Callable[..., Any], factor: float, written: float) -> YaRN:
    """YaRN of that factor, where the file writes that attention factor."""
    beta_fast, beta_slow = 32.0, 1.0
    if architecture in YARN_BETA_DEFAULTS:
        fast, slow = YARN_BETA_DEFAULTS[architecture]
        beta_fast = float(get("rope.scaling.yarn_beta_fast", fast))
        beta_slow = float(get("rope.scaling.yarn_beta_slow", slow))
    all_dim = float(get("rope.scaling.yarn_log_multiplier", 0.0)) * YARN_LOG_MULTIPLIER_SCALE.get(architecture, 0.0)
    # With a multiplier llama.cpp takes mscale for 1, but for deepseek2 for the same as mscale_all_dim.
    mscale = all_dim if architecture == "deepseek2" or not all_dim else 1.0
    own = yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim) if all_dim else yarn_mscale(factor)
    attention = written * own
    softened = None
    if architecture in SOFTMAX_SCALED_GGUF_ARCHITECTURES and factor > 1:
        softened = (attention * yarn_mscale(factor, all_dim) - 1) / (0.1 * math.log(factor))
        softened = 0.0 if abs(softened) < 1e-6 else softened  # rounded away by float32
    return YaRN(
        factor=factor,
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        attention_factor=None if written == 1 and not all_dim else attention,
        mscale_all_dim=softened or None,
    )


def _divided(rope: Rope, scaling: Scaling, attention: float, *lists: tuple[float, ...]) -> Scaling:
    """What becomes of a scaling when the frequencies are divided as well: by one list, or by a short and a long one."""
    scaled: Frequencies = scaling.frequencies(rope)
    whole = []
    for divisors in lists or ((1.0,) * (rope.dim // 2),):
        if len(divisors) != rope.dim // 2:
            raise InputError("divisors", f"{len(divisors)} numbers", f"{rope.dim // 2}, one a pair")
        whole.append(tuple((np.array(divisors) * (rope.inv_freq / scaled.inv_freq)).tolist()))
    turning = sum(divisor < FIXED_PAIR_DIVISOR / 2 for divisor in whole[0])
    if 0 < turning < rope.dim // 2:
        kept = set(whole[0][:turning])
        if (
            len(whole) == 1
            and len(kept) == 1
            and attention == 1
            and all(x > FIXED_PAIR_DIVISOR / 2 for x in whole[0][turning:])
        ):
            return Proportional(p=math.nextafter(2 * turning / rope.dim, 1.0), factor=kept.pop())
        raise InputError(ROPE_FREQS, "divisors of which some stop a pair", "the same for all the pairs before those")
    return LongRoPE(whole[0], whole[-1], attention_factor=attention)


def _local(architecture: str, get: Callable[..., Any], rope: Rope) -> LayerRope:
    """The sliding layers, of a base of their own: no factor and no tensor reaches them, an attention factor does."""
    base = SLIDING_ROPE_FREQ_BASE[architecture] or rope.base
    if architecture not in FIXED_SLIDING_BASE_GGUF_ARCHITECTURES:
        base = float(get("rope.freq_base_swa", base))
    local = Rope(int(get("rope.dimension_count_swa", rope.dim)), base, rope.original_length, rope.layout)
    attention = (
        1.0 if architecture in UNSCALED_SLIDING_GGUF_ARCHITECTURES else float(get("rope.scaling.attn_factor", 1.0))
    )
    return LayerRope(local, NoScaling() if attention == 1 else _divided(local, NoScaling(), attention))
