"""Attention that turns q and k by `ropewalk.ops.rotate`.

The attention of transformers turns q and k by a function of its source file (`apply_rotary_pos_emb` and the like). None
is known beforehand: each is asked, about numbers drawn here and tables in the arrangement that the model's rotary
modules serve, and replaced only where `rotate` gives its answers. A module then gets a class of its own, whose methods
are copies that find `rotate` under the function's name. The source file's own names stay as they are, and so does every
other model.

transformers' own hook for such functions (`use_kernel_forward_from_hub`, `use_kernelized_func` in 5.23) is not used: it
is there only with the package `kernels`, and makes one object of each function, which all models of a process share.

Shapes: as in tables.py, and H heads, D channels of a head.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import CellType, CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor

from ropewalk.errors import InputError
from ropewalk.models.rotary_modules import Swap, become
from ropewalk.models.rotary_table import ChannelLayout, RotaryTable
from ropewalk.ops.rotation import LAYOUTS, rotate

_AXIS = "unsqueeze_dim"  # what transformers calls the parameter that says on which axis the heads lie
# Which channels of a table stand for the pairs, as (parts, step): all, the first half, every other.
_PICKS = ((1, 1), (2, 1), (1, 2))
_ROUNDINGS = 4
_PASSED = 8  # channels past those that turn, in a question


@dataclass(frozen=True)
class Rotation:
    """What a function of a model does to q and k, done by `rotate`; called as the function is.

    Attributes:
        parameters: names of the function's parameters, in order.
        turned: those that turn, one or two.
        tables: those that are tables, cos and sin or a complex one.
        heads: the axis of the heads, 1 or 2, where the call does not say it.
        pick: which channels of the table stand for the pairs.
        layout: as `rotate` takes it.
        inverse: whether it turns backwards (nanochat).
        last: whether the last channels of a head turn, instead of the first (DeepSeek V4).
        reordered: whether interleaved pairs are answered in the half layout (DeepSeek V3).
        bare: whether one turned tensor is answered as it is, and not in a tuple.
    """

    parameters: tuple[str, ...]
    turned: tuple[str, ...]
    tables: tuple[str, ...]
    heads: int
    pick: tuple[int, int] = (1, 1)
    layout: str = "half"
    inverse: bool = False
    last: bool = False
    reordered: bool = False
    bare: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(self.parameters, args, strict=False)) | kwargs
        tables = [given[name] for name in self.tables]
        cos, sin = tables if len(tables) == 2 else (tables[0].real, tables[0].imag)
        parts, step = self.pick
        pairs = slice(None, cos.shape[-1] // parts, step)
        cos_BTP, sin_BTP = cos[..., pairs], sin[..., pairs]
        xs = [x for name in self.turned if (x := given.get(name)) is not None]
        after_tokens = given.get(_AXIS, self.heads) % 4 == 2
        if after_tokens:
            xs = [x.transpose(1, 2) for x in xs]
        q, k = rotate(
            xs[0],
            xs[1] if len(xs) > 1 else None,
            tables=(cos_BTP, sin_BTP),
            layout=self.layout,
            start=xs[0].shape[-1] - 2 * cos_BTP.shape[-1] if self.last else 0,
            inverse=self.inverse,
        )
        answer = [x if x is None else self._as_answered(x, after_tokens) for x in (q, k)]
        return answer[0] if len(xs) == 1 and self.bare else tuple(answer)

    def _as_answered(self, x_BHTD: Tensor, after_tokens: bool) -> Tensor:
        if self.reordered:
            x_BHTD = x_BHTD.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
        return x_BHTD.transpose(1, 2) if after_tokens else x_BHTD


def fusions(body: Any, tables: Mapping[str, RotaryTable]) -> list[Callable[[], None]]:
    """The changes after which a decoder turns by `rotate`, and its tables come in float32; `tables`: all it is served.

    Raises InputError when a function of it does what `rotate` does not, and when there is none.
    """
    channel_layouts = {table.channel_layout for table in tables.values()}
    learned = functools.cache(lambda name, function: _learned(name, function, channel_layouts))
    of_class: dict[Any, Any] = {}
    changes: list[Callable[[], None]] = []
    for module in body.modules():
        original: Any = type(module)
        if original not in of_class:
            rotations = tuple((name, learned(name, function)) for name, function in _functions(original).items())
            of_class[original] = _fused(original, rotations) if rotations else None
        if of_class[original] is not None:
            change = become(module, of_class[original])
            if change is None:
                raise InputError("fuse", original.__name__, "attention whose forward nothing else has replaced")
            changes.append(change)
    if not changes:
        raise InputError("fuse", type(body).__name__, "a model whose attention turns q and k by a function with tables")
    # Nothing but `rotate`, which computes in float32, reads the tables now: rounding them would only lose.
    exact = [replace(table.channel_layout, follows_dtype=False) for table in tables.values()]
    return changes + [Swap(table, "arrangement", each) for table, each in zip(tables.values(), exact, strict=True)]


class _Fused:
    """Mixed into the class of a module together with its methods, copied."""

    ropewalk_rotations: tuple[tuple[str, Rotation], ...]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        cls = type(self)
        memo[id(self)] = copied = cls.__new__(cls)
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied

    def __reduce__(self) -> Any:
        return _blank, (type(self).__bases__[1], self.ropewalk_rotations), self.__dict__


def _fused(original: Any, rotations: tuple[tuple[str, Rotation], ...]) -> Any:
    """A class of `original` modules that find these rotations under these names.

    It is of one model, not kept for others: its methods hold what stands in the source file at this moment.
    """
    named = dict(rotations)
    methods = {
        name: _copied(method, named)
        for name, method in inspect.getmembers(original, inspect.isfunction)
        if named.keys() & _names(inspect.unwrap(method).__code__)
    }
    fields = {"__module__": original.__module__, "ropewalk_rotations": rotations}
    return type(original.__name__, (_Fused, original), fields | methods)


def _blank(original: Any, rotations: tuple[tuple[str, Rotation], ...]) -> Any:
    cls = _unpickled(original, rotations)
    return cls.__new__(cls)


_unpickled = functools.cache(_fused)  # one class for all modules of a pickle


def _names(code: CodeType) -> set[str]:
    """Global names of a function, and of those that it defines."""
    inner = (_names(each) for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*inner)


def _copied(function: Any, named: Mapping[str, Rotation]) -> Any:
    """The function, inside its decorators, with other values for these global names."""
    inner = getattr(function, "__wrapped__", None)
    if inner is None:
        # Without the name of the source file's module, where torch.compile would look the names up.
        scope = {name: value for name, value in function.__globals__.items() if name != "__name__"} | dict(named)
        cells, fields = function.__closure__, vars(function)
    else:
        scope, copied = function.__globals__, _copied(inner, named)
        cells = tuple(CellType(copied) if cell.cell_contents is inner else cell for cell in function.__closure__ or ())
        fields = vars(function) | {"__wrapped__": copied}
        if cells == function.__closure__:
            raise InputError("fuse", function.__qualname__, "a method whose decorators are functions")
    copy = FunctionType(function.__code__, scope, function.__name__, function.__defaults__, cells)
    for name in (*functools.WRAPPER_ASSIGNMENTS, "__kwdefaults__"):
        setattr(copy, name, getattr(function, name))
    vars(copy).update(fields)
    return copy


def _functions(original: Any) -> dict[str, Any]:
    """The functions by which the methods of a class turn: those of its source file that take a table."""
    found = {}
    for _, method in inspect.getmembers(original, inspect.isfunction):
        inner = inspect.unwrap(method)
        for name in sorted(_names(inner.__code__)):
            function = inner.__globals__.get(name)
            if callable(function) and not isinstance(function, type) and _tables_of(_parameters(function)):
                found[name] = function
    return found


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    """With the package `kernels`, a function may be a module of torch."""
    try:
        return inspect.signature(getattr(function, "forward", function)).parameters
    except (TypeError, ValueError):  # something of C
        return {}


def _tables_of(parameters: Iterable[str]) -> tuple[str, ...]:
    names = tuple(parameters)
    if {"cos", "sin"} <= set(names):
        return "cos", "sin"
    return tuple(name for name in names if name.startswith("freqs"))[:1]


@dataclass(frozen=True)
class _Question:
    """A call of a function, with float32 tables, and what it answered to the same with tables as the model has them."""

    call: dict[str, Any]
    answer: Any

    def explained_by(self, rotation: Rotation) -> bool:
        try:
            ours = rotation(**self.call)
        except InputError:  # more pairs than there are channels, or heads where the tokens are
            return False
        if not isinstance(ours, tuple) or not isinstance(self.answer, tuple):
            return _close(ours, self.answer)
        return len(ours) == len(self.answer) and all(map(_close, ours, self.answer))


def _learned(name: str, function: Any, channel_layouts: Iterable[ChannelLayout]) -> Rotation:
    """How `rotate` does what the function does. Raises InputError when it does not."""
    parameters = _parameters(function)
    tables = _tables_of(parameters)
    named = [each for each in parameters if each not in (*tables, _AXIS)]
    first = min(list(parameters).index(table) for table in tables)
    required = {each for each, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}
    turned = tuple(each for each in named if each in required or list(parameters).index(each) < first)
    # Whatever else it can be told must not matter: it is told something that nothing can be done with.
    rest = {each: object() for each in named if each not in turned}
    with torch.no_grad():
        questions = list(_asked(function, turned, tables, _AXIS in parameters, rest, channel_layouts))
        bare = any(isinstance(question.answer, Tensor) for question in questions)
        said = parameters[_AXIS].default if _AXIS in parameters else None
        for heads, pick, layout, inverse, last, reordered in itertools.product(
            (1, 2) if said is None else (said,), _PICKS, LAYOUTS, (False, True), (False, True), (False, True)
        ):
            rotation = Rotation(tuple(parameters), turned, tables, heads, pick, layout, inverse, last, reordered, bare)
            if questions and all(question.explained_by(rotation) for question in questions):
                return rotation
    allowed = "a function that turns as `ropewalk.ops.rotate` does; fuse=False leaves it alone"
    raise InputError("fuse", f"{name} of {function.__module__}", allowed)


def _asked(
    function: Any,
    turned: tuple[str, ...],
    tables: tuple[str, ...],
    told_axis: bool,
    rest: Mapping[str, Any],
    channel_layouts: Iterable[ChannelLayout],
) -> Iterator[_Question]:
    """Questions that the function answers: either axis of the heads, two dtypes, more channels than turn, no k."""
    dice = torch.Generator().manual_seed(0)
    batch, tokens, heads_of = 2, 5, (3, 2)
    for channel_layout in channel_layouts:
        pairs = len({pair for pair, _ in channel_layout.columns_U})
        columns = len(channel_layout.columns_U)
        # Any numbers: cos and sin carry an attention factor, too.
        cos_BTC, sin_BTC = torch.randn(2, batch, tokens, columns, generator=dice)[..., list(channel_layout.column_C)]
        for axis, dtype, more, count in itertools.product(
            (1, 2), (torch.float32, torch.bfloat16), (0, _PASSED), range(1, len(turned) + 1)
        ):
            xs = [torch.randn(batch, heads, tokens, 2 * pairs + more, generator=dice) for heads in heads_of[:count]]
            said = {_AXIS: axis} if told_axis else {}
            call = dict.fromkeys(turned) | dict(zip(turned, (x.to(dtype).transpose(1, axis) for x in xs), strict=False))
            exact, own = (
                _table(channel_layout, cos_BTC.to(each), sin_BTC.to(each))
                for each in (torch.float32, dtype if channel_layout.follows_dtype else torch.float32)
            )
            call = {**call, **said}
            own_tables, exact_tables = (dict(zip(tables, each, strict=True)) for each in (own, exact))
            try:
                answer = function(**call, **own_tables)
            except Exception:  # it is the model's own code, which takes some of these calls and others not
                continue
            yield _Question(call | exact_tables, answer)
            if rest:
                yield _Question(call | exact_tables, _told(function, {**call, **own_tables, **rest}))


def _told(function: Any, call: Mapping[str, Any]) -> Any:
    """The answer where all that can be told is told; None, which no rotation gives, where that matters."""
    try:
        return function(**call)
    except Exception:
        return None


def _table(channel_layout: ChannelLayout, cos_BTC: Tensor, sin_BTC: Tensor) -> tuple[Tensor, ...]:
    return (torch.complex(cos_BTC.float(), sin_BTC.float()),) if channel_layout.complex else (cos_BTC, sin_BTC)


def _close(one: Any, other: Any) -> bool:
    """Whether two answers are equal up to the rounding of their dtype."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return one is other
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    off = (one.float() - other.float()).abs().max()
    return bool(off <= _ROUNDINGS * torch.finfo(one.dtype).eps * one.float().abs().max())
