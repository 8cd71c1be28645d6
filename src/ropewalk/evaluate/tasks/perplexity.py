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

    With a dynamic scaling each window is read in one pass, at the frequencies of its length; `ropewalk curve --cached`
    measures the same through the KV cache. The perplexity of a cell is that of the mean loss of its windows.

    Options: `text`, a name for `read_text`.
    """

    name = "perplexity"
    main_score = "ppl"
    higher_is_better = False
    is_fraction = False
    positional = "text"

    text: str = BUILT_IN

    def fingerprint(self) -> dict[str, str]:
        return {"text": read_text(self.text).digest}

    def make_samples(self, tokenizer: Any, length: int, count: int, seed: int, chat: bool = False) -> list[Sample]:
        prefix = tokenizer("", verbose=False)["input_ids"]  # special tokens at the beginning of every text, if any
        token_ids = tokenizer(read_text(self.text).content, add_special_tokens=False, verbose=False)["input_ids"]
        window = length - len(prefix)
        if not 1 < window <= len(token_ids):
            longest = len(token_ids) + len(prefix)
            raise InputError("lengths", length, f"from 2 to the {longest:,} tokens of the text {self.text}")
        last_start = len(token_ids) - window
        starts = dict.fromkeys(round(index * last_start / max(count - 1, 1)) for index in range(count))
        return [
            Sample(index, [*prefix, *token_ids[start : start + window]], (), metadata={"start": start})
            for index, start in enumerate(starts)
        ]

    def generate_answers(
        self, generator: TextGenerator | ServerTextGenerator, samples: Sequence[Sample]
    ) -> Iterator[tuple[Sample, str]]:
        """Yield each sample with its loss and its perplexity over the last tokens, as JSON."""
        from ropewalk.evaluate.curve import perplexity_curve

        for sample in samples:
            (row,) = perplexity_curve(generator.model, sample.prompt, [len(sample.prompt)])
            yield sample, json.dumps({name: row[name] for name in ("nll", "ppl_last")})

    def score(self, sample: Sample, answer: str) -> dict[str, float]:
        from ropewalk.evaluate.perplexity import perplexity_of  # imports torch

        losses = json.loads(answer)
        return {"ppl": perplexity_of(losses["nll"]), "nll": losses["nll"], "ppl_last": losses["ppl_last"]}

    def summarize(self, sample_results: Sequence[SampleResult]) -> dict[str, float]:
        from ropewalk.evaluate.perplexity import perplexity_of

        scores = [result["scores"] for result in sample_results]
        return {
            **super().summarize(sample_results),
            "ppl": perplexity_of(mean([each["nll"] for each in scores])),
            "ppl_last": perplexity_of(mean([math.log(each["ppl_last"]) for each in scores])),
        }
