from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ropewalk.errors import InputError
from ropewalk.evaluate import harness
from ropewalk.evaluate.sample import SampleResult
from ropewalk.evaluate.tasks.base import mean
from ropewalk.evaluate.tasks.harness_task import HarnessTask

_HUB = "Xnhyacinth/LongBench"
_FIELDS = ("context", "answers", "length", "all_classes")
_BINS = ((4000, "0-4k"), (8000, "4-8k"), (float("inf"), "8k+"))  # LongBench-E's, in words or Chinese characters


@dataclass(frozen=True)
class LongBench(HarnessTask):
    """LongBench (Y. Bai et al., arXiv 2308.14508): 21 data sets, or with `e` the 13 of LongBench-E, in bins of length.

    A prompt that is too long is cut in its middle, as LongBench's own code does; `about` says so. Samples are the first
    of the data set, or all where it has fewer.

    Options: `task`, one data set, by default all; `data`, a folder with NAME.jsonl or data/NAME.jsonl in LongBench's
    own format (NAME_e.jsonl with `e`); without it they are fetched as the harness does.
    """

    name = "longbench"
    main = "score"

    task: str = ""
    e: bool = False
    data: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.e, bool):
            raise InputError("longbench: e", self.e, "true or false")

    def expand(self) -> Sequence[LongBench]:
        names = [name for names in _groups(self.e).values() for name in names]
        if not self.task:
            return [replace(self, task=name) for name in names]
        harness.known("longbench: task", self.task, names, ", ".join(names))
        return [self]

    def fingerprint(self) -> dict[str, str]:
        entry = self._entry()
        said = {"lm_eval": harness.version(), "task": str(entry.cfg["metadata"]["version"])}
        return {**said, "data": harness.digest([self._file()])} if self.data is not None else said

    def built(self, tokenizer: Any, length: int, count: int, seed: int) -> tuple[Any, list[list[Any]]]:
        wanted = f"{self.name}:data=DIR with DIR/{self._set}.jsonl of LongBench's own data"
        with harness.fetching("longbench: data", f"no data for {self._set}", wanted):
            if self.data is None:
                task = harness.load(self._entry(), {}, seed)
            else:
                with harness.served(_HUB, lambda name: {"test": _documents(self._file(), count)}):
                    task = harness.load(self._entry(), {}, seed)
        return task, harness.requests(task, count, seed)

    def fit(self, ids: list[int], length: int, room: int) -> list[int]:
        half = room // 2
        return ids[:half] + ids[half - room :]

    def metadata(self, document: Any) -> dict[str, Any]:
        group = next(group for group, names in _groups(self.e).items() if self.task in names)
        return {"group": group, "bin": next(name for limit, name in _BINS if document["length"] < limit)}

    def summary(self, sample_results: Sequence[SampleResult]) -> dict[str, float]:
        whole = super().summary(sample_results)
        for _, name in _BINS if self.e else ():
            inside = [outcome["scores"][self.main] for outcome in sample_results if outcome["about"]["bin"] == name]
            if inside:
                whole[f"{self.main} {name}"] = mean(inside)
        return whole

    @property
    def _set(self) -> str:
        """The data set, as its file and its configuration are called."""
        return f"{self.task}_e" if self.e else self.task

    def _entry(self) -> Any:
        return harness.suite("longbench")[f"longbench_{self._set}"]

    def _file(self) -> Path:
        folder = Path(str(self.data)).expanduser()
        for path in (folder / f"{self._set}.jsonl", folder / "data" / f"{self._set}.jsonl"):
            if path.is_file():
                return path
        raise InputError(
            "longbench: data", str(self.data), f"a folder with {self._set}.jsonl, or data/{self._set}.jsonl"
        )


def _groups(e: bool) -> dict[str, list[str]]:
    """The data sets of each group (code, single ...), as the harness sorts them.

    Its own groups of LongBench-E leave two out, so that they are taken from LongBench's.
    """
    index = harness.suite("longbench")
    return {
        group.removeprefix("longbench_"): [
            task.removeprefix("longbench_") for task in index[group].cfg["task"] if not e or f"{task}_e" in index
        ]
        for group in index["longbench"].cfg["task"]
    }


def _documents(path: Path, count: int) -> Any:
    """The first documents of a file of LongBench, with the names that the harness's prompts have for their fields."""
    from datasets import Dataset

    try:
        with path.open(encoding="utf-8") as lines:
            documents = list(itertools.islice(_read(path, lines), count))
    except UnicodeDecodeError as error:
        raise InputError("longbench: data", str(path), f"a file in UTF-8 ({error})") from None
    if not documents:
        raise InputError("longbench: data", str(path), "a file with at least one line")
    return Dataset.from_list(documents)


def _read(path: Path, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        try:
            document = json.loads(line)
        except ValueError as error:
            raise InputError(place, line, f"a line of JSON ({error})") from None
        if isinstance(document, dict) and "input" in document:
            document = {"question": document["input"], **document}
        lacking = [field for field in ("question", *_FIELDS) if not isinstance(document, dict) or field not in document]
        if lacking:
            raise InputError(place, f"no field {', '.join(lacking)}", "the fields of LongBench's own files")
        yield document
