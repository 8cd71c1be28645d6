"""Which channels of a decoder's KV cache depend on the rotary frequencies, found by probing the decoder.

The decoder reads one token three times, each time into a new cache: with all angles zero, with a different angle for
every column of its tables, and with all angles zero and an attention factor. A single token attends only to itself, so
its hidden states do not depend on the angles, and the first two caches differ only in the channels that were rotated.
A layout counts only if rotating the first cache reproduces the second. The third cache tells which of those channels
are multiplied by the attention factor.

Shapes: as in rotary_table.py; H heads, D channels of a head.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ropewalk import config as configs
from ropewalk.compat.transformers import ROTATABLE_CACHE_LAYERS, cache_for_call
from ropewalk.models.evaluation_mode import evaluation_mode
from ropewalk.models.rotary_table import RotaryTable
from ropewalk.ops.custom_op import rotate_into
from ropewalk.ops.rotation import LAYOUTS, rotate

_PROBE_FACTOR = 1.0625  # exact in bfloat16
_probe_lock = threading.RLock()  # a table takes the angles of one probe at a time


@dataclass(frozen=True)
class RotatedChannels:
    """The channels of one cached tensor that attention rotated before it cached them.

    Attributes:
        layer: index of the cache layer.
        tensor: the attribute of the cache layer that holds the tensor.
        table: name of the rotary table whose angles were used.
        start: the first rotated channel of a head.
        layout: "half" or "interleaved", as in `rotate`.
        columns_P: for each pair, the column of the table.
        sign: 1, or -1 if attention rotates by the opposite angles (nanochat).
        scaled: whether the channels are multiplied by the attention factor; a norm after the rotation removes it
            (Llama 4).
    """

    layer: int
    tensor: str
    table: str
    start: int
    layout: str
    columns_P: tuple[int, ...]
    sign: int = 1
    scaled: bool = True

    def rotate(self, cached: Tensor, cos_BTP: Tensor, sin_BTP: Tensor, in_place: bool = False) -> Tensor:
        """Rotate a cached tensor, [B, H, T, D] or [B, T, D], by further angles; return it, or a new one."""
        rotated, _ = rotate(
            cached if cached.ndim == 4 else cached[:, None],
            layout=self.layout,
            tables=(cos_BTP, sin_BTP),
            start=self.start,
            inverse=self.sign < 0,
            in_place=in_place,
        )
        return rotated.view_as(cached)

    def rotate_into(self, cached: Tensor, source: Tensor, cos_BTP: Tensor, sin_BTP: Tensor) -> None:
        """Overwrite a cached tensor by the rotation of another one, which has its shape and keeps its values."""
        table_dtype = torch.promote_types(source.dtype, torch.float32)
        angles = [cos_BTP.to(table_dtype), sin_BTP.to(table_dtype)]
        inputs, outputs = ([x if x.ndim == 4 else x[:, None]] for x in (source, cached))
        rotate_into(outputs, inputs, angles, self.start, self.layout == "interleaved", self.sign < 0)


def find_rotated_channels(decoder: Any, tables: Mapping[str, RotaryTable]) -> list[RotatedChannels]:
    """Return the channels of the decoder's KV cache that depend on the frequencies.

    Args:
        decoder: a module that takes `input_ids` and a KV cache.
        tables: all tables of its rotary modules, by name.

    Raises RuntimeError if a rotation does not explain how the cache depends on the frequencies, or if the decoder
    needs a cache whose keys cannot be rotated.
    """
    angles, zeros = probe_angles(tables)
    with _probe_lock:
        unrotated_cache = cache_one_token(decoder, tables, zeros)
        rotated_cache = cache_one_token(decoder, tables, angles)
        scaled_cache = cache_one_token(decoder, tables, zeros, _PROBE_FACTOR)
    found = []
    for layer, cache_layer in enumerate(unrotated_cache.layers):
        for name, unrotated in vars(cache_layer).items():
            if not isinstance(unrotated, Tensor) or not unrotated.is_floating_point():
                continue
            rotated = getattr(rotated_cache.layers[layer], name)
            if equal_up_to_rounding(unrotated, rotated):
                continue
            channels = explain_rotation(unrotated, rotated, layer, name, tables, angles)
            if channels is None:
                raise RuntimeError(f"{name} of layer {layer} depend on the frequencies, but not by a rotation")
            scaled = _is_scaled(unrotated, getattr(scaled_cache.layers[layer], name), channels)
            found.append(replace(channels, scaled=scaled))
    reason = why_not_rotatable(unrotated_cache, found)
    if reason is not None:
        raise RuntimeError(reason)
    return found


def probe_angles(tables: Mapping[str, RotaryTable]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return, for each table, a different angle for every column, and zeros of the same shape; [U] float64 in rad."""
    generator = torch.Generator().manual_seed(0)
    angles = {
        name: torch.rand(len(table.channel_layout.columns_U), generator=generator, dtype=torch.float64) * 2 + 0.5
        for name, table in tables.items()
    }
    return angles, {name: torch.zeros_like(angle_U) for name, angle_U in angles.items()}


def why_not_rotatable(cache: Any, channels: Sequence[RotatedChannels]) -> str | None:
    """Return why the keys in such a cache cannot be rotated, as a clause; None if they can."""
    if getattr(cache, "offloading", False):
        return "the cached keys are in an offloaded cache"
    for each in channels:
        layer_class = type(cache.layers[each.layer]).__name__
        if layer_class not in ROTATABLE_CACHE_LAYERS:
            return (
                f"the cached keys are in a {layer_class}, which does not store all of them as attention computed them"
            )
    return None


def cache_one_token(
    decoder: Any, tables: Mapping[str, RotaryTable], angles: Mapping[str, Tensor], attention_factor: float = 1.0
) -> Any:
    """Return the cache after the decoder has read one token with these angles in its tables."""
    cache = DynamicCache(config=configs.get_text_config(decoder.config))
    with ExitStack() as stack:
        for name, table in tables.items():
            stack.enter_context(table.override_angles(angles[name], attention_factor))
        read_one_token(decoder, **cache_for_call(decoder, cache), use_cache=True)
    return cache


def read_one_token(decoder: Any, **options: Any) -> Any:
    """Return what the decoder computes for one token, in evaluation mode.

    `options`: further arguments of its forward.
    """
    device = decoder.get_input_embeddings().weight.device
    if device.type == "meta":  # accelerate has offloaded the embeddings, and moves their input to where they compute
        device = torch.device("cpu")
    token_BT = torch.tensor([[configs.get_text_config(decoder.config).vocab_size // 2]], device=device)
    with evaluation_mode(decoder), torch.inference_mode():
        return decoder(input_ids=token_BT, **options)


def explain_rotation(
    unrotated: Tensor,
    rotated: Tensor,
    layer: int,
    tensor: str,
    tables: Mapping[str, RotaryTable],
    angles: Mapping[str, Tensor],
) -> RotatedChannels | None:
    """Return the channels whose rotation turns `unrotated` into `rotated`; None if there are none."""
    if unrotated.ndim < 3 or unrotated.shape[-2] != 1:
        return None
    difference_D = (unrotated.float() - rotated.float()).abs().flatten(0, -2).amax(0)
    # The first channel that differs at all, and the first that differs by more than the order of summation explains.
    noise = _rounding_error(unrotated)
    starts = dict.fromkeys(int((difference_D > threshold).to(torch.int8).argmax()) for threshold in (0.0, noise))
    for start, (name, table) in itertools.product(starts, tables.items()):
        pairs, column_C = table.channel_layout.pairs, table.channel_layout.column_C
        if start + 2 * pairs > unrotated.shape[-1]:
            continue
        # The table repeats its pairs as a whole, or it repeats each pair.
        for columns_P in dict.fromkeys((column_C[:pairs], column_C[::2][:pairs])):
            if len(columns_P) != pairs:
                continue
            angle_BTP = angles[name][list(columns_P)].to(unrotated.device)[None, None]
            cos_BTP, sin_BTP = angle_BTP.cos().float(), angle_BTP.sin().float()
            for layout, sign in itertools.product(LAYOUTS, (1, -1)):
                channels = RotatedChannels(layer, tensor, name, start, layout, columns_P, sign)
                if equal_up_to_rounding(channels.rotate(unrotated, cos_BTP, sin_BTP), rotated):
                    return channels
    return None


def _is_scaled(unscaled: Tensor, scaled: Tensor, channels: RotatedChannels) -> bool:
    """Return whether the rotated channels grew by the attention factor, approximately: attention sinks disturb it."""
    rotated = slice(channels.start, channels.start + 2 * len(channels.columns_P))
    before, after = unscaled[..., rotated].double().flatten(), scaled[..., rotated].double().flatten()
    growth = float(before @ after / (before @ before))
    return abs(growth - _PROBE_FACTOR) < abs(growth - 1)


def equal_up_to_rounding(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal up to the rounding of two rotations."""
    if one.shape != other.shape or one.numel() == 0:
        return one.shape == other.shape
    return float((one.float() - other.float()).abs().max()) <= _rounding_error(one)


def _rounding_error(cached: Tensor) -> float:
    return 4 * torch.finfo(cached.dtype).eps * float(cached.float().abs().max())
