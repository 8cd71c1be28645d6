"""Fixed-point cos and sin tables against 70-digit arithmetic, and the checks of their arguments."""

import mpmath
import numpy as np
import pytest

import ropewalk as rw

LAST_POSITION = 2**31 - 1
POSITIONS = np.unique(
    [0, 1, LAST_POSITION, 2**31]
    + [2**power + offset for power in range(1, 31) for offset in (-1, 0, 1)]
    + np.random.default_rng(0).integers(0, 2**31, 30).tolist()
)
BASES = (1e4, 5e5, 1e8)


def exact_cos_sin(inv_freq, positions):
    """Return cos and sin computed with 70 digits and rounded once to float64, [n, dim/2] each."""
    with mpmath.workdps(70):
        angles = [[mpmath.mpf(int(p)) * mpmath.mpf(float(t)) for t in inv_freq] for p in positions]
        cos = [[float(mpmath.cos(angle)) for angle in row] for row in angles]
        sin = [[float(mpmath.sin(angle)) for angle in row] for row in angles]
    return np.array(cos), np.array(sin)


def largest_error(tables, exact_tables):
    pairs = zip(tables, exact_tables, strict=True)
    return max(np.abs(table.astype(np.float64) - exact).max() for table, exact in pairs)


@pytest.mark.parametrize("base", BASES)
def test_tables_are_correct_to_rounding_at_every_position(base):
    frequencies = rw.Linear(factor=3).frequencies(
        rw.Rope(64, base)
    )  # a third: no frequency has a short binary fraction
    exact = exact_cos_sin(frequencies.inv_freq, POSITIONS)
    # The bounds are half a unit in the last place of a number in [0.5, 1]: 3e-8 (float32), 2.4e-4 (float16).
    assert largest_error(frequencies.cos_sin(POSITIONS), exact) < 3.1e-8
    assert largest_error(frequencies.cos_sin(POSITIONS, "float64"), exact) < 6e-16
    assert largest_error(frequencies.cos_sin(POSITIONS, "float16"), exact) < 2.5e-4


def test_negative_positions_rotate_backwards():
    frequencies = rw.NoScaling().frequencies(rw.Rope(64, 5e5))
    exact = exact_cos_sin(frequencies.inv_freq, -POSITIONS[::5])
    assert largest_error(frequencies.cos_sin(-POSITIONS[::5], "float64"), exact) < 6e-16


def test_float32_angles_have_the_documented_errors():
    """Compare float32 angles at base 100,000 (SmolLM2) with the exact table."""
    frequencies = rw.NoScaling().frequencies(rw.Rope(64, 1e5))
    errors = {}
    for end in (131_072, 1_000_000):
        positions = np.arange(end - 1024, end)
        cos, sin = frequencies.cos_sin(positions, "float64")
        angle = (positions[:, None].astype(np.float32) * frequencies.inv_freq.astype(np.float32)).astype(np.float64)
        errors[end] = np.hypot(np.cos(angle) - cos, np.sin(angle) - sin).max()
        assert largest_error(frequencies.cos_sin(positions), (cos, sin)) < 3.1e-8
    assert 7e-3 < errors[131_072] < 8e-3
    assert 5e-2 < errors[1_000_000] < 6e-2


def test_attention_factor_multiplies_both_tables():
    plain, scaled = rw.Frequencies(np.array([1.0, 0.1])), rw.Frequencies(np.array([1.0, 0.1]), attention_factor=1.25)
    for table, plain_table in zip(scaled.cos_sin([5, 6], "float64"), plain.cos_sin([5, 6], "float64"), strict=True):
        np.testing.assert_allclose(table, 1.25 * plain_table, rtol=1e-15)


def test_softmax_factor_does_not_change_the_tables():
    plain, with_softmax_factor = rw.Frequencies(np.array([1.0])), rw.Frequencies(np.array([1.0]), softmax_factor=2.0)
    np.testing.assert_array_equal(with_softmax_factor.cos_sin([3]), plain.cos_sin([3]))


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,)])
def test_tables_have_the_requested_shape_and_dtype(shape):
    frequencies = rw.NoScaling().frequencies(rw.Rope(8))
    for dtype in ("float64", "float32", "float16"):
        for table in frequencies.cos_sin(np.zeros(shape, dtype=np.int32), dtype):
            assert table.shape == (*shape, 4)
            assert table.dtype == dtype


def test_frequency_of_zero_is_not_rotated():
    cos, sin = rw.Frequencies(np.array([0.0])).cos_sin([0, 1, LAST_POSITION])
    assert (cos == 1).all()
    assert (sin == 0).all()


@pytest.mark.parametrize(
    ("positions", "dtype", "field"),
    [
        ([0.0, 1.0], "float32", "positions"),
        (np.array([True]), "float32", "positions"),
        ([2**31 + 1], "float32", "positions"),
        ([-(2**31) - 1], "float32", "positions"),
        ([np.iinfo(np.int64).min], "float32", "positions"),
        (np.array([2**64 - 1], dtype=np.uint64), "float32", "positions"),
        ([2**70], "float32", "positions"),
        (["1"], "float32", "positions"),
        ([0], "bfloat16", "dtype"),
        ([0], "int8", "dtype"),
    ],
)
def test_invalid_positions_and_dtypes_raise_input_error(positions, dtype, field):
    with pytest.raises(rw.InputError, match=f"^{field}: got ") as caught:
        rw.NoScaling().frequencies(rw.Rope(8)).cos_sin(positions, dtype)
    assert caught.value.field == field


@pytest.mark.parametrize("inv_freq", [[-1.0], [np.nan], [np.inf], [[1.0]], [np.nan] * 500], ids=lambda x: str(x)[:9])
def test_invalid_frequencies_raise_input_error(inv_freq):
    with pytest.raises(rw.InputError, match=r"^inv_freq: ") as caught:
        rw.Frequencies(np.array(inv_freq))
    assert "\n" not in str(caught.value)  # numpy formats 500 numbers on many lines


def test_frequencies_are_immutable_values():
    array = np.array([1.0, 0.5])
    frequencies = rw.Frequencies(array)
    array[0] = 7  # the frequencies hold a copy
    assert frequencies.inv_freq[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        frequencies.inv_freq[0] = 7
    same, other = rw.Frequencies(np.array([1.0, 0.5])), rw.Frequencies(np.array([1.0, 0.5]), 1.1)
    assert frequencies == same
    assert hash(frequencies) == hash(same)
    assert frequencies != other
    assert frequencies != "frequencies"


@pytest.mark.parametrize("inv_freq", [[1e25], [1e100], [float("inf")], [float("nan")], [-1e-9], [[1.0]]])
def test_frequencies_that_the_tables_cannot_represent_are_refused(inv_freq):
    with pytest.raises(rw.InputError, match="inv_freq"):
        rw.Frequencies(inv_freq)


def test_the_largest_frequency_is_exact():
    inv_freq = [1e24, 1e12, 7.3e15]
    exact = exact_cos_sin(inv_freq, POSITIONS)
    assert largest_error(rw.Frequencies(inv_freq).cos_sin(POSITIONS, "float64"), exact) < 6e-16
