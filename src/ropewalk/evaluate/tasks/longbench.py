from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ropewalk.compat import lm_eval
from ropewalk.errors import InputError, UnknownNameError
from ropewalk.evaluate.field_checks import check_fields, is_count, is_list_of_texts, is_text
from ropewalk.evaluate.json_lines import read_json_lines
from ropewalk.evaluate.sample import SampleResult
from ropewalk.evaluate.tasks.base import mean
from ropewalk.evaluate.tasks.harness_task import (
    HarnessTask,
    chat_template,
    dataset_errors_as_input_error,
    digest_files,
)

_REQUIRED_CHECKS = {
    "question": is_text,
    "context": is_text,
    "answers": is_list_of_texts,
    "length": is_count,
    "all_classes": lambda value: value is None or is_list_of_texts(value),
}
_OPTIONAL_FIELDS = ("input", "dataset", "language", "_id")
# LongBench-E's bins: upper limit of a document's length in words (or Chinese characters), and name.
_LENGTH_BINS = ((4000, "0-4k"), (8000, "4-8k"), (float("inf"), "8k+"))


@dataclass(frozen=True)
class LongBench(HarnessTask):
    """LongBench (Y. Bai et al., arXiv 2308.14508): 21 data sets, or with `e` the 13 of LongBench-E, in bins of length.

    A prompt that is too long loses its middle, as in LongBench's own code, and is marked `cut`. Samples are the first
    documents of the data set, or all of a smaller one.

    Options: `task`, one data set, by default all; `data`, a folder that contains NAME.jsonl or data/NAME.jsonl in
    LongBench's own format (NAME_e.jsonl with `e`), by default downloaded as the harness does.
    """

    name = "longbench"
    main_score = "score"
    chat_choices = ("auto", "on")

    task: str = ""
    e: bool = False
    data: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.e, bool):
            raise InputError("longbench: e", self.e, "true or false")

    def expand(self) -> Sequence[LongBench]:
        names = [name for group in _data_sets_by_group(self.e).values() for name in group]
        if not self.task:
            return [replace(self, task=name) for name in names]
        if self.task not in names:
            raise UnknownNameError("longbench: task", self.task, names)
        return [self]

    def fingerprint(self) -> dict[str, str]:
        version = str(self._index_entry().cfg["metadata"]["version"])
        fingerprint = {"lm_eval": lm_eval.installed_version(), "task": version}
        if self.data is not None:
            fingerprint["data"] = digest_files([self._data_file()])
        return fingerprint

    def load(self, tokenizer: Any, length: int, count: int, seed: int, chat: bool) -> tuple[Any, list[list[Any]]]:
        from datasets import Dataset

        expected = f"longbench:data=DIR with DIR/{self._data_set}.jsonl of LongBench's own data"
        with dataset_errors_as_input_error("longbench: data", f"no data for {self._data_set}", expected):
            dataset = None if self.data is None else Dataset.from_list(_read_documents(self._data_file(), count))
            task = lm_eval.load_task(self._index_entry(), seed, dataset)
        return task, lm_eval.build_requests(task, count, seed, chat_template=chat_template(tokenizer, chat))

    def truncate(self, token_ids: list[int], length: int, max_tokens: int) -> list[int]:
        """Drop the middle of the prompt, as LongBench's own pred.py does."""
        half = max_tokens // 2
        return token_ids[:half] + token_ids[half - max_tokens :]

    def document_metadata(self, content: Any) -> dict[str, Any]:
        group = next(group for group, names in _data_sets_by_group(self.e).items() if self.task in names)
        return {"group": group, "bin": next(name for limit, name in _LENGTH_BINS if content["length"] < limit)}

    def summarize(self, sample_results: Sequence[SampleResult]) -> dict[str, float]:
        summary = super().summarize(sample_results)
        if self.e:
            for _, name in _LENGTH_BINS:
                scores = [r["scores"][self.main_score] for r in sample_results if r["about"]["bin"] == name]
                if scores:
                    summary[f"{self.main_score} {name}"] = mean(scores)
        return summary

    @property
    def _data_set(self) -> str:
        """The name of the data set's file and of its configuration on the hub."""
        return f"{self.task}_e" if self.e else self.task

    def _index_entry(self) -> Any:
        return lm_eval.index_suite("longbench")[f"longbench_{self._data_set}"]

    def _data_file(self) -> Path:
        folder = Path(str(self.data)).expanduser()
        for path in (folder / f"{self._data_set}.jsonl", folder / "data" / f"{self._data_set}.jsonl"):
            if path.is_file():
                return path
        expected = f"a folder with {self._data_set}.jsonl, or data/{self._data_set}.jsonl"
        raise InputError("longbench: data", str(self.data), expected)


def _data_sets_by_group(e: bool) -> dict[str, list[str]]:
    """Return the data sets of each group (code, single, multi, ...) of LongBench, or of LongBench-E.

    The harness's groups of LongBench-E omit two of its data sets, so both are derived from the groups of LongBench.
    """
    index = lm_eval.index_suite("longbench")
    groups = {}
    for group in index["longbench"].cfg["task"]:
        tasks = [task for task in index[group].cfg["task"] if not e or f"{task}_e" in index]
        groups[group.removeprefix("longbench_")] = [task.removeprefix("longbench_") for task in tasks]
    return groups


def _read_documents(path: Path, count: int) -> list[dict[str, Any]]:
    """Read the first `count` documents of one of LongBench's own files."""
    lines = itertools.islice(read_json_lines(path, "longbench: data"), count)
    documents = [_check_document(name, document) for name, document in lines]
    if not documents:
        raise InputError("longbench: data", str(path), "a file with at least one line")
    return documents


def _check_document(field: str, document: dict[str, Any]) -> dict[str, Any]:
    """Return the known fields of a document, with `question` as the prompts of the harness call LongBench's `input`."""
    if "input" in document:
        document = {"question": document["input"], **document}
    missing = [name for name in _REQUIRED_CHECKS if name not in document]
    if missing:
        raise InputError(field, f"no field {', '.join(missing)}", "the fields of LongBench's own files")
    known = {name: document[name] for name in (*_REQUIRED_CHECKS, *_OPTIONAL_FIELDS) if name in document}
    try:
        return check_fields(known, _REQUIRED_CHECKS | {name: is_text for name in _OPTIONAL_FIELDS if name in known})
    except ValueError as error:
        raise InputError(field, str(error), "the types of LongBench's own files") from None
