"""Properties that hold for every rope, factor and length (hypothesis)."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ropewalk as rw

STATIC = {
    "linear": lambda s: rw.Linear(factor=s),
    "ntk": lambda s: rw.NTK(factor=s),
    "ntk fixed": lambda s: rw.NTK(factor=s, variant="fixed"),
    "ntk mixed": lambda s: rw.NTK(factor=s, variant="mixed"),
    "ntk-by-parts": lambda s: rw.NTKByParts(factor=s),
    "ntk-by-parts rotations": lambda s: rw.NTKByParts(factor=s, ramp="rotations"),
    "ntk-by-parts untruncated": lambda s: rw.NTKByParts(factor=s, truncate=False),
    "yarn": lambda s: rw.YaRN(factor=s),
    "mrrope-uni": lambda s: rw.MrRoPEUni(factor=s),
    "mrrope-pro": lambda s: rw.MrRoPEPro(factor=s),
    "llama3": lambda s: rw.Llama3(factor=s),
    "proportional": lambda s: rw.Proportional(p=1, factor=s),
    "critical-base": lambda s: rw.CriticalBase(factor=s),
    "dynamic-ntk alpha": lambda s: rw.DynamicNTK(alpha=s),
}
# A new base divides the pairs slower than the critical one by more than s, so frequencies may be below theta / s.
WITHIN_THE_FACTOR = [name for name in STATIC if name != "critical-base"]
DYNAMIC = {
    "dynamic-ntk": rw.DynamicNTK(factor=2),
    "dynamic-ntk, s = 1": rw.DynamicNTK(factor=1),
    "dynamic-ntk-by-parts": rw.DynamicNTKByParts(),
    "dynamic-ntk-by-parts rotations": rw.DynamicNTKByParts(ramp="rotations"),
    "dynamic-yarn": rw.DynamicYaRN(),
    "critical-base": rw.CriticalBase(),
}
WRONG_WAY = {"power-ntk": rw.PowerNTK(), "log-ntk": rw.LogNTK()}
ROUNDING = 1 + 1e-12

ropes = st.builds(
    rw.Rope,
    dim=st.integers(2, 128).map(lambda half: 2 * half),
    base=st.floats(100, 1e9),
    original_length=st.integers(64, 200_000),
)
factors = st.floats(1, 128)
some = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize("name", STATIC)
@some
@given(rope=ropes, one=factors, other=factors)
def test_frequencies_never_increase_with_the_factor(name, rope, one, other):
    slow, fast = (STATIC[name](s).frequencies(rope).inv_freq for s in (max(one, other), min(one, other)))
    assert (slow <= fast * ROUNDING).all()


@pytest.mark.parametrize("name", STATIC)
@some
@given(rope=ropes)
def test_factor_one_equals_no_scaling(name, rope):
    found = STATIC[name](1).frequencies(rope)
    np.testing.assert_allclose(found.inv_freq, rope.inv_freq, rtol=1e-12)
    assert found.attention_factor == 1


@pytest.mark.parametrize("name", WITHIN_THE_FACTOR)
@some
@given(rope=ropes, factor=factors)
def test_frequencies_are_between_interpolated_and_unscaled(name, rope, factor):
    found = STATIC[name](factor).frequencies(rope).inv_freq
    assert (found <= rope.inv_freq * ROUNDING).all()
    assert (found >= rope.inv_freq / factor / ROUNDING).all()


@some
@given(rope=ropes, factor=factors)
def test_ntk_keeps_the_fastest_pair_and_interpolates_the_slowest(rope, factor):
    found = rw.NTK(factor=factor).frequencies(rope).inv_freq
    assert found[0] == 1
    assert found[-1] == pytest.approx(rope.inv_freq[-1] / factor, rel=1e-11)


@some
@given(rope=ropes, factor=factors, ramp=st.sampled_from(["index", "rotations"]))
def test_by_parts_keeps_fast_pairs_and_interpolates_slow_pairs(rope, factor, ramp):
    found = rw.NTKByParts(factor=factor, ramp=ramp, truncate=False).frequencies(rope).inv_freq
    rotations = rope.rotations(rope.original_length)
    is_fast, is_slow = rotations > 32 * ROUNDING, rotations < 1 / ROUNDING
    if ramp == "index":  # the ramp ends at an index of at least 0, so the fastest pair always keeps its frequency
        is_slow[0] = False
    np.testing.assert_allclose(found[is_fast], rope.inv_freq[is_fast], rtol=1e-12)
    np.testing.assert_allclose(found[is_slow], rope.inv_freq[is_slow] / factor, rtol=1e-12)


@some
@given(rope=ropes, factor=factors)
def test_yarn_is_by_parts_with_an_attention_factor(rope, factor):
    yarn, parts = rw.YaRN(factor=factor).frequencies(rope), rw.NTKByParts(factor=factor).frequencies(rope)
    np.testing.assert_array_equal(yarn.inv_freq, parts.inv_freq)
    assert yarn.attention_factor == pytest.approx(1 + 0.1 * math.log(factor), rel=1e-15)


@some
@given(rope=ropes, factor=factors)
def test_critical_pair_completes_one_rotation_over_the_longer_text(rope, factor):
    # The (real-valued) index of the pair that completes one rotation over L: b^(-2i/d) L = 2 pi.
    pair = rope.dim * math.log(rope.original_length / (2 * math.pi)) / (2 * math.log(rope.base))
    scaled = rw.CriticalBase(factor=factor).frequencies(rope).inv_freq
    base = scaled[1] ** (-rope.dim / 2)
    rotations = base ** (-2 * pair / rope.dim) * factor * rope.original_length / (2 * math.pi)
    assert rotations == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("name", DYNAMIC | WRONG_WAY)
@some
@given(rope=ropes, fraction=st.floats(0, 1))
def test_dynamic_scaling_does_not_change_texts_up_to_the_original_length(name, rope, fraction):
    length = max(1, round(fraction * rope.original_length))
    found = (DYNAMIC | WRONG_WAY)[name].frequencies(rope, length)
    np.testing.assert_allclose(found.inv_freq, rope.inv_freq, rtol=1e-12)
    assert found.attention_factor == 1


@pytest.mark.parametrize("name", DYNAMIC | WRONG_WAY)
@some
@given(rope=ropes)
def test_dynamic_scaling_is_continuous_at_the_original_length(name, rope):
    scaling = (DYNAMIC | WRONG_WAY)[name]
    at, past = (scaling.frequencies(rope, rope.original_length + more) for more in (0, 1))
    # With one more token, a by-parts frequency decreases by at most 1/L, an NTK one by 2/L, one of the critical base by
    # ln b ln(1 + 1/L) / ln(L / 2 pi) < 20.8 / 2.3 L, and a tutorial formula increases it by 1/L. All are below 10/L.
    assert past.inv_freq == pytest.approx(at.inv_freq, rel=10 / rope.original_length)
    assert past.attention_factor == pytest.approx(at.attention_factor, rel=10 / rope.original_length)
    assert (past.inv_freq != at.inv_freq).any() or "by-parts" in name or "yarn" in name


@pytest.mark.parametrize("name", DYNAMIC)
@some
@given(rope=ropes, one=factors, other=factors)
def test_frequencies_never_increase_with_the_text_length(name, rope, one, other):
    shorter, longer = sorted(max(1, round(length_ratio * rope.original_length)) for length_ratio in (one, other))
    fast, slow = (DYNAMIC[name].frequencies(rope, length).inv_freq for length in (shorter, longer))
    assert (slow <= fast * ROUNDING).all()


@pytest.mark.parametrize("name", WRONG_WAY)
@some
@given(rope=ropes, length_ratio=st.floats(1.5, 128))
def test_tutorial_formulas_rotate_every_pair_faster(name, rope, length_ratio):
    found = WRONG_WAY[name].frequencies(rope, round(length_ratio * rope.original_length)).inv_freq
    assert (found > rope.inv_freq).all()


@some
@given(rope=ropes, length_ratio=factors)
def test_dynamic_methods_equal_static_ones_with_the_length_ratio_as_factor(rope, length_ratio):
    length = round(length_ratio * rope.original_length)
    factor = length / rope.original_length
    for dynamic, static in (
        (rw.DynamicYaRN(), rw.YaRN(factor=factor)),
        (rw.DynamicNTKByParts(), rw.NTKByParts(factor=factor)),
        (rw.CriticalBase(), rw.CriticalBase(factor=factor)),
        (rw.DynamicNTK(factor=1), rw.NTK(factor=factor)),
    ):
        assert dynamic.is_dynamic
        assert not static.is_dynamic
        found, wanted = dynamic.frequencies(rope, length), static.frequencies(rope)
        np.testing.assert_allclose(found.inv_freq, wanted.inv_freq, rtol=1e-12)
        assert found.attention_factor == wanted.attention_factor


@pytest.mark.parametrize("scaling", [*DYNAMIC.values(), *WRONG_WAY.values()], ids=str)
def test_dynamic_scaling_requires_a_length_and_an_original_length(scaling):
    with pytest.raises(rw.InputError, match=r"^length: got None"):
        scaling.frequencies(rw.Rope(8, 10_000, 1000))
    with pytest.raises(rw.InputError, match=r"^length: got 0"):
        scaling.frequencies(rw.Rope(8, 10_000, 1000), 0)
    with pytest.raises(rw.InputError, match=r"^original_length: got None"):
        scaling.frequencies(rw.Rope(8, 10_000), 2000)


@pytest.mark.parametrize(
    ("scaling", "length", "extension_factor"),
    [
        (rw.NoScaling(), None, 1),
        (rw.YaRN(factor=4), None, 4),
        (rw.Linear(factor=4), 99_999, 4),
        (rw.DynamicYaRN(), None, 1),
        (rw.DynamicYaRN(), 2500, 2.5),
        (rw.DynamicYaRN(), 500, 1),
        (rw.CriticalBase(factor=3), None, 3),
        (rw.CriticalBase(), 3000, 3),
        (rw.ABF(base=1e6), None, 1),
        (rw.DynamicNTK(alpha=1000), None, 1),  # alpha is not a ratio of lengths
        (rw.LongRoPE([1], [2], factor=32), None, 32),
        (rw.LongRoPE([1], [2], attention_factor=1.2), None, 1),
    ],
    ids=str,
)
def test_extension_factor(scaling, length, extension_factor):
    assert scaling.extension_factor(rw.Rope(8, 10_000, 1000), length) == extension_factor


@pytest.mark.parametrize(
    ("scaling", "rope", "field"),
    [
        (rw.YaRN(factor=4), rw.Rope(8), "original_length"),
        (rw.Llama3(), rw.Rope(8), "original_length"),
        (rw.CriticalBase(factor=2), rw.Rope(8), "original_length"),
        (rw.CriticalBase(factor=2), rw.Rope(8, 10_000, 6), "original_length"),  # ln(6 / 2 pi) < 0
        (rw.LongRoPE([1] * 4, [1] * 4, factor=2), rw.Rope(8), "original_length"),
        (rw.LongRoPE([1] * 4, [1] * 4, factor=2), rw.Rope(8, 10_000, 1), "original_length"),  # ln 1 = 0
        (rw.LongRoPE([1] * 3, [1] * 3, factor=2), rw.Rope(8, 10_000, 1000), "longrope: short_factor"),
        # On this rope, 32 rotations fall before pair 0, 1 rotation at pair 2.2.
        (rw.YaRN(factor=2, critical=0), rw.Rope(8, 10_000, 1000), "yarn: critical"),
        (rw.YaRN(factor=2, critical=4), rw.Rope(8, 10_000, 1000), "yarn: critical"),
        # On this one, 32 rotations fall at pair 1.7: pair 1 is faster.
        (rw.NTKByParts(factor=2, critical=1), rw.Rope(8, 10_000, 10_000), "ntk-by-parts: critical"),
        (rw.MrRoPEPro(factor=2), rw.Rope(8), "original_length"),
        (rw.CoPE(), rw.Rope(8), "original_length"),
        (rw.CoPE(onset=5), rw.Rope(8, 10_000, 1000), "cope: onset"),
        (rw.NTK(factor=2), rw.Rope(2), "dim"),  # d / (d - 2)
        (rw.DynamicNTK(), rw.Rope(2, 10_000, 1000), "dim"),
    ],
    ids=str,
)
def test_rope_that_a_method_cannot_scale_raises_input_error(scaling, rope, field):
    with pytest.raises(rw.InputError, match=f"^{field}: got ") as caught:
        scaling.frequencies(rope, 2000)
    assert "\n" not in str(caught.value)
