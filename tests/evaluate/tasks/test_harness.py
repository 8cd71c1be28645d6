"""RULER, LongBench and any other task through lm-evaluation-harness, on data made here; nothing is fetched."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import yaml

import ropewalk as rw
from ropewalk.errors import InputError
from ropewalk.evaluate import harness
from ropewalk.evaluate.grid import make_grid
from ropewalk.evaluate.tasks import parse_task
from ropewalk.evaluate.texts import read_text
from ropewalk.evaluate.worker import Worker
from ropewalk.scaling.policies import DEFAULT_POLICY

RULER = [
    *("niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3"),
    *("niah_multiquery", "niah_multivalue", "ruler_vt", "ruler_cwe", "ruler_fwe", "ruler_qa_squad", "ruler_qa_hotpot"),
]


def towns(dice, words=100):
    return "".join(
        f"{dice.choice(('Rope', 'Yarn', 'Strand', 'Hemp', 'Knot'))} is laid here. " for _ in range(words // 4)
    )


def squad(questions):
    dice = random.Random(1)
    paragraphs = [
        {
            "context": f"Town {at} has {at + 1000} houses. {towns(dice)}",
            "qas": [
                {
                    "question": f"How many houses has town {at}?",
                    "answers": [{"text": str(at + 1000)}],
                    "is_impossible": False,
                }
            ],
        }
        for at in range(questions)
    ]
    return {"data": [{"title": "Towns", "paragraphs": paragraphs}]}


def hotpotqa(questions):
    dice = random.Random(2)
    return [
        {
            "question": f"Who lives in house {at}?",
            "answer": f"Person {at}",
            "context": [[f"House {at}-{each}", [f"Person {at} is here. ", towns(dice, 40)]] for each in range(10)],
        }
        for at in range(questions)
    ]


@pytest.fixture(scope="session")
def ruler_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ruler")
    (folder / "essays.txt").write_text(read_text("pydoc").content)
    (folder / "squad.json").write_text(json.dumps(squad(200)))
    (folder / "hotpotqa.json").write_text(json.dumps(hotpotqa(20)))
    return folder


@pytest.fixture(scope="session")
def tokenizer(smollm2):
    return smollm2[1]


def made(tasks, tokenizer, length=4096, count=2, seed=0):
    return {task.task: task.samples(tokenizer, length, count, seed) for task in tasks}


def asked(samples):
    return {task: [(each.prompt, each.references) for each in own] for task, own in samples.items()}


def test_ruler_is_its_13_tasks_in_the_order_of_the_harness(ruler_data, tokenizer, capfd):
    tasks = parse_task(f"ruler:data={ruler_data}").expand()
    assert [task.task for task in tasks] == RULER
    assert all(pickle.loads(pickle.dumps(task)) == task for task in tasks)
    made(tasks[:1], tokenizer)  # importing nltk draws a number
    before = random.getstate(), np.random.get_state()[1].tolist()
    samples = made(tasks, tokenizer)
    for task, own in samples.items():
        assert [sample.index for sample in own] == [0, 1]
        # The harness adds text in steps of up to 25 sentences, half of 4096 tokens where they hold UUIDs.
        assert all(2048 < len(sample.prompt) <= 4096 for sample in own), task
        texts = [tokenizer.decode(sample.prompt) for sample in own]
        missing = [r for s, text in zip(own, texts, strict=True) for r in s.references if r not in text]
        assert not missing, task
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert asked(made(reversed(tasks), tokenizer)) == asked(samples)
    assert asked(made(tasks[:1], tokenizer, seed=1)) != asked({RULER[0]: samples[RULER[0]]})
    assert capfd.readouterr() == ("", "")


def test_ruler_samples_are_the_first_of_the_harness_s_own(tokenizer, tmp_path):
    from lm_eval.tasks import TaskManager

    tokenizer.save_pretrained(tmp_path)
    with harness.quiet(), harness.seeded(0):
        folder = str(harness.suite("ruler")["niah_single_1"].yaml_path.parent)
        manager = TaskManager(
            include_path=folder, include_defaults=False, metadata={"tokenizer": str(tmp_path), "max_seq_lengths": [512]}
        )
        own = manager.load("niah_single_1")["tasks"]["niah_single_1"].eval_docs
    assert len(own) == 500
    ours = parse_task("ruler:niah_single_1").samples(tokenizer, 512, 3, seed=0)
    assert [sample.task_data.document for sample in ours] == [own[at] for at in range(3)]

    generator = harness.function(harness.suite("ruler")["ruler_cwe"], "custom_dataset").__globals__
    with harness.quiet(), harness.seeded(0):
        own = generator["sys_word_pair_random"](num_samples=3, max_seq_length=1024, tokenizer=tokenizer)
    ours = parse_task("ruler:ruler_cwe").samples(tokenizer, 1024, 3, seed=0)
    assert [sample.task_data.document["input"] for sample in ours] == [each["input"] for each in own]


def test_all_of_ruler_at_4k_on_a_model(smollm2, ruler_data, tmp_path):
    cells = rw.run_evaluation(
        smollm2, scalings=["none"], tasks=[f"ruler:data={ruler_data}"], lengths=[4096], samples=1, out=tmp_path
    )
    assert [cell.description["task_options"]["task"] for cell in cells] == RULER
    for cell in cells:
        (outcome,) = cell.sample_results
        assert outcome["tokens"] <= 4096
        # The share of the references that the answer holds, in either case.
        held = [reference.lower() in outcome["answer"].lower() for reference in outcome["references"]]
        assert outcome["scores"] == cell.summary == {"score": pytest.approx(sum(held) / len(held))}
    assert sum(cell.summary["score"] for cell in cells) > 1, "it finds something"


def test_ruler_scores_the_share_of_references(tokenizer, ruler_data):
    task = parse_task(f"ruler:niah_multiquery,data={ruler_data}")
    (sample,) = task.samples(tokenizer, 1024, 1, seed=0)
    assert len(sample.references) == 4
    assert task.score(sample, f"{sample.references[0]}, {sample.references[3]}, 7") == {"score": 2 / 4}
    task = parse_task(f"ruler:ruler_qa_squad,data={ruler_data}")  # of these, one is enough
    (sample,) = task.samples(tokenizer, 1024, 1, seed=0)
    assert task.score(sample, "It has 1000 houses.") == {"score": 1.0}


@pytest.mark.parametrize("task", ["ruler_vt", "ruler_cwe", "ruler_fwe", "niah_single_1"])
def test_a_length_that_no_question_fits_into(task, tokenizer):
    """The harness itself would try forever, but for niah."""
    with pytest.raises(InputError, match="lengths: got 64"):
        parse_task(f"ruler:{task}").samples(tokenizer, 64, 2, seed=0)


def test_fewer_questions_than_samples(tokenizer, tmp_path):
    (tmp_path / "squad.json").write_text(json.dumps(squad(3)))
    task = parse_task(f"ruler:ruler_qa_squad,data={tmp_path}")
    samples = task.samples(tokenizer, 1024, 10, seed=0)
    assert [sample.references for sample in samples] == [("1000",), ("1001",), ("1002",)]
    assert all(f"has {each.references[0]} houses" in tokenizer.decode(each.prompt) for each in samples)
    with pytest.raises(InputError, match="lengths: got 8192; expected at most about"):
        task.samples(tokenizer, 8192, 10, seed=0)


def test_a_question_keeps_its_document_when_not_all_fit(tokenizer, tmp_path):
    """The harness shuffles the documents as it tries all of them, and then takes others for those of a question."""
    (tmp_path / "squad.json").write_text(json.dumps(squad(8)))
    samples = parse_task(f"ruler:ruler_qa_squad,data={tmp_path}").samples(tokenizer, 512, 8, seed=0)
    assert len(samples) == 8
    assert all(f"has {each.references[0]} houses" in tokenizer.decode(each.prompt) for each in samples)


@pytest.mark.parametrize("content", ["{", "[]", '{"data": []}', '{"data": [{"paragraphs": [{}]}]}'])
def test_a_file_that_is_no_squad(tokenizer, tmp_path, content):
    (tmp_path / "squad.json").write_text(content)
    with pytest.raises(InputError, match=r"squad\.json'; expected SQuAD's dev-v2\.0\.json"):
        parse_task(f"ruler:ruler_qa_squad,data={tmp_path}").samples(tokenizer, 1024, 2, seed=0)


def test_ruler_without_data(tokenizer, monkeypatch):
    import datasets
    import requests

    def offline(*_, **__):
        raise requests.exceptions.ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(InputError, match=r"ruler:data=DIR with DIR/essays.txt .*no network"):
        parse_task("ruler:niah_single_2").samples(tokenizer, 1024, 2, seed=0)
    monkeypatch.setattr(requests, "get", offline)
    with pytest.raises(InputError, match=r"ruler:data=DIR with DIR/squad.json, SQuAD's dev-v2.0.json .*no network"):
        parse_task("ruler:ruler_qa_squad").samples(tokenizer, 1024, 2, seed=0)


def test_ruler_without_a_sentence_splitter(tokenizer, monkeypatch, tmp_path):
    import nltk

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(nltk, "download", lambda name: pytest.fail("no download"))
    with pytest.raises(InputError, match="punkt_tab"):
        parse_task("ruler:niah_single_1").samples(tokenizer, 1024, 2, seed=0)
    (tmp_path / "nltk_data" / "tokenizers" / "punkt_tab").mkdir(parents=True)
    assert parse_task(f"ruler:niah_single_1,data={tmp_path}").samples(tokenizer, 1024, 2, seed=0)


def test_the_data_of_ruler_are_in_its_fingerprint(ruler_data, tmp_path):
    task = parse_task("ruler:niah_single_2")
    assert task.fingerprint() == {"lm_eval": importlib.metadata.version("lm_eval")}
    prints = []
    for text in ("a", "b"):
        (tmp_path / "essays.txt").write_text(text)
        prints.append(parse_task(f"ruler:niah_single_2,data={tmp_path}").fingerprint()["data"])
    assert prints[0] != prints[1]


LONGBENCH = {
    # data set: answers, the model's answer, score, its own name in the harness
    "hotpotqa": (["Eiffel Tower", "x"], "The Eiffel Tower in Paris", 2 / 3, "qa_f1_score"),  # P 2/4, R 2/2
    "multifieldqa_zh": (["北京"], "是北京", 2 / 3, "qa_f1_zh_score"),  # 是, 北京: P 1/2, R 1/1
    "gov_report": (["cat lay on mat"], "cat sat on mat", 3 / 4, "rouge_score"),  # cat on mat: P 3/4, R 3/4
    "vcsum": (["我们喜欢上海"], "我们喜欢北京", 2 / 3, "rouge_zh_score"),  # 我们 喜欢: P 2/3, R 2/3
    "trec": (["Food"], "Food or City", 1 / 2, "classification_score"),  # two classes named, one is right
    "passage_retrieval_en": (["Paragraph 3"], "Paragraph 3 or 7", 1 / 2, "retrieval_score"),
    "passage_retrieval_zh": (["段落2"], "段落2", 1.0, "retrieval_zh_score"),
    "passage_count": (["5"], "5, 6, or 7: 5", 2 / 4, "count_score"),
    # the first line of code; 11 of 12 characters: 2 * 11 / 24 = 0.917, which fuzzywuzzy rounds
    "lcc": (["return x + 1"], "# so:\nreturn x + 2\nx", 0.92, "code_sim_score"),
}
GROUPS = ["multi", "single", "summarization", "summarization", "fewshot", *["synthetic"] * 3, "code"]


def document(answers, **others):
    return {
        "input": "Which one is it?",
        "context": "The rope is long. " * 200,
        "answers": answers,
        "length": 3999,
        "dataset": "made here",
        "language": "en",
        "all_classes": ["Food", "City"],
        "_id": "1",
        **others,
    }


def written(folder, name, *documents):
    path = folder / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in documents), encoding="utf-8")


@pytest.mark.parametrize(("name", "group"), list(zip(LONGBENCH, GROUPS, strict=True)))
def test_longbench_scores(name, group, tokenizer, tmp_path, capfd):
    answers, answer, expected, native = LONGBENCH[name]
    written(tmp_path, name, document(answers))
    task = parse_task(f"longbench:{name},data={tmp_path}")
    (sample,) = task.samples(tokenizer, 4096, 5, seed=0)
    assert sample.references == tuple(answers)
    assert sample.metadata == {"group": group, "bin": "0-4k"}
    assert "The rope is long." in tokenizer.decode(sample.prompt)
    assert task.score(sample, answer) == {
        "score": pytest.approx(expected, abs=1e-6),
        native: pytest.approx(expected, abs=1e-6),
    }
    assert capfd.readouterr() == ("", "")


def test_longbench_cuts_the_middle(tokenizer, tmp_path):
    written(tmp_path / "data", "hotpotqa", document(["x"]))
    task = parse_task(f"longbench:hotpotqa,data={tmp_path}")
    (whole,) = task.samples(tokenizer, 4096, 1, seed=0)
    (cut,) = task.samples(tokenizer, 132, 1, seed=0)  # 32 for the answer
    assert cut.prompt == whole.prompt[:50] + whole.prompt[-50:]
    assert cut.metadata["cut"] is True
    assert "cut" not in whole.metadata
    assert tokenizer.decode(cut.prompt).endswith("Question: Which one is it?\nAnswer:")
    assert cut.max_new_tokens == 32


def test_longbench_e_has_a_mean_for_each_bin(tiny, letters, tmp_path):
    lengths = (3999, 4000, 7999, 8000)
    written(tmp_path, "trec_e", *(document(["w3"], context="w7 " * 30, length=length) for length in lengths))
    task = f"longbench:trec,e=true,data={tmp_path}"
    (cell,) = rw.run_evaluation((tiny, letters), scalings=["none"], tasks=[task], lengths=[128], out=tmp_path / "out")
    assert [outcome["about"]["bin"] for outcome in cell.sample_results] == ["0-4k", "4-8k", "4-8k", "8k+"]
    assert set(cell.summary) == {"score", "classification_score", "score 0-4k", "score 4-8k", "score 8k+"}
    sample_results = [{**o, "scores": {"score": at}} for at, o in enumerate(cell.sample_results)]
    summary = parse_task(task).summary(sample_results)
    assert summary == {"score": 1.5, "score 0-4k": 0.0, "score 4-8k": 1.5, "score 8k+": 3.0}


def test_longbench_is_its_21_data_sets_and_13_of_e():
    names = [task.task for task in parse_task("longbench").expand()]
    assert len(names) == 21
    assert names[0] == "lcc"
    e = parse_task("longbench:e=true").expand()
    assert len(e) == 13
    assert {task.task for task in e} < set(names)
    assert str(e[0]) == "longbench:task=lcc,e=true"
    with pytest.raises(InputError, match="expected lcc, "):
        parse_task("longbench:dureader,e=true").expand()  # has no part in LongBench-E


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: got '{'; expected a line of JSON"),
        ('{"input": "?"}', "line 2: got 'no field context, answers"),
        ("3", "line 2: got 'no field question"),
    ],
)
def test_a_line_that_is_not_of_longbench(line, message, tokenizer, tmp_path):
    written(tmp_path, "hotpotqa", document(["x"]))
    with (tmp_path / "hotpotqa.jsonl").open("a") as file:
        file.write(line)
    task = parse_task(f"longbench:hotpotqa,data={tmp_path}")
    with pytest.raises(InputError, match=message):
        task.samples(tokenizer, 4096, 2, seed=0)


@pytest.mark.parametrize(("content", "message"), [(b"", "at least one line"), (b"\xff", "a file in UTF-8")])
def test_a_file_that_is_not_of_longbench(content, message, tokenizer, tmp_path):
    (tmp_path / "hotpotqa.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=message):
        parse_task(f"longbench:hotpotqa,data={tmp_path}").samples(tokenizer, 4096, 2, seed=0)


def test_longbench_without_data(tokenizer, tmp_path, monkeypatch):
    import datasets

    with pytest.raises(InputError, match=r"a folder with hotpotqa.jsonl, or data/hotpotqa.jsonl"):
        parse_task(f"longbench:hotpotqa,data={tmp_path}").fingerprint()

    def offline(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(InputError, match=r"longbench:data=DIR with DIR/hotpotqa.jsonl of .*no network"):
        parse_task("longbench:hotpotqa").samples(tokenizer, 4096, 2, seed=0)


@pytest.fixture(scope="session")
def letters():
    """A tokenizer of letters that fits the 97 tokens of the tiny model."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    known = [*map(chr, range(ord(" "), ord("~") + 1)), "\n", "<end>"]
    tokenizer = Tokenizer(models.BPE({letter: at for at, letter in enumerate(known)}, []))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def task_yaml(name, file, **fields):
    return {
        "task": name,
        "tag": ["own_tag"],
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "metadata": {"version": 3.0},
        **fields,
    }


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with tasks of the user's and their data."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "own"
    folder.mkdir()
    dice = random.Random(3)

    def drawn(n):
        return " ".join(f"w{dice.randrange(2, 90)}" for _ in range(n))

    file = folder / "questions.jsonl"
    written(folder, "questions", *({"question": drawn(12 * at), "answer": drawn(3)} for at in range(1, 7)))
    ending = {"generation_kwargs": {"until": ["w"], "max_gen_toks": 8, "do_sample": False}}
    first = {"function": "take_first"}
    metrics = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    tasks = [
        task_yaml(
            "own_generate",
            file,
            output_type="generate_until",
            metric_list=[{"metric": "bleu", "aggregation": "bleu", "higher_is_better": True}, *metrics],
            **ending,
        ),
        task_yaml(
            "own_filters",
            file,
            output_type="generate_until",
            metric_list=metrics,
            filter_list=[
                {"name": "first", "filter": [{"function": "regex", "regex_pattern": r"(\S+)"}, first]},
                {"name": "all", "filter": [first]},
            ],
            **ending,
        ),
        task_yaml(
            "own_choice",
            file,
            output_type="multiple_choice",
            doc_to_choice=["w3 w4", "w5", "w6 w7 w8"],
            doc_to_target=1,
            num_fewshot=1,
            fewshot_split="test",
            metric_list=[
                {"metric": name, "aggregation": how}
                for name, how in (("brier_score", "brier_score"), ("acc", "mean"), ("acc_norm", "mean"))
            ],
        ),
        task_yaml(
            "own_rolling",
            file,
            output_type="loglikelihood_rolling",
            doc_to_text="",
            doc_to_target="{{question}}",
            metric_list=[
                {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}
            ],
        ),
        task_yaml("own_next", file, output_type="loglikelihood", metric_list=[{"metric": "perplexity"}]),
        task_yaml("own_drawn", file, generation_kwargs={"do_sample": True, "temperature": 1.0, "until": []}),
        {"group": "own_group", "task": ["own_rolling", "own_tag", {"task": "own_next", "num_fewshot": 2}]},
        {"group": "own_pair", "task": ["own_rolling", "own_next"]},
    ]
    for each in tasks:
        (folder / f"{each.get('group', each['task'])}.yaml").write_text(yaml.dump(each))
    return folder


@pytest.mark.parametrize("name", ["own_generate", "own_filters", "own_choice", "own_rolling", "own_next"])
def test_the_result_is_that_of_the_harness(name, own, tiny, letters, tmp_path):
    import lm_eval
    from lm_eval.tasks import TaskManager

    from ropewalk.evaluate.harness.model import RopewalkLM

    task = f"lm_eval:{name},include={own}"
    (cell,) = rw.run_evaluation(
        (tiny, letters), scalings=["linear:factor=2"], tasks=[task], lengths=[48], samples=5, out=tmp_path / "out"
    )
    with harness.quiet():
        theirs = lm_eval.simple_evaluate(
            model=RopewalkLM(tiny, tokenizer=letters, scaling="linear:factor=2", max_length=48),
            tasks=[name],
            task_manager=TaskManager(include_path=str(own), include_defaults=False),
            limit=5,
            bootstrap_iters=0,
        )
    rw.restore(tiny)
    results = {
        key if name == "own_filters" else key.partition(",")[0]: value
        for key, value in theirs["results"][name].items()
        if "," in key and "stderr" not in key
    }
    assert cell.summary == pytest.approx(results)
    assert all(outcome["tokens"] <= 48 for outcome in cell.sample_results)
    if cell.sample_results[0]["answer"][0] != "[":  # not the likelihoods of several requests
        theirs = {sample["doc_id"]: sample["resps"][0][0] for sample in theirs["samples"][name]}
        assert {outcome["index"]: outcome["answer"] for outcome in cell.sample_results} == theirs
    assert cell.description["main"] in cell.summary
    assert cell.description["better"] == ("lower" if name in ("own_rolling", "own_next", "own_choice") else "higher")


def test_a_cell_is_summed_up_from_what_was_kept(own, tiny, letters, tmp_path):
    """Word perplexity hangs on pairs, which are lists when they come back from the disk."""
    asked = {
        "scalings": ["none"],
        "tasks": [f"lm_eval:own_rolling,include={own}", f"lm_eval:own_generate,include={own}"],
        "lengths": [48],
        "samples": 4,
    }
    for cell in rw.run_evaluation((tiny, letters), **asked, out=tmp_path):
        (again,) = make_grid(["none"], [cell.description["task"]], [48], samples=4, seed=0, policy=DEFAULT_POLICY)
        (summary,) = Worker((tiny, letters)).run(again, {outcome["index"]: outcome for outcome in cell.sample_results})
        assert summary.scores == cell.summary


def test_groups_and_tags_are_their_members(own):
    def names(task):
        return [member.task for member in parse_task(f"lm_eval:{task},include={own}").expand()]

    assert names("own_pair") == ["own_rolling", "own_next"]
    assert names("own_tag") == sorted(f"own_{n}" for n in ("generate", "filters", "choice", "rolling", "next", "drawn"))
    with pytest.raises(InputError, match=r"own_group.*a group that takes its tasks as they are"):
        names("own_group")
    assert names("ai2_arc") == ["arc_challenge", "arc_easy"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lm_eval:arc_eesy", r"lm_eval: task: got 'arc_eesy'; .*nearest: .*arc_easy"),
        ("lm_eval", r"lm-eval: task: got None"),
        ("lm_eval:task=5", r"lm_eval: task: got '5'"),
        ("lm_eval:arc_easy,include=nowhere", r"lm_eval: include: got 'nowhere'"),
        ("lm_eval:arc_easy,fewshot=-1", r"lm_eval: fewshot: got -1"),
        ("ruler:niah_single_9", r"ruler: task: .*niah_single_1, .*did you mean niah_single_"),
        ("longbench:hotpot", r"longbench: task: .*did you mean hotpotqa"),
        ("longbench:e=maybe", r"longbench: e: got 'maybe'; expected true or false"),
    ],
)
def test_names_that_are_not_known(spec, message):
    with pytest.raises(InputError, match=message):
        parse_task(spec).expand()


def test_ruler_data_that_is_no_folder():
    with pytest.raises(InputError, match="ruler: data: got 'nowhere'"):
        parse_task("ruler:niah_single_2,data=nowhere").fingerprint()


def test_what_is_drawn_is_not_answered_greedily(own, letters):
    with pytest.raises(InputError, match="answered greedily"):
        parse_task(f"lm_eval:own_drawn,include={own}").samples(letters, 48, 2, seed=0)


def test_data_that_cannot_be_read(own, letters):
    (own / "questions.jsonl").unlink()
    with pytest.raises(InputError, match="own_next, whose data set json cannot be read"):
        parse_task(f"lm_eval:own_next,include={own}").samples(letters, 48, 2, seed=0)


def test_own_tasks_and_their_data_are_in_the_fingerprint(own):
    task = parse_task(f"lm_eval:own_next,include={own}")
    before = task.fingerprint()
    assert before["task"] == "3.0"
    with (own / "questions.jsonl").open("a") as file:
        file.write("\n")
    assert task.fingerprint() != before


def test_a_dynamic_scaling_reads_requests_one_by_one(tiny, letters):
    from ropewalk.evaluate.harness.model import RopewalkLM

    with harness.quiet():
        assert RopewalkLM(tiny, tokenizer=letters, scaling="linear:factor=2", batch_size=4).batch_size == 4
        assert RopewalkLM(tiny, tokenizer=letters, scaling="dynamic-yarn", batch_size=4).batch_size == 1
    rw.restore(tiny)
    assert letters.pad_token is None  # it is as it was


def test_the_harness_s_own_command_line(own, tiny, letters, tmp_path):
    tiny.save_pretrained(tmp_path / "model")
    letters.save_pretrained(tmp_path / "model")
    scaled = {"pretrained": str(tmp_path / "model"), "scaling": "yarn:factor=2,beta_fast=16", "max_length": 48}
    call = [sys.executable, "-m", "ropewalk.evaluate.harness", "run", "--model", "ropewalk", "--tasks", "own_choice"]
    call += ["--model_args", json.dumps({**scaled, "dtype": "float32"}), "--include_path", str(own)]
    run = subprocess.run(
        [*call, "--limit", "3", "--output_path", str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    (results,) = (tmp_path / "out").rglob("results_*.json")
    theirs = json.loads(results.read_text())["results"]["own_choice"]
    (cell,) = rw.run_evaluation(
        (tiny, letters),
        scalings=[scaled["scaling"]],
        tasks=[f"lm_eval:own_choice,include={own}"],
        lengths=[48],
        samples=3,
        out=tmp_path / "ours",
    )
    assert theirs["brier_score,none"] == pytest.approx(cell.summary["brier_score"])


def test_quiet_hides_no_errors(capfd, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lm_eval"), "propagate", False)
    monkeypatch.setattr(logging.getLogger("lm_eval"), "handlers", [])
    with harness.quiet():
        print("progress")
        logging.getLogger("lm_eval").warning("advice")
        logging.getLogger("lm_eval").error("broken")
    assert capfd.readouterr() == ("", "broken\n")
