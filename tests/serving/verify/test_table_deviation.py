from __future__ import annotations

import numpy as np
import pytest

import ropewalk as rw
from ropewalk.serving.verify.tables import choose_positions, largest_deviation

ROPE = rw.Rope(64, 100_000.0, 8192)
POSITIONS = choose_positions(131_072, 8192)
EXPECTED = rw.YaRN(factor=16).frequencies(ROPE)


def float32_cos_sin(frequencies, positions=POSITIONS):
    """Form angles in float32, as engines do."""
    angles = np.asarray(positions, dtype=np.float32)[:, None] * frequencies.inv_freq.astype(np.float32)
    factor = np.float32(frequencies.attention_factor)
    return np.cos(angles) * factor, np.sin(angles) * factor


def table(cos, sin):
    return {"cos": cos.tolist(), "sin": sin.tolist()}


def roundings(tables, expected=(EXPECTED,)):
    return largest_deviation(tables, list(expected), POSITIONS).roundings


def test_positions_cover_the_start_the_original_length_and_the_end():
    assert sorted(set(POSITIONS)) == POSITIONS
    assert {0, 1, 63, 8191, 8192, 131_071} <= set(POSITIONS)
    assert POSITIONS[-1] == 131_071
    assert len(POSITIONS) < 450
    assert choose_positions(16, None) == list(range(16))


@pytest.mark.parametrize("scaling", [rw.NoScaling(), rw.Linear(factor=16), rw.YaRN(factor=16), rw.NTK(factor=16)])
def test_float32_tables_are_off_by_a_few_roundings_at_every_position(scaling):
    expected = scaling.frequencies(ROPE)
    cos, sin = float32_cos_sin(expected)
    assert 0 < roundings([table(cos, sin)], [expected]) < 4
    absolute_at_the_end = abs(cos - expected.cos_sin(POSITIONS, "float64")[0])[-1].max()
    # In absolute terms that is more than the error of a float16 table at the start.
    assert scaling == rw.Linear(factor=16) or absolute_at_the_end > 1e-4


@pytest.mark.parametrize(("dtype", "least"), [("float16", 3000), ("bfloat16", 20_000)])
def test_tables_of_lower_precision_stand_out(dtype, least):
    import torch

    cos, sin = (torch.tensor(part).to(getattr(torch, dtype)).double().numpy() for part in float32_cos_sin(EXPECTED))
    assert roundings([table(cos, sin)]) > least


@pytest.mark.parametrize(
    "other",
    [
        rw.YaRN(factor=16.01),
        rw.YaRN(factor=16, attention_factor=1.2773),
        rw.YaRN(factor=16, original_length=8200, truncate=False),
        rw.NTKByParts(factor=16),
    ],
)
def test_almost_equal_scalings_stand_out(other):
    assert roundings([table(*float32_cos_sin(other.frequencies(ROPE)))]) > 30


def test_half_and_interleaved_tables_of_all_channels_are_recognized():
    cos, sin = float32_cos_sin(EXPECTED)
    half = table(np.concatenate([cos, cos], -1), np.concatenate([sin, sin], -1))
    interleaved = table(np.repeat(cos, 2, -1), np.repeat(sin, 2, -1))
    assert largest_deviation([half], [EXPECTED], POSITIONS) == largest_deviation([interleaved], [EXPECTED], POSITIONS)
    assert roundings([half]) < 4


def test_each_layer_type_is_compared_with_the_closest_table():
    local = rw.NoScaling().frequencies(ROPE)
    both = [table(*float32_cos_sin(frequencies)) for frequencies in (local, EXPECTED)]
    assert roundings(both, [EXPECTED, local]) < 4
    assert roundings(both[:1], [EXPECTED, local]) > 1e4


def test_table_of_another_shape_or_with_nan_is_wrong():
    cos, sin = float32_cos_sin(EXPECTED)
    assert roundings([table(cos[:, :5], sin[:, :5])]) > 1e20
    assert roundings([table(cos * np.nan, sin)]) > 1e20
