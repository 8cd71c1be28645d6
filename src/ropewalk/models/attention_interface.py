"""The attention implementations that ropewalk registers with transformers, through its public `AttentionInterface`.

"ropewalk_sdpa" and "ropewalk_eager" do what "sdpa" and "eager" do, with the same masks, kernels and bits, until a
forward call passes the original length of a position method. Then attention layers that have a `PositionLayer` attend
by that method. Any model may have these implementations; those without position methods are not affected.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ropewalk.models.position_attention import AttentionInput, LayerAttention
from ropewalk.models.position_call import RotatedPairs, current_call

LAYER_ATTRIBUTE = "ropewalk_position_layer"
_PREFIX = "ropewalk_"
BASES = ("sdpa", "eager")  # implementations that a position method can extend


@dataclass(frozen=True)
class PositionLayer:
    """Marks an attention module that attends by a position method.

    Attributes:
        index: a number for each such module of the decoder.
        pairs: the pairs of channels that it rotates in q and k.
        hooks: the `PositionHooks` of its decoder.
    """

    index: int
    pairs: RotatedPairs
    hooks: Any


@dataclass
class RecordedCall:
    """What an attention module passed to its attention function."""

    module: Any
    query: Tensor
    key: Tensor
    options: dict[str, Any]


class _Recorder(threading.local):
    """The attention calls of this thread; None if they are not recorded."""

    calls: list[RecordedCall] | None = None


_recorder = _Recorder()


@contextmanager
def record_attention_calls() -> Iterator[list[RecordedCall]]:
    """Record what the attention modules of this thread pass to the implementations of ropewalk inside the block."""
    calls: list[RecordedCall] = []
    _recorder.calls = calls
    try:
        yield calls
    finally:
        _recorder.calls = None


def implementation_name(base: str) -> str:
    """Return the name of the implementation that extends `base`, which is one of `BASES`."""
    return _PREFIX + base


def _position_attention(
    base: str,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute attention with the interface of transformers; q, k and v are [B, heads, tokens, channels]."""
    if _recorder.calls is not None:
        _recorder.calls.append(RecordedCall(module, query, key, options))
    layer: PositionLayer | None = getattr(module, LAYER_ATTRIBUTE, None)
    call = None if layer is None else current_call(layer.hooks)
    if layer is None or call is None:
        output: tuple[Tensor, Tensor | None] = _base_function(base, module)(
            module, query, key, value, attention_mask, **options
        )
        return output
    if options.get("dropout"):
        raise RuntimeError(
            f"{type(module).__name__} has attention dropout, which a position method cannot have past the original "
            "length; call model.eval(), or set attention_dropout to 0"
        )
    is_causal = options.get("is_causal")
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    if not is_causal and attention_mask is None and query.shape[2] > 1:
        raise RuntimeError(
            f"{type(module).__name__} attends to later tokens, too; a position method is for causal attention"
        )
    device_type = query.device.type
    without_autocast: AbstractContextManager[Any] = nullcontext()
    if torch.is_autocast_enabled(device_type):  # cast as scaled_dot_product_attention does
        without_autocast = torch.autocast(device_type, enabled=False)
        dtype = torch.get_autocast_dtype(device_type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = options.get("scaling")
    inputs = AttentionInput(
        query,
        key,
        value,
        attention_mask,
        query.shape[-1] ** -0.5 if scale is None else scale,
        options.get("softcap"),
        options.get("s_aux"),
    )
    ordinal = call.count_layer_call(layer.index)
    with without_autocast:
        return LayerAttention(call, layer.pairs, (layer.index, ordinal), inputs).compute(), None


def _base_function(base: str, module: Any) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """Return the function that computes attention for a module without a position method.

    The eager one is that of the module's modeling file.
    """
    if base == "eager":
        return eager_function(module)  # type: ignore[return-value]
    function: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS[base]
    return function


def eager_function(module: Any) -> Callable[..., tuple[Tensor, Tensor | None]] | None:
    """Return the eager attention function of a module's modeling file; None if it has none."""
    return inspect.unwrap(type(module).forward).__globals__.get("eager_attention_forward")


def _register() -> None:
    for base in BASES:
        function = torch.compiler.disable(functools.partial(_position_attention, base))
        AttentionInterface.register(implementation_name(base), function)
        AttentionMaskInterface.register(implementation_name(base), ALL_MASK_ATTENTION_FUNCTIONS[base])


_register()
