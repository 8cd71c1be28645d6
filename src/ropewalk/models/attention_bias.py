"""Add biases to the attention scores of a decoder's layers, through public forward hooks.

    sliding_windows = find_attention_layers(model, length)
    with attention_biases({layer: bias_TT for layer in sliding_windows}):
        model(input_ids, use_cache=False)

A 4D mask passed to a model applies to every layer, including layers with a sliding window. The hooks give each layer
its own bias.

Shapes: T tokens of a call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk import config as configs
from ropewalk.errors import UnsupportedModelError
from ropewalk.models.attention_interface import BASES
from ropewalk.models.cache_layout import read_one_token
from ropewalk.models.layer_tables import find_table_layers
from ropewalk.models.rotary_modules import get_text_config
from ropewalk.models.wrappers import unwrap_model


def find_attention_layers(model: Any, length: int) -> dict[Any, int | None]:
    """Return the layers that take the table of a model's rotary embedding and attend to its KV cache.

    With each layer comes the number of tokens that it sees; None if it sees a whole text of `length` tokens.

    Raises UnsupportedModelError for an attention that takes no bias, such as flash attention, or selects keys, and for
    layers that cannot be found.
    """
    model = unwrap_model(model)
    name, text_config = type(model).__name__, get_text_config(model)
    if text_config._attn_implementation not in BASES:
        raise UnsupportedModelError(name, f"its attention, {text_config._attn_implementation}, takes no bias")
    table_layers = find_table_layers(model)
    shape = configs.read(text_config).attention
    if shape is None or len(shape.layers) != len(table_layers.layers):  # the config does not say which layer is which
        sliding_windows = dict.fromkeys(table_layers.layers)
    else:
        if any(sizes.indexer_dim for sizes in shape.layers):
            raise UnsupportedModelError(name, "its attention selects keys, and a bias would change which")
        sliding_windows = {
            layer: None if sizes.window is None or sizes.window >= length else sizes.window
            for layer, sizes in zip(table_layers.layers, shape.layers, strict=True)
            if configs.has_kv_cache(sizes.layer_type)
        }
    no_bias = torch.zeros(1, 1, device=model.device, dtype=model.dtype)
    with attention_biases(dict.fromkeys(sliding_windows, no_bias)):
        read_one_token(table_layers.decoder, use_cache=False)
    return sliding_windows


@contextmanager
def attention_biases(layer_biases: Mapping[Any, Tensor]) -> Iterator[None]:
    """Within the block, add a bias to the attention scores of each layer, in calls without a KV cache.

    Args:
        layer_biases: for each layer, the bias of each query (row) and key, [T, T] in the dtype of the model; -inf for
            the keys after the query.

    The block raises UnsupportedModelError for a layer without an `attention_mask` that is added to scores.
    """
    biases = {id(bias_TT): _BiasedMask(bias_TT) for bias_TT in layer_biases.values()}
    with ExitStack() as stack:
        for layer, bias_TT in layer_biases.items():
            hook = layer.register_forward_pre_hook(biases[id(bias_TT)].add_to_arguments, with_kwargs=True)
            stack.callback(hook.remove)
        yield


class _BiasedMask:
    """A bias, and its sum with the last mask, which layers that get the same mask share."""

    def __init__(self, bias_TT: Tensor) -> None:
        self._bias_BHTT = bias_TT[None, None]
        self._mask: Tensor | None = None
        self._sum_BHTT = self._bias_BHTT

    def add_to_arguments(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before a layer runs, add the bias to its mask."""
        mask = kwargs.get("attention_mask", ...)
        if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 4):
            raise UnsupportedModelError(type(layer).__name__, "it takes no mask that is added to attention scores")
        if mask is not self._mask:
            self._mask, self._sum_BHTT = mask, self._add(mask)
        return args, kwargs | {"attention_mask": self._sum_BHTT}

    def _add(self, mask: Tensor | None) -> Tensor:
        if mask is None:
            return self._bias_BHTT
        is_boolean = mask.dtype == torch.bool
        return self._bias_BHTT.where(mask, -torch.inf) if is_boolean else self._bias_BHTT + mask
