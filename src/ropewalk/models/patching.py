"""Objects of transformers that do something more, in place: their class becomes one with a mixin before it."""

from __future__ import annotations

import functools
from typing import Any


class Mixin:
    """What is mixed in. The class that results has the original's name, by which pickle would find the wrong one."""

    def __reduce__(self) -> Any:
        return _blank, type(self).__bases__, self.__dict__


@functools.cache
def mixed(mixin: Any, original: Any) -> Any:
    """The class of `original` objects with the mixin; always the same one."""
    return type(original.__name__, (mixin, original), {"__module__": original.__module__})


def _blank(mixin: Any, original: Any) -> Any:
    cls = mixed(mixin, original)
    return cls.__new__(cls)
