"""RULER on data made here.

All 13 tasks run at 1,024 tokens, on a model with random weights; their prompts are also checked at 4,096 tokens, where
the harness adds text in other steps. The built-in model answers one task. That the samples equal those of the harness
is tested in tests/compat/test_lm_eval_ruler.py and, for a whole task with its 500 samples, here.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import pickle
import random

import numpy as np
import pytest
from tests.helpers.harness_tasks import hotpotqa_json, squad_json

import ropewalk as rw
from ropewalk.compat import lm_eval
from ropewalk.errors import InputError, UnknownNameError
from ropewalk.evaluate.tasks import parse_task
from ropewalk.evaluate.text_generator import TextGenerator
from ropewalk.evaluate.texts import read_text

TASKS = [
    *("niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3"),
    *("niah_multiquery", "niah_multivalue", "ruler_vt", "ruler_cwe", "ruler_fwe", "ruler_qa_squad", "ruler_qa_hotpot"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ruler")
    (folder / "essays.txt").write_text(read_text("pydoc").content)
    (folder / "squad.json").write_text(json.dumps(squad_json(200)))
    (folder / "hotpotqa.json").write_text(json.dumps(hotpotqa_json(20)))
    return folder


@pytest.fixture(scope="module")
def random_model(tokenizer):
    """A model with random weights and the vocabulary of the built-in tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=4096,
    )
    return LlamaForCausalLM(config).eval()


def make_all_samples(tasks, tokenizer, length, count=2, seed=0):
    return {task.task: task.make_samples(tokenizer, length, count, seed) for task in tasks}


def prompts_and_references(samples):
    return {task: [(sample.prompt, sample.references) for sample in made] for task, made in samples.items()}


def test_ruler_expands_to_13_tasks_in_the_order_of_the_harness():
    tasks = parse_task("ruler").expand()
    assert [task.task for task in tasks] == TASKS
    assert all(pickle.loads(pickle.dumps(task)) == task for task in tasks)


def test_prompts_at_4k_are_at_most_as_long_and_contain_the_references(data, tokenizer, capfd):
    for task, samples in make_all_samples(parse_task(f"ruler:data={data}").expand(), tokenizer, 4096, count=1).items():
        (sample,) = samples
        # The harness adds text in steps of up to 25 sentences, which are half of 4,096 tokens if they contain UUIDs.
        assert 2048 < len(sample.prompt) <= 4096, task
        text = tokenizer.decode(sample.prompt)
        assert [reference for reference in sample.references if reference not in text] == [], task
    assert capfd.readouterr() == ("", "")


def test_in_a_chat_template_the_model_continues_the_answer(tokenizer):
    """The whole prompt has at most the length, and the system prompt is that of the template."""
    system, question = tokenizer.apply_chat_template(
        [{"role": "user", "content": "QUESTION"}], tokenize=False, add_generation_prompt=True
    ).split("QUESTION")
    for name in ("niah_single_1", "ruler_vt", "ruler_fwe"):
        task = parse_task(f"ruler:{name}")
        (sample,) = task.make_samples(tokenizer, 1024, 1, seed=0, chat=True)
        content = sample.task_data.content
        text = f"{system}{content['input']}{question}{content['gen_prefix']}"
        assert tokenizer.decode(sample.prompt) == text, task
        assert len(sample.prompt) <= 1024
        assert set(task.score(sample, content["outputs"][0])) == {"score"}


def test_samples_depend_on_their_arguments_only(data, tokenizer):
    """Neither the order of the tasks nor the state of Python's random number generators matters, and both are kept."""
    tasks = parse_task(f"ruler:data={data}").expand()
    before = random.getstate(), np.random.get_state()[1].tolist()
    samples = make_all_samples(tasks, tokenizer, 1024, count=1)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert all(len(made) == 1 for made in samples.values())
    random.random()
    reversed_samples = make_all_samples(reversed(tasks), tokenizer, 1024, count=1)
    assert prompts_and_references(reversed_samples) == prompts_and_references(samples)
    other_seed = make_all_samples(tasks[:1], tokenizer, 1024, count=1, seed=1)
    assert prompts_and_references(other_seed) != prompts_and_references({TASKS[0]: samples[TASKS[0]]})


def test_samples_are_the_first_of_the_500_of_the_harness(tokenizer, tmp_path):
    from lm_eval.tasks import TaskManager

    tokenizer.save_pretrained(tmp_path)
    folder = lm_eval.index_suite("ruler")["niah_single_1"].yaml_path.parent
    metadata = {"tokenizer": str(tmp_path), "max_seq_lengths": [512]}
    with lm_eval.quiet(), lm_eval.seeded(0):
        manager = TaskManager(include_path=str(folder), include_defaults=False, metadata=metadata)
        documents = manager.load("niah_single_1")["tasks"]["niah_single_1"].eval_docs
    assert len(documents) == 500
    samples = parse_task("ruler:niah_single_1").make_samples(tokenizer, 512, 3, seed=0)
    assert [sample.index for sample in samples] == [0, 1, 2]
    assert [sample.task_data.content for sample in samples] == [documents[index] for index in range(3)]


def test_all_tasks_are_answered_and_scored_at_1k(random_model, tokenizer, data, tmp_path):
    cells = rw.run_evaluation(
        (random_model, tokenizer),
        scalings=["none"],
        tasks=[f"ruler:data={data}"],
        lengths=[1024],
        samples=1,
        out=tmp_path,
    )
    assert [cell.description["task_options"]["task"] for cell in cells] == TASKS
    for cell in cells:
        (result,) = cell.sample_results
        assert result["tokens"] <= 1024
        answer = result["answer"].lower()
        found = [reference.lower() in answer for reference in result["references"]]
        assert result["scores"] == cell.summary == {"score": pytest.approx(sum(found) / len(found))}


def test_the_built_in_model_finds_a_needle(smollm2):
    task = parse_task("ruler:niah_single_1")
    (sample,) = task.make_samples(smollm2[1], 1024, 1, seed=0)
    assert 700 < len(sample.prompt) <= 1024
    sample = dataclasses.replace(sample, max_new_tokens=16)  # the harness allows 128, which takes a minute
    ((_, answer),) = task.generate_answers(TextGenerator(*smollm2), [sample])
    assert task.score(sample, answer) == {"score": 1.0}


def test_the_score_is_the_fraction_of_references_in_the_answer(tokenizer, data):
    task = parse_task(f"ruler:niah_multiquery,data={data}")
    (sample,) = task.make_samples(tokenizer, 1024, 1, seed=0)
    assert len(sample.references) == 4
    assert task.score(sample, f"{sample.references[0]}, {sample.references[3]}, 7") == {"score": 2 / 4}


def test_one_reference_is_enough_for_a_question_about_documents(tokenizer, data):
    task = parse_task(f"ruler:ruler_qa_squad,data={data}")
    (sample,) = task.make_samples(tokenizer, 1024, 1, seed=0)
    assert task.score(sample, "It has 1000 houses.") == {"score": 1.0}


def test_a_length_that_no_prompt_fits_into_is_refused(tokenizer):
    with pytest.raises(InputError, match="lengths: got 64; expected a length that a prompt of ruler_vt fits into"):
        parse_task("ruler:ruler_vt").make_samples(tokenizer, 64, 2, seed=0)


def test_fewer_questions_than_samples_are_all_used(tokenizer, tmp_path):
    (tmp_path / "squad.json").write_text(json.dumps(squad_json(3)))
    task = parse_task(f"ruler:ruler_qa_squad,data={tmp_path}")
    samples = task.make_samples(tokenizer, 1024, 10, seed=0)
    assert [sample.references for sample in samples] == [("1000",), ("1001",), ("1002",)]
    assert all(f"has {sample.references[0]} houses" in tokenizer.decode(sample.prompt) for sample in samples)
    with pytest.raises(InputError, match="lengths: got 8192; expected at most about"):
        task.make_samples(tokenizer, 8192, 10, seed=0)


def test_a_question_keeps_its_document_if_not_all_documents_fit(tokenizer, tmp_path):
    """The harness shuffles the documents while it tries all of them, and would then use those of other questions."""
    (tmp_path / "squad.json").write_text(json.dumps(squad_json(8)))
    samples = parse_task(f"ruler:ruler_qa_squad,data={tmp_path}").make_samples(tokenizer, 512, 8, seed=0)
    assert len(samples) == 8
    assert all(f"has {sample.references[0]} houses" in tokenizer.decode(sample.prompt) for sample in samples)


@pytest.mark.parametrize("content", ["{", "[]", '{"data": []}', '{"data": [{"paragraphs": [{}]}]}'])
def test_a_file_in_another_format_than_squad_is_refused(tokenizer, tmp_path, content):
    (tmp_path / "squad.json").write_text(content)
    with pytest.raises(InputError, match=r"squad\.json'; expected SQuAD's dev-v2\.0\.json"):
        parse_task(f"ruler:ruler_qa_squad,data={tmp_path}").make_samples(tokenizer, 1024, 2, seed=0)


def test_data_that_cannot_be_downloaded_is_named(tokenizer, monkeypatch):
    import datasets
    import requests

    def offline(*_, **__):
        raise requests.exceptions.ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(InputError, match=r"ruler:data=DIR with DIR/essays.txt .*no network"):
        parse_task("ruler:niah_single_2").make_samples(tokenizer, 1024, 2, seed=0)
    monkeypatch.setattr(requests, "get", offline)
    with pytest.raises(InputError, match=r"ruler:data=DIR with DIR/squad.json, SQuAD's dev-v2.0.json .*no network"):
        parse_task("ruler:ruler_qa_squad").make_samples(tokenizer, 1024, 2, seed=0)


def test_the_fingerprint_contains_the_version_of_the_harness_and_a_digest_of_the_data(tmp_path):
    assert parse_task("ruler:niah_single_2").fingerprint() == {"lm_eval": importlib.metadata.version("lm_eval")}
    digests = []
    for text in ("a", "b"):
        (tmp_path / "essays.txt").write_text(text)
        digests.append(parse_task(f"ruler:niah_single_2,data={tmp_path}").fingerprint()["data"])
    assert digests[0] != digests[1]


def test_an_unknown_task_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match=r"ruler: task: .*niah_single_1, .*did you mean niah_single_"):
        parse_task("ruler:niah_single_9").expand()


def test_a_missing_data_folder_is_refused():
    with pytest.raises(InputError, match="ruler: data: got 'nowhere'"):
        parse_task("ruler:niah_single_2,data=nowhere").fingerprint()
