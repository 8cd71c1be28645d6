"""Patches that let the attention of one model rotate q and k with `ropewalk.ops.rotate`.

The rotary functions that a module calls are found by name in the globals of its methods, and learned
(fused_rotation.py). The module then gets a subclass of its class with copies of these methods, which find a
`FusedRotation` under the name of the function. The modeling file and all other models keep the original function.

transformers' hook for such functions (`use_kernel_forward_from_hub`, `use_kernelized_func` in 5.23) is not used: it
requires the package `kernels`, and replaces a function for all models of the process.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Mapping
from dataclasses import replace
from types import CellType, CodeType, FunctionType
from typing import Any

from ropewalk.errors import InputError
from ropewalk.models.fused_rotation import FusedRotation, is_rotary_function, learn_rotation
from ropewalk.models.patching import AttributePatch, ClassPatch, Patch, has_replaced_forward
from ropewalk.models.rotary_table import RotaryTable


def fuse_patches(decoder: Any, tables: Mapping[str, RotaryTable]) -> list[Patch]:
    """Return the patches that let a decoder rotate with `rotate`, from float32 tables.

    Args:
        decoder: the module around the attention layers.
        tables: all tables of its rotary modules, by name.

    Raises InputError if the decoder calls no rotary function, or one that does something else than `rotate`.
    """
    channel_layouts = frozenset(table.channel_layout for table in tables.values())
    fused_classes: dict[Any, Any] = {}
    patches: list[Patch] = []
    for module in decoder.modules():
        original: Any = type(module)
        if original not in fused_classes:
            rotations = tuple(
                (name, learn_rotation(name, function, channel_layouts))
                for name, function in _rotary_functions(original).items()
            )
            fused_classes[original] = _fused_class(original, rotations) if rotations else None
        if fused_classes[original] is not None:
            if has_replaced_forward(module):
                raise InputError("fuse", original.__name__, "attention whose forward no other library has replaced")
            patches.append(ClassPatch(module, fused_classes[original]))
    if not patches:
        raise InputError(
            "fuse", type(decoder).__name__, "a model whose attention calls a function that rotates q and k"
        )
    # Only `rotate` reads the tables now, and it computes in float32: tables in half precision would lose accuracy.
    for table in tables.values():
        float32_layout = replace(table.channel_layout, follows_dtype=False)
        patches.append(AttributePatch(table, "channel_layout", float32_layout))
    return patches


class _Fused:
    """First base of every fused class; `ropewalk_rotations` holds its rotations by the name of the function."""

    ropewalk_rotations: tuple[tuple[str, FusedRotation], ...]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        cls = type(self)
        memo[id(self)] = copied = cls.__new__(cls)
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied

    def __reduce__(self) -> Any:
        # The class has the name of the original, so pickle would find the original.
        return _new_instance, (type(self).__bases__[1], self.ropewalk_rotations), self.__dict__


def _fused_class(original: Any, rotations: tuple[tuple[str, FusedRotation], ...]) -> Any:
    """Return a subclass whose methods find the rotations under the names of the functions that they replace.

    Each model gets a new class, because the copied methods hold the globals of the modeling file as they are now.
    """
    rotation_by_name = dict(rotations)
    methods = {
        name: _copy_with_globals(method, rotation_by_name)
        for name, method in inspect.getmembers(original, inspect.isfunction)
        if rotation_by_name.keys() & _global_names(inspect.unwrap(method).__code__)
    }
    attributes = {"__module__": original.__module__, "ropewalk_rotations": rotations}
    return type(original.__name__, (_Fused, original), attributes | methods)


_class_of_pickle = functools.cache(_fused_class)  # all modules of a pickled model share a class again


def _new_instance(original: Any, rotations: tuple[tuple[str, FusedRotation], ...]) -> Any:
    cls = _class_of_pickle(original, rotations)
    return cls.__new__(cls)


def _rotary_functions(module_class: Any) -> dict[str, Any]:
    """Return the rotary functions that the methods of a class call, by their global name."""
    functions = {}
    for _, method in inspect.getmembers(module_class, inspect.isfunction):
        inner = inspect.unwrap(method)
        for name in sorted(_global_names(inner.__code__)):
            function = inner.__globals__.get(name)
            if is_rotary_function(function):
                functions[name] = function
    return functions


def _global_names(code: CodeType) -> set[str]:
    """Return the global names that a function uses, including those in functions that it defines."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _global_names(constant)
    return names


def _copy_with_globals(function: Any, new_globals: Mapping[str, Any]) -> Any:
    """Return a copy of a function, with its decorators, whose undecorated code sees other values of some globals."""
    wrapped = getattr(function, "__wrapped__", None)
    if wrapped is None:
        # torch.compile looks globals up in the module called __name__, which has the original ones.
        scope = {name: value for name, value in function.__globals__.items() if name != "__name__"} | dict(new_globals)
        cells, attributes = function.__closure__, vars(function)
    else:
        scope, copied = function.__globals__, _copy_with_globals(wrapped, new_globals)
        cells = tuple(
            CellType(copied) if cell.cell_contents is wrapped else cell for cell in function.__closure__ or ()
        )
        attributes = vars(function) | {"__wrapped__": copied}
        if cells == function.__closure__:
            raise InputError("fuse", function.__qualname__, "a method whose decorators are functions")
    twin = FunctionType(function.__code__, scope, function.__name__, function.__defaults__, cells)
    for name in (*functools.WRAPPER_ASSIGNMENTS, "__kwdefaults__"):
        setattr(twin, name, getattr(function, name))
    vars(twin).update(attributes)
    return twin
