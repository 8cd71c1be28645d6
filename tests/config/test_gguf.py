"""GGUF files, written with the gguf package and read back."""

import contextlib
import math
import struct

import numpy as np
import pytest
from tests.helpers.gguf_model import small_gguf
from tests.helpers.real_configs import real_config_path

import ropewalk as rw
from ropewalk import config as configs
from ropewalk.config.gguf import from_gguf_fields
from ropewalk.config.gguf_header import read_gguf_header

PLAIN = rw.Rope(64, 100_000, 8192)


@pytest.fixture
def write_gguf(tmp_path):
    """A function that writes a GGUF file with the given fields and tensors and returns its path."""

    def write(changes=None, divisors=None, architecture="llama", **options):
        return small_gguf(tmp_path / "model.gguf", changes, divisors, architecture, **options)

    return write


def scaling_of(path):
    layer = configs.read(path).ropes["all"]
    assert layer.rope.dim == 64
    return layer.scaling


def test_model_without_scaling(write_gguf):
    result = configs.read(write_gguf())
    assert result.model_type == "llama"
    assert result.max_length == 8192
    assert result.ropes == {"all": configs.LayerRope(PLAIN, rw.NoScaling())}
    assert result.attention == configs.AttentionShape((configs.LayerShape("full_attention", 3, 64, 64),) * 30, 2)


def test_path_may_be_a_string(write_gguf):
    path = write_gguf()
    assert configs.read(str(path)) == configs.read(path)


def test_linear_scaling(write_gguf):
    assert scaling_of(write_gguf({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0})) == rw.Linear(4)
    assert scaling_of(write_gguf({"rope.scale_linear": 2.0})) == rw.Linear(2)  # the former name of the field
    assert scaling_of(write_gguf({"rope.scaling.type": "none", "rope.scaling.factor": 4.0})) == rw.NoScaling()


YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 2048}


def test_yarn_scaling(write_gguf):
    result = configs.read(write_gguf(YARN))
    assert result.ropes["all"] == configs.LayerRope(rw.Rope(64, 100_000, 2048), rw.YaRN(4))
    assert result.max_length == 8192


def test_attn_factor_multiplies_the_attention_factor_of_yarn(write_gguf):
    result = scaling_of(write_gguf({**YARN, "rope.scaling.attn_factor": 0.5}))
    assert result.attention_factor == pytest.approx(0.5 * (1 + 0.1 * math.log(4)), rel=1e-7)


def test_attn_factor_applies_without_yarn(write_gguf):
    plain = configs.read(write_gguf({"rope.scaling.attn_factor": 1.25})).ropes["all"]
    assert plain.scaling.frequencies(plain.rope) == rw.Frequencies(PLAIN.inv_freq, 1.25)
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0, "rope.scaling.attn_factor": 1.25}
    result = configs.read(write_gguf(linear)).ropes["all"]
    frequencies = result.scaling.frequencies(result.rope)
    np.testing.assert_allclose(frequencies.inv_freq, PLAIN.inv_freq / 4, rtol=1e-15)
    assert frequencies.attention_factor == 1.25


@pytest.mark.parametrize(
    ("architecture", "betas"), [("llama", (32, 1)), ("qwen3", (32, 1)), ("mistral3", (16, 2)), ("grok", (16, 2))]
)
def test_betas_are_read_for_some_architectures_only(write_gguf, architecture, betas):
    options = {"rope.scaling.yarn_beta_fast": 16.0, "rope.scaling.yarn_beta_slow": 2.0}
    result = scaling_of(write_gguf({**YARN, **options}, architecture=architecture))
    assert (result.beta_fast, result.beta_slow) == betas


M4 = 1 + 0.1 * math.log(4)  # m(4, 1)


@pytest.mark.parametrize(
    ("architecture", "multiplier", "attention_factor", "softmax_factor"),
    [
        ("deepseek2", 0.1, 1, M4**2),  # a tenth of mscale_all_dim; mscale is equal to it
        ("deepseek2", 0.0707, 1, (1 + 0.0707 * math.log(4)) ** 2),
        ("deepseek32", 0.0707, M4 / (1 + 0.0707 * math.log(4)), M4**2),  # mscale is 1
        ("deepseek2", None, M4, M4**2),  # the softmax follows the attention factor
        ("mistral3", 1.0, 1, 1),  # mscale_all_dim itself; its softmax scale does not change
        ("llama", 1.0, M4, 1),  # not read
    ],
)
def test_log_multiplier_of_yarn(write_gguf, architecture, multiplier, attention_factor, softmax_factor):
    path = write_gguf({**YARN, "rope.scaling.yarn_log_multiplier": multiplier}, architecture=architecture)
    result = configs.read(path).ropes["all"]
    frequencies = result.scaling.frequencies(result.rope)
    assert frequencies.attention_factor == pytest.approx(attention_factor, rel=1e-7)
    assert frequencies.softmax_factor == pytest.approx(softmax_factor, rel=1e-7)


def test_sliding_window_layers_have_another_base(write_gguf):
    gemma = {"attention.sliding_window": 512, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    result = configs.read(write_gguf(gemma, architecture="gemma3"))
    assert result.main_layer_type == "full_attention"
    # It declares 8192 tokens including its scaling, so it was trained on 8192 / 8.
    assert result.ropes["full_attention"] == configs.LayerRope(rw.Rope(64, 100_000, 1024), rw.Linear(8))
    local = configs.LayerRope(rw.Rope(64, 10_000, 8192), rw.NoScaling())
    assert result.ropes["sliding_attention"] == local
    olmo = configs.read(write_gguf({**gemma, "rope.scaling.attn_factor": 1.2}, architecture="olmo2"))
    assert olmo.ropes["sliding_attention"] == configs.LayerRope(PLAIN, rw.NoScaling())


def test_rope_freqs_divide_the_frequencies(write_gguf):
    divisors = [1.0] * 16 + [8.0] * 16
    result = configs.read(write_gguf(divisors={"rope_freqs.weight": divisors})).ropes["all"]
    assert not result.scaling.is_dynamic
    frequencies = result.scaling.frequencies(result.rope)
    np.testing.assert_allclose(frequencies.inv_freq, PLAIN.inv_freq / divisors, rtol=1e-15)
    assert frequencies.attention_factor == 1


def test_rope_factors_are_longrope_lists(write_gguf):
    short, long = [1.0 + i / 16 for i in range(32)], [1.0 + i for i in range(32)]
    result = configs.read(
        write_gguf(
            {"rope.scaling.attn_factor": 1.25, "rope.scaling.original_context_length": 4096},
            {"rope_factors_short.weight": short, "rope_factors_long.weight": long},
        )
    ).ropes["all"]
    assert result.scaling == rw.LongRoPE(short, long, attention_factor=1.25)
    assert result.rope.original_length == 4096
    np.testing.assert_allclose(result.scaling.frequencies(result.rope, 4096).inv_freq, PLAIN.inv_freq / short)
    np.testing.assert_allclose(result.scaling.frequencies(result.rope, 4097).inv_freq, PLAIN.inv_freq / long)


def test_divisors_apply_in_addition_to_a_scaling(write_gguf):
    divisors = [1.0] * 16 + [8.0] * 16
    result = configs.read(write_gguf(YARN, {"rope_freqs.weight": divisors})).ropes["all"]
    frequencies = result.scaling.frequencies(result.rope)
    yarn = rw.YaRN(4).frequencies(result.rope)
    np.testing.assert_allclose(frequencies.inv_freq, yarn.inv_freq / divisors, rtol=1e-14)
    assert frequencies.attention_factor == yarn.attention_factor


def test_huge_divisor_fixes_a_pair(write_gguf):
    result = scaling_of(write_gguf(divisors={"rope_freqs.weight": [2.0] * 8 + [1e30] * 24}))
    expected = np.where(np.arange(32) < 8, PLAIN.inv_freq / 2, 0)
    np.testing.assert_array_equal(result.frequencies(PLAIN).inv_freq, expected)


def test_huge_divisor_after_other_divisors_fixes_a_pair(write_gguf):
    divisors = [1.0 + i for i in range(31)] + [1e30]
    found = scaling_of(write_gguf(divisors={"rope_freqs.weight": divisors})).frequencies(PLAIN).inv_freq
    np.testing.assert_allclose(found[:31], PLAIN.inv_freq[:31] / divisors[:31], rtol=1e-6)
    assert found[31] < 1e-16  # turns by 1e-9 rad in 10 million tokens


def test_missing_fields_follow_from_other_fields(write_gguf):
    result = configs.read(write_gguf({"rope.dimension_count": None, "rope.freq_base": None}))
    assert result.ropes["all"].rope == rw.Rope(64, 10_000, 8192)  # 576 / 9, and the default base of llama
    per_layer = configs.read(write_gguf({"attention.head_count": [9, 9], "attention.head_count_kv": [3, 1]}))
    assert per_layer.attention.layers[0].kv_heads == 3


def test_built_in_model():
    result = configs.read("smollm2")
    assert result.ropes == {"all": configs.LayerRope(PLAIN, rw.NoScaling())}
    assert result.attention == configs.AttentionShape((configs.LayerShape("full_attention", 3, 64, 64),) * 30, 2)


def error_message(path):
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
def test_invalid_fields_are_refused(write_gguf, changes):
    error_message(write_gguf(changes))


@pytest.mark.parametrize("divisors", [[1.0] * 31, [0.0] * 32, [math.nan] * 32, [1e30] * 32, [1e30] * 8 + [1.0] * 24])
def test_invalid_divisors_are_refused(write_gguf, divisors):
    error_message(write_gguf(divisors={"rope_freqs.weight": divisors}))


def test_fields_are_parsed_without_a_file(write_gguf):
    path = write_gguf(YARN, {"rope_freqs.weight": [2.0] * 32})
    assert from_gguf_fields(*read_gguf_header(path)) == configs.read(path)
    with pytest.raises(rw.InputError, match="GGUF metadata"):
        from_gguf_fields({}, {})


def test_header_does_not_contain_the_tokenizer(write_gguf):
    fields, divisors = read_gguf_header(write_gguf())
    assert fields["llama.rope.freq_base"] == 100_000
    assert not any(name.startswith("tokenizer") for name in fields)
    assert divisors == {}


@pytest.mark.parametrize("alignment", [32, 256])
def test_tensor_data_starts_at_the_alignment(write_gguf, alignment):
    path = write_gguf(divisors={"rope_freqs.weight": [float(1 + i) for i in range(32)]}, alignment=alignment)
    assert read_gguf_header(path)[1]["rope_freqs.weight"] == tuple(float(1 + i) for i in range(32))


def test_model_without_rope_fields_is_refused(write_gguf):
    message = error_message(write_gguf({"rope.freq_base": None, "rope.dimension_count": None}, architecture="gpt2"))
    assert "rope fields" in message


def test_truncated_file_is_refused(write_gguf, tmp_path):
    content = write_gguf({**YARN}, {"rope_freqs.weight": [1.0] * 32}).read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in range(0, len(content), 21):
        cut.write_bytes(content[:size])
        error_message(cut)


def test_huge_counts_cost_neither_time_nor_memory(write_gguf, tmp_path):
    """Overwrite the eight bytes at each position of the header with a huge number."""
    content = write_gguf(YARN, {"rope_freqs.weight": [1.0] * 32}).read_bytes()
    path, counts = tmp_path / "corrupt.gguf", (2**64 - 1, 2**31, 2**21)
    for position in range(4, 1200):  # each count of the file is hit eight times, by all three numbers
        corrupt_count = struct.pack("<Q", counts[position % 3])
        path.write_bytes(content[:position] + corrupt_count + content[position + 8 :])
        with contextlib.suppress(rw.InputError):
            configs.read(path)


def test_corrupt_file_is_read_or_raises_input_error(write_gguf, tmp_path):
    content = write_gguf({**YARN}, {"rope_freqs.weight": [1.0] * 32}).read_bytes()
    path, rng = tmp_path / "corrupt.gguf", np.random.default_rng(0)
    for _ in range(300):
        corrupt = bytearray(content)
        for position in rng.integers(0, 2000, 3):
            corrupt[position] = rng.integers(0, 256)
        path.write_bytes(corrupt)
        with contextlib.suppress(rw.InputError):
            configs.read(path)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a GGUF file at all", b"\x00" * 1000])
def test_other_content_is_refused(tmp_path, content):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert error_message(path).startswith("model: got ")


def test_gemma3_27b_good_gguf_declares_the_length_after_scaling():
    result = configs.read(str(real_config_path("gemma3_27b_good.gguf")))
    assert result.max_length == 131_072
    assert result.main_layer.rope.original_length == 131_072 / 8
    assert result.main_layer.scaling == rw.Linear(factor=8)


@pytest.mark.parametrize("architecture", ["granite", "granitehybrid"])
def test_granite_without_rotary_embedding_is_refused(write_gguf, architecture):
    path = write_gguf({"rope.scaling.finetuned": False}, architecture=architecture)
    with pytest.raises(rw.InputError, match=r"it has no rotary embedding \(rope.scaling.finetuned is false\)$"):
        configs.read(path)
    path = write_gguf({"rope.scaling.finetuned": True}, architecture=architecture)
    assert configs.read(path).ropes["all"].rope == PLAIN


def test_deepseek_4_scales_only_the_layers_with_compressed_keys(write_gguf):
    path = write_gguf({**YARN, "attention.compress_rope_freq_base": 160_000.0}, architecture="deepseek4")
    result = configs.read(path)
    assert result.main_layer_type == "compress"
    compressed = configs.LayerRope(rw.Rope(64, 160_000, 2048), rw.YaRN(4, attention_factor=1.0))
    assert result.ropes == {"compress": compressed, "main": configs.LayerRope(PLAIN, rw.NoScaling())}
