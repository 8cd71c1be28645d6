"""Private parts of gguf, and how transformers uses it; checked with gguf 0.19.0 and transformers 5.23.0."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

_lock = RLock()


def read_gguf(path: Any) -> Any:
    """Parse a GGUF file as `gguf.GGUFReader` does, three times faster.

    The reader takes several slices of its memory map for every string of the vocabulary. Slices of a plain array cost a
    third of those of a `numpy.memmap`.

    Raises ValueError, KeyError or IndexError for a damaged file, as the original does.
    """
    return _array_reader_class()(path)


@functools.cache
def _array_reader_class() -> Any:
    import numpy as np
    from gguf.gguf_reader import GGUFReader  # not the name in the package, which `fast_gguf_loading` replaces

    class ArrayReader(GGUFReader):  # type: ignore[misc]
        @property
        def data(self) -> Any:
            return self._array

        @data.setter
        def data(self, memory_map: Any) -> None:
            self._array = memory_map.view(np.ndarray)

    return ArrayReader


@contextmanager
def fast_gguf_loading(read: Callable[[str], Any]) -> Iterator[None]:
    """Within the block, let transformers load GGUF files faster.

    For one model, it parses the whole header for the configuration, for the tokenizer and for the weights; within the
    block it calls `read` instead, such as `functools.cache(read_gguf)`. It builds the same table of tensor names once
    for every module; within the block, once. Another thread waits for the end of the block.
    Source: `load_gguf_checkpoint` and `get_gguf_hf_weights_map` in transformers/modeling_gguf_pytorch_utils.py, which
    import both names when called.
    """
    import gguf

    with _lock:
        reader, get_tensor_name_map = gguf.GGUFReader, gguf.get_tensor_name_map
        gguf.GGUFReader, gguf.get_tensor_name_map = read, functools.cache(get_tensor_name_map)
        try:
            yield
        finally:
            gguf.GGUFReader, gguf.get_tensor_name_map = reader, get_tensor_name_map
