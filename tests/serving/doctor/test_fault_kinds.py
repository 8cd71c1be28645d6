"""Every kind of fault: a configuration with only that fault gives that finding, and none after its fix."""

import copy
import json
import math

import pytest

from ropewalk.serving.doctor import FAULT_KINDS, ExaminedConfig, examine
from ropewalk.serving.doctor.examined_config import TOKENIZER_CONFIG

LLAMA = {
    "model_type": "llama", "hidden_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 16,
    "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 131_072, "rope_theta": 500_000.0,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
INCREASING = [1.0 + i / 8 for i in range(32)]
LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0] * 32, "long_factor": INCREASING, "factor": 4.0,
    "original_max_position_embeddings": 32_768,
}  # fmt: skip
LLAMA_LAYERS = {**LLAMA, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 1024}
BY_LAYER = {
    "full_attention": {**YARN, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


def with_scaling(config, rope_scaling, **changes):
    return {**config, "rope_scaling": rope_scaling, **changes}


def without(fields, *keys):
    return {key: value for key, value in fields.items() if key not in keys}


def by_layer(**changes):
    """A configuration with a rope dict for each of two layer types, some of them changed."""
    return {
        **without(LLAMA_LAYERS, "rope_theta"),
        "rope_parameters": {**copy.deepcopy(BY_LAYER), **changes},
    }


def swap(values, i, j):
    values = list(values)
    values[i], values[j] = values[j], values[i]
    return values


PUBLISHED_NAME = "Llama-3.1-8B-Instruct"
PUBLISHED_LLAMA = {
    **LLAMA, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "num_hidden_layers": 32, "rope_scaling": LLAMA3,
}  # fmt: skip

# Faults of a config.json with an exact fix.
CONFIGS = {
    "length-not-whole": with_scaling(LLAMA, None, max_position_embeddings="131072"),
    "factor-too-small": with_scaling(LLAMA, {**YARN, "factor": 2.0}),
    "declared-too-small": with_scaling(LLAMA, YARN, max_position_embeddings=32_768),
    "original-past-declared": with_scaling(LLAMA, YARN, max_position_embeddings=16_384),
    "original-twice": with_scaling(LLAMA, YARN | {"original_max_position_embeddings": 8192})
    | {"original_max_position_embeddings": 32_768},
    "factor-missing": with_scaling(LLAMA, without(YARN, "factor")),
    "factor-below-1": with_scaling(LLAMA, {**YARN, "factor": 0.25}),
    "factor-1": with_scaling(LLAMA, {"type": "linear", "factor": 1.0}),
    "dynamic-original": with_scaling(
        LLAMA, {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 32_768}
    ),
    "length-multiplied": with_scaling(
        LLAMA, {"rope_type": "linear", "factor": 4.0, "original_max_position_embeddings": 32_768}
    ),
    "not-an-object": with_scaling(LLAMA, json.dumps(YARN)),
    "not-a-number": with_scaling(LLAMA, {**YARN, "factor": "4.0"}),
    "type-contradicts": with_scaling(LLAMA, {**YARN, "type": "linear"}),
    "type-unknown": with_scaling(LLAMA, {**YARN, "rope_type": "yarm"}),
    "type-deepseek-yarn": with_scaling(
        LLAMA, {**YARN, "rope_type": "deepseek_yarn"}, model_type="deepseek_v3", qk_rope_head_dim=64
    ),
    "type-su": with_scaling(LLAMA, {**LONGROPE, "rope_type": "su"}),
    "type-missing": with_scaling(LLAMA, without(YARN, "rope_type")),
    "key-misspelled": with_scaling(LLAMA, {**YARN, "beta_fas": 16.0}),
    "key-ignored": with_scaling(LLAMA, {**YARN, "low_freq_factor": 1.0}),
    "base-missing": {**without(LLAMA, "rope_theta"), "model_type": "smollm3"},
    "base-lost": with_scaling(without(LLAMA, "rope_theta"), YARN, model_type="qwen3_5_text"),
    "dim-odd": {**LLAMA, "head_dim": 65},
    "head-dim-broken": {**without(LLAMA, "head_dim"), "hidden_size": 1025},
    "truncate-not-bool": with_scaling(LLAMA, {**YARN, "truncate": "false"}),
    "phi3-yarn": with_scaling(LLAMA, YARN, model_type="phi3"),
    "beta-order": with_scaling(LLAMA, {**YARN, "beta_fast": 1, "beta_slow": 32}),
    "mscale-unread": with_scaling(LLAMA, {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}),
    "attention-factor": with_scaling(LLAMA, {**YARN, "attention_factor": (1 + 0.1 * math.log(4)) ** 2}),
    "llama3-order": with_scaling(LLAMA, {**LLAMA3, "low_freq_factor": 4.0, "high_freq_factor": 1.0}),
    "list-value": with_scaling(LLAMA, {**LONGROPE, "long_factor": [str(x) for x in INCREASING]}),
    "layers-missing": {
        **by_layer(), "rope_parameters": without(BY_LAYER, "sliding_attention"), "rope_local_base_freq": 1e4,
    },
    "layers-unknown": by_layer(slidding_attention={"rope_type": "default", "rope_theta": 1e4}),
    "layers-truncate": by_layer(full_attention={**BY_LAYER["full_attention"], "truncate": False}),
}  # fmt: skip
# Faults whose right values the file does not determine: they ask a question.
QUESTIONS = {
    "original-missing": with_scaling(LLAMA, without(YARN, "original_max_position_embeddings")),
    "window-below-length": with_scaling(LLAMA, YARN, model_type="mistral", sliding_window=4096),
    "scaling-twice": with_scaling(LLAMA, {**YARN, "factor": 8.0}, rope_parameters={**YARN, "rope_theta": 500_000.0}),
    "base-twice": {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "partial-twice": {
        **without(LLAMA, "rope_theta"), "partial_rotary_factor": 0.25,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5},
    },
    "partial-impossible": {**LLAMA, "partial_rotary_factor": 50},
    "proportional-whole": with_scaling(LLAMA, {"rope_type": "proportional"}),
    "beta-impossible": with_scaling(LLAMA, {**YARN, "beta_fast": 30_000}),
    "type-of-plugin": with_scaling(
        LLAMA, {"rope_type": "ropewalk_dynamic_yarn", "original_max_position_embeddings": 131_072, "factors": [1, 2, 4]}
    ),
    "mscale-alone": with_scaling(LLAMA, {**YARN, "mscale": 0.707}, model_type="deepseek_v3", qk_rope_head_dim=64),
    "llama3-incomplete": with_scaling(LLAMA, without(LLAMA3, "high_freq_factor")),
    "list-missing": with_scaling(LLAMA, without(LONGROPE, "short_factor")),
    "list-lengths": with_scaling(LLAMA, {**LONGROPE, "short_factor": [1.0] * 31}),
    "list-below-1": with_scaling(LLAMA, {**LONGROPE, "long_factor": [0.5, *INCREASING[1:]]}),
    "list-falls": with_scaling(LLAMA, {**LONGROPE, "long_factor": swap(INCREASING, 4, 24)}),
    "layers-local-scaled": by_layer(sliding_attention={"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4}),
    "layers-and-flat": by_layer(factor=8.0),
    "per-layer-scaling": {**LLAMA, "ropewalk_scaling": {"all": {"name": "learned", "divisors": [[1.0] * 32] * 2}}},
}  # fmt: skip
TEXT = {**without(LLAMA, "rope_theta"), "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}
CONFIGS |= {
    "rope-beside-text": {
        "model_type": "llava", "text_config": TEXT, "max_position_embeddings": 524_288,
        "rope_scaling": YARN | {"original_max_position_embeddings": 131_072},
    },
    "rope-in-other-part": {
        "model_type": "llava", "text_config": TEXT,
        "vision_config": {"rope_scaling": YARN},
    },
    "field-misspelled": {**LLAMA, "rope_scalling": YARN},
}  # fmt: skip
QUESTIONS |= {
    "option-beside-dict": with_scaling(LLAMA, YARN, beta_fast=16.0),
    "key-of-one-engine": with_scaling(LLAMA, {**YARN, "attn_factor": 1.1}),
    "attention-factor-name": with_scaling(LLAMA, {**YARN, "attention_scaling": 1.1}),
    "dual-chunk": {**LLAMA, "dual_chunk_attention_config": {"original_max_position_embeddings": 32_768}},
}
# Faults that need more than the config.json.
OTHER_CONFIGS = {
    "target-not-reached": ExaminedConfig(LLAMA, target=262_144),
    "tokenizer-limit": ExaminedConfig(LLAMA, tokenizer={"model_max_length": 4096}),
    "tokenizer-not-a-number": ExaminedConfig(LLAMA, tokenizer={"model_max_length": "131072"}),
    "differs-from-published": ExaminedConfig({**PUBLISHED_LLAMA, "rope_theta": 10_000.0}, name=PUBLISHED_NAME),
}
# Faults that only the authors of the model can fix: the faulty and the right configuration.
WITHOUT_FIX = {
    "base-too-small": ({**LLAMA, "rope_theta": 1000.0}, LLAMA),
    "base-impossible": ({**LLAMA, "rope_theta": 0.5}, LLAMA),
    "list-length": (
        with_scaling(LLAMA, {**LONGROPE, "short_factor": [1.0] * 16, "long_factor": INCREASING[:16]}),
        with_scaling(LLAMA, LONGROPE),
    ),
}

FIELDS = {
    "general.architecture": "llama", "llama.block_count": 2, "llama.context_length": 131_072,
    "llama.embedding_length": 1024, "llama.attention.head_count": 16, "llama.attention.head_count_kv": 4,
    "llama.attention.key_length": 64, "llama.rope.dimension_count": 64, "llama.rope.freq_base": 500_000.0,
}  # fmt: skip
GGUF_YARN = {
    "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32_768,
}  # fmt: skip
DIVISORS = {"rope_freqs.weight": tuple(INCREASING)}
LONG_AND_SHORT = {"rope_factors_long.weight": tuple(INCREASING), "rope_factors_short.weight": (1.0,) * 32}


def gguf(changes, divisors=(), **more):
    fields = FIELDS | {f"llama.{name}": value for name, value in changes.items()}
    return ExaminedConfig({key: value for key, value in fields.items() if value is not None}, dict(divisors), **more)


GGUFS = {
    "gguf-type": gguf(
        {"rope.scaling.type": "yarm", **{k: v for k, v in GGUF_YARN.items() if k != "rope.scaling.type"}}
    ),
    "gguf-factor-too-small": gguf({**GGUF_YARN, "rope.scaling.factor": 2.0}),
    "gguf-context-too-small": gguf({**GGUF_YARN, "context_length": 32_768}),
    "gguf-factor-missing": gguf({"rope.scaling.type": "yarn", "rope.scaling.original_context_length": 131_072}),
    "gguf-linear-1": gguf({"rope.scaling.type": "linear", "rope.scaling.factor": 1.0}),
    "gguf-factor-unused": gguf({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}),
    "gguf-attn-factor": gguf({**GGUF_YARN, "rope.scaling.attn_factor": 1 + 0.1 * math.log(4)}),
}
GGUF_QUESTIONS = {
    "gguf-number": gguf({"rope.scaling.attn_factor": -1.0}),
    "gguf-yarn-and-tensor": gguf(GGUF_YARN, DIVISORS),
    "gguf-tensor-missing": gguf({"rope.scaling.type": "longrope"}),
    "gguf-original-missing": gguf({**GGUF_YARN, "rope.scaling.original_context_length": None}),
    "gguf-dim": gguf({"rope.dimension_count": 96}),
}
# Broken tensors: the model must be converted again.
GGUFS_WITHOUT_FIX = {
    "gguf-tensor-length": (gguf({}, {"rope_freqs.weight": (1.0,) * 16}), gguf({}, DIVISORS)),
    "gguf-tensor-value": (gguf({}, {"rope_freqs.weight": (0.0, *INCREASING[1:])}), gguf({}, DIVISORS)),
    "gguf-one-tensor": (
        gguf({"rope.scaling.attn_factor": 1.2}, {"rope_factors_long.weight": tuple(INCREASING)}),
        gguf({"rope.scaling.attn_factor": 1.2}, LONG_AND_SHORT),
    ),
}

WITH_FIX = {**{name: ExaminedConfig(config) for name, config in CONFIGS.items()}, **OTHER_CONFIGS, **GGUFS}
WITH_QUESTION = {**{name: ExaminedConfig(config) for name, config in QUESTIONS.items()}, **GGUF_QUESTIONS}
FAULTY_AND_RIGHT = {
    name: (ExaminedConfig(faulty), ExaminedConfig(right)) for name, (faulty, right) in WITHOUT_FIX.items()
} | GGUFS_WITHOUT_FIX


def found_kinds(config):
    return {finding.kind for finding in examine(config).findings}


def apply(config, fix):
    """Write the values of a fix, whose fields are in the form of a report."""
    if config.is_gguf:
        return config.with_changes({(field,): value for field, value in fix.items()})
    prefix = f"{TOKENIZER_CONFIG}: "
    paths = {
        field: (TOKENIZER_CONFIG, field.removeprefix(prefix)) if field.startswith(prefix) else tuple(field.split("."))
        for field in fix
    }
    return config.with_changes({paths[field]: value for field, value in fix.items()})


def apply_fixes(config):
    """Write the values of all fixes."""
    return apply(config, {field: value for finding in examine(config).findings for field, value in finding.fix.items()})


@pytest.mark.parametrize("name", WITH_FIX)
def test_fault_is_found_and_its_fix_removes_it(name):
    config = WITH_FIX[name]
    before = copy.deepcopy(config.config)
    assert found_kinds(config) == {name}
    assert found_kinds(apply_fixes(config)) == set()
    assert config.config == before


@pytest.mark.parametrize("name", WITH_QUESTION)
def test_fault_that_the_file_does_not_determine_asks_a_question(name):
    config = WITH_QUESTION[name]
    [finding] = examine(config).findings
    assert (finding.kind, finding.fix) == (name, {})
    assert finding.question
    assert any(alternative.fix for alternative in finding.alternatives)
    for alternative in finding.alternatives:
        answered = examine(apply(config, alternative.fix))
        assert not answered.is_wrong
        assert not alternative.fix or name not in {other.kind for other in answered.findings}


@pytest.mark.parametrize("name", FAULTY_AND_RIGHT)
def test_fault_without_a_fix_is_found_and_not_in_the_right_configuration(name):
    faulty, right = FAULTY_AND_RIGHT[name]
    assert found_kinds(faulty) == {name}
    assert found_kinds(right) == set()
    [finding] = examine(faulty).findings
    assert not finding.fix
    assert finding.means
    assert finding.question


def test_every_kind_has_a_test():
    in_test_doctor = {"engine-refuses", "engine-reads-otherwise"}
    assert set(FAULT_KINDS) == set(WITH_FIX) | set(WITH_QUESTION) | set(FAULTY_AND_RIGHT) | in_test_doctor
    assert len(FAULT_KINDS) >= 25


@pytest.mark.parametrize(
    "config",
    [
        LLAMA,
        with_scaling(LLAMA, YARN),
        with_scaling(LLAMA, LLAMA3),
        with_scaling(LLAMA, LONGROPE),
        by_layer(),
    ],
)
def test_right_configuration_has_no_finding(config):
    assert found_kinds(ExaminedConfig(config)) == set()
    assert found_kinds(ExaminedConfig({"model_type": "llava", "text_config": config})) == set()
    assert found_kinds(ExaminedConfig(config, tokenizer={"model_max_length": 10**30})) == set()


@pytest.mark.parametrize("changes", [{}, GGUF_YARN, {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}])
def test_right_gguf_has_no_finding(changes):
    assert found_kinds(gguf(changes)) == set()
    assert found_kinds(gguf({}, DIVISORS)) == set()
    longrope = {"rope.scaling.type": "longrope", "rope.scaling.attn_factor": 1.2}
    assert found_kinds(gguf(longrope, LONG_AND_SHORT)) == set()


def test_fields_of_a_composite_model_have_the_path_of_its_text_part():
    config = ExaminedConfig({"model_type": "llava", "text_config": CONFIGS["factor-too-small"]})
    [finding] = examine(config).findings
    assert finding.field == "text_config.rope_scaling.factor"
    assert finding.fix == {"text_config.rope_scaling.factor": 4.0}
    assert found_kinds(apply_fixes(config)) == set()


def test_target_of_a_gguf_is_reached_by_its_own_metadata():
    config = gguf({}, target=262_144)
    [finding] = examine(config).findings
    assert (finding.kind, finding.field, finding.found) == ("target-not-reached", "llama.context_length", 131_072)
    assert finding.fix["llama.rope.scaling.type"] == "yarn"
    assert finding.fix["llama.rope.scaling.original_context_length"] == 131_072
    assert finding.fix["llama.context_length"] >= 262_144
    assert found_kinds(apply_fixes(config)) == set()


def test_target_of_a_gguf_with_divisors_has_no_fix():
    # llama.cpp would apply the divisors and the metadata; another tensor is needed.
    [finding] = examine(gguf({}, DIVISORS, target=262_144)).findings
    assert (finding.kind, finding.fix) == ("target-not-reached", {})


def test_fix_of_the_tokenizer_names_its_file():
    [finding] = examine(WITH_FIX["tokenizer-limit"]).findings
    assert finding.fix == {f"{TOKENIZER_CONFIG}: model_max_length": 131_072}
