"""Memory in which a tensor grows along its tokens without being copied for every new one.

`append_in_place` gives such memory to the layers of a KV cache whose keys are rotated often. With a copy of all keys
for each token beside each rotation, the rotations would take as long as the rest of decoding.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

_GROWTH = 1.125  # new size over the size that is needed: at most 1/9 of the memory is unused


@dataclass(eq=False)
class TokenBuffer:
    """Memory [..., N, D] for one tensor [..., T, D] with T <= N, which is a view of it."""

    memory: Tensor | None = None

    def append(self, tokens: Tensor, new_tokens: Tensor) -> Tensor:
        """Return both tensors one after the other along dimension -2, as `torch.cat` does.

        The result is a view of this memory. If `tokens` is the result of the call before, or the beginning of it, only
        `new_tokens` are written. Tensors that may need a gradient are concatenated instead.
        """
        if torch.is_grad_enabled():
            return torch.cat([tokens, new_tokens], dim=-2)
        start, stop = tokens.shape[-2], tokens.shape[-2] + new_tokens.shape[-2]
        memory = self.memory
        if memory is None or stop > memory.shape[-2] or not _is_beginning(tokens, memory):
            *rows, _, channels = tokens.shape
            memory = self.memory = tokens.new_empty(*rows, int(stop * _GROWTH) + 1, channels)
            memory[..., :start, :] = tokens
        memory[..., start:stop, :] = new_tokens
        return memory[..., :stop, :]


def can_overwrite(tensor: Tensor) -> bool:
    """Return whether torch allows the tensor to be changed in place and no other tensor would notice."""
    needed_for_gradients = torch.is_grad_enabled()
    wrong_mode = tensor.is_inference() and not torch.is_inference_mode_enabled()
    rows_share_memory = 0 in tensor.stride()
    return not (needed_for_gradients or wrong_mode or rows_share_memory)


def _is_beginning(tokens: Tensor, memory: Tensor) -> bool:
    """Return whether `tokens` are the first of this memory, which may be written to."""
    is_same_place = tokens.data_ptr() == memory.data_ptr() and tokens.stride() == memory.stride()
    is_same_shape = tokens.shape[:-2] == memory.shape[:-2] and tokens.shape[-1] == memory.shape[-1]
    return is_same_place and is_same_shape and tokens.dtype == memory.dtype and can_overwrite(memory)


def append_in_place(layer: Any) -> None:
    """Let a cache layer of transformers append in place if it appends by `torch.cat`, as `DynamicLayer` does."""
    original: Any = type(layer)
    if getattr(original, "update", None) is DynamicLayer.update:
        layer.__class__ = _class_that_appends_in_place(original)


def _update(layer: Any, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Append keys and values, [B, H, T, D] each, and return all of them; replaces `DynamicLayer.update`."""
    if not layer.is_initialized or layer.keys.ndim != key_states.ndim:
        return DynamicLayer.update(layer, key_states, value_states, *args, **kwargs)
    key_buffer, value_buffer = vars(layer).setdefault("_ropewalk_buffers", (TokenBuffer(), TokenBuffer()))
    layer.keys = key_buffer.append(layer.keys, key_states)
    layer.values = value_buffer.append(layer.values, value_states)
    return layer.keys, layer.values


def _reduce(layer: Any) -> Any:
    # The class has the name of the original, so pickle would find the original.
    return _new_layer, type(layer).__bases__, layer.__dict__


@functools.cache
def _class_that_appends_in_place(original: Any) -> Any:
    # Not `patching.with_mixin`: a cache layer has an abstract base, and cannot get a class with a second base.
    attributes = {"__module__": original.__module__, "update": _update, "__reduce__": _reduce}
    return type(original.__name__, (original,), attributes)


def _new_layer(original: Any) -> Any:
    cls = _class_that_appends_in_place(original)
    return cls.__new__(cls)
