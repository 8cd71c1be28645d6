"""Private hooks into torch, one function per hook.

Checked with torch 2.13.0. torch 2.6, the oldest version that ropewalk supports, has the same names.
tests/compat/test_torch.py fails when a newer torch moves one of them or changes its meaning.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _python_dispatch


def is_dispatch_mode_active() -> bool:
    """Return whether a TorchDispatchMode (fake tensors, proxy tracing, a user's mode) intercepts operators."""
    return _python_dispatch.is_in_torch_dispatch_mode()


def is_function_transform_active() -> bool:
    """Return whether the code runs inside torch.func.grad, vmap, jvp or another function transform."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_jit_tracing() -> bool:
    """Return whether torch.jit.trace records operators."""
    return torch._C._get_tracing_state() is not None


def is_forward_mode_active() -> bool:
    """Return whether the code runs inside torch.autograd.forward_ad.dual_level."""
    return forward_ad._current_level >= 0


def is_profiler_active() -> bool:
    """Return whether torch.profiler records operators."""
    return torch._C._autograd._profiler_enabled()


@contextmanager
def without_modes() -> Iterator[None]:
    """Create plain tensors inside, whatever dispatch mode, function transform or inference mode surrounds the call.

    Tensors that are cached across calls need this: a tensor that was created under a mode belongs to that mode.
    """
    with torch.inference_mode(False), torch._C._DisableFuncTorch(), _python_dispatch._disable_current_modes():
        yield


def below_autograd() -> AbstractContextManager[object]:
    """Skip the autograd kernel of every operator that is called inside, to reach the kernel below it."""
    return torch._C._AutoDispatchBelowAutograd()


def view_base(tensor: Tensor) -> Tensor | None:
    """Return the tensor that `tensor` is a view of, or None."""
    return tensor._base


def cpu_has_bfloat16_instructions() -> bool:
    """Return whether this CPU multiplies bfloat16 in hardware, with AMX or AVX-512 BF16."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def fused_attention_with_lse(
    q: Tensor, k: Tensor, v: Tensor, scale: float, is_causal: bool, bias: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Return the output of a fused attention kernel and the log-sum-exp of its logits; None if no kernel fits.

    The public `scaled_dot_product_attention` calls the same kernels and drops the log-sum-exp.

    Args:
        q: [B, H, T, D].
        k, v: [B, K, N, D], where K divides H.
        scale: multiplies the logits.
        is_causal: whether query i sees keys 0 .. i only; T and N must be equal.
        bias: added to the logits, [B or 1, 1, T, N] in the dtype of q.

    Returns [B, H, T, D] and [B, H, T] float32 or float64. The second one has no gradient.
    """
    if q.shape[-1] != v.shape[-1]:
        return None
    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # type: ignore[no-any-return]
            q, k, v, 0.0, is_causal, attn_mask=bias, scale=scale
        )
    if q.device.type != "cuda" or bias is not None:
        return None
    if q.dtype == torch.float32:  # no flash kernel; this one computes in the precision of float32 and knows no groups
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            q, k, v, None, True, 0.0, is_causal, scale=scale
        )
        return out, lse[..., : q.shape[2]]  # the kernel pads it to a multiple of 32
    if q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] % 8 == 0:
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal, scale=scale)
        return out, lse
    return None
