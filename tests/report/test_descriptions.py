from __future__ import annotations

import pytest

import ropewalk as rw
from ropewalk.report.descriptions import describe_scaling, load_rope

ROPE = rw.Rope(64, 100_000.0, 8192)
LISTS = f"short_factor=[{','.join(['1'] * 32)}],long_factor=[{','.join(['1', '2'] * 15 + ['4', '1'])}],factor=4"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("none", "NoScaling: all frequencies are unchanged. The model was trained on 8,192 tokens."),
        (
            "linear:factor=2",
            "Linear with factor 2: for texts of up to 16,384 tokens, twice the 8,192 tokens of training. "
            "All 32 pairs rotate 2 times slower.",
        ),
        (
            "yarn:factor=4",
            "YaRN with factor 4: for texts of up to 32,768 tokens, 4 times the 8,192 tokens of training. Of 32 pairs "
            "the 11 fastest rotate as before, the 12 slowest rotate 4 times slower, 9 are in between; "
            "attention factor 1.139.",
        ),
        (
            "abf:base=1000000",
            "ABF: of 32 pairs the fastest rotates as before, the slowest rotates 9.31 times slower, 30 are in between. "
            "The model was trained on 8,192 tokens.",
        ),
        (
            "proportional:p=0.5",
            "Proportional with factor 1: of 32 pairs the 16 fastest rotate as before, the 16 slowest do not rotate. "
            "The model was trained on 8,192 tokens.",
        ),
    ],
)
def test_a_static_scaling_is_described_by_its_frequencies(spec, expected):
    assert describe_scaling(spec, None, ROPE, [4096]) == expected


def test_the_counts_in_the_description_are_those_of_the_frequencies():
    slowdown = ROPE.inv_freq / rw.YaRN(factor=4).frequencies(ROPE).inv_freq
    unchanged, slowest, between = slowdown == 1, slowdown > 3.999, (slowdown > 1) & (slowdown < 3.999)
    assert (sum(unchanged), sum(slowest), sum(between)) == (11, 12, 9)


def test_a_dynamic_scaling_is_described_at_the_longest_length():
    start = "DynamicYaRN: depends on the length of the text; up to 8,192 tokens unscaled"
    assert describe_scaling("dynamic-yarn", "stepped", ROPE, [4096, 8192]) == f"{start}."
    past = describe_scaling("dynamic-yarn", "stepped", ROPE, [12288, 4096])
    assert past.startswith(f"{start}; at 12,288 tokens scaled for 16,384 (policy stepped): of 32 pairs the 11 fastest")
    assert "15,360 (policy request)" in describe_scaling("dynamic-yarn", "request", ROPE, [12288])
    assert "all 32 pairs rotate 1.18 times faster" in describe_scaling("power-ntk", "continuous", ROPE, [12288])


def test_a_set_for_each_layer_is_described_without_its_numbers(tmp_path):
    path = tmp_path / "scaling.json"
    spec = str(rw.Learned([[2.0] * 32] * 3, target=16_384).write(path))
    assert describe_scaling(spec, None, ROPE, [4096]) == (
        "Learned: for texts of up to 16,384 tokens, twice the 8,192 tokens of training. "
        "Each of 3 layers has frequencies of its own."
    )
    path.unlink()
    assert describe_scaling(spec, None, ROPE, [4096]).startswith("The scaling can no longer be read (scaling: got ")


def test_pairs_that_are_not_at_one_end_are_only_counted():
    description = describe_scaling(f"longrope:{LISTS}", "stepped", ROPE, [12288])
    assert "of 32 pairs 16 rotate as before, 1 rotates 4 times slower, 15 are in between" in description


def test_the_rope_is_read_from_this_machine_only(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.socket", None)
    assert load_rope("smollm2") == ROPE
    assert load_rope(str(tmp_path / "gone")) is None
    assert load_rope("nobody/has-this-model") is None


@pytest.mark.parametrize("spec", ["none", "yarn:factor=2", "dynamic-yarn"])
def test_without_the_rope_only_the_formula_is_given(spec):
    description = describe_scaling(spec, None, None, [4096])
    assert "could not be read" in description
    assert "tokens" not in description


@pytest.mark.parametrize(
    ("spec", "length", "expected"),
    [
        ("rerope", 8192, "ReRoPE: texts of up to 8,192 tokens are unchanged."),
        (
            "leaky-rerope",
            16_384,
            "LeakyReRoPE: texts of up to 8,192 tokens are unchanged; the last of 16,384 sees the 4,095 before it as in "
            "training, others nearer (factor 3.0, window 4,096).",
        ),
        (
            "dual-chunk",
            16_384,
            "DualChunk: texts of up to 8,192 tokens are unchanged; the last of 16,384 sees the 1,023 before it as in "
            "training, others nearer (chunk_size 6,144, local_size 1,024).",
        ),
    ],
)
def test_a_position_method_is_described_by_its_distances(spec, length, expected):
    assert describe_scaling(spec, None, ROPE, [4096, length]) == expected
