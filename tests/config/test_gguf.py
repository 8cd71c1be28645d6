"""GGUF files, written here with the gguf package and read back."""

import contextlib
import math
import struct

import numpy as np
import pytest
from tests.helpers.gguf_model import small_gguf

import ropewalk as rw
from ropewalk import config as configs
from ropewalk.config.gguf import from_gguf_fields
from ropewalk.config.gguf_header import read_gguf_header

PLAIN = rw.Rope(64, 100_000, 8192)


@pytest.fixture
def written(tmp_path):
    """Writes a GGUF file of these fields and tensors, and gives its path."""

    def write(changes=None, divisors=None, architecture="llama", **options):
        return small_gguf(tmp_path / "model.gguf", changes, divisors, architecture, **options)

    return write


def scaling_of(path):
    layer = configs.read(path).ropes["all"]
    assert layer.rope.dim == 64
    return layer.scaling


def test_a_plain_model(written):
    found = configs.read(written())
    assert found.model_type == "llama"
    assert found.max_length == 8192
    assert found.ropes == {"all": configs.LayerRope(PLAIN, rw.NoScaling())}
    assert found.attention == configs.AttentionShape(("full_attention",) * 30, 3, 64, 64, None, 2)


def test_the_path_may_be_text(written):
    path = written()
    assert configs.read(str(path)) == configs.read(path)


def test_linear(written):
    assert scaling_of(written({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0})) == rw.Linear(4)
    assert scaling_of(written({"rope.scale_linear": 2.0})) == rw.Linear(2)  # the field's first name
    assert scaling_of(written({"rope.scaling.type": "none", "rope.scaling.factor": 4.0})) == rw.NoScaling()


YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 2048}


def test_yarn(written):
    found = configs.read(written(YARN))
    assert found.ropes["all"] == configs.LayerRope(rw.Rope(64, 100_000, 2048), rw.YaRN(4))
    assert found.max_length == 8192


def test_the_attention_factor_of_yarn_is_relative_to_its_own(written):
    found = scaling_of(written({**YARN, "rope.scaling.attn_factor": 0.5}))
    assert found.attention_factor == pytest.approx(0.5 * (1 + 0.1 * math.log(4)), rel=1e-7)


def test_an_attention_factor_holds_without_yarn(written):
    plain = configs.read(written({"rope.scaling.attn_factor": 1.25})).ropes["all"]
    assert plain.scaling.frequencies(plain.rope) == rw.Frequencies(PLAIN.inv_freq, 1.25)
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0, "rope.scaling.attn_factor": 1.25}
    found = configs.read(written(linear)).ropes["all"]
    frequencies = found.scaling.frequencies(found.rope)
    np.testing.assert_allclose(frequencies.inv_freq, PLAIN.inv_freq / 4, rtol=1e-15)
    assert frequencies.attention_factor == 1.25


@pytest.mark.parametrize(
    ("architecture", "betas"), [("llama", (32, 1)), ("qwen3", (32, 1)), ("mistral3", (16, 2)), ("grok", (16, 2))]
)
def test_the_betas_are_read_for_few_architectures(written, architecture, betas):
    options = {"rope.scaling.yarn_beta_fast": 16.0, "rope.scaling.yarn_beta_slow": 2.0}
    found = scaling_of(written({**YARN, **options}, architecture=architecture))
    assert (found.beta_fast, found.beta_slow) == betas


M4 = 1 + 0.1 * math.log(4)  # m(4, 1)


@pytest.mark.parametrize(
    ("architecture", "multiplier", "attention_factor", "softmax_factor"),
    [
        ("deepseek2", 0.1, 1, M4**2),  # a tenth of mscale_all_dim, and mscale is the same
        ("deepseek2", 0.0707, 1, (1 + 0.0707 * math.log(4)) ** 2),
        ("deepseek32", 0.0707, M4 / (1 + 0.0707 * math.log(4)), M4**2),  # mscale is 1
        ("deepseek2", None, M4, M4**2),  # the softmax follows the attention factor
        ("mistral3", 1.0, 1, 1),  # all of mscale_all_dim; its softmax is left alone
        ("llama", 1.0, M4, 1),  # not read
    ],
)
def test_yarn_with_a_log_multiplier(written, architecture, multiplier, attention_factor, softmax_factor):
    path = written({**YARN, "rope.scaling.yarn_log_multiplier": multiplier}, architecture=architecture)
    found = configs.read(path).ropes["all"]
    frequencies = found.scaling.frequencies(found.rope)
    assert frequencies.attention_factor == pytest.approx(attention_factor, rel=1e-7)
    assert frequencies.softmax_factor == pytest.approx(softmax_factor, rel=1e-7)


def test_sliding_layers_of_a_base_of_their_own(written):
    gemma = {"attention.sliding_window": 512, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    found = configs.read(written(gemma, architecture="gemma3"))
    assert found.main_layer_type == "full_attention"
    assert found.ropes["full_attention"] == configs.LayerRope(PLAIN, rw.Linear(8))
    local = configs.LayerRope(rw.Rope(64, 10_000, 8192), rw.NoScaling())
    assert found.ropes["sliding_attention"] == local
    olmo = configs.read(written({**gemma, "rope.scaling.attn_factor": 1.2}, architecture="olmo2"))
    assert olmo.ropes["sliding_attention"] == configs.LayerRope(PLAIN, rw.NoScaling())


def test_rope_freqs_divide_the_frequencies(written):
    divisors = [1.0] * 16 + [8.0] * 16
    found = configs.read(written(divisors={"rope_freqs.weight": divisors})).ropes["all"]
    assert not found.scaling.is_dynamic
    frequencies = found.scaling.frequencies(found.rope)
    np.testing.assert_allclose(frequencies.inv_freq, PLAIN.inv_freq / divisors, rtol=1e-15)
    assert frequencies.attention_factor == 1


def test_longrope(written):
    short, long = [1.0 + i / 16 for i in range(32)], [1.0 + i for i in range(32)]
    found = configs.read(
        written(
            {"rope.scaling.attn_factor": 1.25, "rope.scaling.original_context_length": 4096},
            {"rope_factors_short.weight": short, "rope_factors_long.weight": long},
        )
    ).ropes["all"]
    assert found.scaling == rw.LongRoPE(short, long, attention_factor=1.25)
    assert found.rope.original_length == 4096
    np.testing.assert_allclose(found.scaling.frequencies(found.rope, 4096).inv_freq, PLAIN.inv_freq / short)
    np.testing.assert_allclose(found.scaling.frequencies(found.rope, 4097).inv_freq, PLAIN.inv_freq / long)


def test_divisors_come_on_top_of_the_rest(written):
    divisors = [1.0] * 16 + [8.0] * 16
    found = configs.read(written(YARN, {"rope_freqs.weight": divisors})).ropes["all"]
    frequencies = found.scaling.frequencies(found.rope)
    yarn = rw.YaRN(4).frequencies(found.rope)
    np.testing.assert_allclose(frequencies.inv_freq, yarn.inv_freq / divisors, rtol=1e-14)
    assert frequencies.attention_factor == yarn.attention_factor


def test_a_divisor_beyond_all_lengths_stops_a_pair(written):
    found = scaling_of(written(divisors={"rope_freqs.weight": [2.0] * 8 + [1e30] * 24}))
    expected = np.where(np.arange(32) < 8, PLAIN.inv_freq / 2, 0)
    np.testing.assert_array_equal(found.frequencies(PLAIN).inv_freq, expected)


def test_what_is_left_out_follows_from_the_rest(written):
    found = configs.read(written({"rope.dimension_count": None, "rope.freq_base": None}))
    assert found.ropes["all"].rope == rw.Rope(64, 10_000, 8192)  # 576 / 9; llama's base
    per_layer = configs.read(written({"attention.head_count": [9, 9], "attention.head_count_kv": [3, 1]}))
    assert per_layer.attention.kv_heads == 3


def test_the_built_in_model():
    found = configs.read("smollm2")
    assert found.ropes == {"all": configs.LayerRope(PLAIN, rw.NoScaling())}
    assert found.attention == configs.AttentionShape(("full_attention",) * 30, 3, 64, 64, None, 2)


def refused(path):
    with pytest.raises(rw.InputError, match="got ") as caught:
        configs.read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"context_length": None},
        {"context_length": "long"},
        {"context_length": 0},
        {"rope.dimension_count": 63},
        {"rope.dimension_count": "many"},
        {"rope.freq_base": "big"},
        {"rope.freq_base": math.nan},
        {"rope.freq_base": 0.5},
        {"rope.scaling.factor": "four"},
        {"rope.scaling.factor": -4.0},
        {"rope.scaling.type": "yarn", "rope.scaling.factor": math.inf},
        {"rope.scaling.type": "su"},
        {"rope.scaling.attn_factor": math.nan},
        {"attention.head_count": "nine"},
        {"attention.head_count_kv": "three"},
        {"embedding_length": "wide", "rope.dimension_count": None},
        {"block_count": "thirty"},
        {"block_count": 2**32 - 1},
    ],
    ids=str,
)
def test_fields_of_the_wrong_kind(written, changes):
    refused(written(changes))


@pytest.mark.parametrize("divisors", [[1.0] * 31, [0.0] * 32, [math.nan] * 32, [1e30] * 32, [1e30] * 8 + [1.0] * 24])
def test_divisors_that_nothing_can_turn_by(written, divisors):
    refused(written(divisors={"rope_freqs.weight": divisors}))


def test_the_meaning_needs_no_file(written):
    path = written(YARN, {"rope_freqs.weight": [2.0] * 32})
    assert from_gguf_fields(*read_gguf_header(path)) == configs.read(path)
    with pytest.raises(rw.InputError, match="GGUF metadata"):
        from_gguf_fields({}, {})


def test_the_tokenizer_stays_in_the_file(written):
    fields, divisors = read_gguf_header(written())
    assert fields["llama.rope.freq_base"] == 100_000
    assert not any(name.startswith("tokenizer") for name in fields)
    assert divisors == {}


@pytest.mark.parametrize("alignment", [32, 256])
def test_alignment(written, alignment):
    path = written(divisors={"rope_freqs.weight": [float(1 + i) for i in range(32)]}, alignment=alignment)
    assert read_gguf_header(path)[1]["rope_freqs.weight"] == tuple(float(1 + i) for i in range(32))


def test_a_model_without_rope(written):
    message = refused(written({"rope.freq_base": None, "rope.dimension_count": None}, architecture="gpt2"))
    assert "rope fields" in message


def test_a_truncated_file(written, tmp_path):
    whole = written({**YARN}, {"rope_freqs.weight": [1.0] * 32}).read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in range(0, len(whole), 7):
        cut.write_bytes(whole[:size])
        refused(cut)


def test_counts_that_lie(written, tmp_path):
    """Each eight bytes of the header in turn become a huge number; none may cost time or memory."""
    whole = written(YARN, {"rope_freqs.weight": [1.0] * 32}).read_bytes()
    liar = tmp_path / "liar.gguf"
    for place in range(4, 1200):
        for count in (2**64 - 1, 2**31, 2**21):
            liar.write_bytes(whole[:place] + struct.pack("<Q", count) + whole[place + 8 :])
            with contextlib.suppress(rw.InputError):
                configs.read(liar)


def test_a_damaged_file_never_fails_otherwise(written, tmp_path):
    whole = written({**YARN}, {"rope_freqs.weight": [1.0] * 32}).read_bytes()
    damaged, rng = tmp_path / "damaged.gguf", np.random.default_rng(0)
    for _ in range(300):
        content = bytearray(whole)
        for place in rng.integers(0, 2000, 3):
            content[place] = rng.integers(0, 256)
        damaged.write_bytes(content)
        with contextlib.suppress(rw.InputError):
            configs.read(damaged)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a GGUF file at all", b"\x00" * 1000])
def test_not_a_gguf(tmp_path, content):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert refused(path).startswith("model: got ")
