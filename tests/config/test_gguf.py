"""GGUF files, written here with the gguf package and read back."""

import contextlib
import math

import gguf
import numpy as np
import pytest

import ropewalk as rw
from ropewalk import config as configs

LLAMA = {
    "block_count": 30,
    "context_length": 8192,
    "embedding_length": 576,
    "attention.head_count": 9,
    "attention.head_count_kv": 3,
    "rope.dimension_count": 64,
    "rope.freq_base": 100_000.0,
}
PLAIN = rw.Rope(64, 100_000, 8192)


@pytest.fixture
def written(tmp_path):
    """Writes a GGUF file of these fields and tensors, and gives its path."""

    def write(changes=None, tensors=None, architecture="llama"):
        path = tmp_path / "model.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        for name, value in ({**LLAMA, **(changes or {})}).items():
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            if isinstance(value, list):
                writer.add_array(f"{architecture}.{name}", value)
            elif value is not None:
                add[type(value)](f"{architecture}.{name}", value)
        for name, values in (tensors or {}).items():
            writer.add_tensor(name, np.array(values, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

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


def test_yarn_options(written):
    options = {
        "rope.scaling.yarn_beta_fast": 16.0,
        "rope.scaling.yarn_beta_slow": 2.0,
        "rope.scaling.attn_factor": 0.5,
    }
    found = scaling_of(written({**YARN, **options}))
    assert (found.beta_fast, found.beta_slow) == (16, 2)
    # llama.cpp multiplies its own 0.1 ln s + 1 into the factor that the file gives
    assert found.attention_factor == pytest.approx(0.5 * (1 + 0.1 * math.log(4)), rel=1e-7)


@pytest.mark.parametrize(
    ("architecture", "multiplier", "softmax_factor"),
    # m(4, 1)^2; deepseek2 writes a tenth of mscale_all_dim, other architectures all of it
    [("deepseek2", 0.1, (1 + 0.1 * math.log(4)) ** 2), ("llama", 1.0, (1 + 0.1 * math.log(4)) ** 2)],
)
def test_yarn_with_a_log_multiplier(written, architecture, multiplier, softmax_factor):
    path = written({**YARN, "rope.scaling.yarn_log_multiplier": multiplier}, architecture=architecture)
    found = configs.read(path).ropes["all"]
    frequencies = found.scaling.frequencies(found.rope)
    assert frequencies.attention_factor == pytest.approx(1, rel=1e-7)  # m(4, 1) / m(4, 1)
    assert frequencies.softmax_factor == pytest.approx(softmax_factor, rel=1e-7)


def test_rope_freqs_divide_the_frequencies(written):
    divisors = [1.0] * 16 + [8.0] * 16
    found = configs.read(written(tensors={"rope_freqs.weight": divisors})).ropes["all"]
    assert not found.scaling.dynamic
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
    with pytest.raises(rw.InputError, match="found ") as caught:
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


def test_a_model_without_rope(written):
    message = refused(written({"rope.freq_base": None, "rope.dimension_count": None}, architecture="gpt2"))
    assert "rope fields" in message


def test_a_truncated_file(written, tmp_path):
    whole = written({**YARN}, {"rope_freqs.weight": [1.0] * 32}).read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in range(0, len(whole), 7):
        cut.write_bytes(whole[:size])
        refused(cut)


def test_a_damaged_file_never_fails_otherwise(written, tmp_path):
    whole = written({**YARN}, {"rope_freqs.weight": [1.0] * 32}).read_bytes()
    damaged, rng = tmp_path / "damaged.gguf", np.random.default_rng(0)
    for _ in range(300):
        content = bytearray(whole)
        for place in rng.integers(0, len(content), 3):
            content[place] = rng.integers(0, 256)
        damaged.write_bytes(content)
        with contextlib.suppress(rw.InputError):
            configs.read(damaged)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a GGUF file at all", b"\x00" * 1000])
def test_not_a_gguf(tmp_path, content):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert refused(path).startswith("model: found ")
