"""Greedy answers of a model on a server, in place of a model in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Thread
from typing import Any

from ropewalk.completions import CompletionsClient
from ropewalk.errors import InputError
from ropewalk.evaluate.sample import Sample, truncate_at_stop
from ropewalk.positions import PositionMethod
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
    def scaled(self, scaling: Scaling | PositionMethod, policy: Policy) -> Iterator[None]:
        """Do nothing: the server was started with its scaling."""
        yield

    def generate(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, str]]:
        """Yield the greedy answer to each prompt as soon as it is known, in any order.

        When the generator is closed, by Ctrl-C for example, no further prompt is sent, and the answers to those in
        flight are not waited for.
        """
        in_order = sorted(samples, key=lambda sample: sample.prompt)  # so that the prefix cache of the server hits
        waiting, answers = deque(in_order), SimpleQueue[tuple[Sample, str | Exception]]()

        def answer_until_none_waits() -> None:
            while True:
                try:
                    sample = waiting.popleft()
                except IndexError:
                    return
                try:
                    answers.put((sample, self._answer(sample)))
                except Exception as error:  # raised below, in the thread that waits for answers
                    waiting.clear()
                    answers.put((sample, error))

        # Daemon threads, because Python would wait for others when it exits, as long as the server hangs.
        for _ in range(min(self._concurrent_requests, len(samples))):
            Thread(target=answer_until_none_waits, daemon=True).start()
        try:
            for _ in samples:
                sample, answer = answers.get()
                if isinstance(answer, Exception):
                    raise answer
                yield sample, answer
        finally:
            waiting.clear()

    def _answer(self, sample: Sample) -> str:
        stop = {"stop": list(sample.stop[:_MAX_STOP_STRINGS])} if sample.stop else {}
        choice = self._client.complete(sample.prompt, max_tokens=sample.max_new_tokens, **stop)
        return truncate_at_stop(choice["text"], sample.stop)
