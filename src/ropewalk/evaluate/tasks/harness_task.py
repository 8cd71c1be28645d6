"""What `ruler`, `longbench` and `lm_eval` share: a task of lm-evaluation-harness, asked and scored as it does."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ropewalk.errors import InputError
from ropewalk.evaluate import harness
from ropewalk.evaluate.sample import Sample, SampleResult
from ropewalk.evaluate.tasks.base import Task, mean

if TYPE_CHECKING:
    from ropewalk.evaluate.server_text_generator import ServerTextGenerator
    from ropewalk.evaluate.text_generator import TextGenerator

_AGGREGATIONS: dict[Task, Mapping[str, Callable[[Sequence[Any]], Any]]] = {}  # how the harness sums up, by task built


@dataclass(frozen=True)
class _Held:
    """A document of a task of the harness: its requests to the model, of which each sees at most `length` tokens."""

    task: Any
    requests: list[Any]
    length: int

    @property
    def document(self) -> Any:
        return self.requests[0].doc

    def generates(self) -> bool:
        return [request.request_type for request in self.requests] == ["generate_until"]


@dataclass(frozen=True)
class HarnessTask(Task):
    """A task of the harness by its name there. A model answers it greedily; each document is one sample."""

    positional = "task"

    task: str

    @abstractmethod
    def built(self, tokenizer: Any, length: int, count: int, seed: int) -> tuple[Any, list[list[Any]]]:
        """The task with its data, and the requests for each document, of `count` or as many as there are."""

    def fit(self, ids: list[int], length: int, room: int) -> list[int]:
        """What to ask of more `ids` than `room`, `length` less the longest answer. The harness cuts the beginning."""
        return ids[-room:]

    def metadata(self, document: Any) -> dict[str, Any]:
        """What a report groups documents by."""
        return {}

    def samples(self, tokenizer: Any, length: int, count: int, seed: int) -> list[Sample]:
        task, documents = self.built(tokenizer, length, count, seed)
        _AGGREGATIONS[self] = task.aggregation()
        return [
            self._sample(index, _Held(task, requests, length), tokenizer) for index, requests in enumerate(documents)
        ]

    def _sample(self, index: int, held: _Held, tokenizer: Any) -> Sample:
        new, stop = _ending(self, held) if held.generates() else (0, ())
        asked = max(("".join(_texts(request)) for request in held.requests), key=len)
        begun = bool(tokenizer.bos_token) and asked.startswith(tokenizer.bos_token)  # a template may bring it along
        ids = list(tokenizer(asked, verbose=False, **({"add_special_tokens": False} if begun else {}))["input_ids"])
        room = held.length - new
        if room < 1:
            raise InputError("lengths", held.length, f"more than the {new} tokens of an answer to {self}")
        prompt = ids if len(ids) <= room else self.fit(ids, held.length, room)
        return Sample(
            index=index,
            prompt=prompt,
            references=_references(held),
            max_new_tokens=new,
            stop=stop,
            metadata={**self.metadata(held.document), **({"cut": True} if len(prompt) < len(ids) else {})},
            task_data=held,
        )

    def answers(
        self, reader: TextGenerator | ServerTextGenerator, samples: Sequence[Sample]
    ) -> Iterator[tuple[Sample, str]]:
        yield from reader.generate([sample for sample in samples if sample.task_data.generates()])
        others = [sample for sample in samples if not sample.task_data.generates()]
        if not others:
            return
        from ropewalk.evaluate.harness.model import RopewalkLM

        with harness.quiet():
            model = RopewalkLM(reader.model, tokenizer=reader.tokenizer, max_length=others[0].task_data.length)
        for sample in others:
            with harness.quiet():
                responses = [
                    response
                    for kind, alike in groupby(sample.task_data.requests, key=attrgetter("request_type"))
                    for response in getattr(model, kind)(list(alike))
                ]
            yield sample, json.dumps(responses)

    def score(self, sample: Sample, answer: str) -> dict[str, Any]:
        responses = [answer] if sample.task_data.generates() else json.loads(answer)
        return harness.scores(sample.task_data.task, sample.task_data.requests, responses)

    def summary(self, sample_results: Sequence[SampleResult]) -> dict[str, float]:
        names = dict.fromkeys(name for outcome in sample_results for name in outcome["scores"])
        known = _AGGREGATIONS[self]
        with harness.quiet():
            return {
                name: float(
                    known.get(name.partition(",")[0], mean)(
                        [o["scores"][name] for o in sample_results if name in o["scores"]]
                    )
                )
                for name in names
            }


def _ending(task: Task, held: _Held) -> tuple[int, tuple[str, ...]]:
    """How many tokens an answer has at most, and before which strings it ends."""
    from lm_eval.models.utils import normalize_gen_kwargs

    with harness.quiet():
        said = normalize_gen_kwargs(held.requests[0].args[1])
    if said["do_sample"]:
        raise InputError("task", str(task), "a task that is answered greedily; this one asks for drawn answers")
    return said["max_gen_toks"], tuple(filter(None, said["until"]))


def _texts(request: Any) -> list[str]:
    """What a request shows to the model."""
    return [text for text in request.args if isinstance(text, str)]


def _references(held: _Held) -> tuple[str, ...]:
    if held.task.OUTPUT_TYPE == "loglikelihood_rolling":
        return ()
    target = held.task.doc_to_target(held.document)
    if isinstance(target, int) and held.task.get_config("doc_to_choice") is not None:
        target = held.task.doc_to_choice(held.document)[target]
    return tuple(map(str, target)) if isinstance(target, list) else (str(target),)
