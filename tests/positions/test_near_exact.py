"""`near-exact` on a model, against dense float64 attention over the angle of every pair of a query and a key."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

import ropewalk as rw
from ropewalk.compat.transformers import cache_for_call, find_output_cache

pytestmark = pytest.mark.filterwarnings("ignore:transformers cannot express")

L, W, FACTOR, BASE = 64, 20, 4, 10_000.0
IDS = torch.tensor([[(i * i * 31 + 7 * i) % 97 for i in range(150)]])


@pytest.fixture(autouse=True)
def restore_tiny(tiny):
    yield
    rw.restore(tiny)


def dense_logits(model, far_rotation):
    """Return the logits of a model whose far keys are rotated by `far_rotation(distance)`, complex [T, T, P]."""

    def attend(module, query, key, value, attention_mask, scaling, **kwargs):
        tokens, pairs = query.shape[2], query.shape[3] // 2
        theta = BASE ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        position = torch.arange(tokens, dtype=torch.float64)
        untouched = torch.exp(-1j * position[:, None] * theta)  # undoes the trained rotation
        q = torch.complex(*query.double().split(pairs, dim=-1)) * untouched
        k = torch.complex(*key.double().split(pairs, dim=-1)) * untouched
        k, v = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (k, value.double()))
        distance = position[:, None] - position
        is_far = (distance >= W) & (position[:, None] >= L)
        near = torch.exp(1j * distance[..., None] * theta)
        rotation = torch.where(is_far[..., None], far_rotation(distance[..., None], theta), near)
        logits = torch.einsum("bhtp,bhnp,tnp->bhtn", q, k.conj(), rotation).real * scaling
        logits = logits.masked_fill(distance < 0, -torch.inf)
        return (logits.softmax(-1) @ v).to(query.dtype).transpose(1, 2), None

    AttentionInterface.register("dense_near_exact", attend)
    AttentionMaskInterface.register("dense_near_exact", ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    previous = model.config._attn_implementation
    model.config._attn_implementation = "dense_near_exact"
    try:
        with torch.inference_mode():
            return model(input_ids=IDS, use_cache=False).logits
    finally:
        model.config._attn_implementation = previous


@pytest.mark.parametrize("continuous", [True, False])
@pytest.mark.parametrize("scaling", ["ntk-by-parts", "yarn", "linear"])
def test_every_pair_has_its_angle(tiny, scaling, continuous):
    frequencies = rw.parse(f"{scaling}:factor={FACTOR}").frequencies(rw.Rope(16, BASE, L))
    scaled = torch.tensor(np.array(frequencies.inv_freq))

    def far_rotation(distance, theta):
        angle = W * theta + (distance - W) * scaled if continuous else distance * scaled
        return frequencies.attention_factor**2 * torch.exp(1j * angle)

    expected = dense_logits(tiny, far_rotation)
    rw.extend(tiny, rw.NearExact(scaling, FACTOR, W, continuous))
    with torch.inference_mode():
        at_once = tiny(input_ids=IDS, use_cache=False).logits
        cache, parts = None, []
        for part in IDS.split(37, dim=1):
            outputs = tiny(input_ids=part, **cache_for_call(tiny, cache), use_cache=True)
            cache = find_output_cache(outputs)
            parts.append(outputs.logits)
    torch.testing.assert_close(at_once, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=0, atol=1e-5)


def test_far_keys_by_linear_are_those_of_leaky_rerope(tiny):
    rw.extend(tiny, rw.NearExact("linear", FACTOR, W))
    with torch.inference_mode():
        near_exact = tiny(input_ids=IDS, use_cache=False).logits
    rw.extend(tiny, rw.LeakyReRoPE(FACTOR, W))
    with torch.inference_mode():
        torch.testing.assert_close(tiny(input_ids=IDS, use_cache=False).logits, near_exact, rtol=0, atol=1e-5)
