"""Which scaling and factor a target length needs, why, and what it costs."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from ropewalk import config as configs
from ropewalk.config.published import PublishedModel, find_published_model
from ropewalk.errors import check_length
from ropewalk.rope import Rope
from ropewalk.scaling import from_rope_dict
from ropewalk.scaling.base import Scaling
from ropewalk.scaling.linear import Linear
from ropewalk.scaling.llama3 import Llama3
from ropewalk.scaling.yarn import YaRN

# A factor that only just covers the target loses needles: at 12,000 tokens SmolLM2 (L 8,192) finds 5 of 8 passkeys at
# target/L itself, 6 at 1.1 times that, and 7 from 1.25 on (benchmarks/passkey.py; more lengths in docs/dynamic.md).
MARGIN = 1.25
_STEP = 0.25  # factors are rounded up to a quarter, so that configurations stay readable


@dataclass(frozen=True)
class Plan:
    """What `plan` found.

    Attributes:
        target, original_length: tokens.
        scaling: the one to use; the model's own where nothing is needed.
        needed: whether the model must be changed at all.
        reasons: why, one sentence each.
        rope_parameters: the dict for transformers, nested where layer types differ; None where nothing is needed.
        max_position_embeddings: the value that goes with it.
        kv_cache_bytes: for one text of the target length, None where the shape is not known.
    """

    target: int
    original_length: int
    scaling: Scaling
    needed: bool
    reasons: tuple[str, ...]
    rope_parameters: dict[str, Any] | None
    max_position_embeddings: int
    kv_cache_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        shown = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**shown, "scaling": self.scaling.to_dict(), "spec": str(self.scaling), "reasons": list(self.reasons)}


def plan(model_or_config: Any, target: int) -> Plan:
    """Choose scaling and factor for reading `target` tokens.

    Args:
        model_or_config: a model, or anything that `ropewalk.config.read` takes.
        target: tokens to read.

    The factor is the smallest that holds: target over what the model reads as it is, times the margin that
    retrieval needs, rounded up to a quarter. A model that was trained with linear, yarn or llama3 keeps
    that method, its factor grown; lists of longrope cannot grow and give way to yarn. Where the makers of a known
    model publish a scaling for that length, it is that one, its factor no larger than the target asks for.
    Raises InputError for a target below 1 or a model without rotary embedding.
    """
    check_length("target", target)
    model_config = configs.read(model_or_config)
    layer = model_config.main_layer
    original = layer.scaling.resolve_original_length(layer.rope)
    reads = max(original * layer.scaling.extension_factor(layer.rope), original)
    if str(layer.scaling) != "none" and model_config.max_length:
        reads = max(reads, model_config.max_length)
    memory = kv_cache_bytes(model_config.attention, target) if model_config.attention else None
    if target <= reads:
        own = "it needs no scaling" if str(layer.scaling) == "none" else f"its own scaling {layer.scaling} covers that"
        why = f"the model reads {reads:,.0f} tokens as it is, and the target is {target:,}: {own}"
        return Plan(target, original, layer.scaling, False, (why,), None, round(reads), memory)
    factor = _rounded(target / reads * MARGIN)
    why_factor = (
        f"factor {factor:g}: that ratio times {MARGIN:g}, the margin that retrieval needs, rounded up to a quarter"
    )
    scaling, why_method = _grown(layer.scaling, factor, layer.rope)
    published = find_published_model(model_or_config if isinstance(model_or_config, str) else "", model_config)
    if published and published.long and target <= published.long["length"] and str(layer.scaling) == "none":
        scaling, why_factor, why_method = _published(published, target)
    reasons = (
        f"the model reads {reads:,.0f} tokens as it is, and the target is {target:,}: {target / reads:.2f} times that",
        why_factor,
        why_method,
        # benchmarks/results/short_text: ropewalk curve smollm2 at 8k, none, yarn 2, yarn 4, dynamic-yarn
        "a static scaling also changes texts that fit without it: on SmolLM2-135M, yarn 2 raises the perplexity of "
        "8,192 tokens by 3.5 %, yarn 4 by 16 %; dynamic-yarn leaves it as it is",
    )
    written = configs.build_rope_parameters(scaling, layer.rope, layer.rope_dict)
    declared = configs.compute_max_position_embeddings(scaling, layer.rope, written or {})
    if (
        str(layer.scaling) != "none" and (model_config.max_length or 0) > original
    ):  # it declares what it reads; go on so
        declared = round(reads * factor)
    if model_config.main_layer_type != configs.ALL_LAYERS:
        written = {
            **{kind: dict(each.rope_dict) for kind, each in model_config.ropes.items()},
            model_config.main_layer_type: written,
        }
    return Plan(target, original, scaling, True, reasons, written, declared, memory)


def kv_cache_bytes(shape: configs.AttentionShape, length: int) -> int:
    """Bytes of keys and values of one text of `length` tokens; layers that keep none (linear, mamba) count none."""
    total = 0
    for kind in shape.layer_types:
        if "linear" in kind or "mamba" in kind or "conv" in kind or "recurrent" in kind:
            continue
        slides = configs.is_local(kind) and shape.sliding_window is not None
        kept = min(length, shape.sliding_window) if slides and shape.sliding_window else length
        total += kept * shape.kv_heads * (shape.key_dim + shape.value_dim) * shape.bytes_per_number
    return total


def _grown(own: Scaling, factor: float, rope: Rope) -> tuple[Scaling, str]:
    if isinstance(own, YaRN | Llama3 | Linear):
        grown = dataclasses.replace(own, factor=_rounded(own.factor * factor))
        return grown, f"the model was trained with {own}: the same method, its factor grown from {own.factor:g}"
    why = "yarn: the best static method at every length measured; needs no training and every engine reads it"
    return YaRN(factor=_rounded(factor * own.extension_factor(rope))), why


def _published(model: PublishedModel, target: int) -> tuple[Scaling, str, str]:
    assert model.long is not None  # the caller saw to it
    theirs = from_rope_dict(model.long["rope_scaling"], strict=True)
    original = model.long["rope_scaling"]["original_max_position_embeddings"]
    scaling: Any = dataclasses.replace(theirs, original_length=original)
    scaling = dataclasses.replace(scaling, factor=min(scaling.factor, _rounded(target / original)))
    why_factor = f"factor {scaling.factor:g}: the target over the {original:,} tokens that its makers name, rounded up"
    return (
        scaling,
        why_factor,
        f"its makers publish {theirs} for {model.long['length']:,} tokens: {model.long['source']}",
    )


def _rounded(factor: float) -> float:
    return math.ceil(factor / _STEP) * _STEP
