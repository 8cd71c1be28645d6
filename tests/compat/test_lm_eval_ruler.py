"""RULER's generators inside lm-evaluation-harness: each test fails if the harness changes what ropewalk relies on."""

from __future__ import annotations

import importlib.metadata
import inspect

import pytest
from tests.helpers.harness_tasks import hotpotqa_json, squad_json

from ropewalk.compat import lm_eval_ruler as compat
from ropewalk.compat.lm_eval import quiet, seeded
from ropewalk.errors import InputError
from ropewalk.evaluate.texts import read_text

compat.find_sentence_splitter()  # niah_utils would download it when it is imported
from lm_eval.tasks.ruler import cwe_utils, fwe_utils, niah_utils, prepare_niah, qa_utils, vt_utils  # noqa: E402

LENGTH = 1024
COUNT = 3


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return smollm2[1]


def test_niah_arguments_are_those_of_the_harness(monkeypatch):
    calls = {}
    monkeypatch.setattr(niah_utils, "get_tokenizer", lambda name: None)
    monkeypatch.setattr(niah_utils, "get_haystack", lambda type_haystack: None)
    monkeypatch.setattr(niah_utils, "download_dataset", list)
    for task in compat.NIAH_ARGUMENTS:
        monkeypatch.setattr(
            niah_utils, "generate_samples", lambda haystack, task=task, **arguments: calls.update({task: arguments})
        )
        getattr(niah_utils, task)()
    common = {"max_seq_length": 4096, "template": niah_utils.TEMPLATE, "num_samples": 500, "TOKENIZER": None}
    assert calls == {task: {**arguments, **common} for task, arguments in compat.NIAH_ARGUMENTS.items()}


@pytest.mark.parametrize(
    ("module", "function", "arguments"),
    [
        (vt_utils, "sys_vartrack_w_noise_random", {"incremental": 10, "num_chains": 1, "num_hops": 4}),
        (vt_utils, "sys_vartrack_w_noise_random", {"tokens_to_generate": 30, "add_fewshot": True}),
        (cwe_utils, "sys_word_pair_random", {"incremental": 10, "tokens_to_generate": 120}),
        (fwe_utils, "sys_kwext", {"tokens_to_generate": 50}),
        (qa_utils, "generate_samples", {"tokens_to_generate": 32, "pre_samples": 0}),
    ],
)
def test_the_defaults_that_the_shortest_prompts_are_measured_with(module, function, arguments):
    defaults = {
        name: parameter.default for name, parameter in inspect.signature(getattr(module, function)).parameters.items()
    }
    assert {name: defaults[name] for name in arguments} == arguments


@pytest.mark.parametrize("task", ["ruler_vt", "ruler_cwe", "ruler_fwe"])
def test_documents_equal_those_of_the_task_in_the_harness(task, tokenizer, monkeypatch):
    """The harness's own entry points make 500 samples; only that number is reduced here."""
    module, entry_point, generator = {
        "ruler_vt": (vt_utils, "get_dataset", "sys_vartrack_w_noise_random"),
        "ruler_cwe": (cwe_utils, "get_dataset", "sys_word_pair_random"),
        "ruler_fwe": (fwe_utils, "get_dataset", "sys_kwext"),
    }[task]
    ours = compat.generate_documents(task, tokenizer, LENGTH, COUNT, seed=0)
    make = getattr(module, generator)
    signature = inspect.signature(make)

    def make_few(*values, **named):
        call = signature.bind(*values, **named)
        call.apply_defaults()
        call.arguments["num_samples"] = min(call.arguments["num_samples"], COUNT)
        return make(*call.args, **call.kwargs)

    monkeypatch.setattr(module, generator, make_few)
    length_argument = "max_seq_length" if task == "ruler_fwe" else "seq"
    with quiet(), seeded(0):
        theirs = getattr(module, entry_point)(tokenizer, **{length_argument: LENGTH})
    assert ours == theirs


def test_cwe_leaves_the_random_number_generator_of_its_module_unchanged(tokenizer):
    before = cwe_utils.RNG.getstate()
    compat.generate_documents("ruler_cwe", tokenizer, LENGTH, 1, seed=0)
    assert cwe_utils.RNG.getstate() == before


def test_essays_are_split_as_the_harness_splits_them(tokenizer, monkeypatch):
    text = read_text("pydoc").content
    monkeypatch.setattr(prepare_niah.datasets, "load_dataset", lambda *_, **__: {"text": [text]})
    theirs = prepare_niah.get_haystack.__wrapped__("essay")
    monkeypatch.setattr(prepare_niah, "get_haystack", lambda kind: theirs)
    arguments = ("niah_single_2", tokenizer, LENGTH, COUNT, 0)
    assert compat.generate_documents(*arguments, essays=text) == compat.generate_documents(*arguments)


@pytest.mark.parametrize(
    ("task", "questions"), [("ruler_qa_squad", squad_json(5)), ("ruler_qa_hotpot", hotpotqa_json(5))]
)
def test_the_users_questions_replace_the_download(task, questions, monkeypatch):
    monkeypatch.setattr(qa_utils.requests, "get", lambda *_, **__: pytest.fail("no download"))
    parsed, texts = compat.read_questions(task, questions)
    assert len(parsed) == 5
    assert all(set(question) >= {"query", "outputs", "context"} for question in parsed)
    assert len(texts) >= 5


def test_the_question_generator_still_shuffles_its_documents_in_place():
    """If this fails, the harness is repaired, and the copy in `_generate_qa` can go."""
    parsed, texts = compat.read_questions("ruler_qa_squad", squad_json(8))
    shuffled = list(texts)
    qa_utils.generate_input_output(0, len(texts), parsed, shuffled)
    assert sorted(shuffled) == sorted(texts)
    assert shuffled != texts


@pytest.mark.parametrize("task", ["ruler_vt", "ruler_cwe", "ruler_fwe", "niah_single_1"])
def test_a_length_that_no_prompt_fits_into_is_refused(task, tokenizer):
    """The generators of vt, cwe and fwe alone would retry forever."""
    with pytest.raises(InputError, match=f"lengths: got 64; expected a length that a prompt of {task} fits into"):
        compat.generate_documents(task, tokenizer, 64, 2, seed=0)


def test_a_missing_sentence_splitter_is_not_downloaded(monkeypatch, tmp_path):
    import nltk

    def not_found(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", not_found)
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(nltk, "download", lambda name: pytest.fail("no download"))
    with pytest.raises(InputError, match="punkt_tab"):
        compat.find_sentence_splitter(tmp_path)
    (tmp_path / "tokenizers" / "punkt_tab").mkdir(parents=True)
    compat.find_sentence_splitter(tmp_path)
    assert nltk.data.path == [str(tmp_path)]
