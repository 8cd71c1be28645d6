"""Greedy answers of a model on a server, in place of a model in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

from ropewalk.completions import CompletionsClient
from ropewalk.errors import InputError
from ropewalk.evaluate.sample import Sample, truncate_at_stop
from ropewalk.scaling import Scaling
from ropewalk.scaling.policies import Policy

_MAX_STOP_STRINGS = 4  # that the OpenAI completions API accepts; the others are applied to the answer


class ServerTextGenerator:
    """Answers prompts as `TextGenerator` does, through a server, which may batch concurrent requests."""

    def __init__(self, client: CompletionsClient, tokenizer: Any, concurrent_requests: int) -> None:
        """`tokenizer`: of the model that the server runs."""
        self.tokenizer = tokenizer
        self._client = client
        self._concurrent_requests = concurrent_requests

    @property
    def model(self) -> Any:
        """Always raises InputError: a task that computes probabilities needs the model itself."""
        raise InputError("task", "one that needs the model's probabilities", "with a server, tasks that only generate")

    @contextmanager
    def scaled(self, scaling: Scaling, policy: Policy) -> Iterator[None]:
        """Do nothing: the server was started with its scaling."""
        yield

    def generate(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, str]]:
        """Yield the greedy answer to each prompt as soon as it is known, in any order."""
        in_order = sorted(samples, key=lambda sample: sample.prompt)  # so that the prefix cache of the server hits
        with ThreadPoolExecutor(self._concurrent_requests) as pool:
            samples_by_future = {pool.submit(self._answer, sample): sample for sample in in_order}
            try:
                for future in as_completed(samples_by_future):
                    yield samples_by_future[future], future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, sample: Sample) -> str:
        stop = {"stop": list(sample.stop[:_MAX_STOP_STRINGS])} if sample.stop else {}
        choice = self._client.complete(sample.prompt, max_tokens=sample.max_new_tokens, **stop)
        return truncate_at_stop(str(choice["text"]), sample.stop)
