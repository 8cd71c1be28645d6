"""What the doctor says about configurations of published models and bug reports, and about every published model."""

import dataclasses

import pytest
from tests.helpers.real_configs import load_real_config, real_config_names, real_config_path

from ropewalk.config.published import published_models
from ropewalk.errors import InputError
from ropewalk.serving.doctor import ExaminedConfig, examine
from ropewalk.serving.doctor.examined_config import TOKENIZER_CONFIG
from ropewalk.serving.engines import ENGINES


def examine_case(name, target=None, engine=""):
    return examine(ExaminedConfig.from_model(str(real_config_path(name)), target=target, engine=engine))


def find_kinds(name, target=None, engine=""):
    return {finding.kind: finding for finding in examine_case(name, target, engine).findings}


def apply(config, fix):
    """Write the values of a fix, whose fields are in the form of a report."""
    if config.is_gguf:
        return config.with_changes({(field,): value for field, value in fix.items()})
    assert not any(field.startswith(TOKENIZER_CONFIG) for field in fix)
    return config.with_changes({tuple(field.split(".")): value for field, value in fix.items()})


def fix_case(name, kind):
    """Return the configuration after the fix of one finding."""
    config = ExaminedConfig.from_model(str(real_config_path(name)))
    [finding] = [finding for finding in examine(config).findings if finding.kind == kind]
    return apply(config, finding.fix)


def test_qwen35_top_rope_dict_beside_text_config_makes_loading_fail():
    finding = find_kinds("qwen35_top")["rope-beside-text"]
    assert (finding.severity, finding.field) == ("wrong", "rope_scaling")
    assert "fails to load" in finding.means
    fixed = fix_case("qwen35_top", "rope-beside-text")
    assert "rope_scaling" not in fixed.config
    # T: the text part keeps its base, partial rotary factor and sections.
    assert fixed.config["text_config"]["rope_parameters"] == {
        **load_real_config("qwen35_top")["text_config"]["rope_parameters"],
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 262_144,
    }  # fmt: skip


def test_qwen3vl_top_rope_dict_beside_text_config_is_ignored():
    finding = find_kinds("qwen3vl_top")["rope-beside-text"]
    assert (finding.severity, finding.field) == ("wrong", "rope_scaling")
    assert "ignores it" in finding.means
    fixed = fix_case("qwen3vl_top", "rope-beside-text")
    card = load_real_config("qwen3vl_card")["text_config"]
    assert fixed.config["text_config"]["rope_scaling"] == card["rope_scaling"]
    assert fixed.config["text_config"]["max_position_embeddings"] == 1_000_000


@pytest.mark.parametrize(
    ("name", "kind"),
    [("qwen35_top", "rope-beside-text"), ("qwen3vl_top", "rope-beside-text"), ("qwen35_lost", "base-lost")],
)
def test_transformers_computes_the_expected_rotation_after_the_fix(name, kind):
    transformers = pytest.importorskip("transformers")
    fixed = fix_case(name, kind)
    text = transformers.AutoConfig.for_model(**fixed.config).text_config
    layer = fixed.model_config.main_layer
    assert text.rope_parameters["rope_type"] == "yarn"
    assert text.rope_parameters["rope_theta"] == layer.rope.base
    inv_freq, attention_factor = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["yarn"](text, "cpu")
    frequencies = layer.scaling.frequencies(layer.rope)
    assert inv_freq.numpy() == pytest.approx(frequencies.inv_freq, rel=1e-6)
    assert attention_factor == pytest.approx(frequencies.attention_factor)


def test_qwen35_lost_base_is_that_of_the_published_models():
    finding = find_kinds("qwen35_lost")["base-lost"]
    assert finding.severity == "wrong"
    assert finding.fix == {"text_config.rope_parameters.rope_theta": 10_000_000}
    assert finding.cosine < 0.9
    assert not examine(fix_case("qwen35_lost", "base-lost")).is_wrong


def test_kimi_k3_draft_deepseek_yarn_is_no_type_of_transformers():
    finding = find_kinds("kimi_k3_draft", engine="transformers")["type-deepseek-yarn"]
    assert finding.severity == "wrong"
    assert "KeyError" in finding.means
    assert finding.fix == {"rope_parameters.rope_type": "yarn"}
    assert examine(fix_case("kimi_k3_draft", "type-deepseek-yarn")).findings == ()


def test_swift_qwen3_original_length_is_asked():
    finding = find_kinds("swift_qwen3", target=120_000)["original-missing"]
    assert finding.fix == {}
    first, second = finding.alternatives
    assert first.fix["rope_scaling.original_max_position_embeddings"] == 40_960
    assert "40,960 x 3 = 122,880 tokens" in first.means
    assert "target of 120,000 is reached" in first.means
    assert second.fix == {"rope_scaling.original_max_position_embeddings": 13_653}
    assert "not reached" in second.means


def test_qwen3vl_card_is_the_advice_of_the_makers():
    assert not examine_case("qwen3vl_card").is_wrong
    assert not examine_case("qwen3vl_card", engine="vllm").is_wrong
    # Also in a model that has no published name or size.
    config = load_real_config("qwen3vl_card")
    config["text_config"] |= {"num_hidden_layers": 35, "hidden_size": 4000, "num_attention_heads": 25}
    config["text_config"]["rope_scaling"]["factor"] = 2.0
    assert "factor-too-small" not in {finding.kind for finding in examine(ExaminedConfig(config)).findings}
    config["text_config"]["rope_scaling"]["factor"] = 1.5
    [finding] = examine(ExaminedConfig(config)).findings
    assert (finding.kind, finding.fix) == ("factor-too-small", {})
    assert len(finding.alternatives) == 2


def test_qwen25vl_yarn_declared_length_is_that_of_the_makers():
    assert find_kinds("qwen25vl_yarn") == {}
    finding = find_kinds("qwen25vl_yarn", engine="vllm")["engine-reads-otherwise"]
    assert "131072" in finding.means


def test_qwen25_1m_needs_dual_chunk_attention():
    finding = find_kinds("qwen25_1m")["dual-chunk"]
    assert finding.severity == "suspicious"
    assert "past 262,144" in finding.means
    assert [alternative.fix for alternative in finding.alternatives] == [
        {}, {"dual_chunk_attention_config": None, "max_position_embeddings": 262_144}
    ]  # fmt: skip
    assert find_kinds("qwen25_1m", target=131_072) == {}


@pytest.mark.parametrize("target", [None, 65_536])
def test_dyn_8k_is_not_scaled_by_vllm(target):
    assert find_kinds("dyn_8k") == {}
    finding = find_kinds("dyn_8k", target, "vllm")["engine-refuses"]
    assert "8,192" in finding.means
    assert "dynamic" in finding.means


def test_dyn_trained_length_is_read_by_vllm_only():
    finding = find_kinds("dyn_trained")["key-of-one-engine"]
    assert finding.severity == "suspicious"
    assert "only vLLM reads it" in finding.means
    assert finding.fix == {}
    assert [alternative.answer for alternative in finding.alternatives] == ["2,048", "512"]
    finding = find_kinds("dyn_trained", engine="vllm")["engine-refuses"]
    assert "max_trained_positions" in finding.means
    assert "-0.5" not in finding.means


def test_dsv4_window_layers_are_local_layers():
    assert find_kinds("dsv4") == {}


@pytest.mark.parametrize("name", ["step35", "step37"])
def test_lists_with_a_number_for_each_layer_are_legitimate(name):
    assert find_kinds(name) == {}


def test_gemma3_27b_defaults_of_its_class_fill_in():
    report = examine_case("gemma3_27b")
    assert not report.is_wrong
    assert "vllm" not in report.engines
    assert not any("None" in line for line in report.engines.values())


def test_phi4_mini_partial_lost_follows_from_the_length_of_the_lists():
    finding = find_kinds("phi4_mini_partial_lost")["list-length"]
    assert finding.alternatives[0].fix == {"partial_rotary_factor": 0.75}


def test_qwen36_two_rope_dicts_are_merged():
    finding = find_kinds("qwen36_two_rope_dicts")["scaling-twice"]
    text = load_real_config("qwen36_two_rope_dicts")["text_config"]
    merged = {**text["rope_parameters"], **text["rope_scaling"]}
    assert finding.fix == {"text_config.rope_scaling": None, "text_config.rope_parameters": merged}
    assert "loses the base" in finding.means


def test_qwen3_235b_theta_1000_is_too_small_for_its_length():
    finding = find_kinds("qwen3_235b_theta_1000")["base-too-small"]
    assert finding.fix == {}
    assert finding.alternatives


def test_laguna_attention_factor_1_is_as_published():
    assert find_kinds("laguna_attention_factor_1") == {}


def test_qwen3_drope_type_is_asked():
    finding = find_kinds("qwen3_drope")["type-unknown"]
    assert finding.fix == {}
    assert "yarn" in [alternative.answer for alternative in finding.alternatives]


@pytest.mark.parametrize("name", ["granite4_h", "nemotron3_nano", "jamba_mini", "kimi_k3"])
def test_model_without_rotary_embedding_is_refused_in_one_line(name):
    with pytest.raises(InputError) as caught:
        examine_case(name)
    assert "\n" not in str(caught.value)


def is_examined(name):
    """Return whether a configuration has a rotary embedding."""
    try:
        examine_case(name)
    except InputError:
        return False
    return True


CASES = {
    name: ExaminedConfig.from_model(str(real_config_path(name))) for name in real_config_names() if is_examined(name)
}
PUBLISHED = {
    f"{published.model} {index or ''}".strip(): ExaminedConfig(config)
    for published in published_models().values()
    for index, config in enumerate((published.config, *published.configs_for_long_texts))
}


@pytest.mark.parametrize("name", [*CASES, *PUBLISHED])
@pytest.mark.parametrize("target", [None, 1_000_000])
def test_every_offered_change_mends_the_configuration(name, target):
    config = dataclasses.replace({**CASES, **PUBLISHED}[name], target=target)
    report = examine(config)
    assert name in CASES or not report.is_wrong
    wrong = {(finding.kind, finding.field) for finding in report.findings if finding.severity == "wrong"}
    for finding in report.findings:
        assert bool(finding.fix) != bool(finding.question)
        for fix in (finding.fix, *(alternative.fix for alternative in finding.alternatives)):
            if fix:
                changed = examine(apply(config, fix)).findings
                assert (finding.kind, finding.field) not in {(other.kind, other.field) for other in changed}
                assert {(other.kind, other.field) for other in changed if other.severity == "wrong"} <= wrong


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_gives_a_verdict(engine):
    """Each engine examines a third of the cases, each case is examined by a third of the engines."""
    number = list(ENGINES).index(engine)
    for config in list(CASES.values())[number % 3 :: 3]:
        is_loaded = (ENGINES[engine].checkpoint_format == "gguf") == config.is_gguf
        if not is_loaded:
            continue
        for finding in examine(dataclasses.replace(config, engine=engine)).findings:
            assert finding.fix or finding.question
            assert not any(bad in finding.means for bad in ("None,", "nan", "inf ", "Traceback"))
