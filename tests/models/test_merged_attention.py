"""Attention over ranges of keys equals attention over all of them, and its log-sum-exp is exact."""

import itertools

import pytest
import torch

from ropewalk.compat import torch as hooks
from ropewalk.models import merged_attention
from ropewalk.models.merged_attention import MergedAttention, attention_with_lse

pytestmark = pytest.mark.usefixtures("one_thread")
GENERATOR = torch.Generator().manual_seed(0)


def random_qkv(tokens=6, keys=10, heads=4, key_heads=2, channels=8, value_channels=8, dtype=torch.float32):
    q = torch.randn(2, heads, tokens, channels, generator=GENERATOR, dtype=torch.float64)
    k = torch.randn(2, key_heads, keys, channels, generator=GENERATOR, dtype=torch.float64)
    v = torch.randn(2, key_heads, keys, value_channels, generator=GENERATOR, dtype=torch.float64)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def dense(q, k, v, visible_TN, softcap=None, sinks_H=None, scale=0.3):
    """Return attention and log-sum-exp in float64."""
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    logits = q @ k.mT * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits.masked_fill(~visible_TN, -torch.inf)
    if sinks_H is not None:
        sinks = sinks_H.double().view(1, -1, 1, 1).expand(*logits.shape[:3], 1)
        logits, v = torch.cat([logits, sinks], -1), torch.cat([v, torch.zeros_like(v[:, :, :1])], 2)
    return (logits.softmax(-1) @ v).nan_to_num(0), logits.logsumexp(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "value_channels", "softcap"), [(6, 8, None), (1, 8, None), (6, 4, None), (6, 8, 2.0)]
)
def test_the_log_sum_exp_is_that_of_the_formula(dtype, tokens, value_channels, softcap):
    q, k, v = random_qkv(tokens, tokens, value_channels=value_channels, dtype=dtype)
    tolerance = 16 * torch.finfo(dtype).eps
    for is_causal, has_bias in ((False, False), (True, False), (False, True)):
        visible = torch.ones(tokens, tokens, dtype=torch.bool)
        if is_causal or has_bias:
            visible = visible.tril()
        bias = torch.zeros(tokens, tokens).masked_fill(~visible, -torch.inf)[None, None] if has_bias else None
        output, lse = attention_with_lse(q, k, v, 0.3, is_causal, bias, softcap)
        expected, expected_lse = dense(q, k, v, visible, softcap)
        torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=max(1e-5, tolerance / 16))


def test_the_formula_for_some_queries_at_a_time(monkeypatch):
    q, k, v = random_qkv(7, 7)
    bias = torch.randn(1, 1, 7, 7, generator=GENERATOR)
    expected = [
        attention_with_lse(q, k, v, 0.3, True, softcap=2.0),
        attention_with_lse(q, k, v, 0.3, bias=bias, softcap=2.0),
    ]
    monkeypatch.setattr(merged_attention, "_FORMULA_QUERIES", 3)
    found = [
        attention_with_lse(q, k, v, 0.3, True, softcap=2.0),
        attention_with_lse(q, k, v, 0.3, bias=bias, softcap=2.0),
    ]
    torch.testing.assert_close(found, expected)


def test_ranges_and_triangles_add_up():
    q, k, v = random_qkv(tokens=5, keys=14)
    visible = torch.ones(5, 14, dtype=torch.bool).tril(9).triu()
    merged = MergedAttention(0.3)
    merged.add(q, k[:, :, :5], v[:, :, :5], "upper")
    merged.add(q, k[:, :, 5:9], v[:, :, 5:9])
    merged.add(q, k[:, :, 9:], v[:, :, 9:], "lower")
    expected, _ = dense(q, k, v, visible)
    torch.testing.assert_close(merged.result(torch.float64), expected, rtol=1e-5, atol=1e-6)


def test_a_query_that_sees_no_key_of_a_range():
    q, k, v = random_qkv(tokens=3, keys=4)
    visible = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 0], [1, 1, 0, 1]], dtype=torch.bool)
    bias = torch.zeros(3, 4).masked_fill(~visible, -torch.inf)[None, None]
    merged = MergedAttention(0.3)
    for part in (slice(0, 2), slice(2, 4)):
        merged.add(q, k[:, :, part], v[:, :, part], bias=bias[..., part])
    expected, _ = dense(q, k, v, visible)
    torch.testing.assert_close(merged.result(torch.float64), expected, rtol=1e-5, atol=1e-6)


def test_sinks_take_their_share():
    q, k, v = random_qkv()
    sinks_H = torch.tensor([-1.0, 0.0, 1.0, 3.0])
    merged = MergedAttention(0.3)
    merged.add(q, k, v)
    merged.add_sinks(sinks_H)
    expected, _ = dense(q, k, v, torch.ones(6, 10, dtype=torch.bool), sinks_H=sinks_H)
    torch.testing.assert_close(merged.result(torch.float64), expected, rtol=1e-5, atol=1e-6)


def test_a_kernel_that_disagrees_with_the_formula_is_not_used(monkeypatch):
    def wrong(q, k, v, *args):
        return torch.zeros_like(q), torch.zeros(q.shape[:3])

    q, k, v = random_qkv()
    expected = attention_with_lse(q, k, v, 0.3)
    for fused in (wrong, lambda *args: None):
        monkeypatch.setattr(merged_attention, "fused_attention_with_lse", fused)
        merged_attention._has_kernel.cache_clear()
        for ours, theirs in zip(attention_with_lse(q, k, v, 0.3), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    merged_attention._has_kernel.cache_clear()


def test_torch_has_the_kernel_on_the_cpu():
    for dtype, has_bias in itertools.product((torch.float32, torch.bfloat16), (False, True)):
        assert merged_attention._has_kernel(torch.device("cpu"), dtype, 16, 16, has_bias)
    q, k, v = random_qkv(value_channels=4)
    assert hooks.fused_attention_with_lse(q, k, v, 0.3, False, None) is None
