"""The rotation on a GPU: one launch of a Triton kernel, ops/kernels_triton.py.

With TRITON_INTERPRET=1 set before the start the kernel runs on the CPU, step by step: for tests, if asked for by name.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ropewalk.ops.backends.base import Backend, strides_of

# To tune on a device. A program turns a tile of at most 8 heads, and of as many tokens as make up these bytes (4 of
# 8 heads x 128 channels in bfloat16); a thread holds 64 of them: four accesses of 16 bytes are under way at a time.
# A multiprocessor needs some 10 KiB under way to keep the memory of an H100 busy (half of 3.35 TB/s are reads, for 0.7
# us, by 132 multiprocessors): two such tiles; by their registers, 64 a thread, eight fit.
_TILE_HEADS = 8
_TILE_BYTES = 8192
_WARP_BYTES = 32 * 64
_MOST_WARPS = 16
_LAUNCHES = 4096  # kept, of different shapes

_INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


class Triton(Backend):
    """A kernel for q and k together, which is compiled when it first meets their shapes."""

    name = "triton"
    devices = frozenset({"cuda", "cpu"} if _INTERPRETED else {"cuda"})
    rank = -1 if _INTERPRETED else 10

    def __init__(self) -> None:
        self._launches: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}

    def missing(self) -> str | None:
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        if _INTERPRETED:
            return None
        if not torch.cuda.is_available():
            return "triton has no CUDA device"
        # It builds its launcher on the machine, which images made only for running lack the means for.
        if "CC" not in os.environ and not any(map(shutil.which, ("gcc", "clang"))):
            return "triton finds no C compiler"
        if not Path(sysconfig.get_path("include"), "Python.h").exists():
            return "triton finds no Python.h"
        return None

    @property
    def variant(self) -> str:
        return "triton, interpreted" if _INTERPRETED else self.name

    def turn(
        self,
        xs: Sequence[Tensor],
        outs: Sequence[Tensor],
        angles: Sequence[Tensor],
        start: int,
        interleaved: bool,
        inverse: bool,
    ) -> None:
        tensors = tensors_of(xs, outs, angles)
        # All that the compiled kernel was specialised on, and how it is launched. Triton looks that up, too, but one
        # argument at a time, in Python, which takes longer than all the rest.
        key = (
            *(len(xs), outs[0] is xs[0], start, interleaved, inverse, xs[0].dtype, xs[0].device),
            *[(each.shape, each.stride(), each.data_ptr() % 16) for each in tensors],
        )
        with _current(xs[0].device):
            known = self._launches.get(key)
            if known is not None:
                launch, rest = known
                launch(*tensors, *rest)
                return
            programs, rest, options = plan(xs, outs, angles, start, interleaved, inverse)
            if programs == 0:
                return
            compiled = _kernel()[(programs,)](*tensors, *rest, **options)
            if compiled is None:  # interpreted
                return
            if len(self._launches) == _LAUNCHES:
                self._launches.clear()
            self._launches[key] = compiled[(programs, 1, 1)], rest


def tensors_of(xs: Sequence[Tensor], outs: Sequence[Tensor], angles: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Those that the kernel takes, in its order; others stand in for those that are not there."""
    return xs[0], outs[0], xs[-1], outs[-1], angles[0], angles[1], angles[-1]


def plan(
    xs: Sequence[Tensor],
    outs: Sequence[Tensor],
    angles: Sequence[Tensor],
    start: int,
    interleaved: bool,
    inverse: bool,
) -> tuple[int, tuple[Any, ...], dict[str, Any]]:
    """For what `Backend.turn` takes: how many programs, the kernel's arguments after the tensors, and its options."""
    *of_x, first, second, factors = tensors_of(xs, outs, angles)
    batch, q_heads, tokens, channels = xs[0].shape
    k_heads = xs[1].shape[1] if len(xs) == 2 else 0
    pairs = second.shape[-1]
    (tile_tokens, tile_heads, tile_pairs), warps = tile(max(q_heads, k_heads), tokens, pairs, xs[0].element_size())
    rest = (
        *(each.stride() for each in of_x),
        *(strides_of(first), strides_of(second), strides_of(factors), tokens),
        *(q_heads, k_heads, channels, pairs, start, interleaved, inverse, len(angles) == 3, outs[0] is xs[0]),
        *(tile_tokens, tile_heads, tile_pairs),
    )
    programs = batch * -(-tokens // tile_tokens) * (-(-q_heads // tile_heads) - (-k_heads // tile_heads))
    # A product and a sum in one instruction: Triton's default until 3.9, no longer from 3.10 on.
    return programs, rest, {"num_warps": warps, "enable_fp_fusion": True}


def tile(heads: int, tokens: int, pairs: int, size: int) -> tuple[tuple[int, int, int], int]:
    """Tokens, heads and pairs of a tile, for numbers of `size` bytes, and the warps that turn it.

    Not more than two tiles whatever the number of tokens, since the kernel is compiled for each.
    """
    tile_pairs = _power_of_two(pairs)
    row = 2 * tile_pairs * size
    tile_heads = min(_TILE_HEADS, _power_of_two(heads), max(1, _TILE_BYTES // row))
    tile_tokens = 1 if tokens == 1 else max(1, _TILE_BYTES // (tile_heads * row))
    warps = min(max(1, tile_tokens * tile_heads * row // _WARP_BYTES), _MOST_WARPS)
    return (tile_tokens, tile_heads, tile_pairs), warps


def _power_of_two(number: int) -> int:
    """The next one from `number` on."""
    return 1 << (number - 1).bit_length()


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Make it the current device, on which Triton launches."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


@functools.cache
def _kernel() -> Any:
    from ropewalk.ops.kernels_triton import rotate

    return rotate
