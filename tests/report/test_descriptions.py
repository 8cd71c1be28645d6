from __future__ import annotations

import pytest

import ropewalk as rw
from ropewalk.report.descriptions import in_words, rope_of

ROPE = rw.Rope(64, 100_000.0, 8192)
LISTS = f"short_factor=[{','.join(['1'] * 32)}],long_factor=[{','.join(['1', '2'] * 15 + ['4', '1'])}],factor=4"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("none", "NoScaling: every pair turns as it was trained. The model was trained on 8,192 tokens."),
        (
            "linear:factor=2",
            "Linear with factor 2: made for 16,384 tokens, twice the 8,192 it was trained on. "
            "All 32 pairs turn 2 times slower.",
        ),
        (
            "yarn:factor=4",
            "YaRN with factor 4: made for 32,768 tokens, 4 times the 8,192 it was trained on. Of 32 pairs the "
            "11 fastest turn as before, the 12 slowest turn 4 times slower, 9 lie between; attention factor 1.139.",
        ),
        (
            "abf:base=1000000",
            "ABF: of 32 pairs the fastest turns as before, the slowest turns 9.31 times slower, 30 lie between. "
            "The model was trained on 8,192 tokens.",
        ),
        (
            "proportional:p=0.5",
            "Proportional with factor 1: of 32 pairs the 16 fastest turn as before, the 16 slowest do not turn. "
            "The model was trained on 8,192 tokens.",
        ),
    ],
)
def test_static_scalings_in_words(spec, expected):
    assert in_words(spec, None, ROPE, [4096]) == expected


def test_the_numbers_in_words_are_those_of_the_frequencies():
    slower = ROPE.inv_freq / rw.YaRN(factor=4).frequencies(ROPE).inv_freq
    assert (sum(slower == 1), sum(slower > 3.999), sum((slower > 1) & (slower < 3.999))) == (11, 12, 9)


def test_dynamic_scalings_in_words():
    start = "DynamicYaRN: follows the length of the text; up to 8,192 tokens unscaled"
    assert in_words("dynamic-yarn", "stepped", ROPE, [4096, 8192]) == f"{start}."
    past = in_words("dynamic-yarn", "stepped", ROPE, [12288, 4096])
    assert past.startswith(f"{start}; at 12,288 tokens made for 16,384 (policy stepped): of 32 pairs the 11 fastest")
    assert "15,360 (policy request)" in in_words("dynamic-yarn", "request", ROPE, [12288])
    assert "all 32 pairs turn 1.18 times faster" in in_words("power-ntk", "continuous", ROPE, [12288])
    listed = in_words(f"longrope:{LISTS}", "stepped", ROPE, [12288])
    assert "of 32 pairs 16 turn as before, 1 turns 4 times slower, 15 lie between" in listed


def test_without_the_model_there_are_words_but_no_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.socket", None)  # a report asks no network
    assert rope_of("smollm2") == ROPE
    assert rope_of(str(tmp_path / "gone")) is None
    assert rope_of("nobody/has-this-model") is None
    for spec in ("none", "yarn:factor=2", "dynamic-yarn"):
        said = in_words(spec, None, None, [4096])
        assert "could not be read" in said
        assert "tokens" not in said
