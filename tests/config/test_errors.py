"""Configurations that cannot be read raise an InputError with one line, never another exception."""

import contextlib
import copy
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ropewalk as rw
from ropewalk.config import read, unloadable_model_error

LLAMA = {
    "model_type": "llama",
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 4,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rope_theta": 10_000.0,
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
}
LINEAR = {"rope_type": "linear", "factor": 2.0}
GPT_2 = {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024}


def error_message(source):
    with pytest.raises(rw.InputError) as caught:
        read(source)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("change", "beginning"),
    [
        ({"head_dim": 63}, "dim: got 63"),
        ({"head_dim": "64"}, "head_dim: got '64'"),
        ({"head_dim": -64}, "head_dim: got -64"),
        ({"head_dim": 64.0}, "head_dim: got 64.0"),
        ({"head_dim": True}, "head_dim: got True"),
        ({"head_dim": None, "hidden_size": None}, "head_dim: got None"),
        ({"num_attention_heads": "8"}, "num_attention_heads: got '8'"),
        ({"num_hidden_layers": [4]}, "num_hidden_layers: got [4]"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers: got 1000000000000"),
        ({"num_key_value_heads": "4"}, "num_key_value_heads: got '4'"),
        ({"sliding_window": "4096"}, "sliding_window: got '4096'"),
        ({"kv_lora_rank": "512"}, "kv_lora_rank: got '512'"),
        ({"qk_rope_head_dim": 63}, "dim: got 63"),
        ({"qk_rope_head_dim": "64"}, "qk_rope_head_dim: got '64'"),
        ({"layer_types": 4}, "layer_types: got 4"),
        ({"layer_types": [1, 2]}, "layer_types: got [1, 2]"),
        ({"partial_rotary_factor": 0.49}, "dim: got 31"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor: got 1.5"),
        ({"partial_rotary_factor": -0.5}, "partial_rotary_factor: got -0.5"),
        ({"partial_rotary_factor": "0.5"}, "partial_rotary_factor: got '0.5'"),
        ({"partial_rotary_factor": math.nan}, "partial_rotary_factor: got nan"),
        ({"partial_rotary_factor": math.inf}, "partial_rotary_factor: got inf"),
        ({"rope_theta": "10000"}, "base: got '10000'"),
        ({"rope_theta": 1}, "base: got 1"),
        ({"rope_theta": -1.0}, "base: got -1.0"),
        ({"max_position_embeddings": "8192"}, "max_position_embeddings: got '8192'"),
        ({"max_position_embeddings": -1}, "max_position_embeddings: got -1"),
        ({"max_position_embeddings": 8192.5}, "max_position_embeddings: got 8192.5"),
        ({"original_max_position_embeddings": "2048"}, "original_max_position_embeddings: got '2048'"),
        ({"original_max_position_embeddings": True}, "original_max_position_embeddings: got True"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types: got '3 names'; expected 4, one for each layer"),
        ({"rope_scaling": "yarn"}, "rope_scaling: got 'yarn'"),
        ({"rope_scaling": [4.0]}, "rope_scaling: got [4.0]"),
        ({"rope_scaling": {"rope_type": "axial"}}, "scaling: got 'axial'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "linear: factor: got None"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "linear: factor: got '2'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "linear: factor: got 0.5"),
        ({"rope_scaling": {"rope_type": "linear", "factor": True}}, "linear: factor: got True"),
        ({"rope_scaling": {**LINEAR, "original_max_position_embeddings": [1]}}, "original_max_position_embeddings: "),
        # contradictory values
        (
            {"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 16_384}},
            "yarn: factor: got 0.5",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 32}}, "yarn: beta_fast: "),
        (
            {"rope_scaling": {"rope_type": "llama3", "low_freq_factor": 4, "high_freq_factor": 1}},
            "llama3: high_freq_factor: got 1",
        ),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1], "long_factor": [1, 2]}},
            "longrope: short_factor and long_factor: ",
        ),
    ],
    ids=str,
)
def test_invalid_and_contradictory_values_are_named(change, beginning):
    assert error_message({**LLAMA, **change}).startswith(beginning)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (GPT_2, "rope fields"),
        ({}, "rope fields"),
        ({"model_type": "t5"}, "rope fields"),
        ({"text_config": GPT_2}, "rope fields"),
        (4, "a model, a configuration"),
        (None, "a model, a configuration"),
        pytest.param(object(), "a model, a configuration", id="object"),
        ("./no/such/folder", "exists"),
        ("/no/such/config.json", "exists"),
        ("no-such-model.gguf", "exists"),
    ],
    ids=str,
)
def test_source_without_a_rotary_embedding_is_refused(source, expected):
    message = error_message(source)
    assert message.startswith("model: got ")
    assert expected in message


def test_missing_original_length_raises_only_when_it_is_needed():
    bare = {key: value for key, value in LLAMA.items() if key not in ("model_type", "max_position_embeddings")}
    layer = read({**bare, "rope_scaling": {"type": "yarn", "factor": 4.0}}).ropes["all"]
    assert layer.rope.original_length is None
    with pytest.raises(
        rw.InputError, match=r"^original_length: got None; expected the tokens the model was trained on"
    ):
        layer.scaling.frequencies(layer.rope)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"rope_theta": 1e4', '{"rope_theta": ' + "9" * 5000 + "}", '{"a":' * 100_000, "\x00"],
    ids=lambda text: text[:20],
)
def test_malformed_config_json_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert error_message(tmp_path).startswith("model: got ")


def test_config_json_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00{")
    assert error_message(tmp_path).startswith("model: got ")


def test_folder_without_config_json_is_reported_as_the_user_gave_it(tmp_path):
    message = error_message(tmp_path)
    assert message.startswith(f"model: got '{tmp_path}'; expected a folder with a readable config.json")


def test_file_that_is_not_json_is_reported_as_the_user_gave_it(tmp_path):
    path = tmp_path / "my.json"
    path.write_text("{")
    assert error_message(path).startswith(f"model: got '{path}'; expected a readable my.json")


VALID = [
    LLAMA,
    {**LLAMA, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
    {**LLAMA, "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32}},
    {**LLAMA, "model_type": "gemma3_text", "rope_local_base_freq": 1e4, "rope_scaling": LINEAR},
    {**LLAMA, "model_type": "deepseek_v3", "kv_lora_rank": 512, "qk_rope_head_dim": 64},
    {
        **LLAMA,
        "rope_parameters": {"full_attention": LINEAR, "sliding_attention": {"rope_type": "default"}},
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "sliding_window": 512,
        "per_layer_config": {"0": {"head_dim": 128}},
    },
    {**LLAMA, "partial_rotary_factor": 0.5, "rope_parameters": {"rope_type": "proportional"}},
]
NAMES = sorted(
    {name for base in VALID for name in base}
    | {name for base in VALID for name in base.get("rope_scaling", {})}
    | {"rotary_pct", "rotary_dim", "text_config", "use_sliding_window", "sliding_window_pattern", "global_head_dim"}
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 10_000),
    st.sampled_from([10**400, -(10**400), 2**63, 0.0, -0.0, 1e308, -1.0]),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["yarn", "linear", "dynamic", "longrope", "llama3", "proportional", "default", "mrope", "su"]),
    st.lists(st.none() | st.floats() | st.text(max_size=3), max_size=3),
    st.dictionaries(st.sampled_from(NAMES), st.none() | st.floats() | st.integers() | st.text(max_size=3), max_size=3),
)
CHANGES = st.lists(st.tuples(st.sampled_from(NAMES), VALUES, st.booleans()), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None)
@given(base=st.sampled_from(VALID), changes=CHANGES)
def test_corrupted_configuration_is_read_or_raises_input_error(base, changes):
    config = copy.deepcopy(base)
    for name, value, in_rope_dict in changes:
        rope_dict = config.get("rope_parameters") or config.get("rope_scaling")
        target = rope_dict if in_rope_dict and isinstance(rope_dict, dict) else config
        target[name] = value
    with contextlib.suppress(rw.InputError):
        found = read(config)
        for layer in found.ropes.values():
            layer.scaling.frequencies(layer.rope, 10_000)
        planned = rw.plan(found, 1_000_000)
        json.dumps(planned.to_dict())


def test_a_misspelled_built_in_model_gets_a_suggestion():
    error = unloadable_model_error("smolm2", OSError("not found"))
    expected = "model: got 'smolm2'; expected a hub id or folder that transformers can load (not found)"
    assert str(error) == f"{expected} (did you mean smollm2?)"


@pytest.mark.parametrize(
    ("change", "beginning"),
    [
        ({"position_embedding_type": "nope"}, "llama is not supported: it has no rotary embedding"),
        ({"position_embedding_type": ["nope"], "head_dim": 63}, "dim: got 63"),
        ({"yarn_only_types": 1, "local_rope_theta": 1e4}, "yarn_only_types: got 1"),
        ({"hybrid_layer_pattern": [0, [1]]}, "hybrid_layer_pattern: got [1]"),
        ({"rope_theta": [1e4, 1e4]}, "rope_theta: got [10000.0, 10000.0]"),
    ],
    ids=str,
)
def test_fields_of_single_architectures_are_named(change, beginning):
    plain = {key: value for key, value in LLAMA.items() if key != "rope_scaling"}
    assert error_of({**plain, **change}).startswith(beginning)


def error_of(source):
    with pytest.raises(rw.InputError) as caught:
        read(source)
    return str(caught.value)
