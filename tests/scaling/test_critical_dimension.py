"""The critical dimension of LongRoPE2 (arXiv 2502.20082) as the end of the ramp of the by-parts methods."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import ropewalk as rw
from ropewalk import config as configs

PHI_3_MINI = rw.Rope(96, 10_000, 2048)
LLAMA_3 = rw.Rope(128, 500_000, 8192)
# The theoretical and the real critical dimensions that the paper gives.
PAPER = [(PHI_3_MINI, 31, 25), (LLAMA_3, 35, 30)]

ropes = st.builds(
    rw.Rope,
    dim=st.integers(4, 128).map(lambda half: 2 * half),
    base=st.floats(100, 1e9),
    original_length=st.integers(256, 200_000),
)


def divisors(rope, scaling, length=None):
    return rope.inv_freq / scaling.frequencies(rope, length).inv_freq


@pytest.mark.parametrize(("rope", "theoretical", "real"), PAPER)
def test_default_is_the_theoretical_critical_dimension(rope, theoretical, real):
    wanted = rw.YaRN(factor=16).frequencies(rope)
    assert rw.YaRN(factor=16, critical=theoretical).frequencies(rope) == wanted
    assert rw.YaRN(factor=16, critical=real).frequencies(rope) != wanted


@pytest.mark.parametrize(("rope", "theoretical", "real"), PAPER)
@pytest.mark.parametrize("options", [{}, {"truncate": False}, {"ramp": "rotations"}], ids=str)
@pytest.mark.parametrize("method", [rw.YaRN, rw.NTKByParts])
def test_whole_factor_divides_the_critical_pair_and_slower_ones_only(rope, theoretical, real, options, method):
    found = divisors(rope, method(factor=16, critical=real, **options))
    np.testing.assert_allclose(found[real:], 16, rtol=1e-12)
    assert (found[:real] < 16 * (1 - 1e-3)).all()
    assert (found[:real] >= 1 - 1e-12).all()
    assert (found + 1e-12 >= divisors(rope, method(factor=16, **options))).all()


@settings(max_examples=100, deadline=None)
@given(rope=ropes, fraction=st.floats(0, 1), ramp=st.sampled_from(["index", "rotations"]), truncate=st.booleans())
def test_every_valid_pair_is_the_first_that_the_whole_factor_divides(rope, fraction, ramp, truncate):
    start = rope.dim * math.log(rope.original_length / (64 * math.pi)) / (2 * math.log(rope.base))
    first, last = max(math.floor(start) + 1, 1), rope.dim // 2 - 1
    assume(first <= last)
    critical = first + round(fraction * (last - first))
    scaling = rw.YaRN(factor=8, critical=critical, ramp=ramp, truncate=truncate)
    found = divisors(rope, scaling)
    np.testing.assert_allclose(found[critical:], 8, rtol=1e-9)
    assert (found[:critical] < 8).all()


def test_dynamic_methods_have_it_too():
    for dynamic, static in [(rw.DynamicYaRN, rw.YaRN), (rw.DynamicNTKByParts, rw.NTKByParts)]:
        found = dynamic(critical=30).frequencies(LLAMA_3, 4 * 8192)
        assert found == static(factor=4, critical=30).frequencies(LLAMA_3)


@settings(max_examples=60, deadline=None)
@given(rope=ropes, fraction=st.floats(0, 1), truncate=st.booleans())
def test_transformers_computes_the_same_from_the_beta_slow_that_is_written(rope, fraction, truncate):
    start = rope.dim * math.log(rope.original_length / (64 * math.pi)) / (2 * math.log(rope.base))
    first, last = max(math.floor(start) + 1, 1), rope.dim // 2 - 1
    assume(first <= last)
    scaling = rw.YaRN(factor=8, critical=first + round(fraction * (last - first)), truncate=truncate)
    written = configs.build_rope_parameters(scaling, rope)
    assert written["rope_type"] == "yarn"
    assert "critical" not in written
    config = LlamaConfig(
        hidden_size=rope.dim * 2,
        num_attention_heads=2,
        head_dim=rope.dim,
        max_position_embeddings=8 * rope.original_length,
        rope_parameters=written,
    )
    inv_freq, attention_factor = ROPE_INIT_FUNCTIONS["yarn"](config)
    # transformers forms the ramp in float32: an index is off by up to eps x index, the ramp by that over its width, and
    # a frequency by up to the factor times that.
    off = np.finfo(np.float32).eps * scaling.critical / (scaling.critical - start) * scaling.factor
    np.testing.assert_allclose(inv_freq.double().numpy(), scaling.frequencies(rope).inv_freq, rtol=1e-5 + off)
    assert attention_factor == pytest.approx(scaling.frequencies(rope).attention_factor, rel=1e-6)
