"""The unscaled rotary embedding against hand-computed values, and the checks of its arguments."""

import math

import numpy as np
import pytest

import ropewalk as rw


def test_inverse_frequencies_match_hand_computed_values():
    # d = 8, b = 10000: b^(-2i/8) = 10^-i
    np.testing.assert_allclose(rw.Rope(8, 10_000).inv_freq, [1, 0.1, 0.01, 0.001], rtol=1e-15)
    # d = 4, b = 2^6: b^(-2i/4) = 8^-i
    np.testing.assert_allclose(rw.Rope(4, 64).inv_freq, [1, 0.125], rtol=1e-15)


def test_wavelengths_and_rotations_match_hand_computed_values():
    rope = rw.Rope(4, 64)
    np.testing.assert_allclose(rope.wavelengths, [2 * math.pi, 16 * math.pi], rtol=1e-15)
    # Over 100 tokens, the first pair completes 100 / 2 pi rotations, the second an eighth of that.
    np.testing.assert_allclose(rope.rotations(100), [15.915494309189535, 1.9894367886486918], rtol=1e-15)


def test_another_base_does_not_change_the_rope():
    rope = rw.Rope(8, 10_000)
    np.testing.assert_allclose(rope.inv_freq_with_base(1e8), [1, 1e-2, 1e-4, 1e-6], rtol=1e-15)
    assert rope.base == 10_000
    assert rope.inv_freq[1] == pytest.approx(0.1)


def test_ropes_with_equal_numbers_are_equal():
    assert rw.Rope(8, 10_000, 2048) == rw.Rope(8, 10_000.0, 2048)
    assert rw.Rope(8, 10_000, 2048) != rw.Rope(8, 10_000, 4096)


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("dim", {"dim": 7}),
        ("dim", {"dim": 0}),
        ("dim", {"dim": -2}),
        ("dim", {"dim": 8.0}),
        ("dim", {"dim": True}),
        ("dim", {"dim": "8"}),
        ("base", {"dim": 8, "base": 1}),
        ("base", {"dim": 8, "base": -10_000}),
        ("base", {"dim": 8, "base": math.nan}),
        ("base", {"dim": 8, "base": math.inf}),
        ("base", {"dim": 8, "base": True}),
        ("base", {"dim": 8, "base": "10000"}),
        ("base", {"dim": 8, "base": 10**400}),
        ("original_length", {"dim": 8, "original_length": 0}),
        ("original_length", {"dim": 8, "original_length": 2048.0}),
        ("original_length", {"dim": 8, "original_length": True}),
        ("layout", {"dim": 8, "layout": "neox"}),
    ],
)
def test_invalid_arguments_raise_input_error(field, arguments):
    with pytest.raises(rw.InputError, match=f"^{field}: got .*; expected ") as caught:
        rw.Rope(**arguments)
    assert caught.value.field == field


def test_the_cached_frequencies_cannot_be_changed():
    rope = rw.Rope(dim=8)
    with pytest.raises(ValueError, match="read-only"):
        rope.inv_freq[0] = 0.5
    assert rope.inv_freq[0] == 1
