from __future__ import annotations

import numpy as np
import pytest

import ropewalk as rw
from ropewalk.serving.verify.tables import positions_to, table_error

ROPE = rw.Rope(64, 100_000.0, 8192)
POSITIONS = positions_to(131_072, 8192)
MEANT = rw.YaRN(factor=16).frequencies(ROPE)


def formed_in_float32(frequencies, positions=POSITIONS):
    """As engines form them."""
    angles = np.asarray(positions, dtype=np.float32)[:, None] * frequencies.inv_freq.astype(np.float32)
    factor = np.float32(frequencies.attention_factor)
    return np.cos(angles) * factor, np.sin(angles) * factor


def table(cos, sin):
    return {"cos": cos.tolist(), "sin": sin.tolist()}


def test_positions_cover_the_start_the_original_length_and_the_end():
    assert sorted(set(POSITIONS)) == POSITIONS
    assert {0, 1, 63, 8191, 8192, 131_071} <= set(POSITIONS)
    assert POSITIONS[-1] == 131_071
    assert len(POSITIONS) < 450
    assert positions_to(16, None) == list(range(16))


@pytest.mark.parametrize("scaling", [rw.NoScaling(), rw.Linear(factor=16), rw.YaRN(factor=16), rw.NTK(factor=16)])
def test_float32_is_off_by_a_few_roundings_at_every_position(scaling):
    expected = scaling.frequencies(ROPE)
    off = table_error([table(*formed_in_float32(expected))], [expected], POSITIONS)
    assert 0 < off.units < 4
    at_the_end = abs(formed_in_float32(expected)[0] - expected.cos_sin(POSITIONS, "float64")[0])[-1].max()
    assert scaling == rw.Linear(factor=16) or at_the_end > 1e-4  # which is more than float16 is off by at the start


@pytest.mark.parametrize(("kind", "least"), [("float16", 3000), ("bfloat16", 20_000)])
def test_coarser_tables_stand_out(kind, least):
    import torch

    coarse = [torch.tensor(part).to(getattr(torch, kind)).double().numpy() for part in formed_in_float32(MEANT)]
    assert table_error([table(*coarse)], [MEANT], POSITIONS).units > least


@pytest.mark.parametrize(
    "other",
    [
        rw.YaRN(factor=16.01),
        rw.YaRN(factor=16, attention_factor=1.2773),
        rw.YaRN(factor=16, original_length=8200, truncate=False),
        rw.NTKByParts(factor=16),
    ],
)
def test_near_misses_stand_out(other):
    assert table_error([table(*formed_in_float32(other.frequencies(ROPE)))], [MEANT], POSITIONS).units > 30


def test_layouts_of_a_table():
    cos, sin = formed_in_float32(MEANT)
    apart = table(np.concatenate([cos, cos], -1), np.concatenate([sin, sin], -1))
    beside = table(np.repeat(cos, 2, -1), np.repeat(sin, 2, -1))
    assert table_error([apart], [MEANT], POSITIONS) == table_error([beside], [MEANT], POSITIONS)
    assert table_error([apart], [MEANT], POSITIONS).units < 4


def test_each_layer_type_has_its_table():
    local = rw.NoScaling().frequencies(ROPE)
    both = [table(*formed_in_float32(each)) for each in (local, MEANT)]
    assert table_error(both, [MEANT, local], POSITIONS).units < 4
    assert table_error(both[:1], [MEANT, local], POSITIONS).units > 1e4


def test_a_table_of_another_shape_or_without_numbers_is_wrong():
    cos, sin = formed_in_float32(MEANT)
    assert table_error([table(cos[:, :5], sin[:, :5])], [MEANT], POSITIONS).units > 1e20
    assert table_error([table(cos * np.nan, sin)], [MEANT], POSITIONS).units > 1e20
