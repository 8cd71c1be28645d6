"""Options of position methods: specs, defaults that follow the text, and the messages for wrong ones."""

from __future__ import annotations

import numpy as np
import pytest

import ropewalk as rw
from ropewalk.positions import REGISTRY, parse_scaling
from ropewalk.scaling.linear import Linear

SPECS = {
    "self-extend:group=8,window=32": rw.SelfExtend(8, 32),
    "leaky-rerope:factor=8,window=32": rw.LeakyReRoPE(8, 32),
    "rerope:window=32": rw.ReRoPE(32),
    "dual-chunk": rw.DualChunk(),
    "jet-long": rw.JetLong(),
    "near-exact:scaling=yarn,factor=2": rw.NearExact("yarn", 2),
    "rerope:logit_scaling=log-n": rw.ReRoPE(logit_scaling="log-n"),
}


@pytest.mark.parametrize("spec", SPECS)
def test_specs_and_dicts_read_back(spec):
    method = rw.parse(spec)
    assert method == SPECS[spec]
    assert rw.parse(str(method)) == method
    assert rw.parse(method.to_dict()) == method
    assert eval(repr(method), vars(rw)) == method


def test_parse_still_reads_scalings():
    assert rw.parse("yarn:factor=4") == rw.YaRN(factor=4)
    assert rw.parse({"rope_type": "linear", "factor": 2}) == Linear(factor=2)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("self-extnd", "did you mean self-extend"),
        ("self-extend:group=0", "self-extend: group: got 0; expected a whole number of tokens"),
        ("self-extend:group=2.5", "self-extend: group: got 2.5; expected a whole number of tokens"),
        ("leaky-rerope:factor=0.5", "leaky-rerope: factor: got 0.5; expected a finite number of at least 1"),
        ("rerope:windw=4", "did you mean window"),
        ("rerope:logit_scaling=linear", "logit_scaling: got .linear.; expected"),
        (
            "near-exact:scaling=abf",
            "near-exact: scaling: got 'abf'; expected the name of a static scaling with a factor",
        ),
        ("near-exact:scaling=dynamic-yarn", "near-exact: scaling: got 'dynamic-yarn'"),
        ("near-exact:continuous=1", "near-exact: continuous: got 1; expected true, false"),
    ],
)
def test_wrong_options_are_named(spec, message):
    with pytest.raises(rw.InputError, match=message):
        rw.parse(spec)


def test_a_window_without_room_for_far_keys_is_refused_unless_the_factor_is_given():
    with pytest.raises(rw.InputError, match="window: got 64; expected fewer tokens than the original length, 64"):
        rw.LeakyReRoPE(window=64).resolve(64, 10)
    assert rw.LeakyReRoPE(factor=2, window=64).resolve(64, 100).factor == 2


def test_local_size_must_be_smaller_than_the_chunk():
    with pytest.raises(
        rw.InputError, match="dual-chunk: local_size: got 48; expected fewer tokens than chunk_size, 48"
    ):
        rw.DualChunk(local_size=48).resolve(64, 100)


# The parameters with which SmolLM2 (L = 8,192) read 12,288 and 16,384 tokens of a book best.
@pytest.mark.parametrize(
    ("length", "factor", "group"), [(8192, 1, 1), (12_288, 2, 2), (16_384, 3, 3), (16_385, 3.25, 4)]
)
def test_default_factors_are_the_smallest_that_fit(length, factor, group):
    assert rw.LeakyReRoPE().resolve(8192, length) == rw.LeakyReRoPE(factor, 4096, original_length=8192)
    assert rw.SelfExtend().resolve(8192, length) == rw.SelfExtend(group, 4096, original_length=8192)


def test_given_options_do_not_follow_the_text():
    for spec in SPECS:
        if spec not in ("jet-long",):
            assert len(rw.parse(spec).blocks(64, 0, 1000)) == 1


def test_jet_long_groups_by_the_length_of_the_text():
    blocks = rw.JetLong().blocks(64, 0, 200)
    assert [(start, stop, resolved.group) for start, stop, resolved in blocks] == [
        (0, 64, 1), (64, 128, 2), (128, 192, 3), (192, 200, 4),
    ]  # fmt: skip


def test_the_option_original_length_overrides_that_of_the_model():
    assert rw.ReRoPE(original_length=100).resolve(64, 10) == rw.ReRoPE(50, original_length=100)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("log-n", lambda m: np.log(m + 1) / np.log(64)),
        ("llama-4", lambda m: 1 + 0.1 * np.log(1 + np.floor((m + 1) / 64))),
        ("mistral:beta=0.2", lambda m: 1 + 0.2 * np.log(1 + np.floor(m / 64))),
        ("yarn", lambda m: (1 + 0.1 * np.log((m + 1) / 64)) ** 2),
    ],
)
def test_logit_factors(name, expected):
    resolved = rw.ReRoPE(logit_scaling=name).resolve(64, 300)
    m = np.arange(64, 300)
    np.testing.assert_allclose(resolved.logit_factor(m), expected(m), rtol=1e-12)
    np.testing.assert_array_equal(resolved.logit_factor(np.arange(64)), np.ones(64))
    assert rw.ReRoPE().resolve(64, 300).logit_factor(m) is None


def test_near_exact_with_linear_is_leaky_rerope():
    rope = rw.Rope(16, original_length=64)
    near_exact = rw.NearExact("linear", factor=3, window=20).resolve(64, 200)
    leaky = rw.LeakyReRoPE(factor=3, window=20).resolve(64, 200)
    m, n = np.arange(64, 200)[:, None, None], np.arange(40)[None, :, None]
    far = near_exact.far_frequencies(rope).inv_freq
    angles = near_exact.query_position(m) * far + near_exact.far_query_phase(rope) - near_exact.key_position(n) * far
    np.testing.assert_allclose(angles, (leaky.query_position(m) - leaky.key_position(n)) * rope.inv_freq, atol=1e-9)


@pytest.mark.parametrize("scaling", ["ntk-by-parts", "yarn", "ntk", "linear"])
def test_near_exact_is_continuous_at_the_window(scaling):
    rope = rw.Rope(16, original_length=64)
    resolved = rw.NearExact(scaling, factor=3, window=20).resolve(64, 200)
    angle_at_window = 20 * resolved.far_frequencies(rope).inv_freq + resolved.far_query_phase(rope)
    np.testing.assert_allclose(angle_at_window, 20 * rope.inv_freq, rtol=1e-12)


def test_near_exact_without_continuity_has_the_angles_of_the_scaling():
    rope = rw.Rope(16, original_length=64)
    resolved = rw.NearExact("yarn", factor=3, continuous=False).resolve(64, 200)
    assert resolved.far_query_phase(rope) is None
    assert resolved.far_frequencies(rope) == rw.YaRN(factor=3).frequencies(rope)
    assert rw.NearExact(continuous=False).resolve(64, 200).factor == 3.25  # 200 / 64, rounded up to a quarter


def test_parse_scaling_refuses_position_methods():
    assert parse_scaling("yarn:factor=4", "which this needs") == rw.YaRN(factor=4)
    with pytest.raises(rw.InputError, match="self-extend changes positions"):
        parse_scaling("self-extend", "which this needs")
    with pytest.raises(rw.InputError, match=r"\(the nearest are dynamic-yarn and yarn\)"):
        parse_scaling("jet-long", "which this needs")
    with pytest.raises(rw.InputError, match=r"\(SGLang applies it to a model whose config.json has dual_chunk"):
        parse_scaling("dual-chunk", "which this needs")


def test_every_method_states_its_formula_and_source():
    assert all(cls.formula and cls.source for cls in REGISTRY.values())
