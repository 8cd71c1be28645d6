"""A server that answers prompts in place of a model in this process; its scaling is what it was started with."""

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

_STOPS = 4  # that OpenAI's protocol takes; the others are looked for afterwards


class ServerTextGenerator:
    """Answers as `Reader` does, from a server; `at_once` prompts are under way, which it may batch."""

    def __init__(self, server: CompletionsClient, tokenizer: Any, at_once: int) -> None:
        self.tokenizer = tokenizer
        self._server = server
        self._at_once = at_once

    @property
    def model(self) -> Any:
        """There is none. Raises InputError: a task that reads probabilities asks for it."""
        raise InputError("task", "one that needs the model's probabilities", "with a server, tasks that only generate")

    @contextmanager
    def scaled(self, scaling: Scaling, policy: Policy) -> Iterator[None]:
        """The server is scaled already."""
        yield

    def generate(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, str]]:
        """The likeliest continuation of each prompt, as soon as it is known; what begins alike is asked in a row."""
        ordered = sorted(samples, key=lambda sample: sample.prompt)  # a server's prefix cache finds them
        with ThreadPoolExecutor(self._at_once) as pool:
            asked = {pool.submit(self._answer, sample): sample for sample in ordered}
            try:
                for done in as_completed(asked):
                    yield asked[done], done.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, sample: Sample) -> str:
        stop = {"stop": list(sample.stop[:_STOPS])} if sample.stop else {}
        answer = self._server.complete(sample.prompt, max_tokens=sample.max_new_tokens, **stop)
        return truncate_at_stop(str(answer["text"]), sample.stop)
