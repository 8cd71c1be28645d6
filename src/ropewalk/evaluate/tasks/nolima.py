from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ropewalk.errors import InputError
from ropewalk.evaluate.field_checks import (
    check_fields,
    input_error_for_fields,
    is_list_of_texts,
    is_object,
    is_object_of_texts,
    is_text,
)
from ropewalk.evaluate.json_lines import digest_lines, read_json_records
from ropewalk.evaluate.prompt_encoder import PromptEncoder
from ropewalk.evaluate.sample import Sample
from ropewalk.evaluate.tasks.base import Task
from ropewalk.evaluate.tasks.haystack import Haystack, even_depth
from ropewalk.evaluate.texts import BUILT_IN, read_text

_FIELD = "nolima: needles"
_CHARACTER = "{CHAR}"  # stands for a name that is drawn for each sample
_BEFORE = "Below is a part of a long text. A question about it comes at the end.\n\n"
_QUESTION = "\n\nThe text may answer this question without using its words. Answer with a name or a few words only.\n\n"
_MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class NeedleQuestion:
    """One statement and a question about it.

    Attributes:
        name: of the needle, its arguments and the kind of question.
        statement: may contain `{CHAR}`.
        question: may contain `{CHAR}`.
        answers: correct answers; empty if the name that replaces `{CHAR}` is correct.
        characters: names to draw from.
        template: the prompt, with the placeholders `{haystack}` and `{question}`; empty for that of the task.
    """

    name: str
    statement: str
    question: str
    answers: tuple[str, ...]
    characters: tuple[str, ...]
    template: str


@dataclass(frozen=True)
class NoLiMa(Task):
    """NoLiMa (A. Modarressi et al., arXiv 2502.05167): a needle that shares no words with the question about it.

    Needles are drawn in random order. Their depths are spread evenly over the samples, from the beginning of the text
    (0) to its end (1). A sample is found if the answer contains a correct one, the benchmark's metric `contains`.

    Options: `needles`, a file in the format of NoLiMa's needle_set.json; `text`, a name for `read_text`. Prompts have
    other words than NoLiMa's, unless the file has a `task_template`.
    """

    name = "nolima"
    main_score = "found"
    positional = "needles"
    chat_choices = ("auto", "on")

    needles: str
    text: str = BUILT_IN

    def fingerprint(self) -> dict[str, str]:
        return {"needles": digest_lines(self.needles, _FIELD), "text": read_text(self.text).digest}

    def make_samples(self, tokenizer: Any, length: int, count: int, seed: int, chat: bool = False) -> list[Sample]:
        records = read_json_records(self.needles, _FIELD)
        needles = [needle for name, record in records for needle in _needles(name, record)]
        if not needles:
            raise InputError(_FIELD, f"{self.needles}, which is empty", "at least one needle")
        random.Random(seed).shuffle(needles)
        text = read_text(self.text).content
        haystack = Haystack(PromptEncoder(tokenizer, chat), lambda characters: text[:characters], length)
        samples = []
        for index in range(count):
            needle, rng = needles[index % len(needles)], random.Random(f"{seed}/{index}")
            samples.append(_make_sample(haystack, needle, length, index, even_depth(index, count), rng))
        return samples

    def score(self, sample: Sample, answer: str) -> dict[str, float]:
        return {self.main_score: float(any(reference in answer for reference in sample.references))}


def _make_sample(
    haystack: Haystack, needle: NeedleQuestion, length: int, index: int, depth: float, rng: random.Random
) -> Sample:
    character = rng.choice(needle.characters) if needle.characters else ""
    statement, question = (text.replace(_CHARACTER, character) for text in (needle.statement, needle.question))
    if needle.template:
        before, _, after = needle.template.partition("{haystack}")
        ending, answer_prefix, stop = after.replace("{question}", question), "", tuple[str, ...]()
    else:
        before, ending, answer_prefix, stop = _BEFORE, f"{_QUESTION}Question: {question}", "Answer:", ("\n",)
    prompt = haystack.build_prompt(length, before, [(depth, f"\n{statement}\n")], [(ending, answer_prefix)], 0)
    metadata = {"depth": round(depth, 4), "needle": needle.name}
    return Sample(index, prompt, needle.answers or (character,), _MAX_NEW_TOKENS, stop, metadata)


def _needles(field: str, record: dict[str, Any]) -> Iterator[NeedleQuestion]:
    """Yield the needles of one item of a needle set, one for each of its questions and lists of arguments.

    The fields are those that `evaluation/run_tests.py` of github.com/adobe-research/NoLiMa reads.
    """
    characters, template = record.get("character_set") or [], record.get("task_template") or ""
    with input_error_for_fields(field, "an item of NoLiMa's needle_set.json"):
        check_fields(record, {"id": is_text, "needle": is_text, "questions": is_object_of_texts, "tests": is_object})
        for test in record["tests"].values():
            check_fields(test, {"input_args": is_list_of_texts})
        if not is_list_of_texts(characters) or not is_text(template):
            raise ValueError("character_set is no list of texts, or task_template is no text")
        if template and not ("{haystack}" in template and "{question}" in template.partition("{haystack}")[2]):
            raise ValueError("task_template has no {haystack} with {question} after it")
    if record.get("distractors"):
        raise InputError(field, "distractors", "a needle set without them")
    for kind, question in record["questions"].items():
        for test_name, test in record["tests"].items():
            answers = test.get("gold_answers") or []
            is_name = _CHARACTER in record["needle"]
            if not (characters if is_name else is_list_of_texts(answers) and answers):
                expected = "a character_set for {CHAR}" if is_name else "gold_answers, a list of texts"
                raise InputError(f"{field}, test {test_name}", answers, expected)
            yield NeedleQuestion(
                f"{record['id']}_{test_name}_{kind}",
                _fill(record["needle"], test["input_args"]),
                _fill(question, test["input_args"]),
                () if is_name else tuple(answers),
                tuple(characters),
                template,
            )


def _fill(text: str, arguments: list[str]) -> str:
    """Replace the placeholders `{1}`, `{2}`, ... by the arguments."""
    for number, argument in enumerate(arguments, 1):
        text = text.replace(f"{{{number}}}", argument)
    return text
