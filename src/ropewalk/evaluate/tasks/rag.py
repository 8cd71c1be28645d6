from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Any

from ropewalk.errors import InputError
from ropewalk.evaluate.field_checks import check_fields, input_error_for_fields, is_list_of_texts, is_text
from ropewalk.evaluate.json_lines import read_json_records
from ropewalk.evaluate.metrics import find_metric
from ropewalk.evaluate.prompt_encoder import PromptEncoder
from ropewalk.evaluate.sample import Sample
from ropewalk.evaluate.tasks.file_task import FileTask
from ropewalk.evaluate.tasks.haystack import Haystack, even_depth

# HELMET's prompt, answer prefix and length of an answer (`load_qa` in data.py and configs/rag.yaml of
# github.com/princeton-nlp/HELMET, MIT license), without its two examples.
_BEFORE = (
    "Use the given documents to write a concise and short answer to the question. Write your answer in the following "
    "format:\nAnswer: [answer]"
)
_PASSAGE_START = "\n\nDocument (Title: "
_ANSWER_PREFIX = "Answer:"
_MAX_NEW_TOKENS = 20
_METRIC = "substring-exact-match"


@dataclass(frozen=True)
class Rag(FileTask):
    """Questions over retrieved passages, as in HELMET (H. Yen et al., arXiv 2410.02694).

    The first passage with the answer is put among the passages without it, which keep the order of the file; as many of
    them are used as the prompt has room for, and of the last one the beginning. The depths of the passages with the
    answer are spread evenly over the samples, from the first place (0) to the last (1).

    Options: `file`, JSONL in HELMET's format: `question`, `answers`, and `ctxs`, a list of passages with `title`,
    `text` and optionally `has_answer` (by default, whether the text contains an answer).
    """

    name = "rag"
    main_score = "found"

    def make_samples(self, tokenizer: Any, length: int, count: int, seed: int, chat: bool = False) -> list[Sample]:
        records = list(itertools.islice(read_json_records(self.file, self.file_field), count))
        if not records:
            raise InputError(self.file_field, f"{self.file}, which is empty", "at least one question")
        encoder = PromptEncoder(tokenizer, chat)
        samples = []
        for index, (name, record) in enumerate(records):
            samples.append(_make_sample(encoder, length, index, even_depth(index, len(records)), name, record))
        return samples

    def score(self, sample: Sample, answer: str) -> dict[str, float]:
        return {self.main_score: find_metric(_METRIC).score(answer, sample.references)}


def _make_sample(
    encoder: PromptEncoder, length: int, index: int, depth: float, field: str, record: dict[str, Any]
) -> Sample:
    with input_error_for_fields(field, "question, answers, and ctxs with title and text"):
        check_fields(record, {"question": is_text, "answers": is_list_of_texts, "ctxs": _is_list_of_passages})
    answers, passages = record["answers"], record["ctxs"]
    contains = find_metric(_METRIC).score
    has_answer = [p["has_answer"] if "has_answer" in p else bool(contains(p["text"], answers)) for p in passages]
    if not (answers and any(has_answer)):
        raise InputError(f"{field}, ctxs", f"no passage that contains {answers}", "at least one passage with an answer")
    with_answer = _format_passage(passages[has_answer.index(True)])
    others = "".join(_format_passage(p) for p, has in zip(passages, has_answer, strict=True) if not has)
    haystack = Haystack(encoder, lambda characters: others[:characters], length, _find_passage_ends)
    question = f"\n\nQuestion: {record['question']}\n"
    try:
        prompt = haystack.build_prompt(length, _BEFORE, [(depth, with_answer)], [(question, _ANSWER_PREFIX)], 0)
    except InputError as error:
        raise InputError(error.field, error.value, error.expected, f"for {field}") from None
    metadata = {"depth": round(depth, 4), "line": int(field.rpartition(" ")[2])}
    return Sample(index, prompt, tuple(answers), _MAX_NEW_TOKENS, ("\n",), metadata)


def _format_passage(passage: dict[str, Any]) -> str:
    return f"{_PASSAGE_START}{passage['title']}): {passage['text']}"


def _find_passage_ends(text: str) -> list[int]:
    return [match.start() for match in re.finditer(re.escape(_PASSAGE_START), text)]


def _is_list_of_passages(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_passage, value))


def _is_passage(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("has_answer", False), bool):
        return False
    return is_text(value.get("title")) and is_text(value.get("text"))
