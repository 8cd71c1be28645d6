"""Forward hooks that tell the attention layers of a decoder the positions of queries and keys.

A position method needs the position of every token in the cache. `DecoderHooks` records them on the cache, and keeps
the record in step with cropping, beams and copies (key_state.py). Before a forward call that passes the original
length, these hooks hand the positions to the attention layers; shorter texts are read as if they were not there.

Shapes: as in rotary_table.py; N tokens so far.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from ropewalk.config import get_text_config
from ropewalk.models.dynamic import DecoderHooks, cache_argument, find_cache, find_paged_cache
from ropewalk.models.far_keys import FarKeys
from ropewalk.models.key_state import KeyState, get_key_state, tokens_seen
from ropewalk.models.position_call import PositionCall, begin_call, end_call
from ropewalk.models.rotary_table import RowFrequencies
from ropewalk.positions import PositionMethod


@dataclass(eq=False)
class PositionHooks(DecoderHooks):
    """The forward hooks of one decoder under a position method; a patch that registers and removes them.

    Attributes:
        method: the position method; its options may follow the text.
        implementation: the name of the attention implementation that the method needs.
    """

    method: PositionMethod = field(kw_only=True)
    implementation: str = field(kw_only=True)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before_forward(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Hand the positions of a call that passes the original length to the attention layers."""
        end_call(self)  # of a call that failed before its hook ran
        changed = self._begin_call(args, kwargs)
        if changed is None:
            return None
        arguments = self._bind(*changed)
        positions_BT = self._rotary_positions(arguments["position_ids"])
        assert self.original_length is not None
        if int(positions_BT.max()) >= self.original_length:
            cache = cache_argument(arguments)
            keeps_cache = cache is not None or arguments.get("use_cache") is not False
            self._check_call(arguments)
            call = PositionCall(
                self.method,
                self.original_length,
                self._all_positions(positions_BT, cache),
                positions_BT.shape[-1],
                self._far_keys(cache) if keeps_cache else None,
            )
            begin_call(self, call)
        return changed

    def _check_call(self, arguments: Mapping[str, Any]) -> None:
        """Raise RuntimeError for a call past the original length that a position method cannot be part of."""
        current = get_text_config(self.decoder.config)._attn_implementation
        if current != self.implementation:
            raise RuntimeError(
                f"the attention implementation was changed to {current} after `extend`; restore the model, change it, "
                "and extend again"
            )
        paged_cache = find_paged_cache(arguments)
        if paged_cache is not None:
            cache_class = type(paged_cache).__name__
            raise RuntimeError(f"{self.method.name} cannot find the positions of the keys in a {cache_class}")
        if arguments.get("output_attentions"):
            raise RuntimeError(f"{self.method.name} has no attention weights past the original length to return")
        is_training = torch.is_grad_enabled() and self.decoder.training
        if is_training and any(getattr(module, "gradient_checkpointing", False) for module in self.decoder.modules()):
            raise RuntimeError(
                f"{self.method.name} cannot recompute attention past the original length in the backward pass; call "
                "model.gradient_checkpointing_disable()"
            )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _after_forward(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        """Record the positions of the new keys, and keep the far keys on the cache."""
        call = end_call(self)
        self._end_call(args, kwargs, outputs)
        if call is None or outputs is None:
            return
        cache = find_cache(self._bind(args, kwargs), outputs)
        state = None if cache is None else get_key_state(cache)
        if state is not None:
            state.far_keys = call.far_keys

    def _all_positions(self, positions_BT: Tensor, cache: Cache | None) -> Tensor:
        """Return the positions of the tokens in the cache and of those of the call, [B, N] on the CPU."""
        parts = [positions_BT]
        if cache is not None and tokens_seen(cache):
            state = get_key_state(cache)
            if state is None or state.num_tokens != tokens_seen(cache):
                known = 0 if state is None else state.num_tokens
                raise RuntimeError(
                    f"the cache holds {tokens_seen(cache):,} tokens, of which an extended model has read {known:,}; "
                    "start a new cache"
                )
            parts = [state.positions_BT, positions_BT]
        rows = max(part.shape[-2] for part in parts)
        text = [_text_positions(part).cpu().expand(rows, -1) for part in parts]
        return torch.cat(text, dim=1)

    def _far_keys(self, cache: Cache | None) -> FarKeys:
        state = None if cache is None else get_key_state(cache)
        return FarKeys() if state is None or state.far_keys is None else state.far_keys

    def _rotate_cached_keys(self, cache: Any, state: KeyState, row_frequencies: dict[str, RowFrequencies]) -> None:
        raise RuntimeError(
            f"the cache holds {tokens_seen(cache):,} tokens that were read with other frequencies; start a new cache"
        )


def _text_positions(positions_BT: Tensor) -> Tensor:
    """Return one position for each token, [B, T], of positions that may have several axes.

    Raises RuntimeError if the axes differ, as inside an image: they have no single distance.
    """
    if positions_BT.ndim == 2:
        return positions_BT
    if not bool((positions_BT == positions_BT[:1]).all()):
        raise RuntimeError(
            f"positions on {len(positions_BT)} axes that differ, as those of an image, cannot pass the original "
            "length under a position method; use a scaling of the frequencies"
        )
    return positions_BT[0]
