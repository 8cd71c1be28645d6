"""Reversible changes to live objects of transformers: attributes, classes, and sets of changes.

    patches = PatchSet([AttributePatch(attention, "scaling", 0.1), ClassPatch(rotary, exact_class)])
    patches.apply()
    patches.revert()

Patches are stored on the model that they change, and are copied and pickled together with it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, Protocol

from ropewalk.compat.accelerate import SAVED_FORWARD

_MISSING = ...  # Ellipsis stays the same object when a patch is copied or pickled


class Patch(Protocol):
    """A change that can be made and undone."""

    def apply(self) -> None:
        """Make the change."""

    def revert(self) -> None:
        """Undo the change."""


@dataclass
class PatchSet:
    """Patches that are applied together or not at all."""

    patches: Sequence[Patch]

    def apply(self) -> None:
        """Apply all patches in order. If one fails, revert those before it and raise its error."""
        applied: list[Patch] = []
        try:
            for patch in self.patches:
                patch.apply()
                applied.append(patch)
        except BaseException:
            for patch in reversed(applied):
                patch.revert()
            raise

    def revert(self) -> None:
        """Revert all patches in reverse order."""
        for patch in reversed(self.patches):
            patch.revert()


@dataclass
class AttributePatch:
    """Set an attribute of an object; reverting restores the previous value or deletes the attribute."""

    target: Any
    name: str
    value: Any
    previous: Any = _MISSING

    def apply(self) -> None:
        """Set the attribute."""
        self.previous = getattr(self.target, self.name, _MISSING)
        if inspect.ismethod(self.previous) and self.name not in vars(self.target):
            self.previous = _MISSING  # found on the class: deleting the attribute of the object uncovers it
        setattr(self.target, self.name, self.value)

    def revert(self) -> None:
        """Restore the previous state of the attribute."""
        if self.previous is _MISSING:
            delattr(self.target, self.name)
        else:
            setattr(self.target, self.name, self.previous)


@dataclass
class ClassPatch:
    """Change the class of a module.

    Attributes:
        module: the module.
        new_class: a subclass of its class. None while the patch is applied: pickle looks classes up by name and would
            find the original class, whose name the subclass has.
        original_class: its class before; set while the patch is applied.
    """

    module: Any
    new_class: Any
    original_class: Any = None

    def apply(self) -> None:
        """Give the module the new class."""
        self.original_class = type(self.module)
        _set_class(self.module, self.new_class)
        self.new_class = None

    def revert(self) -> None:
        """Give the module its original class."""
        self.new_class = type(self.module)
        _set_class(self.module, self.original_class)


def has_replaced_forward(module: Any) -> bool:
    """Return whether another library has overridden `forward` on the module itself, hiding that of its class."""
    return "forward" in vars(module) and not _bound_forwards(module)


def _set_class(module: Any, new_class: Any) -> None:
    for name in _bound_forwards(module):
        setattr(module, name, MethodType(new_class.forward, module))
    module.__class__ = new_class


def _bound_forwards(module: Any) -> list[str]:
    """Return the attributes of the module in which accelerate keeps the bound forward of its class."""
    attributes = vars(module)
    forward = type(module).forward
    return [name for name in ("forward", SAVED_FORWARD) if getattr(attributes.get(name), "__func__", None) is forward]


class Mixin:
    """Base of mixins that are added to the classes of live objects by `with_mixin`.

    The resulting class has the name of the original, so it cannot be pickled by name; its objects are pickled by the
    mixin, the original class and their attributes.
    """

    def __reduce__(self) -> Any:
        return _new_instance, type(self).__bases__, self.__dict__


@functools.cache
def with_mixin(mixin: Any, original: Any) -> Any:
    """Return a subclass of `original` with the mixin first in its method resolution order; always the same one."""
    return type(original.__name__, (mixin, original), {"__module__": original.__module__})


def _new_instance(mixin: Any, original: Any) -> Any:
    cls = with_mixin(mixin, original)
    return cls.__new__(cls)
