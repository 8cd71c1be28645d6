"""Add a bias to the attention scores of a decoder's layers, through public forward hooks.

    layers = find_global_layers(model)
    with attention_bias(layers, bias_TT):
        model(input_ids, use_cache=False)

A 4D mask that is passed to a model reaches all of its layers, also those with a sliding window. The hooks add the bias
to the mask of each of the given layers alone.

Shapes: T tokens of a call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
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


def find_global_layers(model: Any) -> list[Any]:
    """Return the layers of a model that attend to the whole text.

    Raises UnsupportedModelError for an attention that takes no bias, such as flash attention, and for layers that
    cannot be found.
    """
    model = unwrap_model(model)
    text_config = get_text_config(model)
    implementation = text_config._attn_implementation
    if implementation not in BASES:
        raise UnsupportedModelError(type(model).__name__, f"its attention, {implementation}, takes no bias")
    table_layers = find_table_layers(model)
    layers, shape = list(table_layers.layers), configs.read(text_config).attention
    if shape is not None and len(shape.layers) == len(layers):
        layers = [layer for layer, sizes in zip(layers, shape.layers, strict=True) if sizes.is_global]
    with attention_bias(layers, torch.zeros(1, 1, device=model.device, dtype=model.dtype)):
        read_one_token(table_layers.decoder, use_cache=False)
    return layers


@contextmanager
def attention_bias(layers: Sequence[nn.Module], bias_TT: Tensor | None) -> Iterator[None]:
    """Within the block, add a bias to the attention scores of layers, in calls without a KV cache.

    Args:
        layers: the layers, which take `attention_mask` as a keyword argument.
        bias_TT: the bias of each query (row) and key, in the dtype of the model; -inf for the keys after the query.
            None for no bias.

    The block raises UnsupportedModelError for a layer whose mask has no scores.
    """

    with ExitStack() as stack:
        if bias_TT is not None:
            hook = partial(_add_to_mask, bias_TT[None, None])
            for layer in layers:
                stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def _add_to_mask(bias_BHTT: Tensor, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Before a layer runs, add the bias to its mask."""
    mask = kwargs.get("attention_mask", ...)
    if isinstance(mask, Tensor) and mask.ndim == 4:
        is_boolean = mask.dtype == torch.bool
        bias_BHTT = bias_BHTT.where(mask, -torch.inf) if is_boolean else bias_BHTT + mask
    elif mask is not None:
        raise UnsupportedModelError(type(layer).__name__, "it takes no mask that is added to attention scores")
    return args, kwargs | {"attention_mask": bias_BHTT}
