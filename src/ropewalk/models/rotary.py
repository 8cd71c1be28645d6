"""The rotary modules of a transformers model, found and made to give exact tables of any frequencies.

No model source is patched and none is assumed: how a module lays its table out (half, interleaved, compact,
complex, split over the axes of multimodal positions) is learned by asking the module, with frequencies and
positions chosen so that every channel of its answer names the pair and the axis it came from. A module whose
own answers cannot be reproduced from what was learned is refused.

Shapes: B batch, T tokens, P pairs (dim/2), C channels of the module's table, A position axes.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ropewalk.errors import InputError
from ropewalk.frequencies import RADIANS_PER_UNIT, Frequencies, reduced_turns

FrequenciesAt = Callable[[int], Frequencies]
_ONE_TYPE = "all"


@dataclass(frozen=True)
class Arrangement:
    """Where each channel of a module's table comes from.

    Attributes:
        pair_C: the pair of each channel.
        axis_P: the position axis of each pair, None for plain one-dimensional positions.
        complex: whether the table is one complex tensor instead of cos and sin.
        follows_dtype: whether the table takes the dtype of the hidden states; float32 otherwise.
    """

    pair_C: tuple[int, ...]
    axis_P: tuple[int, ...] | None
    complex: bool
    follows_dtype: bool


class RotaryTable(nn.Module):
    """cos and sin of one layer type, exact at every position, in the arrangement of the module it serves."""

    high_P: Tensor
    low_P: Tensor
    pair_C: Tensor

    def __init__(
        self, frequencies: Frequencies, arrangement: Arrangement, device: torch.device, follow: FrequenciesAt | None
    ) -> None:
        """`follow`: for a dynamic scaling, the frequencies at a length of the text."""
        super().__init__()
        self.arrangement = arrangement
        self.follow = follow
        self.frequencies = frequencies
        high, low = frequencies.turns()
        # Integers: a later model.to(bfloat16) leaves them as they are, and moves them with the model.
        self.register_buffer("high_P", torch.from_numpy(high).to(device), persistent=False)
        self.register_buffer("low_P", torch.from_numpy(low).to(device), persistent=False)
        self.register_buffer("pair_C", torch.tensor(arrangement.pair_C, device=device), persistent=False)

    def set(self, frequencies: Frequencies) -> None:
        """Turn by other frequencies from now on."""
        if frequencies != self.frequencies:
            high, low = frequencies.turns()
            self.high_P.copy_(torch.from_numpy(high))
            self.low_P.copy_(torch.from_numpy(low))
            self.frequencies = frequencies

    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The table at `position_ids` ([B, T], or [A, B, T] where there are axes), for hidden states like `x`."""
        if self.follow is not None:
            self._follow(position_ids)
        positions_BTP = self._per_pair(position_ids.to(self.high_P.device, torch.int64))
        real = torch.float32 if self.high_P.device.type == "mps" else torch.float64
        turned_BTP = reduced_turns(positions_BTP, self.high_P, self.low_P)
        angle_BTP = turned_BTP.to(real) * RADIANS_PER_UNIT
        dtype = x.dtype if self.arrangement.follows_dtype else torch.float32
        factor = self.frequencies.attention_factor
        cos_BTC, sin_BTC = ((f(angle_BTP) * factor).to(dtype)[..., self.pair_C] for f in (torch.cos, torch.sin))
        return torch.complex(cos_BTC, sin_BTC) if self.arrangement.complex else (cos_BTC, sin_BTC)

    def _per_pair(self, position_ids: Tensor) -> Tensor:
        axes = self.arrangement.axis_P
        if axes is None:
            return position_ids[..., None]
        if position_ids.ndim == 2:
            return position_ids[..., None]  # a text: every axis at the same position
        return torch.stack([position_ids[axis] for axis in axes], dim=-1)

    def _follow(self, position_ids: Tensor) -> None:
        assert self.follow is not None
        frequencies = self.follow(int(position_ids.max()) + 1)
        if frequencies != self.frequencies and int(position_ids.min()) > 0:
            raise RuntimeError(
                "the text outgrew the frequencies that the cached keys carry: a dynamic scaling with a KV cache would "
                "mix old and new. Pass use_cache=False, or fix it for the whole request with "
                "extend(model, scaling, length=prompt + new tokens)"
            )
        self.set(frequencies)


class _Exact:
    """Mixed into the class of a rotary module: its forward, from the tables."""

    ropewalk: nn.ModuleDict

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
        with torch.no_grad():
            return self.ropewalk[layer_type or _ONE_TYPE](x, position_ids)


@dataclass
class RotaryModule:
    """One rotary module of a model, before anything is done to it."""

    path: str
    module: Any

    @property
    def config(self) -> Any:
        return self.module.config

    @property
    def layer_types(self) -> list[str]:
        """The layer types that have frequencies of their own; `"all"` where they share."""
        if isinstance(getattr(self.module, "inv_freq", None), Tensor):
            return [_ONE_TYPE]
        suffix = "_original_inv_freq"
        return [name.removesuffix(suffix) for name, _ in self.module.named_buffers() if name.endswith(suffix)]

    def buffer(self, layer_type: str) -> str:
        return "inv_freq" if layer_type == _ONE_TYPE else f"{layer_type}_inv_freq"

    def inv_freq(self, layer_type: str) -> Tensor:
        """What the module turns by when nothing is scaled dynamically, float32 [P]."""
        prefix = "" if layer_type == _ONE_TYPE else f"{layer_type}_"
        found: Tensor = getattr(
            self.module, f"{prefix}original_inv_freq", getattr(self.module, self.buffer(layer_type))
        )
        return found.detach()

    def attention_factor(self, layer_type: str) -> float:
        prefix = "" if layer_type == _ONE_TYPE else f"{layer_type}_"
        return float(getattr(self.module, f"{prefix}attention_scaling", 1.0))

    def arrangement(self, layer_type: str) -> Arrangement:
        """Learn it by asking. Raises InputError when the module is of no kind that can be reproduced."""
        try:
            return _Probe(self, layer_type).arrangement()
        except InputError:
            raise
        except Exception as error:
            raise _unsupported(self, f"asking it for its layout failed: {error}") from error

    def install(self, tables: dict[str, RotaryTable]) -> type:
        """Serve these tables from now on. Returns the class to give back to `uninstall`."""
        original = type(self.module)
        self.module.ropewalk = nn.ModuleDict(tables)
        self.module.__class__ = type(original.__name__, (_Exact, original), {"__module__": original.__module__})
        return original

    def uninstall(self, original: type) -> None:
        self.module.__class__ = original
        del self.module.ropewalk


def rotary_modules(model: nn.Module, text_config: Any) -> list[RotaryModule]:
    """The rotary modules of the model's text decoder, in order. Raises InputError when there are none."""
    found = [RotaryModule(path, module) for path, module in _rotary(model) if module.config is text_config]
    if not found:
        others = sorted({type(module).__name__ for _, module in _rotary(model)})
        why = f"its rotary modules ({', '.join(others)}) are not of the text decoder" if others else "it has none"
        raise InputError("model", type(model).__name__, f"a model with rotary modules of transformers' kind; {why}")
    return found


def _rotary(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in model.named_modules():
        names = [name for name, _ in module.named_buffers(recurse=False)]
        if hasattr(module, "config") and any(name.endswith("inv_freq") for name in names):
            yield path, module


def _unsupported(rotary: RotaryModule, why: str) -> InputError:
    found = f"{type(rotary.module).__name__} at {rotary.path}"
    return InputError("model", found, f"a rotary module whose table can be reproduced; {why}")


class _Probe:
    """Questions to a rotary module, through its own undecorated forward."""

    def __init__(self, rotary: RotaryModule, layer_type: str) -> None:
        self.rotary, self.layer_type = rotary, layer_type
        self.pairs = len(rotary.inv_freq(layer_type))
        self.device = rotary.inv_freq(layer_type).device
        # Without the decorator that updates dynamic frequencies, which would overwrite the question.
        self.ask_module = inspect.unwrap(type(rotary.module).forward)
        section = getattr(rotary.module, "mrope_section", None)
        section = section.get(layer_type) if isinstance(section, dict) else section
        self.axes = len(section) if section is not None else 1

    def arrangement(self) -> Arrangement:
        # Distinct angles inside (0, pi): the cosine tells them apart, and an angle of 0 says "another axis".
        angles_P = (torch.arange(self.pairs, dtype=torch.float64) + 1) / (self.pairs + 1) * math.pi
        reached_AC = torch.stack([self._angles(angles_P, axis) for axis in range(self.axes)])
        axis_C = (reached_AC > 1e-4).to(torch.int8).argmax(0)
        angle_C = reached_AC.gather(0, axis_C[None].long())[0]
        pair_C = (angle_C / math.pi * (self.pairs + 1) - 1).round().long()
        if not torch.allclose(angles_P[pair_C.clamp(0, self.pairs - 1)], angle_C, atol=1e-4):
            raise _unsupported(self.rotary, "a channel of its table belongs to no pair")
        axis_P = torch.full((self.pairs,), -1)
        axis_P[pair_C] = axis_C.long()
        if (axis_P < 0).any() or not torch.equal(axis_P[pair_C], axis_C.long()):
            raise _unsupported(self.rotary, "a pair is missing, or turns with two axes")
        found = Arrangement(
            pair_C=tuple(pair_C.tolist()),
            axis_P=tuple(axis_P.tolist()) if self.axes > 1 else None,
            complex=not isinstance(self._ask(angles_P, self._positions(0)), tuple),
            follows_dtype=self._ask_dtype(angles_P) == torch.bfloat16,
        )
        self._check(found)
        return found

    def _check(self, arrangement: Arrangement) -> None:
        """The module's own answers, reproduced: at its own frequencies and attention factor, over near positions."""
        inv_freq_P = self.rotary.inv_freq(self.layer_type).double()
        factor = self.rotary.attention_factor(self.layer_type)
        positions = (
            torch.arange(8).expand(1, 8) if self.axes == 1 else torch.arange(self.axes * 8).view(self.axes, 1, 8)
        )
        own = Frequencies(np.asarray(inv_freq_P.cpu()), factor)
        table = RotaryTable(own, arrangement, self.device, follow=None)
        x = torch.zeros(1, device=self.device)
        ours, theirs = table(x, positions.to(self.device)), self._ask(inv_freq_P, positions)
        pairs = zip(ours, theirs, strict=True) if isinstance(theirs, tuple) else [(ours, theirs)]
        for our, their in pairs:
            if our.shape != their.shape or not torch.allclose(our, their.to(our.dtype), atol=1e-5):
                raise _unsupported(self.rotary, "its table is more than cos and sin of position x frequency")

    def _positions(self, axis: int) -> Tensor:
        if self.axes == 1:
            return torch.ones(1, 1, dtype=torch.int64)
        return (torch.arange(self.axes) == axis).long().view(self.axes, 1, 1)

    def _angles(self, angles_P: Tensor, axis: int) -> Tensor:
        """The angle of each channel when only `axis` stands at position 1, [C]."""
        answer = self._ask(angles_P, self._positions(axis))
        cos, sin = answer if isinstance(answer, tuple) else (answer.real, answer.imag)
        return torch.atan2(sin.double(), cos.double()).flatten().cpu()

    def _ask_dtype(self, angles_P: Tensor) -> torch.dtype:
        answer = self._ask(angles_P, self._positions(0), torch.bfloat16)
        return (answer[0] if isinstance(answer, tuple) else answer).dtype

    def _ask(self, inv_freq_P: Tensor, positions: Tensor, dtype: torch.dtype = torch.float32) -> Any:
        module, name = self.rotary.module, self.rotary.buffer(self.layer_type)
        held = getattr(module, name)
        x = torch.zeros(1, dtype=dtype, device=self.device)
        kwargs = {} if self.layer_type == _ONE_TYPE else {"layer_type": self.layer_type}
        setattr(module, name, inv_freq_P.to(self.device, torch.float32))
        try:
            with torch.no_grad():
                return self.ask_module(module, x, positions.to(self.device), **kwargs)
        finally:
            setattr(module, name, held)
