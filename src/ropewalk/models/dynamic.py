"""Forward hooks that keep the frequencies of a decoder, and its cached keys, in step with the length of the text.

Before a forward call of the decoder, its hook reads the positions and the KV cache from the arguments, chooses the
frequencies of the rotary tables and rotates the cached keys to them. After the call it records the new positions on the
cache. The attention code is not involved. Everything that a call decides is kept in its thread or on its cache, so
several threads can use one model at the same time.

All decoders that ropewalk supports take `position_ids` (transformers 5.23). If the caller leaves them out, the hook
passes those that the decoder would compute itself, counted from the number of cached tokens, so that they are known
before the call. Bamba and MiniMax would count from 0 in every call, which is wrong.

Shapes: as in rotary_table.py.
"""

from __future__ import annotations

import hashlib
import inspect
import threading
import uuid
import warnings
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from ropewalk.compat.transformers import cache_argument_name, find_cache_argument, find_output_cache
from ropewalk.errors import UnsupportedModelError
from ropewalk.models.cache_layout import RotatedChannels, find_rotated_channels, why_not_rotatable
from ropewalk.models.digest import tensor_bytes
from ropewalk.models.key_state import KeyState, attach_key_state, get_key_state, tokens_seen
from ropewalk.models.probe_cache import cached_probe, config_text
from ropewalk.models.rotary_modules import RotaryModule
from ropewalk.models.rotary_table import LayerFrequencies, RotaryTable, RowFrequencies
from ropewalk.rope import Rope
from ropewalk.scaling.policies import Policy, RequestPolicy

_FINGERPRINT_SAMPLES = 16  # parameters of a model, and numbers of each
FIXED_LENGTH = "extend(model, scaling, length=tokens)"


class _ThisThread(threading.local):
    """Whether this thread is probing a decoder, whose hooks then do nothing."""

    is_probing = False


_this_thread = _ThisThread()


@dataclass(eq=False)
class DecoderHooks:
    """The forward hooks of one decoder; a patch that registers and removes them.

    Attributes:
        decoder: the module that takes tokens and a cache.
        tables: all tables of its rotary modules, by name.
        ropes: the unscaled rotary embeddings of the model, by layer type.
        policy: the length that dynamic scalings are computed for.
        original_length: tokens the model was trained on; None if no table is dynamic.
        rotated_channels: the channels of the decoder's caches that depend on the frequencies; None until probed.
        why_not_rotatable: why the cached keys cannot be rotated, as a clause; None if they can or before the probe.
    """

    decoder: Any
    tables: dict[str, RotaryTable]
    ropes: dict[str, Rope]
    policy: Policy
    original_length: int | None
    rotated_channels: list[RotatedChannels] | None = None
    why_not_rotatable: str | None = None
    _handles: list[Any] = field(default_factory=list)
    _identity: str = field(default_factory=lambda: uuid.uuid4().hex)  # of a model whose weights cannot be read
    _has_warned: bool = False

    def __post_init__(self) -> None:
        self._parameter_names = list(inspect.signature(self.decoder.forward).parameters)
        self._axes = max(table.channel_layout.axes for table in self.tables.values())

    def apply(self) -> None:
        """Register the hooks. A dynamic scaling probes the decoder first, so that a failure is known at once."""
        if self.is_dynamic:
            self._find_rotated_channels()
        self._handles = [
            self.decoder.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            self.decoder.register_forward_hook(self._after_forward, with_kwargs=True, always_call=True),
        ]

    def revert(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    @property
    def is_dynamic(self) -> bool:
        """Whether the frequencies of any table depend on the length of the text."""
        return any(table.is_dynamic for table in self.tables.values())

    @property
    def _fixes_requests(self) -> bool:
        return self.is_dynamic and isinstance(self.policy, RequestPolicy)

    def set_request_lengths(self, cache: Any, lengths: tuple[int, ...]) -> None:
        """Record how many tokens each batch row of a new request on this cache may reach."""
        state = get_key_state(cache)
        if state is None and not tokens_seen(cache):
            state = self._attach_new_state(cache)
        if state is not None:
            state.request_lengths = lengths if len(set(lengths)) > 1 else lengths[:1]

    def count_candidates(self, cache: Any, num_tokens: int, proposed: int) -> int:
        """Return how many candidates may be verified in one forward call of the decoder.

        All tokens of a call have the frequencies of the last one. Without candidates, each token would have those of
        its own length, so only candidates that share them can be verified together.

        Args:
            cache: the cache of the text.
            num_tokens: the tokens of the text, including those that the cache does not hold yet.
            proposed: the candidates that follow the text.
        """
        state = get_key_state(cache)
        if state is None or not state.num_tokens:
            return 0  # the positions of the text become known when it is read
        length = int(state.positions_BT[..., -1].max()) + 1 + num_tokens - state.num_tokens
        limit = length + proposed
        if self._fixes_requests:
            limit = max((*(state.request_lengths or ()), self.original_length or 0))
        else:
            while limit > length and not self._share_frequencies(length, limit):
                limit -= 1
        return max(0, min(proposed, limit - length))

    def _share_frequencies(self, length: int, other_length: int) -> bool:
        return all(table.frequencies_at(length) == table.frequencies_at(other_length) for table in self.tables.values())

    def _before_forward(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_compiling() and not self.is_dynamic:
            return None
        return self._begin_call(args, kwargs)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # lengths and caches cannot be part of a graph
    def _begin_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Choose the frequencies of this call, and rotate the cached keys to them; return the arguments of the call."""
        if _this_thread.is_probing:
            return None
        arguments = self._bind(args, kwargs)
        paged_cache = find_paged_cache(arguments)
        if self.is_dynamic and paged_cache is not None:
            cache_class = type(paged_cache).__name__
            raise RuntimeError(
                f"a dynamic scaling cannot rotate the keys in a {cache_class}; fix the frequencies: {FIXED_LENGTH}"
            )
        if arguments.get("position_ids") is None:
            position_ids = _next_positions(arguments)
            if position_ids is None:
                return None  # there is no input, which the decoder itself will refuse
            args, arguments = (), arguments | {"position_ids": position_ids}
            kwargs = arguments
        cache = cache_argument(arguments)
        state = None
        if cache is not None and tokens_seen(cache):
            state = self._checked_key_state(cache)
        row_frequencies = self._choose_frequencies(self._rotary_positions(arguments["position_ids"]), cache)
        if state is not None and row_frequencies != state.row_frequencies:
            self._rotate_cached_keys(cache, state, row_frequencies)
        for name, table in self.tables.items():
            if table.is_dynamic:
                table.choose(row_frequencies[name])
        return args, kwargs

    def _after_forward(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        if not torch.compiler.is_compiling() or self.is_dynamic:
            self._end_call(args, kwargs, outputs)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _end_call(self, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        """Record the positions of the new keys on the cache, and end the choice of the frequencies."""
        if _this_thread.is_probing:
            return
        try:
            arguments = self._bind(args, kwargs)
            if outputs is not None and arguments.get("position_ids") is not None:  # no outputs if the call failed
                self._record_positions(find_cache(arguments, outputs), arguments["position_ids"])
        finally:
            for table in self.tables.values():
                table.end_choice()

    def _record_positions(self, cache: Cache | None, position_ids: Tensor) -> None:
        if cache is None:
            return
        positions_BT = self._rotary_positions(position_ids)
        state = get_key_state(cache)
        if state is None or not state.num_tokens:
            if tokens_seen(cache) > positions_BT.shape[-1]:
                return  # tokens of unknown origin, under a static scaling
            request_lengths = None if state is None else state.request_lengths
            state = self._attach_new_state(cache)
            state.request_lengths = request_lengths
        if not self._fixes_requests:
            state.request_lengths = None
        elif state.request_lengths is None:
            state.request_lengths = _text_lengths(positions_BT)
        new_tokens = tokens_seen(cache) - state.num_tokens
        if new_tokens > 0:
            state.append(positions_BT[..., -new_tokens:])

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(self._parameter_names, args, strict=False)) | kwargs

    def _rotary_positions(self, position_ids: Tensor) -> Tensor:
        """Return the positions that the decoder passes to its rotary modules, [B, T] or [A, B, T]."""
        if self._axes == 1:
            return position_ids
        if position_ids.ndim == 2:
            return position_ids.expand(self._axes, -1, -1)
        return position_ids[-self._axes :]  # Qwen2-VL and others prepend the positions of the text

    def _choose_frequencies(self, positions_BT: Tensor, cache: Cache | None) -> dict[str, RowFrequencies]:
        """Return the frequencies of each table for a call with these positions."""
        if not self.is_dynamic:
            return {name: table.row_frequencies for name, table in self.tables.items()}
        lengths = _text_lengths(positions_BT)
        if self._fixes_requests:
            lengths = self._choose_request_lengths(lengths, cache)
        row_frequencies = {}
        for name, table in self.tables.items():
            rows = tuple(table.frequencies_at(length) for length in lengths)
            row_frequencies[name] = rows[:1] if len(set(rows)) == 1 else rows
        return row_frequencies

    def _choose_request_lengths(self, lengths: tuple[int, ...], cache: Cache | None) -> tuple[int, ...]:
        """Return the tokens that each row may reach: the length of its request, or of the call that begins it."""
        state = None if cache is None else get_key_state(cache)
        limits = lengths if state is None or state.request_lengths is None else state.request_lengths
        if len(limits) != len(lengths):  # the rows of the batch share their positions
            limits = (max(limits),) * len(lengths)
        for row, (length, limit) in enumerate(zip(lengths, limits, strict=True)):
            if length > max(limit, self.original_length or 0):
                raise RuntimeError(
                    f"row {row} has reached {length:,} tokens, more than the {limit:,} of its request; set the length "
                    f'beforehand with {FIXED_LENGTH}, or use policy="stepped"'
                )
        return limits

    def _rotate_cached_keys(self, cache: Any, state: KeyState, row_frequencies: dict[str, RowFrequencies]) -> None:
        if any(
            isinstance(each, LayerFrequencies)
            for name, rows in row_frequencies.items()
            if rows != state.row_frequencies[name]
            for each in rows + state.row_frequencies[name]
        ):
            raise RuntimeError(
                f"the cache holds {tokens_seen(cache):,} tokens that were read with other frequencies, and keys of a "
                "scaling with a set for each layer are not rotated; start a new cache"
            )
        self._find_rotated_channels()
        # `assistant_early_exit` drafts with the first layers only, in a cache of its own.
        channels = [each for each in self.rotated_channels or [] if each.layer < len(cache.layers)]
        reason = self.why_not_rotatable or why_not_rotatable(cache, channels)
        if reason is not None:
            remedy = f"fix the frequencies for the whole conversation: {FIXED_LENGTH}"
            if not self._fixes_requests:
                remedy += ', or for each request with a cache of its own: policy="request"'
            raise RuntimeError(f"the frequencies have changed, but {reason}; {remedy}")
        seen = tokens_seen(cache)
        if state.num_tokens != seen:
            raise RuntimeError(
                f"the cache holds {seen:,} tokens, but the positions of {state.num_tokens:,} are known: an earlier "
                "call failed halfway, or other code wrote into the cache; start a new cache"
            )
        keep_snapshot = self.is_dynamic and self.policy.keeps_key_snapshot
        state.rotate_keys(cache, row_frequencies, self.tables, channels, keep_snapshot)

    def _find_rotated_channels(self) -> None:
        if self.rotated_channels is None and self.why_not_rotatable is None:
            _this_thread.is_probing = True
            try:
                self.rotated_channels, self.why_not_rotatable = cached_probe(
                    self.decoder, self._decoder_fingerprint(), self._probe_decoder
                )
            finally:
                _this_thread.is_probing = False

    def _probe_decoder(self) -> tuple[list[RotatedChannels] | None, str | None]:
        try:
            return find_rotated_channels(self.decoder, self.tables), None
        except Exception as error:  # the code of the model may fail in any way
            decoder_class = type(self.decoder).__name__
            return None, f"the cached keys of a {decoder_class} cannot be rotated: {error}"

    def _decoder_fingerprint(self) -> str:
        """Return everything that the rotated channels depend on, as text."""
        classes = [type(module) for module in self.decoder.modules()]
        layouts = {name: table.channel_layout for name, table in self.tables.items()}
        return f"{config_text(self.decoder.config)} {classes} {layouts}"

    def _checked_key_state(self, cache: Any) -> KeyState | None:
        """Return the key state of a cache that holds tokens; None if it has none, which a static scaling allows.

        Raises RuntimeError if this model did not fill the cache.
        """
        state, seen = get_key_state(cache), tokens_seen(cache)
        if state is None:
            if self.is_dynamic:
                raise RuntimeError(
                    f"the cache holds {seen:,} tokens that no extended model has read, so the frequencies of its keys "
                    "are unknown; start a new cache"
                )
            self._warn_about_unknown_keys(seen)
        elif state.checked_by is None or state.checked_by() is not self:
            if state.model_fingerprint != self._model_fingerprint():
                raise RuntimeError(
                    f"the cache holds {seen:,} tokens of another model, or of this model with another base or other "
                    "weights; start a new cache"
                )
            state.checked_by = weakref.ref(self)
        return state

    def _warn_about_unknown_keys(self, seen: int) -> None:
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"the cache holds {seen:,} tokens that no extended model has read; their keys are used as they are: "
                "right for a learned prefix and a compiled prefill, wrong for a cache filled before `extend`",
                stacklevel=2,
            )

    def _attach_new_state(self, cache: Any) -> KeyState:
        row_frequencies = {name: table.row_frequencies for name, table in self.tables.items()}
        state = KeyState(self._model_fingerprint(), row_frequencies, checked_by=weakref.ref(self))
        attach_key_state(cache, state)
        return state

    def _model_fingerprint(self) -> str:
        """Return a digest of the model's class, its unscaled rotary embeddings, and a sample of its weights."""
        digest = hashlib.sha256(f"{type(self.decoder).__name__} {self.ropes}".encode())
        weights = [weight for weight in self.decoder.parameters() if weight.device.type != "meta"]
        if not weights:  # all are offloaded
            digest.update(self._identity.encode())
        for weight in weights[:: max(1, len(weights) // _FINGERPRINT_SAMPLES)]:
            try:
                local = getattr(weight, "_local_tensor", weight)  # the shard of a DTensor on this rank
                digest.update(tensor_bytes(local.detach().flatten()[:_FINGERPRINT_SAMPLES]))
            except Exception:  # a tensor subclass, as of quantized weights; the other weights suffice
                continue
        return digest.hexdigest()


def find_decoders(
    model: nn.Module, module_tables: list[tuple[RotaryModule, dict[str, RotaryTable]]]
) -> dict[Any, dict[str, RotaryTable]]:
    """Return every decoder of a model that contains a rotary module, with the tables of its rotary modules by name.

    Args:
        model: the model.
        module_tables: its rotary modules, each with the tables that it returns, by layer type.

    Raises UnsupportedModelError if a rotary module is in no decoder that takes a cache.
    """
    tables_of_decoder: dict[Any, dict[str, RotaryTable]] = {}
    for rotary, tables in module_tables:
        decoder, path = find_decoder(model, rotary)
        decoder_tables = tables_of_decoder.setdefault(decoder, {})
        decoder_tables.update({f"{path}:{layer_type}": table for layer_type, table in tables.items()})
    return tables_of_decoder


def find_decoder(model: nn.Module, rotary: RotaryModule) -> tuple[Any, str]:
    """Return the innermost module around a rotary module that takes tokens and a cache, and the path from it.

    Raises UnsupportedModelError if there is none.
    """
    path = rotary.path
    while path:
        path = path.rpartition(".")[0]
        module: Any = model.get_submodule(path)
        takes_tokens = "inputs_embeds" in inspect.signature(module.forward).parameters
        if takes_tokens and cache_argument_name(module.forward) is not None:
            return module, rotary.path.removeprefix(f"{path}.")
    raise UnsupportedModelError(type(model).__name__, f"no decoder that takes a cache contains its {rotary.path}")


def cache_argument(arguments: Mapping[str, Any]) -> Cache | None:
    """Return the cache among the arguments of a decoder; None if there is none."""
    cache = find_cache_argument(arguments)
    return cache if isinstance(cache, Cache) else None


def find_paged_cache(arguments: Mapping[str, Any]) -> Any:
    """Return the paged cache of continuous batching among the arguments of a decoder; None if there is none."""
    cache = arguments.get("cache")
    return None if isinstance(cache, Cache) else cache


def _next_positions(arguments: Mapping[str, Any]) -> Tensor | None:
    """Return the positions of the tokens that follow those in the cache, [1, T]; None if no tokens are given."""
    tokens = arguments.get("input_ids")
    if tokens is None:
        tokens = arguments.get("inputs_embeds")
    if tokens is None:
        return None
    cache = cache_argument(arguments)
    start = 0 if cache is None else tokens_seen(cache)
    return torch.arange(start, start + tokens.shape[1], device=tokens.device)[None]


def _text_lengths(positions_BT: Tensor) -> tuple[int, ...]:
    """Return the tokens of each row's text up to the end of a call with these positions, [B, T] or [A, B, T]."""
    # The axes of an image start again at its corner; the largest position tells how long the text is.
    positions_BT = positions_BT if positions_BT.ndim == 2 else positions_BT.amax(0)
    return tuple(position + 1 for position in positions_BT.amax(-1).tolist())


def find_cache(arguments: Mapping[str, Any], outputs: Any) -> Cache | None:
    """Return the cache that a call filled: its argument, or one that the decoder created; None if there is none."""
    cache = cache_argument(arguments)
    return find_output_cache(outputs) if cache is None else cache
