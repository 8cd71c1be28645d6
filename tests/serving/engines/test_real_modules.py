"""Encoded configurations in the real classes of transformers 5: they load, and rotate by the expected frequencies.

Only the rotary module of a model is built, with heads of full size, from the config.json that an export would write.
"""

import contextlib
import copy
import functools
import importlib
import json
import logging
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, PreTrainedConfig

import ropewalk as rw
from ropewalk import config as configs
from ropewalk.config.scaled_fields import expected_scalings
from ropewalk.errors import InputError
from ropewalk.serving.engines import ENGINES, find_engine
from ropewalk.serving.engines.encode import encode
from ropewalk.serving.engines.trained_config import interpret_as_trained

ENGINE = find_engine("transformers")
TARGET = 32_768
HEADS = {"hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 4, "num_hidden_layers": 6}
ROPE = {"max_position_embeddings": 8192, "rope_theta": 100_000.0}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"] * 3, "sliding_window": 512}
LATENT = {"qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "kv_lora_rank": 512, "q_lora_rank": 1536, "v_head_dim": 128}
LISTS = {"short_factor": [1 + i / 100 for i in range(64)], "long_factor": [1 + i / 7 for i in range(64)]}
V4_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
# Configurations as they are published, in the form of transformers 4 or 5. A second word tells variants apart.
FAMILIES = {
    "llama": {**HEADS, **ROPE},
    "mistral": {**HEADS, **ROPE},
    "mixtral": {**HEADS, **ROPE},  # without head_dim, which its class does not fill in
    "ministral": {**HEADS, **ROPE, **SLIDING},
    "minimax": {**HEADS, **ROPE},
    "hunyuan_v1_dense": {**HEADS, **ROPE},
    "qwen2": {**HEADS, **ROPE},
    "qwen3": {**HEADS, **ROPE, "head_dim": 128},
    "qwen3_moe": {**HEADS, **ROPE, "head_dim": 128},
    "gemma2": {**HEADS, **ROPE, "head_dim": 256},
    "gemma3_text": {**HEADS, **ROPE, **SLIDING, "head_dim": 256, "rope_local_base_freq": 10_000.0},
    "phi": {**HEADS, **ROPE, "partial_rotary_factor": 0.5},
    "phi3": {**HEADS, **ROPE, "original_max_position_embeddings": 8192},
    "phi3 long": {
        **HEADS, **ROPE, "max_position_embeddings": 32_768, "original_max_position_embeddings": 4096,
        "rope_scaling": {"type": "longrope", **LISTS},
    },
    "phimoe": {**HEADS, **ROPE},
    "glm4": {**HEADS, **ROPE, "head_dim": 128, "partial_rotary_factor": 0.5},
    "stablelm": {**HEADS, **ROPE, "partial_rotary_factor": 0.25},
    "gpt_neox": {
        "hidden_size": 2048, "num_attention_heads": 16, "num_hidden_layers": 2, "max_position_embeddings": 8192,
        "rotary_pct": 0.25, "rotary_emb_base": 100_000.0,
    },
    "cohere": {**HEADS, **ROPE},
    "granite": {**HEADS, **ROPE},
    "deepseek_v3": {
        **HEADS, **ROPE, **LATENT, "num_key_value_heads": 16,
        "rope_scaling": {**V4_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
    "gpt_oss": {**HEADS, **ROPE, "head_dim": 64, "rope_scaling": {**V4_YARN, "truncate": False}},
    "olmo3": {**HEADS, **ROPE, **SLIDING},
    "mimo_v2_flash": {
        **HEADS, **SLIDING, "head_dim": 192, "max_position_embeddings": 8192, "partial_rotary_factor": 0.334,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 5e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "qwen2_vl": {
        "text_config": {
            **HEADS, **ROPE, "model_type": "qwen2_vl_text",
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        },
    },
    "ernie4_5_vl_moe_text": {**HEADS, **ROPE},
    "llama partial": {**HEADS, **ROPE, "partial_rotary_factor": 0.5},
}  # fmt: skip
LOADED_THROUGH_TRANSFORMERS_5 = [
    name for name, engine in ENGINES.items() if getattr(engine, "transformers_version", None) == 5
]
METHODS = [
    "none", "linear:factor=4", "ntk:factor=4", "ntk-by-parts:factor=4", "yarn:factor=4", "yarn:factor=4,truncate=false",
    "yarn:factor=4,attention_factor=1.3", "yarn:factor=4,beta_fast=16,original_length=4096",
    "yarn:factor=4,ramp=rotations", "llama3:factor=8", "abf:base=5000000", "critical-base:factor=4", "longrope",
    "dynamic-ntk:factor=2", "proportional:p=0.5",
]  # fmt: skip

# The methods that transformers cannot express for a family; it can express all others.
_NOT_AS_LISTS = ("dynamic-ntk:factor=2", "proportional:p=0.5")
_NOT_AS_BASE = tuple(method for method in METHODS if not method.startswith(("none", "ntk:", "abf", "critical")))
REFUSED = {
    "phi": ("proportional:p=0.5",),
    "phi3": _NOT_AS_LISTS,
    "phi3 long": _NOT_AS_LISTS,
    "phimoe": (*_NOT_AS_LISTS, "longrope"),
    "glm4": ("proportional:p=0.5",),
    "stablelm": ("proportional:p=0.5",),
    "gpt_neox": ("proportional:p=0.5",),
    "deepseek_v3": ("proportional:p=0.5",),
    "mimo_v2_flash": ("proportional:p=0.5",),
    "ernie4_5_vl_moe_text": _NOT_AS_BASE,
    "llama partial": ("proportional:p=0.5",),
}


@pytest.fixture(autouse=True)
def _without_log_messages(monkeypatch):
    """Silence transformers, which warns about the rope dicts that these tests write on purpose.

    It also formats every configuration for a message that is not shown, which takes a third of the time to load one.
    """
    monkeypatch.setattr(PreTrainedConfig, "__repr__", object.__repr__)
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def family_config(name):
    return {"model_type": name.split()[0], **copy.deepcopy(FAMILIES[name])}


@functools.cache
def load_json(text):
    """Load the text of a config.json through transformers; the engines often write the same one."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(text)
        return AutoConfig.from_pretrained(folder)


def load_text_config(config):
    """Load a config.json through transformers, and return the configuration of its text decoder."""
    return load_json(json.dumps(config)).get_text_config(decoder=True)


def build_rotary_module(config):
    """Build the rotary module of the architecture from its configuration object."""
    source = importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    stem = type(config).__name__.removesuffix("Config")
    names = [f"{stem}RotaryEmbedding", f"{stem.removesuffix('Text')}RotaryEmbedding"]
    return next(getattr(source, name) for name in names if hasattr(source, name))(config)


def run_rotary_module(module, layer_type, length):
    """Return the inv_freq and the attention scaling that the module uses for a text of `length` tokens."""
    if layer_type == configs.ALL_LAYERS:
        prefix, arguments = "", {}
    else:
        prefix, arguments = f"{layer_type}_", {"layer_type": layer_type}
    positions = torch.tensor([[0, length - 1]])
    if "VL" in type(module).__name__:  # multimodal positions have three rows
        positions = positions.expand(3, 1, 2)
    cos, _ = module(torch.zeros(1), positions, **arguments)
    attention_scaling = float(cos[..., 0, :].max())  # the cosine of position 0 is 1
    return getattr(module, f"{prefix}inv_freq").double().numpy(), attention_scaling


def scaling_for(method, dim):
    if method != "longrope":
        return rw.parse(method)
    pairs = range(dim // 2)
    return rw.LongRoPE([1 + i / 100 for i in pairs], [1 + i / 7 for i in pairs], factor=4)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_rotary_module_has_the_expected_frequencies(name):
    config = family_config(name)
    model_config = interpret_as_trained(config)
    supported = []
    for method in METHODS:
        scaling = scaling_for(method, model_config.main_layer.rope.dim)
        try:
            candidate = encode(ENGINE, config, model_config, scaling, TARGET)
        except InputError:
            continue
        module = build_rotary_module(load_text_config(candidate.config))
        for layer_type, expected in expected_scalings(model_config, scaling).items():
            frequencies = configs.compute_layer_frequencies(expected, model_config.ropes[layer_type], TARGET)
            inv_freq, attention_factor = run_rotary_module(module, layer_type, TARGET)
            if name == "ernie4_5_vl_moe_text":  # its pairs are in another order
                inv_freq = np.sort(inv_freq)[::-1]
            np.testing.assert_allclose(
                inv_freq, frequencies.inv_freq, rtol=2e-6, err_msg=f"{method}, {candidate.encoded_as}"
            )
            assert attention_factor == pytest.approx(frequencies.attention_factor, rel=2e-6), method
        supported.append(method)
    assert supported == [method for method in METHODS if method not in REFUSED.get(name, ())]


@pytest.mark.parametrize("engine", LOADED_THROUGH_TRANSFORMERS_5)
@pytest.mark.parametrize("name", ["phi3", "phi3 long", "phimoe", "mixtral", "minimax", "hunyuan_v1_dense"])
def test_every_encoded_configuration_loads_in_transformers_5(name, engine):
    config = family_config(name)
    model_config = interpret_as_trained(config)
    supported = []
    for method in METHODS:
        scaling = scaling_for(method, model_config.main_layer.rope.dim)
        with contextlib.suppress(InputError):
            candidate = encode(find_engine(engine), config, model_config, scaling, TARGET)
            load_text_config(candidate.config)
            supported.append(method)
    is_unscaled = (name, engine) == ("mixtral", "sglang")  # sglang/srt/models/mixtral.py passes no scaling on
    expected = (
        {"none", "ntk:factor=4"}
        if is_unscaled
        else {"none", "linear:factor=4", "ntk-by-parts:factor=4", "yarn:factor=4"}
    )
    assert expected <= set(supported)


@pytest.mark.parametrize(
    ("name", "rope"),
    [
        ("phi3", {"rope_type": "yarn", "factor": 4.0}),
        ("phi3", {"rope_type": "linear", "factor": 4.0}),
        ("phi3", {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
        ("phimoe", {"rope_type": "linear", "factor": 4.0}),
        ("phimoe", {"rope_type": "longrope", "factor": 4.0, **LISTS}),
        ("mixtral", {"rope_type": "longrope", "factor": 4.0, **LISTS}),
        ("hunyuan_v1_dense", {"rope_type": "longrope", "factor": 4.0, **LISTS}),
    ],
)
def test_a_configuration_that_its_class_refuses_is_refused_for_each_engine(name, rope):
    config = {**family_config(name), "rope_scaling": rope}
    with pytest.raises(Exception):  # noqa: B017, PT011  each class raises another type
        load_text_config(config)
    for engine in LOADED_THROUGH_TRANSFORMERS_5:
        with pytest.raises(InputError):
            find_engine(engine).interpret(config, 8192)


def test_truncate_is_ignored_in_nested_rope_dicts():
    """transformers 5.23 looks for it in the outer dict, next to the layer types."""
    full = {"rope_type": "yarn", "rope_theta": 1e5, "factor": 4.0, "truncate": False}
    sliding = {"rope_type": "default", "rope_theta": 1e4}
    rope = {"full_attention": full, "sliding_attention": sliding}
    config = {**HEADS, **SLIDING, "model_type": "gemma3_text", "head_dim": 256, "rope_parameters": rope}
    config["max_position_embeddings"] = 8192
    inv_freq, _ = run_rotary_module(build_rotary_module(load_text_config(config)), "full_attention", 8192)
    layer = ENGINE.interpret(config, 8192).ropes["full_attention"]
    np.testing.assert_allclose(inv_freq, layer.scaling.frequencies(layer.rope).inv_freq, rtol=2e-6)
    expected = interpret_as_trained(config).ropes["full_attention"]
    assert not np.allclose(inv_freq, expected.scaling.frequencies(expected.rope).inv_freq, rtol=1e-3)


@pytest.mark.parametrize("name", ["llama partial", "glm4", "mistral4"])
def test_partial_rotary_factor_of_an_unscaled_module(name):
    """The module of Llama ignores partial_rotary_factor while it is unscaled; that of GLM does not."""
    config = {
        **FAMILIES.get(name, {**HEADS, **ROPE, **LATENT}),
        "model_type": name.split()[0],
        "partial_rotary_factor": 0.5,
    }
    inv_freq, _ = run_rotary_module(build_rotary_module(load_text_config(config)), "all", 8192)
    assert len(inv_freq) == ENGINE.interpret(config, 8192).ropes["all"].rope.dim // 2


def test_esm_reads_rope_theta_only_outside_the_dict():
    config = {**HEADS, "model_type": "esm", "max_position_embeddings": 1026, "position_embedding_type": "rotary"}
    for fields in ({"rope_theta": 50_000.0}, {"rope_parameters": {"rope_type": "default", "rope_theta": 50_000.0}}):
        inv_freq = build_rotary_module(load_text_config({**config, **fields})).inv_freq.double().numpy()
        layer = ENGINE.interpret({**config, **fields}, 1026).ropes["all"]
        np.testing.assert_allclose(inv_freq, layer.scaling.frequencies(layer.rope).inv_freq, rtol=2e-6)
