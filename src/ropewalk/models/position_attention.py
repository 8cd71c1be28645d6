"""Attention in which near keys keep their trained distance and far keys have that of a position method.

Queries are split into blocks, and the keys of a block into rectangles and triangles (query_blocks.py). No mask is
needed, no logit is computed twice, and every piece is a call of a plain attention kernel (merged_attention.py).

Rows with holes in their mask, or with positions that do not follow each other, take a path with masks over all keys,
which costs as much again for each far segment.

Shapes: B batch rows, H query heads, K key heads, T queries, N tokens, D channels of a head; t queries of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ropewalk.models.far_keys import FarKeys
from ropewalk.models.merged_attention import MergedAttention
from ropewalk.models.position_call import PositionCall, RotatedPairs, Rows
from ropewalk.models.query_blocks import KeyRange, QueryBlock
from ropewalk.positions import PositionMethod

BLOCK_SIZE = 1024  # queries; smaller blocks call more kernels, larger ones take more memory
_MASKED_BLOCK_SIZE = 256  # queries whose logits are masked over all keys


@dataclass(frozen=True)
class AttentionInput:
    """What an attention layer passes to its attention function.

    Attributes:
        query, key, value: [B, H, T, D], [B, K, N or more, D] and [B, K, N or more, D of the values].
        mask: boolean or added to the logits, [B or 1, H or 1, T, N or more]; None for causal attention.
        scale: multiplies the logits.
        softcap: bounds the logits; None for no bound.
        sinks: the logits of a key without a value, [H]; None for no such key.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float
    softcap: float | None = None
    sinks: Tensor | None = None


class LayerAttention:
    """The attention of one layer in one call.

    Args:
        call: the forward call of the decoder.
        pairs: the pairs of channels that the layer rotates.
        layer: identifies the layer and the call of it.
        inputs: what the layer passes to attention.
    """

    def __init__(self, call: PositionCall, pairs: RotatedPairs, layer: Any, inputs: AttentionInput) -> None:
        self.call, self.pairs, self.layer, self.inputs = call, pairs, layer, inputs
        self.query = inputs.query
        if inputs.key.shape[2] < call.num_tokens:  # the window of a cache that dropped tokens
            raise RuntimeError(
                f"{call.method.name}: a layer has the keys of {inputs.key.shape[2]:,} tokens of {call.num_tokens:,}; "
                "a position method needs a cache that keeps all of them"
            )
        self.key, self.value = (_tokens(x, 0, call.num_tokens) for x in (inputs.key, inputs.value))
        self.far_keys = FarKeys() if call.far_keys is None else call.far_keys

    def compute(self) -> Tensor:
        """Return the output, [B, T, H, D of the values]."""
        rows = self.call.find_rows(self.inputs.mask)
        if rows is None:
            output = self._attend_masked()
        elif rows[0].indices is None:
            output = self._attend_rows(rows[0])
        else:
            output = self.query.new_empty(*self.query.shape[:3], self.value.shape[-1])
            for each in rows:
                output[each.selection] = self._attend_rows(each)
        self.far_keys.keep_only(self.layer, self.call.last_resolved_methods)
        return output.transpose(1, 2).contiguous()

    def _finish(self, merged: MergedAttention) -> Tensor:
        """Return the output of a block of queries to which all keys with values were added."""
        if self.inputs.sinks is not None:
            merged.add_sinks(self.inputs.sinks)
        return merged.result(self.query.dtype)

    def _scale_logits(self, resolved: PositionMethod, positions_Bt: Tensor, query: Tensor, key: Hashable) -> Tensor:
        """Return queries whose logits are scaled by their positions, if the position method does that."""
        factor = self.call.logit_factor(resolved, positions_Bt, query, key)
        return query if factor is None else (query * factor).to(query.dtype)

    def _rotate_far_keys(
        self, resolved: PositionMethod, rows: tuple[int, ...] | None, key: Tensor, num_tokens: int
    ) -> Tensor:
        """Return the first keys of some rows of the batch, rotated further, to where far queries see them.

        The keys under other resolved methods are dropped, except for those that the next token of a row needs.
        """

        def rotate_keys(keys: Tensor, start: int, stop: int) -> Tensor:
            return self.call.rotate_keys(self.pairs, resolved, rows, keys, start, stop)

        self.far_keys.keep_only(self.layer, {resolved, *self.call.last_resolved_methods})
        return self.far_keys.of_layer(self.layer, resolved, rows).extend(key, num_tokens, rotate_keys)

    def _attend_rows(self, rows: Rows) -> Tensor:
        """Return the output of rows whose tokens follow each other, [B, H, T, D]; 0 for padding."""
        query, padded_key, value = self.query, self.key, self.value
        if rows.indices is not None:
            query, padded_key, value = (x[rows.selection] for x in (query, padded_key, value))
        key, value = (_tokens(x, rows.first_index, x.shape[2]) for x in (padded_key, value))
        num_queries = min(query.shape[2], key.shape[2])
        padding = query.shape[2] - num_queries
        query = _tokens(query, padding, query.shape[2])
        end = rows.first_position + key.shape[2]
        start = end - num_queries
        outputs = [query.new_zeros(*query.shape[:2], padding, value.shape[-1])] if padding else []
        for block in self.call.blocks(rows.first_position, start, end, BLOCK_SIZE):
            query_t = _tokens(query, block.start - start, block.end - start)

            def rotate_far_keys(num_tokens: int, resolved: PositionMethod = block.resolved) -> Tensor:
                far_key = self._rotate_far_keys(resolved, rows.indices, padded_key, rows.first_index + num_tokens)
                return _tokens(far_key, rows.first_index, far_key.shape[2])

            outputs.append(self._attend_block(block, query_t, key, value, rotate_far_keys))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)

    def _attend_block(
        self, block: QueryBlock, query: Tensor, key: Tensor, value: Tensor, rotate_far_keys: Callable[[int], Tensor]
    ) -> Tensor:
        """Return the output of a block of queries.

        `rotate_far_keys`: returns the first n keys at their far positions.
        """
        merged = MergedAttention(self.inputs.scale, self.inputs.softcap)
        query = self._scale_logits(block.resolved, block.positions_1t, query, (block.start, block.end))
        for index, key_range in enumerate(block.key_ranges):
            if not key_range.pieces:
                continue
            keys, queries = key, query
            if index > 0:
                segment = block.resolved.far_segments[index - 1]
                keys = rotate_far_keys(key_range.end)
                queries = self.call.rotate_queries(
                    self.pairs, block.resolved, segment, query, block.positions_1t, (index, block.start, block.end)
                )
            _add_range(merged, key_range, queries, keys, value)
        return self._finish(merged)

    def _attend_masked(self) -> Tensor:
        """Return the output for any mask and any positions, [B, H, T, D]."""
        outputs = []
        for start in range(0, self.call.num_queries, _MASKED_BLOCK_SIZE):
            outputs.append(self._attend_masked_block(start, min(start + _MASKED_BLOCK_SIZE, self.call.num_queries)))
        return torch.cat(outputs, dim=2)

    def _attend_masked_block(self, start: int, end: int) -> Tensor:
        call, query_BHtD = self.call, self.query[:, :, start:end]
        positions_Bt = call.query_positions[:, start:end]
        keys_B1N = call.positions_BN[:, None]
        bias = self._bias(start, end)
        merged = MergedAttention(self.inputs.scale, self.inputs.softcap)
        lowest, highest = int(positions_Bt.min()), int(positions_Bt.max()) + 1
        for block_start, block_end, resolved in call.method.blocks(call.original_length, lowest, highest):
            in_block_Bt1 = ((positions_Bt >= block_start) & (positions_Bt < block_end))[..., None]
            if not bool(in_block_Bt1.any()):
                continue
            query = self._scale_logits(resolved, positions_Bt, query_BHtD, ("masked", start, end))
            is_closer_BtN = in_block_Bt1 & (keys_B1N >= resolved.near_start(positions_Bt)[..., None])
            merged.add(query, self.key, self.value, bias=_hide(bias, ~is_closer_BtN))
            hidden_BtN = ~in_block_Bt1 | is_closer_BtN
            for index, segment in enumerate(resolved.far_segments):
                is_closer_BtN = keys_B1N >= segment.start(positions_Bt)[..., None]
                visible_BtN = is_closer_BtN & ~hidden_BtN
                hidden_BtN = hidden_BtN | is_closer_BtN
                if not bool(visible_BtN.any()):
                    continue
                far_keys = self._rotate_far_keys(resolved, None, self.key, call.num_tokens)
                far_query = call.rotate_queries(
                    self.pairs, resolved, segment, query, positions_Bt, ("masked", index, start, end)
                )
                merged.add(far_query, far_keys, self.value, bias=_hide(bias, ~visible_BtN))
        return self._finish(merged)

    def _bias(self, start: int, end: int) -> Tensor:
        """Return what the mask adds to the logits of some queries, [B or 1, H or 1, t, N]."""
        num_tokens, num_queries = self.call.num_tokens, self.call.num_queries
        mask = self.inputs.mask
        if mask is None:
            query_t = torch.arange(start, end, device=self.query.device) + num_tokens - num_queries
            mask = (torch.arange(num_tokens, device=self.query.device) <= query_t[:, None])[None, None]
        else:
            mask = mask[:, :, start:end, :num_tokens]
        if mask.dtype != torch.bool:
            return mask.masked_fill(mask <= torch.finfo(mask.dtype).min / 2, -torch.inf)
        return torch.zeros(mask.shape, dtype=self.query.dtype, device=mask.device).masked_fill(~mask, -torch.inf)


def _add_range(merged: MergedAttention, key_range: KeyRange, query: Tensor, key: Tensor, value: Tensor) -> None:
    bias = None
    if key_range.visible_tn is not None:
        bias = torch.zeros(key_range.visible_tn.shape).masked_fill(~key_range.visible_tn, -torch.inf)
        bias = bias.to(query.device)[None, None]
    for start, end, triangle in key_range.pieces:
        merged.add(query, _tokens(key, start, end), _tokens(value, start, end), triangle, bias)


def _tokens(x: Tensor, start: int, end: int) -> Tensor:
    """Return the tokens start .. end - 1 of [B, heads, T, D]. Decoding makes many calls that ask for all of them."""
    return x if start == 0 and end == x.shape[2] else x[:, :, start:end]


def _hide(bias: Tensor, hidden_BtN: Tensor) -> Tensor:
    return bias.masked_fill(hidden_BtN.to(bias.device)[:, None], -torch.inf)
