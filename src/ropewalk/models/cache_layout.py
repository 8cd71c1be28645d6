"""Which channels of a cache turn with the frequencies, learned by asking the model.

The model reads one token three times, into a cache each: with all angles at zero, with an angle of its own for every
column of its tables, and with an attention factor. A token that sees itself alone has the same hidden states under any
angles, so what differs between the first two caches is what its rotary embedding turned. How the pairs lie there counts
only when it reproduces the second cache from the first. The third tells which of them carry the attention factor.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ropewalk import config as configs
from ropewalk.models.rotary_table import RotaryTable
from ropewalk.ops.rotation import LAYOUTS, rotate

_FACTOR = 1.0625


@dataclass(frozen=True)
class RotatedChannels:
    """Channels of a cached tensor that turn.

    Attributes:
        layer: its place in the cache.
        tensor: the attribute of the cache layer.
        table: the name of the table that turns it.
        start, layout: where its pairs lie, as `rotate` takes it.
        columns_P: the column of the table for each pair.
        sign: -1 where it turns backwards (nanochat).
        scaled: whether it carries the attention factor, which a norm after the turn takes away (Llama 4).
    """

    layer: int
    tensor: str
    table: str
    start: int
    layout: str
    columns_P: tuple[int, ...]
    sign: int = 1
    scaled: bool = True

    def turn(self, cached: Tensor, cos_BTP: Tensor, sin_BTP: Tensor, in_place: bool = False) -> Tensor:
        """The cached tensor, [B, H, T, D] or [B, T, D], turned further by these tables of its pairs."""
        heads = cached if cached.ndim == 4 else cached[:, None]
        tables, inverse = (cos_BTP, sin_BTP), self.sign < 0
        turned, _ = rotate(
            heads, None, None, None, self.layout, tables=tables, start=self.start, inverse=inverse, in_place=in_place
        )
        return turned.view_as(cached)


def find_rotated_channels(body: Any, tables: Mapping[str, RotaryTable]) -> list[RotatedChannels]:
    """What turns in the caches of a decoder; `tables`: its rotary tables, by name.

    Raises RuntimeError when something differs between the two caches that turning does not explain.
    """
    dice = torch.Generator().manual_seed(0)
    angles = {
        name: torch.rand(len(table.channel_layout.columns_U), generator=dice, dtype=torch.float64) * 2 + 0.5
        for name, table in tables.items()
    }
    zeros = {name: torch.zeros_like(angle_U) for name, angle_U in angles.items()}
    still, moved = _ask(body, tables, zeros), _ask(body, tables, angles)
    longer = _ask(body, tables, zeros, _FACTOR)
    found = []
    for layer, (before, after) in enumerate(zip(still.layers, moved.layers, strict=True)):
        for tensor, unturned in vars(before).items():
            if isinstance(unturned, Tensor) and unturned.is_floating_point():
                told = getattr(after, tensor)
                if not _close(unturned, told):
                    how = next(_explained(unturned, told, layer, tensor, tables, angles), None)
                    if how is None:
                        raise RuntimeError(f"{tensor} of layer {layer} depend on the frequencies in another way")
                    scaled = _carries_factor(unturned, getattr(longer.layers[layer], tensor), how)
                    found.append(replace(how, scaled=scaled))
    return found


def _ask(body: Any, tables: Mapping[str, RotaryTable], angles: Mapping[str, Tensor], factor: float = 1.0) -> Any:
    """The cache of one token under these angles and this attention factor."""
    config = configs.text_config(body.config)
    cache = DynamicCache(config=config)
    modes = {module: module.training for module in body.modules()}
    body.eval()
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            for name, table in tables.items():
                stack.enter_context(table.answering(angles[name], factor))
            token_BT = torch.tensor([[config.vocab_size // 2]], device=body.get_input_embeddings().weight.device)
            body(input_ids=token_BT, past_key_values=cache, use_cache=True)
    finally:
        for module, training in modes.items():
            module.training = training
    return cache


def _explained(
    unturned: Tensor,
    told: Tensor,
    layer: int,
    tensor: str,
    tables: Mapping[str, RotaryTable],
    angles: Mapping[str, Tensor],
) -> Iterator[RotatedChannels]:
    """Every way in which turning `unturned` gives `told`."""
    if unturned.ndim < 3 or unturned.shape[-2] != 1:
        return
    off_D = (unturned.float() - told.float()).abs().flatten(0, -2).amax(0)
    noise = _rounding(unturned) * float(unturned.float().abs().max())  # of a device whose sums come in any order
    starts = dict.fromkeys(int((off_D > least).to(torch.int8).argmax()) for least in (0.0, noise))
    for start, (name, table) in itertools.product(starts, tables.items()):
        pairs = len({pair for pair, _ in table.channel_layout.columns_U})
        if start + 2 * pairs > unturned.shape[-1]:
            continue
        column_C = table.channel_layout.column_C
        for columns_P in dict.fromkeys((column_C[:pairs], column_C[::2][:pairs])):
            angle_BTP = angles[name][list(columns_P)].to(unturned.device)[None, None]
            cos, sin = angle_BTP.cos().float(), angle_BTP.sin().float()
            for layout, sign in itertools.product(LAYOUTS, (1, -1)):
                how = RotatedChannels(layer, tensor, name, start, layout, columns_P, sign)
                if len(columns_P) == pairs and _close(how.turn(unturned, cos, sin), told):
                    yield how


def _carries_factor(one: Tensor, longer: Tensor, how: RotatedChannels) -> bool:
    """Whether the turned channels grew by the attention factor; where attention has sinks, only nearly so."""
    turned = slice(how.start, how.start + 2 * len(how.columns_P))
    before, after = one[..., turned].double().flatten(), longer[..., turned].double().flatten()
    grown = float(before @ after / (before @ before))
    return abs(grown - _FACTOR) < abs(grown - 1)


def _close(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal up to the rounding of two turns."""
    if one.shape != other.shape or one.numel() == 0:
        return one.shape == other.shape
    off, largest = float((one.float() - other.float()).abs().max()), float(one.float().abs().max())
    return off <= _rounding(one) * largest


def _rounding(cached: Tensor) -> float:
    return 4 * torch.finfo(cached.dtype).eps
