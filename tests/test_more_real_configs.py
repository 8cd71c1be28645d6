"""Real configurations that a reader gets wrong easily, one test each, named by what the configuration is.

The fields are those of published models, model cards and public bug reports, in tests/real_configs; fields that a
report does not quote were filled in from the known shape of the model. Numbers named T were computed by the
configuration class and the rotary module of transformers 5.23; the others by hand, or measured by the engine that is
named.
"""

import numpy as np
import pytest
from tests.helpers.real_configs import load_real_config, real_config_path
from tests.helpers.rotary_tables import compute_tables
from transformers import AutoConfig

from ropewalk import config as configs
from ropewalk.errors import InputError
from ropewalk.planning import compute_kv_cache_bytes, plan
from ropewalk.serving.doctor import ExaminedConfig, examine

GIB, MIB = 2**30, 2**20


def read(name):
    return configs.read(str(real_config_path(name)))


def frequencies(name, layer_type=None, length=None):
    """Compute the frequencies of a layer type, by default of the one that attends to the whole text."""
    model_config = read(name)
    layer = model_config.ropes[layer_type or model_config.main_layer_type]
    return configs.compute_layer_frequencies(layer.scaling, layer, length)


def kv_cache_bytes(name, length):
    return compute_kv_cache_bytes(read(name).attention, length)


def make_plan(name, target):
    return plan(str(real_config_path(name)), target)


def find_faults(name, engine="", model=""):
    """Return the findings by kind."""
    path = real_config_path(name)
    config = ExaminedConfig(load_real_config(name), name=model, engine=engine) if model else None
    report = examine(config or ExaminedConfig.from_model(str(path), engine=engine))
    return {finding.kind: finding for finding in report.findings}


# --- frequencies and attention factors


@pytest.mark.parametrize(
    "name",
    [
        "command_a", "devstral2_123b", "exaone4_32b", "exaone45_33b", "gemma3_1b", "glm5", "gpt_oss_20b",
        "hunyuan_alpha", "kimi_k2_5", "laguna_attention_factor_1", "lfm2_yarn_2x", "llama31_dynamic_override",
        "llama4_maverick", "llama_saved_by_transformers_5", "olmo31_32b", "qwen15_yarn_window_off", "qwen2vl_yarn_card",
        "qwen36_27b", "qwen36_two_rope_dicts", "qwen3_235b_theta_1000", "qwen3_next_1m_card", "qwen3_omni",
        "smollm3_yarn_card",
    ],
)  # fmt: skip
def test_frequencies_equal_those_of_the_rotary_module_of_transformers(name):
    fields = load_real_config(name)
    tables = compute_tables(AutoConfig.for_model(fields.pop("model_type"), **fields).get_text_config())
    assert set(tables) == set(read(name).ropes)
    for layer_type, (inv_freq, attention_factor) in tables.items():
        found = frequencies(name, layer_type)
        np.testing.assert_allclose(found.inv_freq, inv_freq, rtol=1e-6)
        assert found.attention_factor == pytest.approx(attention_factor, rel=1e-12)


def test_qwen3_next_with_the_yarn_of_its_card():
    found = frequencies("qwen3_next_1m_card")
    assert found.inv_freq[-1] == pytest.approx(4.1370427e-08, rel=1e-6)  # T
    assert found.attention_factor == pytest.approx(1.138629436111989)  # T
    assert find_faults("qwen3_next_1m_card") == {}
    assert not make_plan("qwen3_next_1m_card", 1_000_000).needed


def test_qwen1_5_with_yarn_and_a_window_that_is_switched_off():
    found = frequencies("qwen15_yarn_window_off")
    assert found.inv_freq[-1] == pytest.approx(3.1023444e-07, rel=1e-6)  # T
    assert found.attention_factor == pytest.approx(1.138629436111989)  # T
    assert kv_cache_bytes("qwen15_yarn_window_off", 131_072) == 64 * GIB  # all of 32 layers, 32 heads of 128
    findings = find_faults("qwen15_yarn_window_off")
    assert set(findings) == {"declared-too-small"}  # 32,768 although the scaling is made for 131,072
    assert findings["declared-too-small"].fix == {"max_position_embeddings": 131_072}


def test_hunyuan_with_a_base_that_alpha_changes():
    found = frequencies("hunyuan_alpha")
    assert found.inv_freq[1] == pytest.approx(0.7760343551635742, rel=1e-6)  # T
    assert found.inv_freq[-1] == pytest.approx(1.154782e-07, rel=1e-6)  # T: 1 / (10,000 x 1000^(128/126))^(126/128)


def test_plan_for_hunyuan_grows_alpha():
    result = make_plan("hunyuan_alpha", 524_288)
    config = {**load_real_config("hunyuan_alpha"), "rope_scaling": None, "rope_parameters": result.rope_parameters}
    layer = configs.from_dict(config).main_layer
    inv_freq = configs.compute_layer_frequencies(layer.scaling, layer, None).inv_freq
    assert result.scaling.alpha == 2500  # 1,000 x 2 x 1.25
    assert inv_freq[-1] == pytest.approx(1.154782e-07 / 2.5, rel=1e-6)


def test_devstral_with_an_mscale_all_dim_of_zero():
    found = frequencies("devstral2_123b")
    assert found.inv_freq[-1] == pytest.approx(1.93896526e-08, rel=1e-6)  # T
    assert found.attention_factor == pytest.approx(1.4158883083359672)  # T; also m(64, 1) / m(64, 0) of DeepSeek
    assert find_faults("devstral2_123b") == {}


def test_laguna_switches_the_attention_factor_off():
    full, sliding = (
        frequencies("laguna_attention_factor_1", layer) for layer in ("full_attention", "sliding_attention")
    )
    assert (len(full.inv_freq), len(sliding.inv_freq)) == (32, 64)
    assert full.inv_freq[-1] == pytest.approx(4.70915325e-08, rel=1e-6)  # T
    assert sliding.inv_freq[-1] == pytest.approx(1.15478193e-04, rel=1e-6)  # T
    assert (full.attention_factor, sliding.attention_factor) == (1.0, 1.0)  # T
    # YarnRoPE of MLX-LM 0.32.2 always computes 0.1 ln 64 + 1 = 1.41589; the scores double.
    finding = find_faults("laguna_attention_factor_1", "mlx-lm")["engine-reads-otherwise"]
    assert finding.scores == pytest.approx(1.4158883083359672**2)
    # 10 of 40 layers keep the whole text, the others 512 tokens; 8 heads of 128.
    assert kv_cache_bytes("laguna_attention_factor_1", 262_144) == (10 * 262_144 + 30 * 512) * 2 * 8 * 128 * 2


def test_plan_for_laguna_keeps_an_attention_factor_that_is_not_that_of_the_method():
    result = make_plan("laguna_attention_factor_1", 524_288)
    assert result.scaling.factor > 64
    assert result.rope_parameters["full_attention"]["attention_factor"] == 1.0
    assert result.rope_parameters["sliding_attention"]["rope_theta"] == 10_000


def test_plan_for_olmo_3_1_computes_a_new_attention_factor():
    result = make_plan("olmo31_32b", 262_144)
    assert result.scaling.factor == 40  # 8 x 4 x 1.25
    full = result.rope_parameters["full_attention"]
    assert full.get("attention_factor", 1.3688879454113936) == pytest.approx(1.3688879454113936)  # 0.1 ln 40 + 1
    assert frequencies("olmo31_32b").attention_factor == pytest.approx(1.2079441541679836)


def test_kimi_k2_5_as_json_and_as_gguf():
    for name in ("kimi_k2_5", "kimi_k2_5.gguf"):
        found = frequencies(name)
        assert found.inv_freq[-1] == pytest.approx(4.38220643e-07, rel=1e-6)  # T
        assert found.attention_factor == pytest.approx(1)  # T
        assert found.softmax_factor == pytest.approx(1.4158883083359672**2, rel=1e-6)  # (0.1 ln 64 + 1)^2
        assert read(name).main_layer.rope.original_length == 4096  # as llama.cpp logs it: n_ctx_orig_yarn
        assert not make_plan(name, 262_144).needed
        assert kv_cache_bytes(name, 262_144) == 61 * (512 + 64) * 2 * 262_144  # latent attention


def test_ling_mini_2_rotates_half_of_each_head():
    found = frequencies("ling_mini_2")
    assert len(found.inv_freq) == 32
    assert found.inv_freq[-1] == pytest.approx(600_000 ** (-62 / 64))
    assert find_faults("ling_mini_2") == {}


def test_falcon_h1_with_a_base_of_a_hundred_billion():
    assert frequencies("falcon_h1_7b").inv_freq[-1] == pytest.approx(1e11 ** (-126 / 128))
    assert kv_cache_bytes("falcon_h1_7b", 262_144) == 11 * GIB  # each of 44 layers has attention beside mamba
    assert find_faults("falcon_h1_7b") == {}


def test_qwen3_omni_nests_its_text_part_twice_and_names_the_type_twice():
    assert frequencies("qwen3_omni").inv_freq[-1] == pytest.approx(1.24093776e-06, rel=1e-6)  # T
    assert find_faults("qwen3_omni") == {}
    assert kv_cache_bytes("qwen3_omni", 65_536) == 6 * GIB  # 48 layers, 4 heads of 128


def test_smollm3_with_the_yarn_of_its_card():
    found = frequencies("smollm3_yarn_card")
    assert found.inv_freq[-1] == pytest.approx(1.27253983e-07, rel=1e-6)  # T
    assert found.attention_factor == pytest.approx(1.0693147180559945)  # T
    assert find_faults("smollm3_yarn_card") == {}


def test_qwen2_vl_with_the_yarn_of_its_card():
    found = frequencies("qwen2vl_yarn_card")
    assert found.inv_freq[-1] == pytest.approx(3.1023444e-07, rel=1e-6)  # T
    # vLLM 0.32 makes the table, and with it the original length, 4 times as long (MRotaryEmbedding, positions_factor).
    finding = find_faults("qwen2vl_yarn_card", "vllm")["engine-reads-otherwise"]
    assert "original_length=131072" in finding.means
    assert finding.cosine < 0.7


# --- no rotary embedding, or one that never sees a long distance


@pytest.mark.parametrize("name", ["nemotron3_nano", "kimi_k3", "jamba_mini"])
def test_models_without_rotary_embedding_are_refused(name):
    # Nemotron 3 has rope_theta and partial_rotary_factor, which its attention does not use (NemotronHAttention of T);
    # Kimi K3 has qk_rope_head_dim, with mla_use_nope; Jamba has no field of a rotary embedding.
    with pytest.raises(InputError):
        make_plan(name, 524_288)


@pytest.mark.parametrize("name", ["exaone4_32b", "exaone45_33b", "command_a", "llama4_maverick"])
def test_no_scaling_for_models_whose_rotary_layers_see_only_a_window(name):
    # T: the layers that attend to the whole text have no rotary embedding (modeling_exaone4, _cohere2, _llama4), and
    # the others attend to 4,096 or 8,192 tokens, so that no angle is new in a longer text.
    try:
        result = make_plan(name, 2 * read(name).max_length)
    except InputError:
        return
    assert not result.needed
    assert result.rope_parameters is None


# --- memory of the KV cache


@pytest.mark.parametrize(
    ("name", "length", "expected"),
    [
        ("gpt_oss_20b", 8192, 12 * (8192 + 128) * 2048),  # hf-mem: 6.09 GiB for 32 texts
        ("qwen36_27b", 262_144, 16_384 * MIB),  # log of llama.cpp: 262144 cells, 16 layers
        ("gemma3_1b", 32_768, 139 * MIB),  # mlxcel: 22 layers capped at 512, 4 global
        ("qwen3_next_80b.gguf", 262_144, 6 * GIB),  # 12 of 48 layers, which the file does not say
        ("yarn_mistral_7b_64k.gguf", 65_536, 8 * GIB),  # 32 layers, 8 heads of 128
        ("qwen3_next_1m_card", 1_010_000, 12 * 2 * 2 * 256 * 2 * 1_010_000),  # 12 of 48 layers, 2 heads of 256
        ("minimax_text_01", 262_144, 10 * GIB),  # attn_type_list: 10 of 80 layers have softmax attention
        ("llama4_maverick", 262_144, (12 * 262_144 + 36 * 8192) * 4096),  # 36 chunked layers
        ("glm5", 131_072, 78 * (512 + 64 + 128) * 2 * 131_072),  # T caches latents and the keys of the indexer
        ("exaone4_32b", 131_072, (16 * 131_072 + 48 * 4096) * 4096),
        ("command_a", 131_072, (16 * 131_072 + 48 * 4096) * 4096),
        ("lfm2_yarn_2x", 131_072, 6 * 131_072 * 2048),  # 10 of 16 layers are convolutions
    ],
)
def test_memory_of_the_kv_cache(name, length, expected):
    assert kv_cache_bytes(name, length) == expected


def test_a_yarn_gguf_declares_the_extended_length():
    assert not make_plan("yarn_mistral_7b_64k.gguf", 65_536).needed
    assert frequencies("yarn_mistral_7b_64k.gguf").attention_factor == pytest.approx(1.2079441541679836)
    assert read("yarn_mistral_7b_64k.gguf").main_layer.rope.original_length == 8192  # llama.cpp: n_yarn_orig_ctx


# --- what the doctor must say


def test_two_rope_dicts_of_which_the_scaled_one_has_lost_the_base():
    assert frequencies("qwen36_two_rope_dicts").inv_freq[-1] == pytest.approx(7.9498393e-05, rel=1e-6)  # T: base 10,000
    finding = find_faults("qwen36_two_rope_dicts")["scaling-twice"]
    assert finding.severity == "wrong"
    assert finding.fix or finding.alternatives


def test_a_documented_override_with_a_thousandth_of_the_base():
    assert frequencies("qwen3_235b_theta_1000").inv_freq[-1] == pytest.approx(7.0889247e-04, rel=1e-6)  # T
    findings = find_faults("qwen3_235b_theta_1000").values()
    assert any(finding.field.endswith("rope_theta") for finding in findings)


def test_a_type_that_no_library_knows():
    finding = find_faults("qwen3_drope")["type-unknown"]  # T: KeyError
    assert (finding.severity, finding.fix) == ("wrong", {})
    with pytest.raises(InputError, match="drope"):
        read("qwen3_drope")


def test_lists_that_do_not_fit_once_the_partial_factor_is_lost():
    finding = find_faults("phi4_mini_partial_lost")["list-length"]  # transformers: must have length 64, got 48
    assert finding.severity == "wrong"


@pytest.mark.parametrize("engine", ["transformers4", "mlx-lm"])
def test_a_checkpoint_saved_by_transformers_5_in_engines_that_read_version_4(engine):
    finding = find_faults("llama_saved_by_transformers_5", engine)["engine-reads-otherwise"]
    assert finding.fix["rope_theta"] == 500_000
    assert finding.fix["rope_scaling"]["factor"] == 8
    assert frequencies("llama_saved_by_transformers_5").inv_freq[-1] == pytest.approx(3.7673226e-07, rel=1e-6)  # T


def test_llama_3_1_with_a_dynamic_override():
    for engine in ("vllm", "sglang"):  # vLLM scales nothing; SGLang has one base for all lengths
        findings = find_faults("llama31_dynamic_override", engine)
        assert {"engine-refuses", "engine-reads-otherwise"} & set(findings)
    findings = find_faults("llama31_dynamic_override", model="meta-llama/Llama-3.1-8B-Instruct")
    assert "differs-from-published" in findings  # its llama3 is gone


def test_internlm2_with_dynamic():
    # vLLM's table ends at 32,768 tokens, up to which nothing is scaled; SGLang has the base of 65,536 for all lengths.
    assert find_faults("internlm2_dynamic", "vllm")["engine-refuses"].severity == "wrong"
    assert find_faults("internlm2_dynamic", "sglang")["engine-reads-otherwise"].severity == "wrong"


def test_lfm2_with_yarn_in_mlx_lm():
    found = frequencies("lfm2_yarn_2x")
    assert found.inv_freq[-1] == pytest.approx(7.6996326e-07, rel=1e-6)  # T
    assert find_faults("lfm2_yarn_2x") == {}
    finding = find_faults("lfm2_yarn_2x", "mlx-lm")["engine-reads-otherwise"]
    assert finding.severity == "wrong"


@pytest.mark.parametrize(
    "name",
    ["gpt_oss_20b", "qwen36_27b", "gemma3_1b", "glm5", "exaone4_32b", "kimi_k2_5", "olmo31_32b", "llama4_maverick"],
)
def test_published_configurations_have_no_finding(name):
    assert find_faults(name) == {}
