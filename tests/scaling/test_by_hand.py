"""Each method against numbers computed by hand from the formula of its paper, for a small rope.

With d = 8 and b = 10000, theta = 1, 0.1, 0.01, 0.001.
"""

import math

import numpy as np
import pytest

import ropewalk as rw

ROPE = rw.Rope(8, 10_000, 1000)
ROPE_10K = rw.Rope(8, 10_000, 10_000)
TWENTIETHS = [1, 0.05, 0.0025, 0.000125]  # 20^-i

# The ramp by rotations: r_i = L theta_i / 2 pi = 10000 theta_i / 2 pi = 1591.55, 159.155, 15.9155, 1.59155, so
# g = (r - 1) / 31, clamped, is 1, 1, 0.4811449 and 0.0190822. At s = 4 a frequency is multiplied by 0.25 + 0.75 g.
G2, G3 = (15.915494309189535 - 1) / 31, (1.5915494309189535 - 1) / 31
BY_ROTATIONS = [1, 0.1, 0.01 * (0.25 + 0.75 * G2), 0.001 * (0.25 + 0.75 * G3)]
# The ramp by index: a pair completes beta rotations over L at index i = 4 ln(10000 / (2 pi beta)) / ln 10000
# = log10(10000 / (2 pi beta)). This is 1.69667 for beta 32, floored to 1, and 3.20182 for beta 1, ceiled to 4. From 1
# to 4 the ramp g is 1, 1, 2/3, 1/3, which multiplies frequencies by 0.25 + 0.75 x 2/3 = 0.75 and 0.25 + 0.75 / 3 = 0.5.
BY_INDEX = [1, 0.1, 0.0075, 0.0005]
# Untruncated: g = (3.20182 - i) / (3.20182 - 1.69667) is 0.79847 for pair 2 and 0.13409 for pair 3.
LOW, HIGH = math.log10(10_000 / (64 * math.pi)), math.log10(10_000 / (2 * math.pi))
UNTRUNCATED = [
    1,
    0.1,
    0.01 * (0.25 + 0.75 * (HIGH - 2) / (HIGH - LOW)),
    0.001 * (0.25 + 0.75 * (HIGH - 3) / (HIGH - LOW)),
]
# Betas 8 and 2: log10(10000 / 16 pi) = 2.29873, floored to 2; log10(10000 / 4 pi) = 2.90079, ceiled to 3. The ramp is a
# step after pair 2.
OTHER_BETAS = [1, 0.1, 0.01, 0.00025]
# critical=3: by index, g from 1 to 3 is 1, 1, 1/2, 0. By rotations, g_2 = (r_2 - r_3) / (32 - r_3).
CRITICAL_3 = [1, 0.1, 0.00625, 0.00025]
G2_CRITICAL_3 = (15.915494309189535 - 1.5915494309189535) / (32 - 1.5915494309189535)
CRITICAL_3_BY_ROTATIONS = [1, 0.1, 0.01 * (0.25 + 0.75 * G2_CRITICAL_3), 0.00025]

BY_HAND = {
    "none": (rw.NoScaling(), ROPE, None, [1, 0.1, 0.01, 0.001]),
    "linear": (rw.Linear(factor=4), ROPE, None, [0.25, 0.025, 0.0025, 0.00025]),
    # s = 8: b' = 10000 x 8^(8/6) = 10000 x 16 = 20^4, so b'^(-2i/8) = 20^-i
    "ntk": (rw.NTK(factor=8), ROPE, None, TWENTIETHS),
    # s = 16: pair i (from 1) is divided by 16^(i/4) = 2, 4, 8, 16
    "ntk fixed": (rw.NTK(factor=16, variant="fixed"), ROPE, None, [0.5, 0.025, 0.00125, 0.0000625]),
    # s = 2^16, c = 2: divided by s^((i/4)^2) = 2^1, 2^4, 2^9, 2^16
    "ntk mixed": (
        rw.NTK(factor=2**16, variant="mixed", mixed_b=2),
        ROPE,
        None,
        [1 / 2, 0.1 / 16, 0.01 / 512, 0.001 / 65536],
    ),
    # c = 0.625, the value on kexue.fm: (1/4)^0.625 = 2^-1.25, (2/4)^0.625 = 2^-0.625, (3/4)^0.625, 1
    "ntk mixed 0.625": (
        rw.NTK(factor=16, variant="mixed"),
        ROPE,
        None,
        [16 ** -(2**-1.25), 0.1 * 16 ** -(2**-0.625), 0.01 * 16 ** -(0.75**0.625), 0.001 / 16],
    ),
    "dynamic-ntk within L": (rw.DynamicNTK(factor=2), ROPE, 700, [1, 0.1, 0.01, 0.001]),
    # s l/L - (s - 1) = 2 x 4.5 - 1 = 8, as for ntk above
    "dynamic-ntk past L": (rw.DynamicNTK(factor=2), ROPE, 4500, TWENTIETHS),
    "dynamic-ntk, s = 1": (rw.DynamicNTK(factor=1), ROPE, 8000, TWENTIETHS),
    "dynamic-ntk alpha": (rw.DynamicNTK(alpha=8), ROPE, None, TWENTIETHS),
    "ntk-by-parts": (rw.NTKByParts(factor=4), ROPE_10K, None, BY_INDEX),
    "ntk-by-parts rotations": (rw.NTKByParts(factor=4, ramp="rotations"), ROPE_10K, None, BY_ROTATIONS),
    "ntk-by-parts untruncated": (rw.NTKByParts(factor=4, truncate=False), ROPE_10K, None, UNTRUNCATED),
    "ntk-by-parts betas": (rw.NTKByParts(factor=4, beta_fast=8, beta_slow=2), ROPE_10K, None, OTHER_BETAS),
    "ntk-by-parts critical": (rw.NTKByParts(factor=4, critical=3), ROPE_10K, None, CRITICAL_3),
    "ntk-by-parts critical, rotations": (
        rw.NTKByParts(factor=4, critical=3, ramp="rotations"),
        ROPE_10K,
        None,
        CRITICAL_3_BY_ROTATIONS,
    ),
    # untruncated from 1.69667 to 3: g_2 = 1 / (3 - 1.69667)
    "yarn critical, untruncated": (
        rw.YaRN(factor=4, critical=3, truncate=False),
        ROPE_10K,
        None,
        [1, 0.1, 0.01 * (0.25 + 0.75 / (3 - LOW)), 0.00025],
    ),
    "dynamic-yarn critical": (rw.DynamicYaRN(critical=3), ROPE_10K, 40_000, CRITICAL_3),
    "dynamic-ntk-by-parts": (rw.DynamicNTKByParts(), ROPE_10K, 40_000, BY_INDEX),
    "dynamic-ntk-by-parts rotations": (rw.DynamicNTKByParts(ramp="rotations"), ROPE_10K, 40_000, BY_ROTATIONS),
    "yarn": (rw.YaRN(factor=4), ROPE_10K, None, BY_INDEX),
    "yarn rotations": (rw.YaRN(factor=4, ramp="rotations"), ROPE_10K, None, BY_ROTATIONS),
    "dynamic-yarn": (rw.DynamicYaRN(), ROPE_10K, 40_000, BY_INDEX),
    "dynamic-yarn within L": (rw.DynamicYaRN(), ROPE_10K, 9_999, [1, 0.1, 0.01, 0.001]),
    # r_3 = 8192 x 0.001 / 2 pi = 1.303797 rotations, between 1 and 4, so g = (1.303797 - 1) / 3
    "llama3": (
        rw.Llama3(factor=8, low_freq_factor=1, high_freq_factor=4),
        rw.Rope(8, 10_000, 8192),
        None,
        [1, 0.1, 0.01, 0.001 * (1 + 7 * (1.3037972938088067 - 1) / 3) / 8],
    ),
    # equal factors: a step between the pairs with 13 and with 1.3 rotations over 8192 tokens
    "llama3 step": (
        rw.Llama3(factor=8, low_freq_factor=10, high_freq_factor=10),
        rw.Rope(8, 10_000, 8192),
        None,
        [1, 0.1, 0.01, 0.001 / 8],
    ),
    "longrope short": (rw.LongRoPE([1, 1, 1, 2], [1, 2, 4, 8], 8), ROPE, 1000, [1, 0.1, 0.01, 0.0005]),
    "longrope long": (rw.LongRoPE([1, 1, 1, 2], [1, 2, 4, 8], 8), ROPE, 1001, [1, 0.05, 0.0025, 0.000125]),
    "abf": (rw.ABF(base=1e8), ROPE, None, [1, 1e-2, 1e-4, 1e-6]),
    # s = L / 2 pi: ln(s L / 2 pi) / ln(L / 2 pi) = 2, so b' = b^2 = 1e8
    "critical-base": (rw.CriticalBase(factor=1000 / (2 * math.pi)), ROPE, None, [1, 1e-2, 1e-4, 1e-6]),
    # l = 7 L: b' = b^q with q = ln(7 L / 2 pi) / ln(L / 2 pi) = 3.8922227 / 1.9463126, so b'^(-2i/8) = 10^(-i q)
    "critical-base dynamic": (
        rw.CriticalBase(),
        rw.Rope(8, 10_000, 44),
        308,
        [10 ** (-i * 3.892222716564229 / 1.9463125675089157) for i in range(4)],
    ),
    # Between the pairs 1 and 4, as for BY_INDEX: l = 1, h = 4. Uniform: each step divides by 8^(1/3) = 2.
    "mrrope-uni": (rw.MrRoPEUni(factor=8), ROPE_10K, None, [1, 0.1, 0.01 / 2, 0.001 / 4]),
    # Progressive: 64^(2/12) = 2 and 64^(4/12) = 4, so the divisors are 2 and 2 x 4; pair 4 would add 64^(6/12) = 8.
    "mrrope-pro": (rw.MrRoPEPro(factor=64), ROPE_10K, None, [1, 0.1, 0.01 / 2, 0.001 / 8]),
    # Betas 8 and 2: l = 2, h = 3, a single step
    "mrrope-pro betas": (rw.MrRoPEPro(factor=64, beta_fast=8, beta_slow=2), ROPE_10K, None, [1, 0.1, 0.01, 0.001 / 64]),
    # the window (1 + cos x) / 2 at x = 0, pi/2, pi is 1, 1/2, 0
    "cope": (rw.CoPE(onset=1), ROPE, None, [1, 0.1, 0.005, 0]),
    # L = 500: the periods are 6.3, 63, 628 and 6283, so pair 2 is the first without a complete period
    "cope, default onset": (rw.CoPE(), rw.Rope(8, 10_000, 500), None, [1, 0.1, 0.01, 0]),
    "cope after yarn": (rw.CoPE(onset=1, factor=4), ROPE_10K, None, [1, 0.1, 0.0075 / 2, 0]),
    # one pair: the window is 1
    "cope, one pair": (rw.CoPE(onset=3), ROPE, None, [1, 0.1, 0.01, 0.001]),
    # int(0.6 x 8 // 2) = 2 of the 4 pairs rotate
    "proportional": (rw.Proportional(p=0.6, factor=2), ROPE, None, [0.5, 0.05, 0, 0]),
    "learned": (rw.Learned((1, 2, 4, 8)), ROPE, None, [1, 0.05, 0.0025, 0.000125]),
    # (4 L / L)^0.5 = 2: twice as fast
    "power-ntk": (rw.PowerNTK(gamma=0.5), ROPE, 4000, [2, 0.2, 0.02, 0.002]),
    # 2 (ln 4 + 1) = 4.772588722239781 times as fast
    "log-ntk": (rw.LogNTK(factor=2), ROPE, 4000, [4.772588722239781 * 10**-i for i in range(4)]),
    # 2 (ln 0.8 + 1) = 1.5537128973715806: as published, s > 1 also raises frequencies for texts shorter than L
    "log-ntk within L": (rw.LogNTK(factor=2), ROPE, 800, [1.5537128973715806 * 10**-i for i in range(4)]),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_frequencies_match_hand_computed_values(name):
    scaling, rope, length, wanted = BY_HAND[name]
    np.testing.assert_allclose(scaling.frequencies(rope, length).inv_freq, wanted, rtol=1e-13)


@pytest.mark.parametrize("name", rw.scaling.REGISTRY)
def test_every_method_has_a_hand_computed_case(name):
    assert name in {scaling.name for scaling, *_ in BY_HAND.values()}


LN40 = 3.6888794541139363
FACTORS = {
    # attention factor, softmax factor
    "0.1 ln 4 + 1": (rw.YaRN(factor=4), None, 1.1386294361119891, 1),
    "given": (rw.YaRN(factor=4, attention_factor=0.75), None, 0.75, 1),
    "no scaling": (rw.YaRN(factor=1), None, 1, 1),
    "l = 4 L": (rw.DynamicYaRN(), 40_000, 1.1386294361119891, 1),
    "l < L": (rw.DynamicYaRN(), 5_000, 1, 1),
    # DeepSeek-V2: m(40, 0.707) over itself; softmax m^2 = (0.0707 ln 40 + 1)^2
    "DeepSeek-V2": (
        rw.YaRN(factor=40, mscale=0.707, mscale_all_dim=0.707),
        None,
        1,
        (0.0707 * LN40 + 1) ** 2,  # 1.5896
    ),
    # (0.1 ln 40 + 1) / (0.05 ln 40 + 1) = 1.36889 / 1.18444
    "two mscales": (
        rw.YaRN(factor=40, mscale=1, mscale_all_dim=0.5),
        None,
        1.3688879454113936 / 1.1844439727056968,
        1.1844439727056968**2,
    ),
    # with only one of the two, the attention factor keeps its default, as in transformers
    "mscale alone": (rw.YaRN(factor=40, mscale=0.5), None, 1.3688879454113936, 1),
    "mscale_all_dim alone": (rw.YaRN(factor=40, mscale_all_dim=1), None, 1.3688879454113936, 1.3688879454113936**2),
    # L = 10000 = 10^4, s = 10^3: sqrt(1 + 3/4)
    "longrope": (rw.LongRoPE([1] * 4, [2] * 4, factor=1000), 20_000, math.sqrt(1.75), 1),
    "longrope, short": (rw.LongRoPE([1] * 4, [2] * 4, factor=1000), 100, math.sqrt(1.75), 1),
    "longrope, given": (rw.LongRoPE([1] * 4, [2] * 4, attention_factor=1.19), 100, 1.19, 1),
    "ntk-by-parts": (rw.NTKByParts(factor=4), None, 1, 1),
    "mrrope-pro": (rw.MrRoPEPro(factor=4), None, 1.1386294361119891, 1),
    "mrrope-uni, given": (rw.MrRoPEUni(factor=4, attention_factor=0.75), None, 0.75, 1),
    "cope": (rw.CoPE(), None, 1, 1),
    "cope after yarn": (rw.CoPE(factor=4), None, 1.1386294361119891, 1),
}


@pytest.mark.parametrize("name", FACTORS)
def test_attention_and_softmax_factor_match_hand_computed_values(name):
    scaling, length, attention_factor, softmax_factor = FACTORS[name]
    found = scaling.frequencies(ROPE_10K, length)
    assert found.attention_factor == pytest.approx(attention_factor, rel=1e-14)
    assert found.softmax_factor == pytest.approx(softmax_factor, rel=1e-14)


def test_original_length_of_the_scaling_overrides_that_of_the_rope():
    scaled = rw.YaRN(factor=4, original_length=10_000).frequencies(rw.Rope(8, 10_000, 77))
    np.testing.assert_allclose(scaled.inv_freq, BY_INDEX, rtol=1e-13)
    assert rw.DynamicNTK(original_length=500).frequencies(ROPE, 900) != rw.NoScaling().frequencies(ROPE)


def test_ramp_between_equal_indices_is_a_step():
    # L = 20: log10(20 / 64 pi) = -1.0 and log10(20 / 16 pi) = -0.4 are floored and ceiled to -2 and 0, then clamped to
    # 0 and 0. Pair 0 keeps its frequency and all others are divided by s, as in the reference code.
    stepped = rw.NTKByParts(factor=4, beta_fast=32, beta_slow=8).frequencies(rw.Rope(8, 10_000, 20))
    np.testing.assert_allclose(stepped.inv_freq, [1, 0.025, 0.0025, 0.00025], rtol=1e-13)
