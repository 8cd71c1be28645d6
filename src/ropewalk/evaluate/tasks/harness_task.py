"""Base class of tasks that take prompts and scores from lm-evaluation-harness, such as `ruler` and `longbench`."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropewalk.compat import lm_eval
from ropewalk.errors import InputError
from ropewalk.evaluate.prompt_encoder import render_chat
from ropewalk.evaluate.sample import Sample, SampleResult
from ropewalk.evaluate.tasks.base import Task, mean

if TYPE_CHECKING:
    from ropewalk.evaluate.server_text_generator import ServerTextGenerator
    from ropewalk.evaluate.text_generator import TextGenerator

# Aggregation functions of the harness by metric, for each task whose samples were made in this process. Tasks are
# frozen, and loading one again only to summarize its results would read its data again.
_AGGREGATIONS: dict[Task, Mapping[str, Callable[[Sequence[Any]], Any]]] = {}


@dataclass(frozen=True)
class Document:
    """One document of a loaded task of the harness.

    Attributes:
        task: the loaded task.
        requests: all requests to the model for this document; several for a multiple-choice question.
        length: most tokens of a prompt, including the longest answer.
    """

    task: Any
    requests: list[Any]
    length: int

    @property
    def content(self) -> Any:
        """The fields of the document."""
        return self.requests[0].doc

    @property
    def is_generation(self) -> bool:
        """Whether the model generates text; otherwise it computes likelihoods."""
        return [request.request_type for request in self.requests] == ["generate_until"]

    def references(self) -> tuple[str, ...]:
        """Return the correct answers; empty for a task that measures the likelihood of the document itself."""
        if self.task.OUTPUT_TYPE == "loglikelihood_rolling":
            return ()
        target = self.task.doc_to_target(self.content)
        if isinstance(target, int) and self.task.get_config("doc_to_choice") is not None:
            target = self.task.doc_to_choice(self.content)[target]
        return tuple(map(str, target)) if isinstance(target, list) else (str(target),)

    def longest_prompt(self) -> str:
        """Return the text of the longest request, including the continuation whose likelihood it asks for."""
        prompts = ["".join(text for text in request.args if isinstance(text, str)) for request in self.requests]
        return max(prompts, key=len)


@dataclass(frozen=True)
class HarnessTask(Task):
    """A task of lm-evaluation-harness, answered greedily; each of its documents is one sample."""

    positional = "task"

    @abstractmethod
    def load(self, tokenizer: Any, length: int, count: int, seed: int, chat: bool) -> tuple[Any, list[list[Any]]]:
        """Return the loaded task and the requests of each of its first `count` documents.

        The arguments are those of `make_samples`.
        """

    def truncate(self, token_ids: list[int], length: int, max_tokens: int) -> list[int]:
        """Shorten a prompt that is too long: by default drop its beginning, as the harness does.

        Args:
            token_ids: the prompt.
            length: most tokens of the prompt with its answer; for error messages.
            max_tokens: most tokens to return.
        """
        return token_ids[-max_tokens:]

    def document_metadata(self, content: Any) -> dict[str, Any]:
        """Return the properties of a document that a report groups by."""
        return {}

    def make_samples(self, tokenizer: Any, length: int, count: int, seed: int, chat: bool = False) -> list[Sample]:
        task, requests_by_document = self.load(tokenizer, length, count, seed, chat)
        _AGGREGATIONS[self] = task.aggregation()
        return [
            self._make_sample(index, Document(task, requests, length), tokenizer)
            for index, requests in enumerate(requests_by_document)
        ]

    def _make_sample(self, index: int, document: Document, tokenizer: Any) -> Sample:
        max_new_tokens, stop = 0, tuple[str, ...]()
        if document.is_generation:
            max_new_tokens, stop, is_sampled = lm_eval.generation_settings(document.requests[0])
            if is_sampled:
                raise InputError("task", str(self), "a task that is answered greedily", "its YAML sets do_sample")
        prompt = document.longest_prompt()
        token_ids = tokenize_prompt(tokenizer, prompt)
        max_tokens = document.length - max_new_tokens
        if max_tokens < 1:
            raise InputError(
                "lengths", document.length, f"more than the {max_new_tokens} tokens of an answer to {self}"
            )
        metadata = self.document_metadata(document.content)
        if len(token_ids) > max_tokens:
            shortened = self.truncate(token_ids, document.length, max_tokens)
            if len(shortened) < len(token_ids):
                metadata["cut"] = True
            token_ids = shortened
        return Sample(
            index=index,
            prompt=token_ids,
            references=document.references(),
            max_new_tokens=max_new_tokens,
            stop=stop,
            metadata=metadata,
            task_data=document,
        )

    def generate_answers(
        self, generator: TextGenerator | ServerTextGenerator, samples: Sequence[Sample]
    ) -> Iterator[tuple[Sample, str]]:
        """Yield each sample with its answer: generated text, or the likelihoods that the harness computes as JSON."""
        yield from generator.generate([sample for sample in samples if sample.task_data.is_generation])
        likelihood_samples = [sample for sample in samples if not sample.task_data.is_generation]
        if not likelihood_samples:
            return
        from ropewalk.evaluate.harness.model import RopewalkLM

        max_length = likelihood_samples[0].task_data.length
        with lm_eval.quiet():
            model = RopewalkLM(generator.model, tokenizer=generator.tokenizer, max_length=max_length)
        for sample in likelihood_samples:
            responses: list[Any] = []
            with lm_eval.quiet():
                for request_type, requests in groupby(sample.task_data.requests, key=attrgetter("request_type")):
                    responses += getattr(model, request_type)(list(requests))
            yield sample, json.dumps(responses)

    def score(self, sample: Sample, answer: str) -> dict[str, Any]:
        document = sample.task_data
        responses = [answer] if document.is_generation else json.loads(answer)
        return lm_eval.score_responses(document.task, document.requests, responses)

    def summarize(self, sample_results: Sequence[SampleResult]) -> dict[str, float]:
        """Return each metric as its own aggregation in the harness computes it, so corpus metrics are exact."""
        values: dict[str, list[Any]] = {}
        for result in sample_results:
            for name, value in result["scores"].items():
                values.setdefault(name, []).append(value)
        aggregations = _AGGREGATIONS[self]
        summary = {}
        with lm_eval.quiet():
            for name, metric_values in values.items():
                metric = name.partition(",")[0]  # the rest is the name of a filter
                summary[name] = float(aggregations.get(metric, mean)(metric_values))
        return summary


def tokenize_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Return the token ids of a prompt, to which a chat template may have added the token for its beginning."""
    has_bos = bool(tokenizer.bos_token) and prompt.startswith(tokenizer.bos_token)
    options = {"add_special_tokens": False} if has_bos else {}
    return list(tokenizer(prompt, verbose=False, **options)["input_ids"])


def chat_template(tokenizer: Any, chat: bool) -> Callable[..., str] | None:
    """Return the chat template of a tokenizer as a function of messages; None without `chat`."""
    return partial(render_chat, tokenizer) if chat else None


@contextmanager
def dataset_errors_as_input_error(field: str, value: str, expected: str) -> Iterator[None]:
    """Raise InputError if the data set that is loaded inside the block cannot be read or downloaded."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (OSError, DatasetsError) as error:
        raise InputError(field, value, expected, str(error)) from None


def digest_files(files: Iterable[Path]) -> str:
    """Return the SHA-256 of the contents of files, in hexadecimal."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
