"""examine() on published models, for engines, and on input that is not a configuration."""

import contextlib
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

import ropewalk as rw
from ropewalk.config import locate
from ropewalk.config.published import published_models
from ropewalk.scaling import from_rope_dict
from ropewalk.serving.doctor import FAULT_KINDS, ExaminedConfig, examine
from ropewalk.serving.doctor.examination import UNREADABLE
from ropewalk.serving.engines import ENGINES

PUBLISHED = {published.model: published.config for published in published_models().values()}
FOR_LONG_TEXTS = {
    f"{published.model} for long texts{index or ''}": config
    for published in published_models().values()
    for index, config in enumerate(published.configs_for_long_texts)
}
LLAMA = {
    "model_type": "llama", "hidden_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 16,
    "max_position_embeddings": 131_072, "rope_theta": 500_000.0,
}  # fmt: skip
YARN = {**LLAMA, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}}


def with_rope_scaling(config, **changes):
    return {**config, "rope_scaling": {**config["rope_scaling"], **changes}}


@pytest.mark.parametrize("name", [*PUBLISHED, *FOR_LONG_TEXTS])
def test_published_configuration_has_no_finding(name):
    config = {**PUBLISHED, **FOR_LONG_TEXTS}[name]
    assert examine(ExaminedConfig(config)).findings == ()
    assert examine(ExaminedConfig(config, name=name.split(" for long texts")[0])).findings == ()


def test_built_in_model_has_no_finding():
    report = examine(ExaminedConfig.from_model("smollm2"))
    assert (report.findings, report.engines) == ((), {})


def test_cosine_compares_the_actual_with_the_expected_rotation():
    config = with_rope_scaling(YARN, factor=2.0)
    [finding] = examine(ExaminedConfig(config)).findings
    rope = rw.Rope(64, 500_000.0, 32_768)
    actual, expected = (rw.YaRN(factor=factor).frequencies(rope) for factor in (2, 4))
    assert finding.position == 65_536
    assert finding.cosine == pytest.approx(float(actual.cosine_similarity(expected, 65_536)), abs=1e-12)
    assert finding.scores == pytest.approx((actual.attention_factor / expected.attention_factor) ** 2)
    assert -1 < finding.cosine < 0.99
    [at_target] = examine(ExaminedConfig(config, target=8192)).findings
    assert at_target.position == 8192
    assert at_target.cosine > finding.cosine


def test_fault_that_does_not_change_the_rotation_has_no_cosine():
    [finding] = examine(ExaminedConfig({**YARN, "max_position_embeddings": 32_768})).findings
    assert (finding.severity, finding.position, finding.cosine) == ("suspicious", None, None)


def test_wrong_findings_come_first_and_make_the_report_wrong():
    report = examine(ExaminedConfig(with_rope_scaling(YARN, factor=2.0, alpha=3.0)))
    assert [finding.severity for finding in report.findings] == ["wrong", "suspicious"]
    assert report.is_wrong
    assert not examine(ExaminedConfig({**YARN, "max_position_embeddings": 32_768})).is_wrong


def test_model_with_a_published_name_is_compared_with_the_published_configuration():
    phi = PUBLISHED["microsoft/Phi-4-mini-instruct"]
    wrong = with_rope_scaling(phi, short_factor=[1.0] * 64, long_factor=[1.0] * 64)
    first, second = examine(ExaminedConfig(wrong, name="Phi-4-mini-instruct")).findings
    assert (first.kind, second.kind) == ("list-length", "differs-from-published")
    assert first.fix["rope_scaling.long_factor"] == phi["rope_scaling"]["long_factor"]
    unscaled = {**PUBLISHED["meta-llama/Llama-3.1-8B-Instruct"], "rope_scaling": None}
    [finding] = examine(ExaminedConfig(unscaled, name="meta-llama/Llama-3.1-8B-Instruct")).findings
    assert finding.kind == "differs-from-published"
    assert finding.cosine < 0.9
    assert examine(ExaminedConfig(unscaled, name="my-model")).findings == ()


def test_named_engine_that_interprets_the_configuration_differently():
    gpt_oss = PUBLISHED["openai/gpt-oss-20b"]
    [finding] = examine(ExaminedConfig(gpt_oss, engine="mlx-lm")).findings
    assert (finding.kind, finding.severity) == ("engine-reads-otherwise", "wrong")
    assert (finding.field, finding.position) == ("rope_scaling", 65_536)
    rope = rw.Rope(64, 150_000.0, 4096)
    truncated, exact = (rw.YaRN(factor=32, truncate=truncate).frequencies(rope) for truncate in (True, False))
    assert finding.cosine == pytest.approx(float(truncated.cosine_similarity(exact, 65_536)), abs=1e-6)
    assert examine(ExaminedConfig(gpt_oss, engine="transformers")).findings == ()
    engines = examine(ExaminedConfig(gpt_oss)).engines
    assert engines["mlx-lm"].startswith("reads yarn")
    assert "transformers" not in engines


def test_fix_for_an_engine_is_interpreted_as_expected():
    rope_dict = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 32_768}
    transformers5 = {**LLAMA, "rope_parameters": rope_dict}
    del transformers5["rope_theta"]
    config = ExaminedConfig(transformers5, engine="transformers4")  # which reads only the fields of version 4
    [finding] = examine(config).findings
    assert finding.kind == "engine-reads-otherwise"
    assert "base 10000" in finding.means
    fixed = config.with_changes({tuple(field.split(".")): value for field, value in finding.fix.items()})
    assert examine(fixed).findings == ()


def test_engine_that_refuses_the_configuration():
    dynamic = {**LLAMA, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}
    [finding] = examine(ExaminedConfig(dynamic, engine="exllamav3")).findings
    assert (finding.kind, finding.cosine) == ("engine-refuses", None)
    assert finding.field == "rope_type"
    assert "ExLlamaV3" in finding.means
    assert examine(ExaminedConfig(dynamic)).engines["exllamav3"].startswith("refuses it")


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_can_be_named(name):
    is_gguf = ENGINES[name].checkpoint_format == "gguf"
    config = ExaminedConfig.from_model("smollm2") if is_gguf else ExaminedConfig(LLAMA)
    report = examine(ExaminedConfig(config.config, config.divisors, engine=name))
    assert {finding.kind for finding in report.findings} <= {"engine-refuses", "engine-reads-otherwise"}


def test_wrong_calls_are_refused():
    with pytest.raises(rw.InputError, match=r"engine: got 'vllmm'"):
        examine(ExaminedConfig(LLAMA, engine="vllmm"))
    gguf = ExaminedConfig.from_model("smollm2", engine="vllm")
    with pytest.raises(rw.InputError, match=r"a folder with config\.json"):
        examine(gguf)
    with pytest.raises(rw.InputError, match="rope fields"):
        examine(ExaminedConfig({"architectures": ["BertModel"]}))
    deep = {}
    for _ in range(5000):
        deep = {"text_config": deep}
    with pytest.raises(rw.InputError, match="nested"):
        examine(ExaminedConfig(deep))


def test_folder_is_read_with_its_tokenizer(tmp_path):
    (tmp_path / "Qwen3-8B").mkdir()
    file = tmp_path / "Qwen3-8B" / "config.json"
    file.write_text(json.dumps(FOR_LONG_TEXTS["Qwen/Qwen3-8B for long texts"]))
    (file.parent / "tokenizer_config.json").write_text('{"model_max_length": 32768}')
    for model in (file, file.parent):
        config = ExaminedConfig.from_model(str(model))
        assert config.published_model.model == "Qwen/Qwen3-8B"
        assert [finding.kind for finding in examine(config).findings] == ["tokenizer-limit"]
    (file.parent / "tokenizer_config.json").write_text("[")
    with pytest.raises(rw.InputError, match=r"a readable tokenizer_config\.json"):
        ExaminedConfig.from_model(str(file))


ODD_VALUES = [
    None, True, 0, -1, 2, 4.0, 1e308, float("nan"), float("inf"), 10**400, "", "yarn", "4.0", [], {}, [1, "a"], 1e-320,
]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_any_json_gives_a_report_or_an_input_error(seed):
    draw = random.Random(seed)
    configs = [*PUBLISHED.values(), *FOR_LONG_TEXTS.values(), YARN, LLAMA]
    for _ in range(75):
        config = json.loads(json.dumps(draw.choice(configs)))
        for _ in range(draw.randrange(1, 5)):
            dicts = [config, *(value for value in config.values() if isinstance(value, dict))]
            changed = draw.choice(dicts)
            key = draw.choice(
                [*changed, "rope_scaling", "rope_parameters", "factor", "rope_type", "layer_types", "text_config"]
            )
            changed[key] = draw.choice([*ODD_VALUES, {"full_attention": {"rope_type": draw.choice(ODD_VALUES)}}])
        with contextlib.suppress(rw.InputError):
            report = examine(ExaminedConfig(config, tokenizer={"model_max_length": draw.choice(ODD_VALUES)}))
            assert all(finding.means for finding in report.findings)


def _format_fault_kinds() -> str:
    """Return the kinds of fault as a table in Markdown."""
    kinds = sorted(FAULT_KINDS.values(), key=lambda kind: (kind.check.__module__, kind.name))
    rows = [f"| `{kind.name}` | {kind.severity} | {kind.description.rstrip('.')} |" for kind in (*kinds, UNREADABLE)]
    return "\n".join(["| kind | severity | what it finds |", "| --- | --- | --- |", *rows]) + "\n"


def _format_published_models() -> str:
    """Return the published models and their scalings as a table in Markdown."""
    rows = []
    for published in published_models().values():
        long_texts = str(from_rope_dict(published.long["rope_scaling"], strict=False)) if published.long else ""
        own = _shorten_scaling(str(published.model_config.main_layer.scaling))
        rows.append(f"| [{published.model}]({published.source}) | {own} | {_shorten_scaling(long_texts)} |")
    return "\n".join(["| model | published scaling | for long texts |", "| --- | --- | --- |", *rows]) + "\n"


def _shorten_scaling(spec: str) -> str:
    """Return a spec without the original length, and without the numbers of LongRoPE's lists."""
    name, _, options = spec.partition(":")
    if name == "longrope":
        return "longrope, two lists"
    kept = [option for option in options.split(",") if option and not option.startswith("original_length=")]
    return f"{name}:{','.join(kept)}" if kept and name != "llama3" else name


def test_docs_page_has_all_fault_kinds_and_the_published_models():
    page = (Path(__file__).parents[3] / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert _format_fault_kinds() in page
    assert _format_published_models() in page


def test_every_kind_has_a_description_and_belongs_to_a_topic():
    assert all(kind.description for kind in FAULT_KINDS.values())
    assert all(".doctor.checks." in kind.check.__module__ for kind in FAULT_KINDS.values())


def test_examination_does_not_import_torch_or_transformers():
    code = (
        "import sys; from ropewalk.serving.doctor import ExaminedConfig, examine; "
        f"examine(ExaminedConfig.from_model({str(locate('smollm2'))!r})); "
        "sys.exit(bool({'torch', 'transformers', 'gguf'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
