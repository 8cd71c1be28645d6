"""MrRoPE against the equations of its paper, as products of radix factors, and against the code of its authors."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ropewalk as rw

METHODS = {"uni": rw.MrRoPEUni, "pro": rw.MrRoPEPro}
# The divisors that the code of the authors (mattian7/mrRoPE, LlamaYaRNRadix.py) computes in float32 for Llama 3 8B
# at 16 times its length: `yarn_radix` is Uni, `yarn_radix3` is Pro. All pairs before 19 keep their frequency.
PAIRS = [18, 20, 25, 30, 34, 35, 63]
AUTHORS = {
    "uni": [1, 1.38567425, 3.13194472, 7.07892071, 13.59218969, 16, 16],
    "pro": [1, 1.05586929, 1.66096997, 4.11022034, 11.75787614, 16, 16],
}

ropes = st.builds(
    rw.Rope,
    dim=st.integers(16, 128).map(lambda half: 2 * half),
    base=st.floats(5_000, 1e8),
    original_length=st.integers(1_024, 200_000),
)


def radix_factor(variant, j, low, high, scale):
    """Return lambda_j of the paper's eq. 16."""
    if not low <= j < high:
        return 1.0
    if variant == "uni":
        return scale ** (1 / (high - low))
    return scale ** (2 * (1 + j - low) / ((1 + high - low) * (high - low)))


@pytest.mark.parametrize("variant", METHODS)
def test_divisors_equal_those_of_the_authors(variant):
    rope = rw.Rope(128, 500_000, 8192)
    divisors = rope.inv_freq / METHODS[variant](factor=16).frequencies(rope).inv_freq
    np.testing.assert_allclose(divisors[PAIRS], AUTHORS[variant], rtol=2e-7)


@pytest.mark.parametrize("variant", METHODS)
@settings(max_examples=60, deadline=None)
@given(rope=ropes, scale=st.floats(1, 128))
def test_divisors_are_the_products_of_the_radix_factors_of_all_faster_pairs(variant, rope, scale):
    rotations = rope.rotations(rope.original_length)
    low = int((rotations >= 32).sum()) - 1  # the last pair with 32 rotations, and the first with at most one
    high = int((rotations > 1).sum())
    if low < 0 or high == rope.dim // 2:
        return
    expected = [math.prod(radix_factor(variant, j, low, high, scale) for j in range(i)) for i in range(rope.dim // 2)]
    found = METHODS[variant](factor=scale).frequencies(rope)
    np.testing.assert_allclose(rope.inv_freq / found.inv_freq, expected, rtol=1e-11)
    assert found.attention_factor == pytest.approx(0.1 * math.log(scale) + 1, rel=1e-14)


def test_radix_factors_grow_in_pro_are_equal_in_uni_and_end_where_yarn_ends():
    rope = rw.Rope(128, 500_000, 8192)  # l = 18, h = 35
    divisors = {name: rope.inv_freq / cls(factor=16).frequencies(rope).inv_freq for name, cls in METHODS.items()}
    steps = {name: np.diff(np.log(values))[18:35] for name, values in divisors.items()}
    assert (np.diff(steps["pro"]) > 0).all()
    np.testing.assert_allclose(steps["uni"], math.log(16) / 17, rtol=1e-12)
    assert (divisors["pro"][19:35] < divisors["uni"][19:35]).all()
    yarn = rope.inv_freq / rw.YaRN(factor=16).frequencies(rope).inv_freq
    for values in divisors.values():
        np.testing.assert_allclose(values[35:], yarn[35:], rtol=1e-12)
        np.testing.assert_allclose(values[:19], 1, rtol=1e-12)
