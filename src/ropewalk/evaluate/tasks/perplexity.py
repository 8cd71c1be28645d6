from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ropewalk.errors import InputError
from ropewalk.evaluate.sample import Sample, SampleResult
from ropewalk.evaluate.tasks.base import Task, mean
from ropewalk.evaluate.texts import BUILT_IN, read_text

if TYPE_CHECKING:
    from ropewalk.evaluate.server_text_generator import ServerTextGenerator
    from ropewalk.evaluate.text_generator import TextGenerator


@dataclass(frozen=True)
class Perplexity(Task):
    """Perplexity over windows of a text, spread evenly from its beginning to its end.

    A dynamic scaling reads each window at once, at the frequencies of its length; `ropewalk curve --cached` reads
    through the cache. The perplexity of a cell is that of the mean loss of its windows.
    """

    name = "perplexity"
    main = "ppl"
    better = "lower"
    share = False
    positional = "text"

    text: str = BUILT_IN

    def fingerprint(self) -> dict[str, str]:
        return {"text": read_text(self.text).digest}

    def samples(self, tokenizer: Any, length: int, count: int, seed: int) -> list[Sample]:
        first = tokenizer("", verbose=False)["input_ids"]  # what begins every text, for some models
        ids = tokenizer(read_text(self.text).content, add_special_tokens=False, verbose=False)["input_ids"]
        room = length - len(first)
        if not 1 < room <= len(ids):
            most = len(ids) + len(first)
            raise InputError("lengths", length, f"from 2 to the {most:,} tokens of the text {self.text}")
        starts = dict.fromkeys(round(index * (len(ids) - room) / max(count - 1, 1)) for index in range(count))
        return [
            Sample(index, [*first, *ids[start : start + room]], (), metadata={"start": start})
            for index, start in enumerate(starts)
        ]

    def answers(
        self, reader: TextGenerator | ServerTextGenerator, samples: Sequence[Sample]
    ) -> Iterator[tuple[Sample, str]]:
        from ropewalk.evaluate.perplexity import perplexity_curve

        for sample in samples:
            (row,) = perplexity_curve(reader.model, sample.prompt, [len(sample.prompt)])
            yield sample, json.dumps({name: row[name] for name in ("nll", "ppl_last")})

    def score(self, sample: Sample, answer: str) -> dict[str, float]:
        read = json.loads(answer)
        return {"ppl": _perplexity(read["nll"]), "nll": read["nll"], "ppl_last": read["ppl_last"]}

    def summary(self, sample_results: Sequence[SampleResult]) -> dict[str, float]:
        means = super().summary(sample_results)
        return {**means, "ppl": _perplexity(mean([outcome["scores"]["nll"] for outcome in sample_results]))}


def _perplexity(nll: float) -> float:
    return math.exp(min(nll, 700.0))
