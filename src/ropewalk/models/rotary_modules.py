"""The rotary modules of a transformers model, found, understood, and made to serve exact tables.

No model source is patched and none is assumed: how a module lays its table out (half, interleaved, compact,
complex, split over the axes of multimodal positions) is learned by asking the module, with frequencies and
positions chosen so that every channel of its answer names the pair and the axis it came from. What was learned
counts only when it reproduces the module's own answers; a module for which it does not is refused.

Shapes: as in tables.py.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.errors import InputError
from ropewalk.frequencies import Frequencies
from ropewalk.models.patching import Mixin, mixed
from ropewalk.models.rotary_table import ChannelLayout, RotaryTable

_ONE_TYPE = "all"
_CLOSE = 1e-4  # of frequencies, relative
_NEAR = 8  # positions at which a module's own float32 angles are as good as exact


class _Exact(Mixin):
    """Mixed into the class of a rotary module: its forward, from the tables."""

    ropewalk: nn.ModuleDict

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
        with torch.no_grad():
            return self.ropewalk[layer_type or _ONE_TYPE](x, position_ids)


@dataclass
class Swap:
    """One attribute to exchange for another value; exchanged again, everything is as before. `...` is no value."""

    of: Any
    name: str
    value: Any

    def __call__(self) -> None:
        held = getattr(self.of, self.name, ...)
        if self.value is ...:
            delattr(self.of, self.name)
        else:
            setattr(self.of, self.name, self.value)
        self.value = held


@dataclass
class Become:
    """The class of a module to exchange for another; exchanged again, everything is as before.

    What the module holds of its own forward goes along: accelerate's hooks keep it as `_old_forward`, and put it back
    as `forward` when they are taken off.
    """

    module: Any
    other: Any

    def __call__(self) -> None:
        own = type(self.module)
        for name in _held_forwards(self.module):
            setattr(self.module, name, MethodType(self.other.forward, self.module))
        self.module.__class__, self.other = self.other, own


def become(module: Any, other: Any) -> Become | None:
    """The change of a module's class; None where something else has replaced its forward, which would not follow."""
    return None if "forward" in vars(module) and not _held_forwards(module) else Become(module, other)


def _held_forwards(module: Any) -> list[str]:
    own = type(module).forward
    return [name for name in ("forward", "_old_forward") if getattr(vars(module).get(name), "__func__", None) is own]


@dataclass
class RotaryModule:
    """One rotary module of a model. Questions go to a copy: the module itself is never touched."""

    path: str
    module: Any

    @property
    def config(self) -> Any:
        return self.module.config

    @property
    def device(self) -> torch.device:
        return self.inv_freq(self.layer_types[0]).device

    @property
    def layer_types(self) -> list[str]:
        """The layer types that have frequencies of their own; `"all"` where they share."""
        if isinstance(getattr(self.module, "inv_freq", None), Tensor):
            return [_ONE_TYPE]
        suffix = "_original_inv_freq"
        return [name.removesuffix(suffix) for name, _ in self.module.named_buffers() if name.endswith(suffix)]

    def inv_freq(self, layer_type: str) -> Tensor:
        """What the module turns by at present, [P]."""
        found: Tensor = getattr(self.module, _buffer(layer_type))
        return found.detach()

    def channel_layout(self, layer_type: str, frequencies: Frequencies) -> ChannelLayout:
        """Learn it by asking, for a module that turns by `frequencies`.

        Raises InputError when the module is of no kind that can be reproduced.
        """
        try:
            return _Probe(self, layer_type).channel_layout(self._order(layer_type, frequencies))
        except InputError:
            raise
        except Exception as error:
            raise _unsupported(self, f"asking it for its layout failed: {error}") from error

    def _order(self, layer_type: str, frequencies: Frequencies) -> Tensor:
        """The pair of each frequency that the module carries: Ernie 4.5 VL keeps them in an order of its own."""
        carried, turned = self.inv_freq(layer_type), torch.tensor(frequencies.inv_freq)
        order = torch.arange(len(turned))
        if len(carried) == len(turned) and not _are(carried, turned):
            order[carried.cpu().argsort()] = turned.argsort()
        return order

    def gives(self, layer_type: str, frequencies: Frequencies, channel_layout: ChannelLayout, length: int = 1) -> bool:
        """Whether the module itself turns by these frequencies when it sees a text of that length (or a few more)."""
        positions = torch.arange(_NEAR).expand(1, _NEAR)
        if channel_layout.axes > 1:  # every axis at another place
            positions = positions + torch.arange(channel_layout.axes).view(-1, 1, 1)
        if length > _NEAR:
            positions = torch.cat([positions, torch.full_like(positions[..., :1], length - 1)], dim=-1)
        positions = positions.to(self.device)
        x = torch.zeros(1, device=self.device)
        asked = RotaryModule(self.path, copy.deepcopy(self.module))
        with torch.no_grad():
            theirs = type(asked.module).forward(asked.module, x, positions, **_naming(layer_type))
        carried, turned = asked.inv_freq(layer_type), torch.tensor(frequencies.inv_freq)
        order = asked._order(layer_type, frequencies)
        if len(carried) != len(turned) or not _are(carried, turned[order]):
            return False
        turned[order] = carried.double().cpu()  # the table, by what it carries: rounded after a model.to(bfloat16)
        rounded = Frequencies(turned.numpy(), frequencies.attention_factor)
        ours = RotaryTable(rounded, channel_layout, self.device)(x, positions)
        return all(
            our.shape == their.shape and torch.allclose(our[:, :_NEAR], their[:, :_NEAR].to(our.dtype), atol=1e-5)
            for our, their in zip(_parts(ours), _parts(theirs), strict=True)
        )

    def built_from(self, config: Any) -> RotaryModule:
        """What transformers builds in its place for another config."""
        return RotaryModule(self.path, type(self.module)(config).to(self.device))

    def install(self, tables: dict[str, RotaryTable]) -> list[Callable[[], None]]:
        """The changes after which the module serves these tables."""
        original: Any = type(self.module)
        exact = mixed(_Exact, original)
        change = become(self.module, exact)
        if change is None:
            raise _unsupported(self, "something has replaced its forward")
        return [Swap(self.module, "ropewalk", nn.ModuleDict(tables)), change]


def rotary_modules(model: nn.Module, text_config: Any) -> list[RotaryModule]:
    """The rotary modules of the model's text decoder, in order. Raises InputError when there are none."""
    every = list(_rotary(model))
    found = [RotaryModule(path, module) for path, module in every if _describes(module.config, text_config)]
    if not found:
        others = sorted({type(module).__name__ for _, module in every})
        why = f"its rotary modules ({', '.join(others)}) are not of the text decoder" if others else "it has none"
        raise InputError("model", type(model).__name__, f"a model with rotary modules of transformers' kind; {why}")
    return found


def _rotary(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in model.named_modules():
        names = [name for name, _ in module.named_buffers(recurse=False)]
        if hasattr(module, "config") and any(name.endswith("inv_freq") for name in names):
            yield path, module


def _describes(config: Any, text_config: Any) -> bool:
    """Whether it is the text decoder's config, or a copy with a base of its own (Granite SWA has one for each)."""
    same_kind = type(config) is type(text_config)
    return same_kind and getattr(config, "is_decoder", None) == getattr(text_config, "is_decoder", None)


def _unsupported(rotary: RotaryModule, why: str) -> InputError:
    found = f"{type(rotary.module).__name__} at {rotary.path}"
    return InputError("model", found, f"a rotary module whose table can be reproduced; {why}")


def _buffer(layer_type: str) -> str:
    return "inv_freq" if layer_type == _ONE_TYPE else f"{layer_type}_inv_freq"


def _are(carried: Tensor, turned: Tensor) -> bool:
    """Whether a module that carries these frequencies means those: they are equal up to its rounding."""
    rounding = torch.finfo(carried.dtype)
    closest, smallest = max(_CLOSE, rounding.eps), max(1e-12, rounding.smallest_normal)
    return torch.allclose(carried.double().cpu(), turned, rtol=closest, atol=smallest)


def _naming(layer_type: str) -> dict[str, str]:
    return {} if layer_type == _ONE_TYPE else {"layer_type": layer_type}


def _parts(table: Any) -> tuple[Tensor, Tensor]:
    """cos and sin of a module's answer."""
    return table if isinstance(table, tuple) else (table.real, table.imag)


class _Probe:
    """Questions to a copy of a rotary module, through its own undecorated forward."""

    def __init__(self, rotary: RotaryModule, layer_type: str) -> None:
        self.rotary, self.layer_type, self.device = rotary, layer_type, rotary.device
        self.pairs = len(rotary.inv_freq(layer_type))
        self.module = copy.deepcopy(rotary.module)
        # Without the decorator that updates dynamic frequencies, which would overwrite the question.
        self.ask_module = inspect.unwrap(type(rotary.module).forward)
        self.axes = self._count_axes()

    def channel_layout(self, order: Tensor) -> ChannelLayout:
        # Distinct angles inside (0, pi): the cosine tells them apart, and an angle of 0 says "another axis".
        angles_P = (torch.arange(self.pairs, dtype=torch.float64) + 1) / (self.pairs + 1) * math.pi
        reached_AC = torch.stack([self._angles(angles_P, axis) for axis in range(self.axes)])
        axis_C = (reached_AC > 1e-4).to(torch.int8).argmax(0)
        angle_C = reached_AC.gather(0, axis_C[None].long())[0]
        pair_C = (angle_C / math.pi * (self.pairs + 1) - 1).round().long()
        if not torch.allclose(angles_P[pair_C.clamp(0, self.pairs - 1)], angle_C, atol=1e-4):
            raise _unsupported(self.rotary, "a channel of its table belongs to no pair")
        if len(pair_C.unique()) < self.pairs:
            raise _unsupported(self.rotary, "a pair is missing from it")
        column_of_C = list(zip(order[pair_C].tolist(), axis_C.tolist(), strict=True))
        columns_U = sorted(set(column_of_C))
        return ChannelLayout(
            axes=self.axes,
            columns_U=tuple(columns_U),
            column_C=tuple(columns_U.index(column) for column in column_of_C),
            complex=not isinstance(self._ask(angles_P, self._positions(0)), tuple),
            follows_dtype=_parts(self._ask(angles_P, self._positions(0), torch.bfloat16))[0].dtype == torch.bfloat16,
        )

    def _count_axes(self) -> int:
        """Position axes that the module folds into one table; given more than it folds, it fails or keeps them."""
        for axes in (4, 3, 2):
            try:
                answer = self._ask(torch.ones(self.pairs), torch.ones(axes, 1, 1, dtype=torch.int64))
            except RuntimeError:
                continue
            if _parts(answer)[0].ndim == 3:
                return axes
        return 1

    def _positions(self, axis: int) -> Tensor:
        if self.axes == 1:
            return torch.ones(1, 1, dtype=torch.int64)
        return (torch.arange(self.axes) == axis).long().view(self.axes, 1, 1)

    def _angles(self, angles_P: Tensor, axis: int) -> Tensor:
        """The angle of each channel when only `axis` stands at position 1, [C]."""
        cos, sin = _parts(self._ask(angles_P, self._positions(axis)))
        return torch.atan2(sin.double(), cos.double()).flatten().cpu()

    def _ask(self, inv_freq_P: Tensor, positions: Tensor, dtype: torch.dtype = torch.float32) -> Any:
        asked = inv_freq_P.to(self.device, torch.float32)
        setattr(self.module, _buffer(self.layer_type), asked)
        if hasattr(self.module, "rope_init_fn"):  # PhiMoE takes its frequencies from there at every call
            self.module.rope_init_fn = lambda *_, **__: (asked, 1.0)
        x = torch.zeros(1, dtype=dtype, device=self.device)
        with torch.no_grad():
            return self.ask_module(self.module, x, positions.to(self.device), **_naming(self.layer_type))
