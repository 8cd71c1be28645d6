from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropewalk.errors import InputError, check_length
from ropewalk.evaluate.metrics import Metric, find_metric
from ropewalk.evaluate.sample import Sample, SampleResult
from ropewalk.evaluate.tasks.base import Task
from ropewalk.evaluate.truncation import truncate_middle


@dataclass(frozen=True)
class Generate(Task):
    """Questions of the user's own: a JSONL file with `context`, `input` and `answers` (a string or a list) a line.

    The prompt is the context, an empty line, and the input; where it is longer than the length asked for, the middle of
    the context is left out. `metric`: one metric or several, joined by `+`; tables show the first.
    """

    name = "generate"
    positional = "file"

    file: str
    metric: str = "f1"
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        check_length("generate: max_new_tokens", self.max_new_tokens)
        self._metrics()

    @property
    def main(self) -> str:
        return self._metrics()[0].name

    def fingerprint(self) -> dict[str, str]:
        return {"file": hashlib.sha256("\n".join(self._lines()).encode()).hexdigest()}

    def samples(self, tokenizer: Any, length: int, count: int, seed: int) -> list[Sample]:
        made: list[Sample] = []
        for number, line in enumerate(self._lines(), 1):
            if line.strip() and len(made) < count:
                made.append(self._sample(tokenizer, length, len(made), number, line))
        if not made:
            raise InputError("generate: file", f"{self.file}, which is empty", "at least one line")
        return made

    def score(self, sample: Sample, answer: str) -> dict[str, float]:
        return {metric.name: metric.score(answer.strip(), sample.references) for metric in self._metrics()}

    def summary(self, sample_results: Sequence[SampleResult]) -> dict[str, float]:
        answers = [outcome["answer"].strip() for outcome in sample_results]
        references = [outcome["references"] for outcome in sample_results]
        return {metric.name: metric.corpus(answers, references) for metric in self._metrics()}

    def _metrics(self) -> list[Metric]:
        return [find_metric(name) for name in self.metric.split("+")]

    def _lines(self) -> list[str]:
        path = Path(self.file).expanduser()
        try:
            return path.read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError as error:
            found = f"{self.file}, which is not UTF-8 at byte {error.start}"
            raise InputError("generate: file", found, "a JSONL file in UTF-8") from None
        except OSError as error:
            raise InputError("generate: file", f"{self.file} ({error.strerror})", "a file that can be read") from None

    def _sample(self, tokenizer: Any, length: int, index: int, number: int, line: str) -> Sample:
        where = f"{self.file} line {number}"
        try:
            fields = json.loads(line)
            context, question, answers = (fields[name] for name in ("context", "input", "answers"))
        except (ValueError, TypeError) as error:
            raise InputError(where, line, f"a JSON object ({error})") from None
        except KeyError as error:
            raise InputError(where, f"no field {error.args[0]}", "the fields context, input and answers") from None
        references = [answers] if isinstance(answers, str) else answers
        if not (isinstance(context, str) and isinstance(question, str)):
            raise InputError(where, line, "strings as context and input")
        if not (isinstance(references, list) and references and all(isinstance(each, str) for each in references)):
            raise InputError(f"{where}, answers", answers, "a string or a list of strings")
        prompt, cut = truncate_middle(tokenizer, context, f"\n\n{question}", length, where)
        return Sample(index, prompt, tuple(references), self.max_new_tokens, metadata={"line": number, "cut": cut})
