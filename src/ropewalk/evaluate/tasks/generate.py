from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ropewalk.errors import InputError, check_length
from ropewalk.evaluate.json_lines import read_json_lines
from ropewalk.evaluate.metrics import Metric, find_metric
from ropewalk.evaluate.prompt_encoder import PromptEncoder
from ropewalk.evaluate.sample import Sample, SampleResult
from ropewalk.evaluate.tasks.file_task import FileTask
from ropewalk.evaluate.truncation import truncate_middle

_FIELDS = ("context", "input", "answers")


@dataclass(frozen=True)
class Generate(FileTask):
    """The user's own questions: a JSONL file with `context`, `input` and `answers` (a string or a list) on each line.

    The prompt is the context, an empty line, and the input. If it is too long, the context loses its middle.

    Options: `file`; `metric`, one metric or several joined by `+`, of which tables show the first; `max_new_tokens`.
    """

    name = "generate"

    metric: str = "f1"
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        check_length("generate: max_new_tokens", self.max_new_tokens)
        self._metrics()  # refuse an unknown metric now

    @property
    def main_score(self) -> str:
        return self._metrics()[0].name

    def make_samples(self, tokenizer: Any, length: int, count: int, seed: int, chat: bool = False) -> list[Sample]:
        encoder = PromptEncoder(tokenizer, chat)
        samples: list[Sample] = []
        for name, record in itertools.islice(read_json_lines(self.file, self.file_field), count):
            samples.append(self._make_sample(encoder, length, len(samples), name, record))
        if not samples:
            raise InputError(self.file_field, f"{self.file}, which is empty", "at least one line")
        return samples

    def score(self, sample: Sample, answer: str) -> dict[str, float]:
        return {metric.name: metric.score(answer.strip(), sample.references) for metric in self._metrics()}

    def summarize(self, sample_results: Sequence[SampleResult]) -> dict[str, float]:
        answers = [result["answer"].strip() for result in sample_results]
        references = [result["references"] for result in sample_results]
        return {metric.name: metric.corpus_score(answers, references) for metric in self._metrics()}

    def _metrics(self) -> list[Metric]:
        return [find_metric(name) for name in self.metric.split("+")]

    def _make_sample(
        self, encoder: PromptEncoder, length: int, index: int, field: str, record: dict[str, Any]
    ) -> Sample:
        """Return the sample of the line with the name `field`."""
        missing = [name for name in _FIELDS if name not in record]
        if missing:
            raise InputError(field, f"no field {', '.join(missing)}", f"the fields {', '.join(_FIELDS)}")
        context, question, answers = (record[name] for name in _FIELDS)
        references = [answers] if isinstance(answers, str) else answers
        if not (isinstance(context, str) and isinstance(question, str)):
            raise InputError(field, record, "strings as context and input")
        if not (isinstance(references, list) and references and all(isinstance(text, str) for text in references)):
            raise InputError(f"{field}, answers", answers, "a string or a list of strings")
        for metric in self._metrics():
            try:
                metric.score("", references)
            except IndexError:  # of LongBench's functions, which look for a number in the reference
                expected = f"what {metric.name} can compare, such as Paragraph 3"
                raise InputError(f"{field}, answers", answers, expected) from None
        text, prompt = truncate_middle(
            encoder.tokenizer, context, lambda text: encoder.encode(f"{text}\n\n{question}"), length, field
        )
        metadata = {"line": int(field.rpartition(" ")[2]), "cut": text != context}
        return Sample(index, prompt, tuple(references), self.max_new_tokens, metadata=metadata)
