"""Every kind of fault: a configuration with just that fault yields that finding, and repaired it yields none."""

import copy
import math

import pytest

from ropewalk.serving.doctor import KINDS, Subject, examine
from ropewalk.serving.doctor.base import TOKENIZER

LLAMA = {
    "model_type": "llama", "hidden_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 16,
    "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 131_072, "rope_theta": 500_000.0,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
GROWING = [1.0 + i / 8 for i in range(32)]
LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0] * 32, "long_factor": GROWING, "factor": 4.0,
    "original_max_position_embeddings": 32_768,
}  # fmt: skip
LAYERS = {**LLAMA, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 1024}
NESTED = {
    "full_attention": {**YARN, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


def written(config, rope, **changes):
    return {**config, "rope_scaling": rope, **changes}


def without(rope, *keys):
    return {key: value for key, value in rope.items() if key not in keys}


def nested(**changes):
    """Two layer types without rope_theta beside them, some dicts changed."""
    return {**without(LAYERS, "rope_theta"), "rope_parameters": {**copy.deepcopy(NESTED), **changes}}


def swapped(values, i, j):
    values = list(values)
    values[i], values[j] = values[j], values[i]
    return values


MODEL = {"name": "Llama-3.1-8B-Instruct"}
PUBLISHED = {
    **LLAMA, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "num_hidden_layers": 32, "rope_scaling": LLAMA3,
}  # fmt: skip

# Faults of a config.json that have an exact fix.
CONFIGS = {
    "length-not-whole": written(LLAMA, None, max_position_embeddings="131072"),
    "factor-too-small": written(LLAMA, {**YARN, "factor": 2.0}),
    "declared-too-small": written(LLAMA, YARN, max_position_embeddings=32_768),
    "original-missing": written(LLAMA, without(YARN, "original_max_position_embeddings")),
    "original-past-declared": written(LLAMA, YARN, max_position_embeddings=16_384),
    "original-twice": written(LLAMA, YARN | {"original_max_position_embeddings": 8192})
    | {"original_max_position_embeddings": 32_768},
    "factor-missing": written(LLAMA, without(YARN, "factor")),
    "factor-below-1": written(LLAMA, {**YARN, "factor": 0.25}),
    "factor-1": written(LLAMA, {"type": "linear", "factor": 1.0}),
    "dynamic-original": written(
        LLAMA, {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 32_768}
    ),
    "length-multiplied": written(
        LLAMA, {"rope_type": "linear", "factor": 4.0, "original_max_position_embeddings": 32_768}
    ),
    "window-below-length": written(LLAMA, YARN, model_type="mistral", sliding_window=4096),
    "not-an-object": written(LLAMA, '{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}'),
    "not-a-number": written(LLAMA, {**YARN, "factor": "4.0"}),
    "type-contradicts": written(LLAMA, {**YARN, "type": "linear"}),
    "type-unknown": written(LLAMA, {**YARN, "rope_type": "yarm"}),
    "type-su": written(LLAMA, {**LONGROPE, "rope_type": "su"}),
    "type-missing": written(LLAMA, without(YARN, "rope_type")),
    "key-misspelled": written(LLAMA, {**YARN, "beta_fas": 16.0}),
    "key-ignored": written(LLAMA, {**YARN, "low_freq_factor": 1.0}),
    "scaling-twice": written(LLAMA, {**YARN, "factor": 8.0}) | {"rope_parameters": {**YARN, "rope_theta": 500_000.0}},
    "base-twice": {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "base-missing": {**without(LLAMA, "rope_theta"), "model_type": "smollm3"},
    "partial-twice": {
        **without(LLAMA, "rope_theta"), "partial_rotary_factor": 0.25,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5},
    },
    "partial-impossible": {**LLAMA, "partial_rotary_factor": 50},
    "proportional-whole": written(LLAMA, {"rope_type": "proportional"}),
    "dim-odd": {**LLAMA, "head_dim": 65},
    "head-dim-broken": {**without(LLAMA, "head_dim"), "hidden_size": 1025},
    "truncate-not-bool": written(LLAMA, {**YARN, "truncate": "false"}),
    "phi3-yarn": written(LLAMA, YARN, model_type="phi3"),
    "beta-order": written(LLAMA, {**YARN, "beta_fast": 1, "beta_slow": 32}),
    "beta-impossible": written(LLAMA, {**YARN, "beta_fast": 30_000}),
    "mscale-alone": written(LLAMA, {**YARN, "mscale": 1.0}, model_type="deepseek_v3", qk_rope_head_dim=64),
    "mscale-unread": written(LLAMA, {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}),
    "attention-factor": written(LLAMA, {**YARN, "attention_factor": (1 + 0.1 * math.log(4)) ** 2}),
    "llama3-order": written(LLAMA, {**LLAMA3, "low_freq_factor": 4.0, "high_freq_factor": 1.0}),
    "llama3-incomplete": written(LLAMA, without(LLAMA3, "high_freq_factor")),
    "list-missing": written(LLAMA, without(LONGROPE, "short_factor")),
    "list-value": written(LLAMA, {**LONGROPE, "long_factor": [str(x) for x in GROWING]}),
    "list-lengths": written(LLAMA, {**LONGROPE, "short_factor": [1.0] * 31}),
    "list-below-1": written(LLAMA, {**LONGROPE, "long_factor": [0.5, *GROWING[1:]]}),
    "list-falls": written(LLAMA, {**LONGROPE, "long_factor": swapped(GROWING, 4, 24)}),
    "layers-missing": {
        **nested(), "rope_parameters": without(NESTED, "sliding_attention"), "rope_local_base_freq": 1e4,
    },
    "layers-unknown": nested(slidding_attention={"rope_type": "default", "rope_theta": 1e4}),
    "layers-local-scaled": nested(sliding_attention={"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4}),
    "layers-and-flat": nested(factor=8.0),
    "layers-truncate": nested(full_attention={**NESTED["full_attention"], "truncate": False}),
}  # fmt: skip
# Those that need more than the config.json: the whole subject.
SUBJECTS = {
    "target-not-reached": Subject(LLAMA, target=262_144),
    "tokenizer-limit": Subject(LLAMA, tokenizer={"model_max_length": 4096}),
    "tokenizer-not-a-number": Subject(LLAMA, tokenizer={"model_max_length": "131072"}),
    "differs-from-published": Subject({**PUBLISHED, "rope_theta": 10_000.0}, **MODEL),
}
# Those that only the model's makers can repair: the configuration as it should have been.
BY_HAND = {
    "base-impossible": ({**LLAMA, "rope_theta": 0.5}, LLAMA),
    "list-length": (
        written(LLAMA, {**LONGROPE, "short_factor": [1.0] * 16, "long_factor": GROWING[:16]}),
        written(LLAMA, LONGROPE),
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
DIVISORS = {"rope_freqs.weight": tuple(GROWING)}
LONG_AND_SHORT = {"rope_factors_long.weight": tuple(GROWING), "rope_factors_short.weight": (1.0,) * 32}


def gguf(changes, divisors=(), **more):
    fields = FIELDS | {f"llama.{name}": value for name, value in changes.items()}
    return Subject({key: value for key, value in fields.items() if value is not None}, dict(divisors), **more)


GGUFS = {
    "gguf-type": gguf({"rope.scaling.type": "ntk"}),
    "gguf-number": gguf({"rope.scaling.attn_factor": -1.0}),
    "gguf-yarn-and-tensor": gguf(GGUF_YARN, DIVISORS),
    "gguf-tensor-missing": gguf({"rope.scaling.type": "longrope"}),
    "gguf-factor-too-small": gguf({**GGUF_YARN, "rope.scaling.factor": 2.0}),
    "gguf-context-too-small": gguf({**GGUF_YARN, "context_length": 32_768}),
    "gguf-original-missing": gguf({**GGUF_YARN, "rope.scaling.original_context_length": None}),
    "gguf-factor-missing": gguf({"rope.scaling.type": "yarn", "rope.scaling.original_context_length": 131_072}),
    "gguf-linear-1": gguf({"rope.scaling.type": "linear", "rope.scaling.factor": 1.0}),
    "gguf-factor-unused": gguf({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}),
    "gguf-attn-factor": gguf({**GGUF_YARN, "rope.scaling.attn_factor": 1 + 0.1 * math.log(4)}),
    "gguf-dim": gguf({"rope.dimension_count": 96}),
}
# Broken tensors: the model must be converted again.
GGUFS_BY_HAND = {
    "gguf-tensor-length": (gguf({}, {"rope_freqs.weight": (1.0,) * 16}), gguf({}, DIVISORS)),
    "gguf-tensor-value": (gguf({}, {"rope_freqs.weight": (0.0, *GROWING[1:])}), gguf({}, DIVISORS)),
    "gguf-one-tensor": (
        gguf({"rope.scaling.attn_factor": 1.2}, {"rope_factors_long.weight": tuple(GROWING)}),
        gguf({"rope.scaling.attn_factor": 1.2}, LONG_AND_SHORT),
    ),
}
ENGINES = {
    "engine-refuses": Subject(
        written(LLAMA, {"rope_type": "linear", "factor": 4.0}), engine="transformers", target=1024
    ),
    "engine-reads-otherwise": Subject(written(LLAMA, YARN), engine="vllm"),
}

FAULTS = {**{name: Subject(config) for name, config in CONFIGS.items()}, **SUBJECTS, **GGUFS}
HEALED = {name: (Subject(bad), Subject(good)) for name, (bad, good) in BY_HAND.items()} | GGUFS_BY_HAND


def kinds(subject):
    return {each.kind for each in examine(subject).findings}


def repaired(subject):
    """With the exact values written that the findings name."""
    return subject.with_(
        {path: v for each in KINDS.values() for f in each.faults(subject) for path, v in f.fix.items()}
    )


@pytest.mark.parametrize("name", FAULTS)
def test_that_fault_is_found_and_its_fix_heals(name):
    subject = FAULTS[name]
    before = copy.deepcopy(subject.config)
    assert kinds(subject) == {name}
    assert kinds(repaired(subject)) == set()
    assert subject.config == before


@pytest.mark.parametrize("name", HEALED)
def test_that_fault_is_found_and_not_in_the_right_configuration(name):
    bad, good = HEALED[name]
    assert kinds(bad) == {name}
    assert kinds(good) == set()
    [finding] = examine(bad).findings
    assert not finding.fix
    assert finding.means


def test_every_kind_has_a_test():
    elsewhere = {"engine-refuses", "engine-reads-otherwise"}
    assert set(KINDS) == set(FAULTS) | set(HEALED) | elsewhere
    assert len(KINDS) >= 25


@pytest.mark.parametrize(
    "config", [LLAMA, written(LLAMA, YARN), written(LLAMA, LLAMA3), written(LLAMA, LONGROPE), nested()]
)
def test_a_sound_configuration_yields_nothing(config):
    assert kinds(Subject(config)) == set()
    assert kinds(Subject({"model_type": "llava", "text_config": config})) == set()
    assert kinds(Subject(config, tokenizer={"model_max_length": 10**30})) == set()


@pytest.mark.parametrize("changes", [{}, GGUF_YARN, {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}])
def test_a_sound_gguf_yields_nothing(changes):
    assert kinds(gguf(changes)) == set()
    assert kinds(gguf({}, DIVISORS)) == set()
    assert kinds(gguf({"rope.scaling.type": "longrope", "rope.scaling.attn_factor": 1.2}, LONG_AND_SHORT)) == set()


def test_faults_of_a_composite_model_are_named_and_healed_where_they_stand():
    subject = Subject({"model_type": "llava", "text_config": CONFIGS["factor-too-small"]})
    [finding] = examine(subject).findings
    assert finding.field == "text_config.rope_scaling.factor"
    assert finding.fix == {"text_config.rope_scaling.factor": 4.0}
    assert kinds(repaired(subject)) == set()


def test_the_target_of_a_gguf_is_reached_in_its_own_fields():
    subject = gguf({}, target=262_144)
    [finding] = examine(subject).findings
    assert (finding.kind, finding.field, finding.found) == ("target-not-reached", "llama.context_length", 131_072)
    assert finding.fix["llama.rope.scaling.type"] == "yarn"
    assert finding.fix["llama.rope.scaling.original_context_length"] == 131_072
    assert finding.fix["llama.context_length"] >= 262_144
    assert kinds(repaired(subject)) == set()
    [finding] = examine(gguf({}, DIVISORS, target=262_144)).findings
    assert (finding.kind, finding.fix) == ("target-not-reached", {})  # both would act: it takes another tensor


@pytest.mark.parametrize("name", [TOKENIZER])
def test_a_fix_of_the_tokenizer_names_its_file(name):
    [finding] = examine(FAULTS["tokenizer-limit"]).findings
    assert finding.fix == {f"{name}: model_max_length": 131_072}
