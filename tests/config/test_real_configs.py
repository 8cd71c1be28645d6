"""Real configurations are read to the rotary embeddings that their models have.

Values are those of transformers' rotary module, unless a comment says otherwise.
"""

import copy
import subprocess
import sys

import numpy as np
import pytest
from tests.helpers.real_configs import load_real_config, real_config_path
from tests.helpers.rotary_tables import compute_tables
from transformers import AutoConfig

import ropewalk as rw
from ropewalk import config as configs
from ropewalk.errors import UnsupportedModelError

LLAMA3 = rw.Llama3(factor=2, low_freq_factor=1, high_freq_factor=32)

# Rotary dimensions, base, original length and scaling of each layer type.
EXPECTED = {
    "dsv4": {
        "main": (64, 1e4, 1_048_576, rw.NoScaling()),
        "compress": (64, 1.6e5, 65_536, rw.YaRN(16, attention_factor=1.0)),
    },
    "gemma3_27b": {
        "full_attention": (128, 1e6, 16_384, rw.Linear(8)),
        "sliding_attention": (128, 1e4, 131_072, rw.NoScaling()),
    },
    "gemma4_31b": {
        "full_attention": (512, 1e6, 262_144, rw.Proportional(p=0.25)),
        "sliding_attention": (256, 1e4, 262_144, rw.NoScaling()),
    },
    "llama4s": {"all": (128, 5e5, 8192, rw.Llama3(factor=16, low_freq_factor=1, high_freq_factor=1))},
    "mimo": {
        "full_attention": (64, 5e6, 262_144, rw.NoScaling()),
        "sliding_attention": (64, 1e4, 262_144, rw.NoScaling()),
    },
    "olmo3_7b": {
        "full_attention": (128, 5e5, 8192, rw.YaRN(8, attention_factor=1.2079441541679836)),
        "sliding_attention": (128, 5e5, 65_536, rw.NoScaling()),
    },
    "qwen35_lost": {"all": (64, 1e4, 262_144, rw.YaRN(4))},  # 1e7 is published; the class fills 1e4
    "qwen35_top": {"all": (64, 1e7, 262_144, rw.NoScaling())},  # the rope dict beside text_config is not read
    "qwen36_two_rope_dicts": {"all": (64, 1e4, 262_144, rw.YaRN(4))},  # rope_scaling replaces rope_parameters
    "qwen3_next": {"all": (64, 1e7, 262_144, rw.NoScaling())},
    "step35": {
        "full_attention": (64, 5e6, 131_072, LLAMA3),
        "sliding_attention": (128, 1e4, 262_144, rw.NoScaling()),
    },
    "step37": {
        "full_attention": (64, 5e6, 131_072, LLAMA3),
        "sliding_attention": (128, 1e4, 262_144, rw.NoScaling()),
    },
}
# Layers of each type.
LAYER_TYPES = {
    "dsv4": {"sliding_attention": 2, "compressed_sparse_attention": 21, "heavily_compressed_attention": 20},
    "gemma3_27b": {"sliding_attention": 52, "full_attention": 10},
    "llama4s": {"chunked_attention": 36, "full_attention": 12},
    "mimo": {"full_attention": 9, "sliding_attention": 39},
    "minimax_text_01": {"linear_attention": 70, "full_attention": 10},  # letters of its own code, not in transformers
    "qwen3_next": {"linear_attention": 36, "full_attention": 12},
    "step35": {"full_attention": 12, "sliding_attention": 33},
}
# Configurations that the classes of transformers refuse, or that they do not know.
NOT_IN_TRANSFORMERS = {"qwen35_top", "minimax_text_01"}


def build_with_transformers(name):
    """Return the config object. Its class wants to be told that the lists of Step 3.5 go on with three MTP layers."""
    more = {"num_nextn_predict_layers": 3} if name == "step35" else {}
    return AutoConfig.for_model(**copy.deepcopy(load_real_config(name)), **more)


def describe(layer):
    return layer.rope.dim, layer.rope.base, layer.rope.original_length, layer.scaling


@pytest.mark.parametrize("name", EXPECTED)
def test_ropes_of_each_layer_type(name):
    model_config = configs.read(real_config_path(name))
    assert {layer_type: describe(layer) for layer_type, layer in model_config.ropes.items()} == EXPECTED[name]


@pytest.mark.parametrize("name", LAYER_TYPES)
def test_types_of_the_layers(name):
    layer_types = configs.read(real_config_path(name)).attention.layer_types
    assert {layer_type: layer_types.count(layer_type) for layer_type in layer_types} == LAYER_TYPES[name]


@pytest.mark.parametrize("name", sorted(EXPECTED.keys() - NOT_IN_TRANSFORMERS))
def test_frequencies_equal_those_of_transformers(name):
    tables = compute_tables(build_with_transformers(name).get_text_config(decoder=True))
    ropes = configs.read(real_config_path(name)).ropes
    assert set(ropes) in (set(tables), {"all"})
    for layer_type, (inv_freq, attention_factor) in tables.items():
        layer = ropes[layer_type]
        ours = layer.scaling.frequencies(layer.rope)
        np.testing.assert_allclose(ours.inv_freq, inv_freq, rtol=1e-5)
        assert ours.attention_factor == pytest.approx(attention_factor, rel=1e-6)


@pytest.mark.parametrize("name", sorted(EXPECTED.keys() - NOT_IN_TRANSFORMERS))
def test_dict_file_and_object_are_read_alike(name):
    from_file = configs.read(real_config_path(name))
    assert configs.read(load_real_config(name)) == from_file
    from_object = configs.read(build_with_transformers(name))
    assert (from_object.ropes, from_object.max_length) == (from_file.ropes, from_file.max_length)


def test_dsv4_last_frequency_of_the_compressed_layers():
    layer = configs.read(real_config_path("dsv4")).main_layer
    frequencies = layer.scaling.frequencies(layer.rope)
    assert frequencies.inv_freq[-1] == pytest.approx(5.6805e-7, rel=1e-4)
    assert frequencies.attention_factor == 1.0


def test_gemma3_27b_declares_the_length_of_its_class():
    assert configs.read(real_config_path("gemma3_27b")).max_length == 131_072


@pytest.mark.parametrize("name", ["granite4_h", "jamba_mini", "nemotron3_nano", "kimi_k3"])
def test_model_without_rotary_embedding_is_refused_in_one_line(name):
    with pytest.raises(UnsupportedModelError, match=r"^\w+ is not supported: it has no rotary embedding"):
        configs.read(real_config_path(name))


def test_gemma3_27b_good_gguf_declares_its_length_after_scaling():
    model_config = configs.read(real_config_path("gemma3_27b_good.gguf"))
    assert describe(model_config.main_layer) == (128, 1e6, 16_384, rw.Linear(8))
    assert model_config.max_length == 131_072
    assert describe(model_config.ropes["sliding_attention"]) == (128, 1e4, 131_072, rw.NoScaling())


def test_qwen35moe_gguf_rotates_a_quarter_of_each_head():
    assert describe(configs.read(real_config_path("qwen35moe.gguf")).main_layer) == (64, 1e7, 262_144, rw.NoScaling())


def test_lfm2_gguf():
    assert describe(configs.read(real_config_path("lfm2.gguf")).main_layer) == (64, 1e6, 128_000, rw.NoScaling())


def test_layers_of_one_type_with_two_bases_are_refused():
    raw = load_real_config("step35")
    raw["rope_theta"][1] = 20_000.0
    with pytest.raises(rw.InputError, match=r"^rope_theta: got .* the same for all layers of a type"):
        configs.from_dict(raw)


def test_unknown_number_of_a_pattern_is_refused():
    raw = {**load_real_config("mimo"), "hybrid_layer_pattern": [0, 2]}
    with pytest.raises(rw.InputError, match=r"^hybrid_layer_pattern: got 2; expected 0, 1"):
        configs.from_dict(raw)


def test_reading_does_not_import_transformers():
    names = [str(real_config_path(name)) for name in EXPECTED]
    code = f"import sys, ropewalk.config as c; [c.read(p) for p in {names}]; print('transformers' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
