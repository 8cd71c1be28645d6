from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ropewalk.compat import lm_eval
from ropewalk.errors import InputError
from ropewalk.evaluate.field_checks import check_fields, input_error_for_fields, is_text
from ropewalk.evaluate.json_lines import digest_lines, read_json_records
from ropewalk.evaluate.sample import SampleResult
from ropewalk.evaluate.tasks.base import mean
from ropewalk.evaluate.tasks.harness_task import HarnessTask, chat_template, tokenize_prompt
from ropewalk.evaluate.truncation import truncate_middle

_FIELD = "longbench-v2: file"
_TASK = "longbench2_govt_single"  # all tasks of the harness's longbench2 have the same prompt and score
_CHOICES = "ABCD"
_KINDS = ("difficulty", "length")  # LongBench v2 reports the accuracy for each of their values
_CHECKS = {
    **dict.fromkeys(("context", "question", *(f"choice_{letter}" for letter in _CHOICES), *_KINDS), is_text),
    "answer": lambda value: is_text(value) and value in tuple(_CHOICES),
}


@dataclass(frozen=True)
class LongBenchV2(HarnessTask):
    """LongBench v2 (Y. Bai et al., arXiv 2412.15204): questions with four choices about contexts of up to 2M words.

    The prompt and the score are those of lm-evaluation-harness: the most likely letter. (LongBench v2's own code lets
    the model write a sentence.) A context that is too long loses its middle, as in LongBench v2's own code, and the
    sample is marked `cut`. Samples are the first questions of the file. Scores beside `acc` are the accuracies on the
    questions of each `difficulty` and `length`.

    Options: `file`, LongBench v2's own data.json, or the same objects one per line.
    """

    name = "longbench-v2"
    main_score = "acc"
    positional = "file"
    chat_choices = ("auto", "on")

    file: str

    def fingerprint(self) -> dict[str, str]:
        digest = digest_lines(self.file, _FIELD)
        version = str(self._index_entry().cfg["metadata"]["version"])
        return {"lm_eval": lm_eval.installed_version(), "task": version, "file": digest}

    def load(self, tokenizer: Any, length: int, count: int, seed: int, chat: bool) -> tuple[Any, list[list[Any]]]:
        from datasets import Dataset

        records = itertools.islice(read_json_records(self.file, _FIELD), count)
        documents = {name: _make_document(name, record) for name, record in records}
        if not documents:
            raise InputError(_FIELD, f"{self.file}, which is empty", "at least one question")
        template = chat_template(tokenizer, chat)
        task = lm_eval.load_task(self._index_entry(), seed, Dataset.from_list([*documents.values()]))
        for name, document in documents.items():

            def encode(context: str, document: dict[str, Any] = document) -> list[int]:
                prompt = lm_eval.render_prompt(task, {**document, "context": context}, template)
                return tokenize_prompt(tokenizer, f"{prompt} {_CHOICES[0]}")

            whole = document["context"]
            document["context"], _ = truncate_middle(tokenizer, whole, encode, length, name)
            document["cut"] = document["context"] != whole
        task = lm_eval.load_task(self._index_entry(), seed, Dataset.from_list([*documents.values()]))
        return task, lm_eval.build_requests(task, count, seed, chat_template=template)

    def document_metadata(self, content: Any) -> dict[str, Any]:
        return {name: content[name] for name in (*_KINDS, "cut")}

    def summarize(self, sample_results: Sequence[SampleResult]) -> dict[str, float]:
        summary = super().summarize(sample_results)
        for kind in _KINDS:
            for value in dict.fromkeys(result["about"][kind] for result in sample_results):
                scores = [r["scores"][self.main_score] for r in sample_results if r["about"][kind] == value]
                summary[f"{self.main_score} {value}"] = mean(scores)
        return summary

    def _index_entry(self) -> Any:
        return lm_eval.index_suite("longbench2")[_TASK]


def _make_document(field: str, record: dict[str, Any]) -> dict[str, Any]:
    """Return a question of LongBench v2 as the harness has it, with its choices in a list."""
    with input_error_for_fields(field, "the fields of LongBench v2's data.json"):
        check_fields(record, _CHECKS)
    fields = {name: record[name] for name in ("context", "question", "answer", *_KINDS)}
    return {**fields, "choices": [record[f"choice_{letter}"] for letter in _CHOICES]}
