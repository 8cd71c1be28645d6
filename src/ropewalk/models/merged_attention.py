"""Attention over several ranges of keys, one kernel call for each, merged exactly by their log-sum-exp.

    merged = MergedAttention(scale=0.125)
    merged.add(q, k_near, v_near, "lower")
    merged.add(q_far, k_far, v_far)
    output = merged.result(q.dtype)

Softmax attention over two disjoint sets of keys is the mean of the attention over each, weighted by the sums of the
exponentials of their logits (FlashAttention, arXiv 2205.14135, sec. 3.1).

Shapes: B batch rows, H query heads, K key heads (K divides H), T queries, N keys, D channels of a head.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

from ropewalk.compat.torch import fused_attention_with_lse

_FORMULA_QUERIES = 512  # queries per step of the formula, which holds their logits over all keys in memory


class MergedAttention:
    """The attention of a block of queries, over the ranges of keys that were added so far.

    Args:
        scale: multiplies the logits.
        softcap: c bounds the logits x to c tanh(x / c) (Gemma 2); None for no bound.
    """

    def __init__(self, scale: float, softcap: float | None = None) -> None:
        """Start without keys."""
        self.scale = scale
        self.softcap = softcap
        self._outputs: list[Tensor] = []  # [B, H, T, D of the values] of each range
        self._lses: list[Tensor] = []  # [B, H, T] of each range, and of the sinks

    def add(self, q: Tensor, k: Tensor, v: Tensor, triangle: str | None = None, bias: Tensor | None = None) -> None:
        """Add the attention of all queries to a range of keys.

        Args:
            q, k, v: [B, H, T, D], [B, K, N, D] and [B, K, N, D of the values].
            triangle: "lower" if query i sees the keys 0 .. i only, "upper" if it sees the keys from i on; T and N must
                be equal. None if it sees all.
            bias: added to the logits, [B or 1, H or 1, T, N]; -inf hides a key.
        """
        if triangle == "upper":  # backwards, it is a lower one
            q, k, v = q.flip(2), k.flip(2), v.flip(2)
        output, lse = attention_with_lse(q, k, v, self.scale, triangle is not None, bias, self.softcap)
        if triangle == "upper":
            output, lse = output.flip(2), lse.flip(2)
        self._outputs.append(output)
        self._lses.append(lse)

    def add_sinks(self, sinks_H: Tensor) -> None:
        """Add one key with these logits and a value of zero to every head (the attention sinks of gpt-oss)."""
        self._lses.append(sinks_H.to(self._lses[0].dtype)[:, None].expand_as(self._lses[0]))

    def result(self, dtype: torch.dtype) -> Tensor:
        """Return the attention output, [B, H, T, D of the values]; 0 for queries that see no key."""
        if len(self._lses) == 1:
            return self._outputs[0].to(dtype)
        lse = torch.stack(self._lses)
        # Not -inf: a softmax of nothing else is NaN, and so is its gradient. Ranges without a key have an output of 0.
        weights = lse.clamp(min=torch.finfo(lse.dtype).min).softmax(0)[..., None]
        output = self._outputs[0] * weights[0]
        for other, weight in zip(self._outputs[1:], weights[1:], strict=False):  # sinks have no output
            output = torch.addcmul(output, other, weight)
        return output.to(dtype)


def attention_with_lse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    is_causal: bool = False,
    bias: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return softmax attention, and the log-sum-exp of its logits.

    A fused kernel of torch computes it where there is one that agrees with the formula; otherwise the formula itself
    does, which also has a gradient. `is_causal`: query i sees the keys 0 .. i only. The other arguments are those of
    `MergedAttention`.

    Returns [B, H, T, D of the values] and [B, H, T]; 0 and -inf for a query that sees no key.
    """
    needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if softcap is None and not needs_gradient and (bias is None or bias.shape[1] == 1):
        fused = _fused_attention(q, k, v, scale, is_causal, bias)
        if fused is not None:
            return fused
    return _attention_by_formula(q, k, v, scale, is_causal, bias, softcap)


def _fused_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, is_causal: bool, bias: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    value_channels = v.shape[-1]
    if value_channels < q.shape[-1]:  # latent attention; the kernels need equally many
        v = functional.pad(v, (0, q.shape[-1] - value_channels))
    if not _has_kernel(q.device, q.dtype, q.shape[-1], v.shape[-1], bias is not None):
        return None
    (batch, heads, tokens, _), key_heads = q.shape, k.shape[1]
    is_packed = tokens == 1 and heads > key_heads
    if is_packed:  # the query heads that share a key head become its queries, so that each key is read once
        q = q.reshape(batch, key_heads, heads // key_heads, -1)
    bias_of_kernel = None if bias is None else bias.to(q.dtype)
    fused = fused_attention_with_lse(q, k, v, scale, is_causal and not is_packed, bias_of_kernel)
    if fused is None:
        return None
    output, lse = fused
    if is_packed:
        output, lse = output.reshape(batch, heads, 1, -1), lse.reshape(batch, heads, 1)
    output = output[..., :value_channels]
    if bias is not None:  # kernels differ in what they return for a query that sees no key
        sees_none = (bias == -torch.inf).all(-1)
        output, lse = output.masked_fill(sees_none[..., None], 0), lse.masked_fill(sees_none, -torch.inf)
    return output, lse


@functools.cache
def _has_kernel(device: torch.device, dtype: torch.dtype, channels: int, value_channels: int, has_bias: bool) -> bool:
    """Return whether torch has a fused kernel for this case that agrees with the formula."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, heads, 5, size, generator=generator).to(device, dtype)
        for heads, size in ((4, channels), (2, channels), (2, value_channels))
    )
    bias = torch.eye(5, dtype=dtype, device=device)[None, None] if has_bias else None
    # In float64 on the CPU: a GPU may be set to multiply float32 in TF32.
    exact_q, exact_k, exact_v = (x.cpu().double() for x in (q, k, v))
    exact_bias = None if bias is None else bias.cpu().double()
    tolerance = max(1e-4, 16 * torch.finfo(dtype).eps)
    for is_causal in (False, True):
        if is_causal and has_bias:
            continue
        try:
            with torch.inference_mode():
                fused = fused_attention_with_lse(q, k, v, 0.5, is_causal, bias)
        except (RuntimeError, AttributeError, NotImplementedError):  # this torch, or this device, has no such kernel
            return False
        if fused is None:
            return False
        exact = _attention_by_formula(exact_q, exact_k, exact_v, 0.5, is_causal, exact_bias, None)
        for ours, expected in zip(fused, exact, strict=True):
            if not torch.allclose(ours.cpu().double(), expected, rtol=tolerance, atol=tolerance):
                return False
    return True


def _attention_by_formula(
    q: Tensor, k: Tensor, v: Tensor, scale: float, is_causal: bool, bias: Tensor | None, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Return what `attention_with_lse` returns. The logits of some queries exist at a time."""
    parts = []
    for start in range(0, q.shape[2], _FORMULA_QUERIES):
        stop = min(start + _FORMULA_QUERIES, q.shape[2])
        bias_t = bias if bias is None else bias[:, :, start:stop]
        if is_causal:
            k_n, v_n = k[:, :, :stop], v[:, :, :stop]
            hidden_tn = torch.ones(stop - start, stop, dtype=torch.bool, device=q.device).triu(1 + start)
        else:
            k_n, v_n, hidden_tn = k, v, None
        parts.append(_softmax_attention(q[:, :, start:stop], k_n, v_n, scale, hidden_tn, bias_t, softcap))
    if len(parts) == 1:
        return parts[0]
    outputs, lses = zip(*parts, strict=True)
    return torch.cat(outputs, dim=2), torch.cat(lses, dim=2)


def _softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    hidden_TN: Tensor | None,
    bias: Tensor | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    (batch, heads, tokens, _), (_, key_heads, keys, _) = q.shape, k.shape
    dtype = torch.promote_types(q.dtype, torch.float32)
    q_BKGTD = q.to(dtype).reshape(batch, key_heads, heads // key_heads, tokens, -1)
    logits = (q_BKGTD @ k.to(dtype)[:, :, None].mT * scale).view(batch, heads, tokens, keys)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if bias is not None:
        logits = logits + bias.to(dtype)
    if hidden_TN is not None:
        logits = logits.masked_fill(hidden_TN, -torch.inf)
    lowest = torch.finfo(dtype).min
    logits = logits.clamp(min=lowest)  # the gradient of a log-sum-exp of nothing but -inf is NaN
    lse = logits.logsumexp(-1)
    weights = (logits - lse[..., None]).exp().view(batch, key_heads, heads // key_heads, tokens, keys)
    output = (weights @ v.to(dtype)[:, :, None]).view(batch, heads, tokens, -1)
    sees_none = lse <= lowest / 2
    return output.masked_fill(sees_none[..., None], 0), lse.masked_fill(sees_none, -torch.inf)
