"""The rotation on GPUs: one launch of the Triton kernel in ops/triton_kernel.py for q and k together.

If TRITON_INTERPRET=1 is set before Python starts, the kernel runs on the CPU in Triton's interpreter, for tests. It
then serves CPU tensors only if selected by name.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sysconfig
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ropewalk.ops.backends.base import Backend, RotationTask, row_strides

# Tuned for an H100. One program rotates a tile of at most 8 heads, and of as many tokens as fill _TILE_BYTES (4 tokens
# of 8 heads x 128 channels in bfloat16). Each thread holds 64 bytes, that is four 16-byte loads in flight. Keeping the
# memory of an H100 busy takes about 10 KiB in flight per multiprocessor (3.35 TB/s, half of it reads, x 0.7 us latency
# / 132 multiprocessors): two tiles. With 64 registers per thread, eight tiles fit on a multiprocessor.
_MAX_TILE_HEADS = 8
_TILE_BYTES = 8192
_WARP_BYTES = 32 * 64
_MAX_WARPS = 16
_MAX_CACHED_LAUNCHES = 4096

_IS_INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


class Launch(NamedTuple):
    """How to launch the kernel for a task.

    Attributes:
        programs: number of programs; 0 if the task has no tokens or rows.
        arguments: the arguments of the kernel after its tensors.
        options: compiler options of Triton.
    """

    programs: int
    arguments: tuple[Any, ...]
    options: dict[str, Any]


class Triton(Backend):
    """Launch a kernel that Triton compiles on the first call with each combination of shapes."""

    name = "triton"
    devices = frozenset({"cuda", "cpu"} if _IS_INTERPRETED else {"cuda"})
    rank = -1 if _IS_INTERPRETED else 10

    def __init__(self) -> None:
        self._cached_launches: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}

    def unavailable_reason(self) -> str | None:
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        if _IS_INTERPRETED:
            return None
        if not torch.cuda.is_available():
            return "triton has no CUDA device"
        # Triton compiles its launcher in C on this machine. Container images without development files cannot do that.
        if "CC" not in os.environ and not any(map(shutil.which, ("gcc", "clang"))):
            return "triton finds no C compiler"
        if not Path(sysconfig.get_path("include"), "Python.h").exists():
            return "triton finds no Python.h"
        return None

    @property
    def variant(self) -> str:
        return "triton, interpreted" if _IS_INTERPRETED else self.name

    def rotate(self, task: RotationTask) -> None:
        tensors = kernel_tensors(task)
        q = task.inputs[0]
        # Everything that the compiled kernel was specialized for. Triton has a cache of its own, but computes its key
        # in Python, one argument at a time, which takes longer than the rest of the call.
        key = (
            *(len(task.inputs), task.outputs[0] is q, task.start, task.interleaved, task.inverse, q.dtype, q.device),
            *[(tensor.shape, tensor.stride(), tensor.data_ptr() % 16) for tensor in tensors],
        )
        with _current_device(q.device):
            cached = self._cached_launches.get(key)
            if cached is not None:
                run, arguments = cached
                run(*tensors, *arguments)
                return
            launch = plan_launch(task)
            if launch.programs == 0:
                return
            compiled = _kernel()[(launch.programs,)](*tensors, *launch.arguments, **launch.options)
            if compiled is None:  # the interpreter compiles nothing
                return
            if len(self._cached_launches) == _MAX_CACHED_LAUNCHES:
                self._cached_launches.clear()
            self._cached_launches[key] = compiled[(launch.programs, 1, 1)], launch.arguments


def kernel_tensors(task: RotationTask) -> tuple[Tensor, ...]:
    """Return the kernel's tensors in its order: q, its output, k, its output, and three of the angles.

    The kernel always takes seven. Without k, q stands in for it; for tables, sin stands in for the attention factors.
    """
    inputs, outputs, angles = task.inputs, task.outputs, task.angles
    return inputs[0], outputs[0], inputs[-1], outputs[-1], angles[0], angles[1], angles[-1]


def plan_launch(task: RotationTask) -> Launch:
    """Choose the tile for a task and form the kernel's arguments."""
    q, q_out, k, k_out, first, second, factors = kernel_tensors(task)
    batch, q_heads, tokens, channels = q.shape
    k_heads = k.shape[1] if len(task.inputs) == 2 else 0
    pairs = second.shape[-1]
    (tile_tokens, tile_heads, tile_pairs), warps = choose_tile(max(q_heads, k_heads), tokens, pairs, q.element_size())
    arguments = (
        *(q.stride(), q_out.stride(), k.stride(), k_out.stride()),
        *(row_strides(first), row_strides(second), row_strides(factors), tokens),
        *(q_heads, k_heads, channels, pairs, task.start, task.interleaved, task.inverse),
        *(len(task.angles) == 3, q_out is q),
        *(tile_tokens, tile_heads, tile_pairs),
    )
    token_tiles = _ceil_divide(tokens, tile_tokens)
    head_tiles = _ceil_divide(q_heads, tile_heads) + _ceil_divide(k_heads, tile_heads)
    # Triton contracts a multiplication and an addition into one instruction by default up to 3.9, but not from 3.10 on.
    return Launch(batch * token_tiles * head_tiles, arguments, {"num_warps": warps, "enable_fp_fusion": True})


def choose_tile(heads: int, tokens: int, pairs: int, element_size: int) -> tuple[tuple[int, int, int], int]:
    """Return (tokens, heads, pairs) of a tile, powers of two, and the number of warps that rotate it.

    The kernel is compiled for each tile, so there are only two numbers of tokens: one for decoding, one for prefill.
    """
    tile_pairs = _next_power_of_two(pairs)
    head_bytes = 2 * tile_pairs * element_size
    tile_heads = min(_MAX_TILE_HEADS, _next_power_of_two(heads), max(1, _TILE_BYTES // head_bytes))
    tile_tokens = 1 if tokens == 1 else max(1, _TILE_BYTES // (tile_heads * head_bytes))
    warps = min(max(1, tile_tokens * tile_heads * head_bytes // _WARP_BYTES), _MAX_WARPS)
    return (tile_tokens, tile_heads, tile_pairs), warps


def _next_power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _ceil_divide(number: int, divisor: int) -> int:
    return -(-number // divisor)


def _current_device(device: torch.device) -> AbstractContextManager[Any]:
    """Make `device` the current CUDA device inside: Triton launches there, wherever the tensors are."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


@functools.cache
def _kernel() -> Any:
    from ropewalk.ops.triton_kernel import rotate  # needs triton, which may not be installed

    return rotate
