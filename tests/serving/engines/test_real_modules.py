"""What is written, in the hands of transformers 5: its configuration classes load it, its rotary modules turn by it.

The modules are built alone, from the `config.json` that export would write: full-sized heads, and no weights.
"""

import contextlib
import importlib
import json
import logging

import numpy as np
import pytest
import torch
from transformers import AutoConfig

import ropewalk as rw
from ropewalk import config as configs
from ropewalk.errors import InputError
from ropewalk.serving.engines import ENGINES, find_engine
from ropewalk.serving.engines.encode import encode, expected_scalings
from ropewalk.serving.engines.trained_config import interpret_as_trained

ENGINE = find_engine("transformers")
TARGET = 32_768
HEADS = {"hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 4, "num_hidden_layers": 6}
ROPE = {"max_position_embeddings": 8192, "rope_theta": 100_000.0}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"] * 3, "sliding_window": 512}
LATENT = {"qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "kv_lora_rank": 512, "q_lora_rank": 1536, "v_head_dim": 128}
LISTS = {"short_factor": [1 + i / 100 for i in range(64)], "long_factor": [1 + i / 7 for i in range(64)]}
V4_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
# As their makers publish them, in the form of version 4 or 5, by model type.
FAMILIES = {
    "llama": {**HEADS, **ROPE},
    "mistral": {**HEADS, **ROPE},
    "mixtral": {**HEADS, **ROPE},  # head_dim is left to the class, which leaves it empty
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
    "llama whole": {**HEADS, **ROPE, "partial_rotary_factor": 0.5},
}  # fmt: skip
METHODS = [
    "none", "linear:factor=4", "ntk:factor=4", "ntk-by-parts:factor=4", "yarn:factor=4", "yarn:factor=4,truncate=false",
    "yarn:factor=4,attention_factor=1.3", "yarn:factor=4,beta_fast=16,original_length=4096",
    "yarn:factor=4,ramp=rotations", "llama3:factor=8", "abf:base=5000000", "critical-base:factor=4", "longrope",
    "dynamic-ntk:factor=2", "proportional:p=0.5",
]  # fmt: skip


_LISTS_ALONE = ("dynamic-ntk:factor=2", "proportional:p=0.5")
_UNSCALED_ALONE = tuple(method for method in METHODS if not method.startswith(("none", "ntk:", "abf", "critical")))
REFUSED = {
    "phi": ("proportional:p=0.5",),
    "phi3": _LISTS_ALONE,
    "phi3 long": _LISTS_ALONE,
    "phimoe": (*_LISTS_ALONE, "longrope"),
    "glm4": ("proportional:p=0.5",),
    "stablelm": ("proportional:p=0.5",),
    "gpt_neox": ("proportional:p=0.5",),
    "deepseek_v3": ("proportional:p=0.5",),
    "mimo_v2_flash": ("proportional:p=0.5",),
    "ernie4_5_vl_moe_text": _UNSCALED_ALONE,
    "llama whole": ("proportional:p=0.5",),
}


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def family(name):
    fields = FAMILIES[name]
    return {"model_type": name.split()[0], **json.loads(json.dumps(fields))}


def loaded(config, folder):
    """The text part of what AutoConfig makes of the file."""
    (folder / "config.json").write_text(json.dumps(config))
    return AutoConfig.from_pretrained(folder).get_text_config(decoder=True)


def rotary_module(config):
    """The architecture's own, built from its configuration object."""
    source = importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    stem = type(config).__name__.removesuffix("Config")
    names = [f"{stem}RotaryEmbedding", f"{stem.removesuffix('Text')}RotaryEmbedding"]
    return next(getattr(source, name) for name in names if hasattr(source, name))(config)


def turned(module, kind, length):
    """inv_freq and attention scaling that the module turns by when the text has `length` tokens."""
    prefix, naming = ("", {}) if kind == configs.ALL_LAYERS else (f"{kind}_", {"layer_type": kind})
    positions = torch.tensor([[0, length - 1]])
    if "VL" in type(module).__name__:  # of multimodal positions there are three rows
        positions = positions.expand(3, 1, 2)
    cos, _ = module(torch.zeros(1), positions, **naming)
    shown = float(cos[..., 0, :].max())  # at position 0 it is the attention scaling
    return getattr(module, f"{prefix}inv_freq").double().numpy(), shown


def scaling_for(method, dim):
    if method != "longrope":
        return rw.parse(method)
    short, long = ([1 + i / part for i in range(dim // 2)] for part in (100, 7))
    return rw.LongRoPE(short, long, factor=4)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_written_is_what_its_own_module_turns_by(name, tmp_path):
    config = family(name)
    model_config = interpret_as_trained(config)
    main, told = model_config.main_layer, []
    for method in METHODS:
        scaling = scaling_for(method, main.rope.dim)
        try:
            candidate = encode(ENGINE, config, model_config, scaling, TARGET)
        except InputError:
            continue
        module = rotary_module(loaded(candidate.config, tmp_path))
        for kind, expected in expected_scalings(model_config, scaling).items():
            want = configs.compute_layer_frequencies(expected, model_config.ropes[kind], TARGET)
            inv_freq, attention_factor = turned(module, kind, TARGET)
            order = slice(None) if name != "ernie4_5_vl_moe_text" else np.argsort(-inv_freq)  # it has them in another
            np.testing.assert_allclose(
                inv_freq[order], want.inv_freq, rtol=2e-6, err_msg=f"{method}, {candidate.encoded_as}"
            )
            assert attention_factor == pytest.approx(want.attention_factor, rel=2e-6), method
        told.append(method)
    assert told == [method for method in METHODS if method not in REFUSED.get(name, ())]


@pytest.mark.parametrize("engine", [name for name, each in ENGINES.items() if getattr(each, "loads", None) == 5])
@pytest.mark.parametrize("name", ["phi3", "phi3 long", "phimoe", "mixtral", "minimax", "hunyuan_v1_dense"])
def test_what_is_written_loads_in_every_engine_on_transformers_5(name, engine, tmp_path):
    config = family(name)
    model_config = interpret_as_trained(config)
    told = []
    for method in METHODS:
        scaling = scaling_for(method, model_config.main_layer.rope.dim)
        with contextlib.suppress(InputError):
            candidate = encode(find_engine(engine), config, model_config, scaling, TARGET)
            loaded(candidate.config, tmp_path)
            told.append(method)
    assert {"none", "linear:factor=4", "ntk-by-parts:factor=4", "yarn:factor=4"} <= set(told)


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
def test_what_a_class_refuses_is_refused_here(name, rope, tmp_path):
    config = {**family(name), "rope_scaling": rope}
    with pytest.raises(Exception):  # noqa: B017, PT011 each class has an error of its own
        loaded(config, tmp_path)
    for engine in ("transformers", "vllm", "sglang", "lmdeploy"):
        with pytest.raises(InputError):
            find_engine(engine).interpret(config, 8192)


def test_truncate_of_nested_rope_dicts_is_cut(tmp_path):
    """A slip of transformers 5.23: it looks for it beside the layer types."""
    whole = {"rope_type": "yarn", "rope_theta": 1e5, "factor": 4.0, "truncate": False}
    local = {"rope_type": "default", "rope_theta": 1e4}
    rope = {"full_attention": whole, "sliding_attention": local}
    config = {**HEADS, **SLIDING, "model_type": "gemma3_text", "head_dim": 256, "rope_parameters": rope}
    config["max_position_embeddings"] = 8192
    inv_freq, _ = turned(rotary_module(loaded(config, tmp_path)), "full_attention", 8192)
    layer = ENGINE.interpret(config, 8192).ropes["full_attention"]
    np.testing.assert_allclose(inv_freq, layer.scaling.frequencies(layer.rope).inv_freq, rtol=2e-6)
    expected = interpret_as_trained(config).ropes["full_attention"]
    assert not np.allclose(inv_freq, expected.scaling.frequencies(expected.rope).inv_freq, rtol=1e-3)


@pytest.mark.parametrize("name", ["llama whole", "glm4", "mistral4"])
def test_the_part_that_turns_unscaled(name, tmp_path):
    """Llama's module passes over partial_rotary_factor until something is scaled; GLM's does not."""
    config = {
        **FAMILIES.get(name, {**HEADS, **ROPE, **LATENT}),
        "model_type": name.split()[0],
        "partial_rotary_factor": 0.5,
    }
    inv_freq, _ = turned(rotary_module(loaded(config, tmp_path)), "all", 8192)
    assert len(inv_freq) == ENGINE.interpret(config, 8192).ropes["all"].rope.dim // 2


def test_esm_turns_by_the_base_beside_the_dict_alone(tmp_path):
    config = {**HEADS, "model_type": "esm", "max_position_embeddings": 1026, "position_embedding_type": "rotary"}
    for fields in ({"rope_theta": 50_000.0}, {"rope_parameters": {"rope_type": "default", "rope_theta": 50_000.0}}):
        inv_freq = rotary_module(loaded({**config, **fields}, tmp_path)).inv_freq.double().numpy()
        layer = ENGINE.interpret({**config, **fields}, 1026).ropes["all"]
        np.testing.assert_allclose(inv_freq, layer.scaling.frequencies(layer.rope).inv_freq, rtol=2e-6)
