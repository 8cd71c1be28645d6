"""Private parts of gguf, and how transformers uses it; checked with gguf 0.19.0 and transformers 5.23.0."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def cached_gguf_reader() -> Callable[[str], Any]:
    """Return a function that parses a GGUF file as `gguf.GGUFReader` does, and each file once.

    The reader slices its memory map for every string of the vocabulary, and a slice of a plain array costs a third of
    one of a `numpy.memmap`.
    """
    import gguf
    import numpy as np

    class ArrayReader(gguf.GGUFReader):  # type: ignore[misc]
        @property
        def data(self) -> Any:
            return self._array

        @data.setter
        def data(self, memory_map: Any) -> None:
            self._array = memory_map.view(np.ndarray)

    return functools.cache(ArrayReader)


@contextmanager
def use_gguf_reader(read: Callable[[str], Any]) -> Iterator[None]:
    """Within the block, let transformers parse GGUF files with a function of `cached_gguf_reader`.

    For one model, it parses the whole header for the configuration, for the tokenizer and for the weights.
    Source: `load_gguf_checkpoint` in transformers/modeling_gguf_pytorch_utils.py, which imports the class when called.
    """
    import gguf

    original = gguf.GGUFReader
    gguf.GGUFReader = read
    try:
        yield
    finally:
        gguf.GGUFReader = original
