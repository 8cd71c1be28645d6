"""Every scaling of transformers against its own functions: read from its configs, and written back into them."""

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import ropewalk as rw
from ropewalk import config as configs

CASES = 80  # random configurations of each kind below, 800 in total
CLOSE = 1e-5  # relative; transformers works in float32


def reference_frequencies(config, length=None):
    """Return the frequencies and the attention factor that transformers computes for a text of that length."""
    rope_type = config.rope_parameters["rope_type"]
    if rope_type == "default":
        # Llama's function ignores partial_rotary_factor; that of GPT-NeoX reads it and is the same otherwise.
        is_full = config.rope_parameters.get("partial_rotary_factor", 1.0) == 1.0
        rotary = LlamaRotaryEmbedding if is_full else GPTNeoXRotaryEmbedding
        inv_freq, factor = rotary.compute_default_rope_parameters(config)
    else:
        inv_freq, factor = ROPE_INIT_FUNCTIONS[rope_type](config, seq_len=length)
    return inv_freq.double().numpy(), factor


def random_subset(rng, choices):
    """Return each item with probability 1/2."""
    return {name: value for name, value in choices.items() if rng.random() < 0.5}


def yarn(rng, pairs, length):
    return {
        "rope_type": "yarn",
        "factor": rng.uniform(1, 40),
        "original_max_position_embeddings": length,
        **random_subset(
            rng, {"beta_fast": rng.uniform(8, 64), "beta_slow": rng.uniform(0.2, 4), "truncate": rng.random() < 0.3}
        ),
    }


def longrope(rng, pairs, length):
    lists = {f"{which}_factor": rng.uniform(1, 60, pairs).tolist() for which in ("short", "long")}
    stated = random_subset(rng, {"attention_factor": rng.uniform(0.5, 2), "factor": rng.uniform(1, 40)})
    return {"rope_type": "longrope", **lists, "original_max_position_embeddings": length, **stated}


KINDS = {
    "default": lambda rng, pairs, length: {"rope_type": "default"},
    "linear": lambda rng, pairs, length: {"rope_type": "linear", "factor": rng.uniform(1, 40)},
    "dynamic": lambda rng, pairs, length: {"rope_type": "dynamic", "factor": rng.uniform(1, 40)},
    "proportional": lambda rng, pairs, length: {
        "rope_type": "proportional",
        "partial_rotary_factor": rng.uniform(0, 1),
        **random_subset(rng, {"factor": rng.uniform(1, 40)}),
    },
    "yarn": yarn,
    "yarn, attention factor": lambda *given: {
        **yarn(*given),
        "attention_factor": given[0].uniform(0.5, 2),
        **random_subset(given[0], {"mscale": 1.0, "mscale_all_dim": 0.5}),
    },
    "yarn, mscale": lambda *given: {
        **yarn(*given),
        **random_subset(given[0], {"mscale": given[0].uniform(0.1, 2), "mscale_all_dim": given[0].uniform(0.1, 2)}),
    },
    "llama3": lambda rng, pairs, length: {
        "rope_type": "llama3",
        "factor": rng.uniform(1, 40),
        "low_freq_factor": (low := rng.uniform(0.5, 4)),
        "high_freq_factor": low * rng.uniform(2, 8),
        "original_max_position_embeddings": length,
    },
    "longrope": longrope,
    "yarn, factor left out": lambda *given: {**yarn(*given), "factor": None},
}


def llama(head_dim, max_length, rope_parameters):
    return LlamaConfig(
        hidden_size=head_dim * 2,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=max_length,
        rope_parameters=dict(rope_parameters),
    )


def random_config(kind, rng):
    head_dim = int(rng.choice([16, 32, 64, 80, 96, 128, 192, 256]))
    partial = 1.0 if kind == "proportional" else float(rng.choice([0.25, 0.5, 0.75, 1.0]))
    length = int(2 ** rng.uniform(9, 17))
    rope_parameters = {"rope_theta": 10 ** rng.uniform(3, 8)}
    if partial != 1:
        rope_parameters["partial_rotary_factor"] = partial
    rope_parameters |= KINDS[kind](rng, int(head_dim * partial) // 2, length)
    stated = "original_max_position_embeddings" in rope_parameters
    return llama(head_dim, length * 4 if stated else length, rope_parameters), length


@pytest.mark.parametrize("kind", KINDS)
def test_frequencies_agree_after_reading_and_after_writing_back(kind):
    rng = np.random.default_rng(list(KINDS).index(kind))
    for case in range(CASES):
        config, original = random_config(kind, rng)
        layer = configs.read(config).ropes["all"]
        assert layer.rope.original_length == original
        written = configs.build_rope_parameters(layer.scaling, layer.rope, config.rope_parameters)
        again = llama(config.head_dim, config.max_position_embeddings, written)
        lengths = (original - 1, original, original + 1, 3 * original + 5)
        for length in lengths if layer.scaling.is_dynamic else (original,):
            inv_freq, factor = reference_frequencies(config, length)
            ours = layer.scaling.frequencies(layer.rope, length)
            message = f"case {case}, length {length}: {config.rope_parameters}"
            np.testing.assert_allclose(ours.inv_freq, inv_freq, rtol=CLOSE, atol=0, err_msg=message)
            assert ours.attention_factor == pytest.approx(factor, rel=CLOSE), message
            inv_freq_again, factor_again = reference_frequencies(again, length)
            np.testing.assert_allclose(inv_freq_again, inv_freq, rtol=CLOSE, atol=0, err_msg=message)
            assert factor_again == pytest.approx(factor, rel=CLOSE), message
        assert configs.read(again).ropes["all"].rope == layer.rope, written


# Static methods without a type in transformers.
UNNAMED = {
    "ntk": lambda s: rw.NTK(factor=s),
    "ntk fixed": lambda s: rw.NTK(factor=s, variant="fixed"),
    "ntk mixed": lambda s: rw.NTK(factor=s, variant="mixed"),
    "dynamic-ntk alpha": lambda s: rw.DynamicNTK(alpha=s),
    "ntk-by-parts": lambda s: rw.NTKByParts(factor=s),
    "ntk-by-parts rotations": lambda s: rw.NTKByParts(factor=s, ramp="rotations"),
    "yarn rotations": lambda s: rw.YaRN(factor=s, ramp="rotations"),
    "yarn rotations, attention factor": lambda s: rw.YaRN(factor=s, ramp="rotations", attention_factor=0.9),
    "mrrope-uni": lambda s: rw.MrRoPEUni(factor=s),
    "mrrope-pro": lambda s: rw.MrRoPEPro(factor=s),
    "abf": lambda s: rw.ABF(base=s * 1e6),
    "critical-base": lambda s: rw.CriticalBase(factor=s),
}
DYNAMIC = {
    "dynamic-ntk": lambda s: rw.DynamicNTK(factor=s),
    "dynamic-yarn": lambda s: rw.DynamicYaRN(),
    "dynamic-ntk-by-parts": lambda s: rw.DynamicNTKByParts(),
    "critical-base": lambda s: rw.CriticalBase(),
    "power-ntk": lambda s: rw.PowerNTK(gamma=0.5),
    "log-ntk": lambda s: rw.LogNTK(factor=s),
}


def random_rope(rng):
    dim = 2 * int(rng.integers(4, 128))
    return rw.Rope(dim, 10 ** rng.uniform(3, 8), int(2 ** rng.uniform(9, 17)))


def assert_longrope_dict_is_exact(scaling, rope, length, text_lengths):
    written = configs.build_rope_parameters(scaling, rope, length=length)
    assert written["rope_type"] == "longrope"
    wanted = scaling.frequencies(rope, length)
    for text_length in text_lengths:
        inv_freq, factor = reference_frequencies(llama(rope.dim, rope.original_length * 8, written), text_length)
        np.testing.assert_allclose(inv_freq, wanted.inv_freq, rtol=CLOSE, atol=0)
        assert factor == pytest.approx(wanted.attention_factor, rel=CLOSE)


@pytest.mark.parametrize("name", UNNAMED)
def test_static_scaling_without_a_type_is_written_as_longrope(name):
    rng = np.random.default_rng(7)
    for _ in range(10):
        rope, factor = random_rope(rng), rng.uniform(1.5, 32)
        # The frequencies must be the same for every text length.
        assert_longrope_dict_is_exact(UNNAMED[name](factor), rope, None, (None, 1, rope.original_length + 1))


@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic_scaling_fixed_at_a_length_is_written_as_longrope(name):
    rng = np.random.default_rng(8)
    for _ in range(10):
        rope, factor = random_rope(rng), rng.uniform(1.5, 32)
        length = int(rope.original_length * rng.uniform(0.5, 9))
        assert_longrope_dict_is_exact(DYNAMIC[name](factor), rope, length, (None, 1, length))


def test_longrope_fixed_past_the_original_length_keeps_the_long_list():
    rope = rw.Rope(8, 10_000, 1024)
    scaling = rw.LongRoPE(short_factor=[1, 1, 1, 1], long_factor=[1, 2, 3, 4], factor=4)
    assert_longrope_dict_is_exact(scaling, rope, 4096, (None, 1, 4096))


@pytest.mark.parametrize(
    "scaling",
    [
        rw.DynamicYaRN(),  # follows the text, which no type of transformers does
        rw.DynamicNTKByParts(),
        rw.CriticalBase(),
        rw.PowerNTK(),
        rw.LogNTK(),
        rw.YaRN(factor=40, mscale=1, mscale_all_dim=1, ramp="rotations"),  # longrope has no softmax factor
    ],
    ids=str,
)
def test_scaling_that_transformers_cannot_express_gives_none(scaling):
    assert configs.build_rope_parameters(scaling, rw.Rope(64, 10_000, 4096)) is None
