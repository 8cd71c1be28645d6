"""What the doctor says of whole models, of engines, and of what is no configuration at all."""

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
from ropewalk.serving.doctor import KINDS, Subject, catalogue, examine, load
from ropewalk.serving.engines import ENGINES

PUBLISHED = {each.model: each.config for each in published_models().values()}
LONGER = {f"{each.model} longer": each.longer for each in published_models().values() if each.longer}
LLAMA = {
    "model_type": "llama", "hidden_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 16,
    "max_position_embeddings": 131_072, "rope_theta": 500_000.0,
}  # fmt: skip
YARN = {**LLAMA, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}}


@pytest.mark.parametrize("name", [*PUBLISHED, *LONGER])
def test_it_finds_nothing_in_what_makers_publish(name):
    config = {**PUBLISHED, **LONGER}[name]
    assert examine(Subject(config)).findings == ()
    assert examine(Subject(config, name=name.removesuffix(" longer"))).findings == ()


def test_it_finds_nothing_in_the_built_in_model():
    report = examine(load("smollm2"))
    assert (report.findings, report.engines) == ((), {})


def test_the_cosine_is_that_of_the_rotation_as_it_stands_and_as_it_is_meant():
    wrong = {**YARN, "rope_scaling": {**YARN["rope_scaling"], "factor": 2.0}}
    [finding] = examine(Subject(wrong)).findings
    rope = rw.Rope(64, 500_000.0, 32_768)
    stands, expected = (rw.YaRN(factor=factor).frequencies(rope) for factor in (2, 4))
    assert finding.position == 65_536
    assert finding.cosine == pytest.approx(float(stands.cosine(expected, 65_536)), abs=1e-12)
    assert finding.scores == pytest.approx((stands.attention_factor / expected.attention_factor) ** 2)
    assert -1 < finding.cosine < 0.99
    [nearer] = examine(Subject(wrong, target=8192)).findings
    assert nearer.position == 8192
    assert nearer.cosine > finding.cosine


def test_a_fault_that_leaves_the_rotation_has_no_cosine():
    [finding] = examine(Subject({**YARN, "max_position_embeddings": 32_768})).findings
    assert (finding.severity, finding.position, finding.cosine) == ("suspicious", None, None)


def test_what_is_wrong_comes_first_and_decides():
    both = {**YARN, "rope_scaling": {**YARN["rope_scaling"], "factor": 2.0, "alpha": 3.0}}
    report = examine(Subject(both))
    assert [each.severity for each in report.findings] == ["wrong", "suspicious"]
    assert report.wrong
    assert not examine(Subject({**YARN, "max_position_embeddings": 32_768})).wrong


def test_a_known_model_by_its_name_is_held_against_what_its_makers_publish():
    lists = PUBLISHED["microsoft/Phi-4-mini-instruct"]
    wrong = {**lists, "rope_scaling": {**lists["rope_scaling"], "short_factor": [1.0] * 64, "long_factor": [1.0] * 64}}
    finding, other = examine(Subject(wrong, name="Phi-4-mini-instruct")).findings
    assert (finding.kind, other.kind) == ("list-length", "differs-from-published")
    assert finding.fix["rope_scaling.long_factor"] == lists["rope_scaling"]["long_factor"]
    unscaled = {**PUBLISHED["meta-llama/Llama-3.1-8B-Instruct"], "rope_scaling": None}
    [finding] = examine(Subject(unscaled, name="meta-llama/Llama-3.1-8B-Instruct")).findings
    assert finding.kind == "differs-from-published"
    assert finding.cosine < 0.9
    assert examine(Subject(unscaled, name="my-model")).findings == ()


def test_a_named_engine_that_reads_it_otherwise():
    gpt_oss = PUBLISHED["openai/gpt-oss-20b"]
    [finding] = examine(Subject(gpt_oss, engine="mlx-lm")).findings
    assert (finding.kind, finding.severity) == ("engine-reads-otherwise", "wrong")
    assert (finding.field, finding.position) == ("rope_scaling", 65_536)
    rope = rw.Rope(64, 150_000.0, 4096)
    cut, whole = (rw.YaRN(factor=32, truncate=truncate).frequencies(rope) for truncate in (True, False))
    assert finding.cosine == pytest.approx(float(cut.cosine(whole, 65_536)), abs=1e-6)
    assert examine(Subject(gpt_oss, engine="transformers")).findings == ()
    brief = examine(Subject(gpt_oss)).engines
    assert brief["mlx-lm"].startswith("reads yarn")
    assert "transformers" not in brief


def test_what_to_write_for_an_engine_is_what_it_then_reads_as_meant():
    rope = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 32_768}
    newer = {**LLAMA, "rope_parameters": rope}
    del newer["rope_theta"]
    subject = Subject(newer, engine="transformers4")
    [finding] = examine(subject).findings
    assert finding.kind == "engine-reads-otherwise"  # it reads the fields of version 4 alone
    assert "base 10000" in finding.means
    healed = subject.with_({tuple(field.split(".")): value for field, value in finding.fix.items()})
    assert examine(healed).findings == ()


def test_an_engine_that_refuses():
    dynamic = {**LLAMA, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}
    [finding] = examine(Subject(dynamic, engine="exllamav3")).findings
    assert (finding.kind, finding.cosine) == ("engine-refuses", None)
    assert "ExLlamaV3" in finding.means
    assert examine(Subject(dynamic)).engines["exllamav3"].startswith("refuses it")


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_can_be_asked(name):
    subject = load("smollm2") if ENGINES[name].takes == "gguf" else Subject(LLAMA)
    report = examine(Subject(subject.config, subject.divisors, engine=name))
    assert {each.kind for each in report.findings} <= {"engine-refuses", "engine-reads-otherwise"}


def test_calls_that_are_wrong():
    with pytest.raises(rw.InputError, match=r"engine: got 'vllmm'"):
        examine(Subject(LLAMA, engine="vllmm"))
    with pytest.raises(rw.InputError, match=r"a folder with config\.json"):
        examine(Subject(load("smollm2").config, load("smollm2").divisors, engine="vllm"))
    with pytest.raises(rw.InputError, match="rope fields"):
        examine(Subject({"architectures": ["BertModel"]}))
    deep = {}
    for _ in range(5000):
        deep = {"text_config": deep}
    with pytest.raises(rw.InputError, match="nested"):
        examine(Subject(deep))


def test_a_folder_is_read_with_its_tokenizer(tmp_path):
    (tmp_path / "Qwen3-8B").mkdir()
    file = tmp_path / "Qwen3-8B" / "config.json"
    file.write_text(json.dumps(LONGER["Qwen/Qwen3-8B longer"]))
    (file.parent / "tokenizer_config.json").write_text('{"model_max_length": 32768}')
    for model in (file, file.parent):
        subject = load(str(model))
        assert subject.published.model == "Qwen/Qwen3-8B"
        assert [each.kind for each in examine(subject).findings] == ["tokenizer-limit"]
    (file.parent / "tokenizer_config.json").write_text("[")
    with pytest.raises(rw.InputError, match=r"a readable tokenizer_config\.json"):
        load(str(file))


VALUES = [
    None,
    True,
    0,
    -1,
    2,
    4.0,
    1e308,
    float("nan"),
    float("inf"),
    10**400,
    "",
    "yarn",
    "4.0",
    [],
    {},
    [1, "a"],
    1e-320,
]


@pytest.mark.parametrize("seed", range(4))
def test_any_json_gives_a_verdict_or_one_line(seed):
    draw = random.Random(seed)
    configs = [*PUBLISHED.values(), *LONGER.values(), YARN, LLAMA]
    for _ in range(150):
        config = json.loads(json.dumps(draw.choice(configs)))
        for _ in range(draw.randrange(1, 5)):
            places = [config, *(value for value in config.values() if isinstance(value, dict))]
            place = draw.choice(places)
            key = draw.choice(
                [*place, "rope_scaling", "rope_parameters", "factor", "rope_type", "layer_types", "text_config"]
            )
            place[key] = draw.choice([*VALUES, {"full_attention": {"rope_type": draw.choice(VALUES)}}])
        with contextlib.suppress(rw.InputError):  # which is one line by its nature
            report = examine(Subject(config, tokenizer={"model_max_length": draw.choice(VALUES)}))
            assert all(each.means for each in report.findings)


def test_the_catalogue_is_that_of_the_checks():
    page = Path(__file__).parents[3] / "docs" / "doctor.md"
    assert catalogue() in page.read_text(encoding="utf-8")
    assert all(model in page.read_text(encoding="utf-8") for model in published_models())
    assert all(kind.about for kind in KINDS.values())


def test_it_brings_no_torch():
    file = locate("smollm2")
    heavy = "bool({'torch', 'transformers', 'gguf'} & set(sys.modules))"
    code = f"import sys; from ropewalk.serving.doctor import examine, load; examine(load({str(file)!r})); sys.exit({heavy})"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
