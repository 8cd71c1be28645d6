"""What makes the frequencies follow the text, and the cached keys follow the frequencies.

A follower listens at the decoder of an extended model. Before a forward call it learns the cache; from the rotary
modules the positions, which is when it sets the tables and turns what is cached; after the call it notes on the cache
what its keys carry. The attention code takes no part in it.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from ropewalk.errors import InputError
from ropewalk.models.cache_layout import RotatedChannels, find_rotated_channels
from ropewalk.models.key_state import KeyState, attach_key_state, cannot_follow, get_key_state, tokens_seen
from ropewalk.models.rotary_modules import RotaryModule, Swap
from ropewalk.models.rotary_table import RotaryTable, Rows
from ropewalk.rope import Rope
from ropewalk.scaling.policies import Policy, RequestPolicy

_SAMPLED = 16  # parameters in a model's fingerprint, and numbers of each
_INSTEAD = 'fix the frequencies for the whole request: policy="request", or extend(model, scaling, length=tokens)'


@dataclass
class _Call:
    """A forward call of the decoder; `positions_BT` from the moment that its rotary modules are asked."""

    cache: Cache | None
    positions_BT: Tensor | None = None
    request: tuple[int, ...] | None = None


@dataclass(eq=False)
class Follower:
    """Listens at one decoder.

    Attributes:
        body: the decoder.
        tables: all that its rotary modules serve, by name.
        ropes: what the model was trained with, by layer type.
        policy: for which length dynamic scalings are made.
        original: the original length, tokens; None when no table is dynamic.
        channels: what turns in the decoder's caches, once it was asked.
        obscure: why that could not be told, where it could not.
    """

    body: Any
    tables: dict[str, RotaryTable]
    ropes: dict[str, Rope]
    policy: Policy
    original: int | None
    channels: list[RotatedChannels] | None = None
    obscure: str | None = None
    _handles: list[Any] = field(default_factory=list)
    _call: _Call | None = None
    _asking: bool = False
    _checked: int | None = None  # the identity of what the last cache carried, known to be of this model

    def __post_init__(self) -> None:
        self._cache_at = list(inspect.signature(self.body.forward).parameters).index("past_key_values")
        for table in self.tables.values():
            table.before = self._meet

    def __call__(self) -> None:
        """Begin to listen or, when listening, end it."""
        if self._handles:
            for handle in self._handles:
                handle.remove()
            self._handles = []
        else:
            self._handles = [
                self.body.register_forward_pre_hook(self._enter, with_kwargs=True),
                self.body.register_forward_hook(self._leave, with_kwargs=True, always_call=True),
            ]
            if self.is_dynamic:
                self._ask()

    @property
    def is_dynamic(self) -> bool:
        """Whether any frequencies depend on the length of the text."""
        return any(table.follow is not None for table in self.tables.values())

    def begin(self, cache: Any, request: tuple[int, ...]) -> None:
        """A request that may come to so many tokens, for each row, on this cache."""
        held = get_key_state(cache)
        if held is None and not tokens_seen(cache):
            held = self._new(cache)
        if held is not None:
            held.request = request if len(set(request)) > 1 else request[:1]

    def _ask(self) -> None:
        """Learn what turns in the decoder's caches, if that is not known yet."""
        if self.channels is None and self.obscure is None:
            call, self._call, self._asking = self._call, None, True
            try:
                self.channels = find_rotated_channels(self.body, self.tables)
            except Exception as error:  # it is the model's own code that is asked
                self.obscure = f"what they change in the cache of a {type(self.body).__name__} is not known: {error}"
            finally:
                self._call, self._asking = call, False

    def _enter(self, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._asking and (self.is_dynamic or not torch.compiler.is_compiling()):
            self._open(args, kwargs)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # lengths and caches are no part of a graph
    def _open(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.is_dynamic and kwargs.get("cache") is not None:  # transformers' continuous batching
            raise RuntimeError(f"a dynamic scaling cannot follow in a {type(kwargs['cache']).__name__}; {_INSTEAD}")
        given = kwargs.get("past_key_values", args[self._cache_at] if len(args) > self._cache_at else None)
        self._call = _Call(given if isinstance(given, Cache) else None)

    def _meet(self, position_ids: Tensor) -> None:
        """The rotary modules are asked for these positions."""
        call = self._call
        if not self._asking and (self.is_dynamic if call is None else call.positions_BT is None):
            self._choose(position_ids, call)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _choose(self, position_ids: Tensor, call: _Call | None) -> None:
        """Set the frequencies, and turn what is cached to them."""
        held = None
        if call is not None and call.cache is not None and tokens_seen(call.cache):
            held = self._known(call.cache)
        rows = self._rows(position_ids, call)
        if held is not None and rows != held.rows:
            assert call is not None
            self._turn(call.cache, held, rows)
        for name, table in self.tables.items():
            table.set(rows[name])
        if call is not None:
            call.positions_BT = position_ids

    def _leave(self, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        if self._asking:
            return
        call, self._call = self._call, None
        if call is not None and call.positions_BT is not None and outputs is not None:
            self._note(call, call.positions_BT, outputs)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _note(self, call: _Call, positions_BT: Tensor, outputs: Any) -> None:
        """The call is over: note on the cache what its keys carry."""
        cache = call.cache if call.cache is not None else _cache_in(outputs)
        if cache is None:
            return
        held = get_key_state(cache)
        if held is None or not held.count:
            held = self._new(cache)
        held.request = call.request
        new = tokens_seen(cache) - held.count
        if new > 0:
            held.append(positions_BT[..., -new:])  # some architectures ask for all positions so far

    def _known(self, cache: Any) -> KeyState:
        """What the cache carries. Raises RuntimeError when that is unknown, or of another model."""
        held, seen = get_key_state(cache), tokens_seen(cache)
        if held is None:
            raise RuntimeError(
                f"the cache holds {seen:,} tokens that were not read by an extended model, so that nothing tells which "
                "frequencies its keys carry; begin a new cache"
            )
        if id(held) != self._checked:
            if held.model != self._fingerprint():
                raise RuntimeError(
                    f"the cache holds {seen:,} tokens of another model, or of this one with another base or other "
                    "weights; begin a new cache"
                )
            self._checked = id(held)
        return held

    def _new(self, cache: Any) -> KeyState:
        held = KeyState(self._fingerprint(), {name: table.rows for name, table in self.tables.items()})
        attach_key_state(cache, held)
        self._checked = id(held)
        return held

    def _fingerprint(self) -> str:
        """What tells this model from another: its class, its ropes, and numbers out of its weights."""
        digest = hashlib.sha256(f"{type(self.body).__name__} {self.ropes}".encode())
        weights = [weight for weight in self.body.parameters() if weight.device.type != "meta"]
        for weight in weights[:: max(1, len(weights) // _SAMPLED)]:
            try:
                numbers = getattr(weight, "_local_tensor", weight).detach().flatten()[:_SAMPLED].cpu().contiguous()
                digest.update(numbers.view(torch.uint8).numpy().tobytes())
            except Exception:  # a tensor of a kind of its own (quantized); the others tell enough
                continue
        return digest.hexdigest()

    def _rows(self, position_ids: Tensor, call: _Call | None) -> dict[str, Rows]:
        """For each table, the frequencies of each row of the batch; one where they are equal."""
        if not self.is_dynamic:
            return {name: table.rows for name, table in self.tables.items()}
        # On some axes an image starts anew: the farthest tells where in the text a token stands.
        farthest_BT = position_ids if position_ids.ndim == 2 else position_ids.amax(0)
        lengths = tuple(position + 1 for position in farthest_BT.amax(-1).tolist())
        if isinstance(self.policy, RequestPolicy):
            lengths = self._requested(lengths, call)
        chosen = {}
        for name, table in self.tables.items():
            rows = tuple(table.frequencies_at(length) for length in lengths)
            chosen[name] = rows[:1] if len(set(rows)) == 1 else rows
        return chosen

    def _requested(self, reached: tuple[int, ...], call: _Call | None) -> tuple[int, ...]:
        """The tokens that each row may come to: what its request said, or those of the call that begins it."""
        known = get_key_state(call.cache) if call is not None and call.cache is not None else None
        request = reached if known is None or known.request is None else known.request
        if call is not None:
            call.request = request
        # One number where the rows share their positions.
        ends = request if len(request) == len(reached) else (max(request),) * len(reached)
        for row, (length, end) in enumerate(zip(reached, ends, strict=True)):
            if length > max(end, self.original or 0):
                raise RuntimeError(
                    f"row {row} has come to {length:,} tokens, more than the {end:,} that its request was made for; "
                    'say the length beforehand with extend(model, scaling, length=tokens), or use policy="stepped"'
                )
        return ends

    def _turn(self, cache: Any, held: KeyState, rows: dict[str, Rows]) -> None:
        self._ask()
        seen = tokens_seen(cache)
        why = self.obscure or cannot_follow(cache, self.channels or [])
        if why is not None:
            raise RuntimeError(f"the text outgrew the frequencies that its cached keys carry, and {why}; {_INSTEAD}")
        if held.count != seen:
            raise RuntimeError(
                f"the cache holds {seen:,} tokens, and the positions of {held.count:,} are known: an earlier call "
                "failed halfway, or something else wrote into it; begin a new cache"
            )
        held.turn(cache, rows, self.tables, self.channels or [], self.policy.keeps_key_snapshot and self.is_dynamic)


def followers(
    model: nn.Module,
    served: list[tuple[RotaryModule, dict[str, RotaryTable]]],
    ropes: dict[str, Rope],
    policy: Policy,
    original: int | None,
) -> list[Any]:
    """The changes after which the model's frequencies follow its texts.

    Raises InputError when a rotary module belongs to no decoder that can be listened to.
    """
    by_body: dict[int, tuple[Any, dict[str, RotaryTable]]] = {}
    for rotary, tables in served:
        body = _decoder(model, rotary)
        named = by_body.setdefault(id(body), (body, {}))[1]
        named.update({f"{rotary.path}:{kind}": table for kind, table in tables.items()})
    changes: list[Any] = []
    for body, named in by_body.values():
        follower = Follower(body, named, ropes, policy, original)
        changes.append(follower)
        if (
            follower.is_dynamic
            and isinstance(policy, RequestPolicy)
            and hasattr(model, "_prepare_cache_for_generation")
        ):
            changes.append(Swap(model, "_prepare_cache_for_generation", functools.partial(_begin, model, follower)))
    return changes


def _decoder(model: nn.Module, rotary: RotaryModule) -> Any:
    """The nearest module around it that takes tokens and a cache."""
    path = rotary.path
    while path:
        path = path.rpartition(".")[0]
        module: Any = model.get_submodule(path)
        if {"inputs_embeds", "past_key_values"} <= set(inspect.signature(module.forward).parameters):
            return module
    raise InputError("model", type(model).__name__, f"a model with a decoder around its {rotary.path}")


def _begin(model: Any, follower: Follower, generation_config: Any, model_kwargs: dict[str, Any], *args: Any) -> Any:
    """In place of the method with which `generate` prepares its cache: there it knows how long a text may become."""
    done = type(model)._prepare_cache_for_generation(model, generation_config, model_kwargs, *args)
    cache, mask_BT = model_kwargs.get("past_key_values"), model_kwargs.get("attention_mask")
    if cache is not None:
        end = args[-1] + 1  # the last argument leaves out the last token, which is never read
        padding = (mask_BT.shape[1] - mask_BT.sum(-1)).tolist() if mask_BT is not None else [0]
        follower.begin(cache, tuple(end - unread for unread in padding))
    return done


def _cache_in(outputs: Any) -> Cache | None:
    found = getattr(outputs, "past_key_values", None)
    if found is None and isinstance(outputs, tuple):
        found = next((part for part in outputs if isinstance(part, Cache)), None)
    return found if isinstance(found, Cache) else None
