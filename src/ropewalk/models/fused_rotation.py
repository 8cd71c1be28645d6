"""A replacement for the function with which a model rotates q and k: the same result, computed by `rotate`.

Each modeling file of transformers has a function that rotates q and k (`apply_rotary_pos_emb` and the like).
`learn_rotation` finds out what such a function does by calling it with random numbers, and returns a `FusedRotation`
only if that reproduces every answer.

Shapes: as in rotary_table.py; H heads, D channels of a head.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ropewalk.errors import InputError
from ropewalk.models.channel_layout import ChannelLayout, split_cos_sin
from ropewalk.ops.rotation import LAYOUTS, rotate

HEADS_AXIS = "unsqueeze_dim"  # transformers' name for the parameter for the axis of the heads
# How a table repeats its P pairs over its channels: not at all, as a whole, or pair by pair.
_TABLE_LAYOUTS = ("compact", "half", "interleaved")
_TOLERANCE = 4  # roundings
_EXTRA_CHANNELS = 8  # channels of a head beyond those that are rotated, in an example


@dataclass(frozen=True)
class FusedRotation:
    """What a model's rotary function does, computed by `rotate`; called with the arguments of that function.

    Attributes:
        parameters: the parameter names of the function, in order.
        inputs: the parameters that are rotated, one or two of them.
        tables: the parameters that hold the table: cos and sin, or one complex tensor.
        heads_axis: the axis of the heads, 1 or 2, unless the call sets it.
        table_layout: "compact", "half" or "interleaved": how the table repeats its pairs over its channels.
        layout: the layout of the pairs in q and k, as in `rotate`.
        inverse: whether it rotates by the opposite angles (nanochat).
        rotates_last: whether the last channels of a head are rotated instead of the first (DeepSeek V4).
        returns_half_layout: whether interleaved pairs are returned in half layout (DeepSeek V3).
        returns_tensor: whether a single rotated tensor is returned as such and not in a tuple.
    """

    parameters: tuple[str, ...]
    inputs: tuple[str, ...]
    tables: tuple[str, ...]
    heads_axis: int
    table_layout: str = "compact"
    layout: str = "half"
    inverse: bool = False
    rotates_last: bool = False
    returns_half_layout: bool = False
    returns_tensor: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Rotate the inputs; return what the function returns."""
        arguments = dict(zip(self.parameters, args, strict=False)) | kwargs
        tables = tuple(arguments[name] for name in self.tables)
        cos, sin = split_cos_sin(tables if len(tables) == 2 else tables[0])
        pairs = cos.shape[-1] if self.table_layout == "compact" else cos.shape[-1] // 2
        step = 2 if self.table_layout == "interleaved" else 1
        cos_BTP, sin_BTP = cos[..., : pairs * step : step], sin[..., : pairs * step : step]
        heads_last = arguments.get(HEADS_AXIS, self.heads_axis) % 4 == 2
        inputs = [arguments[name] for name in self.inputs if arguments.get(name) is not None]
        if heads_last:
            inputs = [x.transpose(1, 2) for x in inputs]
        q, k = rotate(
            inputs[0],
            inputs[1] if len(inputs) > 1 else None,
            tables=(cos_BTP, sin_BTP),
            layout=self.layout,
            start=inputs[0].shape[-1] - 2 * pairs if self.rotates_last else 0,
            inverse=self.inverse,
        )
        outputs = tuple(x if x is None else self._to_output_layout(x, heads_last) for x in (q, k))
        return outputs[0] if len(inputs) == 1 and self.returns_tensor else outputs

    def _to_output_layout(self, x_BHTD: Tensor, heads_last: bool) -> Tensor:
        if self.returns_half_layout:
            x_BHTD = x_BHTD.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
        return x_BHTD.transpose(1, 2) if heads_last else x_BHTD


def is_rotary_function(function: Any) -> bool:
    """Return whether an object is a function that takes cos and sin, or a complex table."""
    return callable(function) and not isinstance(function, type) and bool(_table_names(_parameters(function)))


@functools.lru_cache(maxsize=256)
def learn_rotation(name: str, function: Any, channel_layouts: frozenset[ChannelLayout]) -> FusedRotation:
    """Return a fused rotation that reproduces the answers of a rotary function.

    Args:
        name: the name of the function, for messages.
        function: a function for which `is_rotary_function` holds.
        channel_layouts: the layouts of the tables that the model passes to it.

    Raises InputError if `rotate` cannot reproduce its answers.
    """
    parameters = _parameters(function)
    order, tables = list(parameters), _table_names(parameters)
    first_table = min(order.index(table) for table in tables)
    inputs: list[str] = []
    options: list[str] = []
    for parameter in order:
        if parameter not in (*tables, HEADS_AXIS):
            is_required = parameters[parameter].default is inspect.Parameter.empty
            (inputs if is_required or order.index(parameter) < first_table else options).append(parameter)
    default_axis = parameters[HEADS_AXIS].default if HEADS_AXIS in parameters else None
    with torch.no_grad():
        examples = list(_examples(function, inputs, options, tables, HEADS_AXIS in parameters, channel_layouts))
        returns_tensor = any(isinstance(example.answer, Tensor) for example in examples)
        axes, yes_or_no = (1, 2) if default_axis is None else (default_axis,), (False, True)
        # One value for each field of FusedRotation from heads_axis to returns_half_layout.
        for choice in itertools.product(axes, _TABLE_LAYOUTS, LAYOUTS, yes_or_no, yes_or_no, yes_or_no):
            rotation = FusedRotation(tuple(order), tuple(inputs), tables, *choice, returns_tensor=returns_tensor)
            if examples and all(example.is_reproduced_by(rotation) for example in examples):
                return rotation
    expected, hint = "a function that rotates as `ropewalk.ops.rotate` does", "use fuse=False for this model"
    raise InputError("fuse", f"{name} of {function.__module__}", expected, hint)


@dataclass(frozen=True)
class _Example:
    """A call of a rotary function, and its answer.

    The call has tables in float32. The answer is that for tables in the dtype that the model passes.
    """

    arguments: dict[str, Any]
    answer: Any

    def is_reproduced_by(self, rotation: FusedRotation) -> bool:
        try:
            ours = rotation(**self.arguments)
        except InputError:  # the rotation takes another axis for the heads, or more pairs than there are channels
            return False
        if not isinstance(ours, tuple) or not isinstance(self.answer, tuple):
            return _close(ours, self.answer)
        return len(ours) == len(self.answer) and all(map(_close, ours, self.answer))


def _examples(
    function: Any,
    inputs: list[str],
    options: list[str],
    tables: tuple[str, ...],
    takes_heads_axis: bool,
    channel_layouts: Iterable[ChannelLayout],
) -> Iterator[_Example]:
    """Call the function with heads on either axis, two dtypes, unrotated channels, and without k.

    `options` are its remaining parameters, which must not matter: each call is repeated with unusable values for them.
    """
    generator = torch.Generator().manual_seed(0)
    batch, tokens, heads_of_inputs = 2, 5, (3, 2)
    for channel_layout in channel_layouts:
        # Arbitrary numbers instead of cosines and sines, because tables are multiplied by an attention factor.
        random_BTU = torch.randn(2, batch, tokens, len(channel_layout.columns_U), generator=generator)
        cos_BTC, sin_BTC = random_BTU[..., list(channel_layout.column_C)]
        for axis, dtype, extra_channels, count in itertools.product(
            (1, 2), (torch.float32, torch.bfloat16), (0, _EXTRA_CHANNELS), range(1, len(inputs) + 1)
        ):
            arguments: dict[str, Any] = dict.fromkeys(inputs)
            for name, heads in zip(inputs[:count], heads_of_inputs, strict=False):
                channels = 2 * channel_layout.pairs + extra_channels
                x_BHTD = torch.randn(batch, heads, tokens, channels, generator=generator)
                arguments[name] = x_BHTD.to(dtype).transpose(1, axis)
            if takes_heads_axis:
                arguments[HEADS_AXIS] = axis
            table_dtype = dtype if channel_layout.follows_dtype else torch.float32
            model_tables = _build_table(channel_layout, cos_BTC.to(table_dtype), sin_BTC.to(table_dtype))
            exact_tables = _build_table(channel_layout, cos_BTC, sin_BTC)
            model_arguments = arguments | dict(zip(tables, model_tables, strict=True))
            exact_arguments = arguments | dict(zip(tables, exact_tables, strict=True))
            try:
                answer = function(**model_arguments)
            except Exception:  # a function of a model need not support every such call
                continue
            yield _Example(exact_arguments, answer)
            if options:
                try:
                    answer = function(**model_arguments, **{name: object() for name in options})
                except Exception:
                    answer = None  # an option matters; no rotation returns None
                yield _Example(exact_arguments, answer)


def _build_table(channel_layout: ChannelLayout, cos_BTC: Tensor, sin_BTC: Tensor) -> tuple[Tensor, ...]:
    return (torch.complex(cos_BTC.float(), sin_BTC.float()),) if channel_layout.complex else (cos_BTC, sin_BTC)


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a function, or of the module that the package `kernels` puts in its place."""
    try:
        return inspect.signature(getattr(function, "forward", function)).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return {}


def _table_names(parameters: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the parameters that hold the table; empty if there are none."""
    names = tuple(parameters)
    if {"cos", "sin"} <= set(names):
        return "cos", "sin"
    return tuple(name for name in names if name.startswith("freqs"))[:1]


def _close(ours: Any, theirs: Any) -> bool:
    """Return whether two answers are equal up to the rounding of their dtype."""
    if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
        return ours is theirs
    if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
        return False
    difference = (ours.float() - theirs.float()).abs().max()
    return bool(difference <= _TOLERANCE * torch.finfo(ours.dtype).eps * ours.float().abs().max())
