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

from ropewalk.ops.backends.base import Backend, Launch, RotationTask, row_strides

# Tuned for an H100. One program rotates a tile of at most 8 heads, and of as many tokens as fill _TILE_BYTES (4 tokens
# of 8 heads x 128 channels in bfloat16). Each thread holds 64 bytes, that is four 16-byte loads in flight. Keeping the
# memory of an H100 busy takes about 10 KiB in flight per multiprocessor (3.35 TB/s, half of it reads, x 0.7 us latency
# / 132 multiprocessors): two tiles. With 64 registers per thread, eight tiles fit on a multiprocessor.
_MAX_TILE_HEADS = 8
_TILE_BYTES = 8192
_WARP_BYTES = 32 * 64
_MAX_WARPS = 16

_IS_INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


class LaunchPlan(NamedTuple):
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
        launch = self.prepare(task)
        if launch is not None:
            launch(*task.addresses())
        else:
            plan = plan_launch(task)
            _kernel()[(plan.programs,)](*task.tensors(), *plan.arguments, **plan.options)

    def prepare(self, task: RotationTask) -> Launch | None:
        plan, device = plan_launch(task), task.inputs[0].device
        if plan.programs == 0:
            return lambda *_: None
        with _current_device(device):
            compiled = _kernel().warmup(*task.tensors(), *plan.arguments, grid=(plan.programs,), **plan.options)
            if compiled is None:  # the interpreter compiles nothing
                return None
            run, arguments = compiled[(plan.programs, 1, 1)], plan.arguments

        def launch(*addresses: int) -> None:
            # Triton would find the compiled kernel by the signature of all arguments, which takes longer than the rest
            # of the call, and would ask CUDA about the address of every tensor.
            with _current_device(device):
                run(*addresses, *arguments)

        return launch


def plan_launch(task: RotationTask) -> LaunchPlan:
    """Choose the tile for a task and form the kernel's arguments."""
    q, q_out, k, k_out, first, second, factors = task.tensors()
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
    return LaunchPlan(batch * token_tiles * head_tiles, arguments, {"num_warps": warps, "enable_fp_fusion": True})


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
