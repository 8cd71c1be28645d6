"""Metrics by name, each from the well-kept library of its field. All of them run from 0 to 1; tables show percent."""

from __future__ import annotations

import importlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from ropewalk.errors import InputError
from ropewalk.registry import find_by_name


class Metric(ABC):
    """How good an answer is, given the answers that are right."""

    name: ClassVar[str]

    @abstractmethod
    def score(self, answer: str, references: Sequence[str]) -> float:
        """Of one answer, 0 to 1; of several references the best counts, unless the metric says otherwise."""

    def corpus(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """Of all answers: the mean of their scores, unless the metric is defined otherwise."""
        scores = [self.score(answer, right) for answer, right in zip(answers, references, strict=True)]
        return sum(scores) / len(scores)


@dataclass(frozen=True)
class ExactMatch(Metric):
    """1 for an answer that is a reference, but for case, punctuation and outer spaces (lm-evaluation-harness)."""

    name = "exact-match"

    def score(self, answer: str, references: Sequence[str]) -> float:
        same = _library("lm_eval.api.metrics", self.name).exact_match_hf_evaluate
        options = {"ignore_case": True, "ignore_punctuation": True}
        return max(float(same([answer.strip()], [each.strip()], **options)["exact_match"]) for each in references)


@dataclass(frozen=True)
class StringMatch(Metric):
    """The share of the references that the answer contains, in either case (RULER, as in lm-evaluation-harness)."""

    name = "string-match"

    def score(self, answer: str, references: Sequence[str]) -> float:
        return float(_library("lm_eval.tasks.ruler.common_utils", self.name).string_match_all([answer], [references]))


@dataclass(frozen=True)
class Bleu(Metric):
    """BLEU (Papineni et al. 2002) by sacrebleu; of all answers it is the corpus's own, not a mean of sentences."""

    name: str  # type: ignore[misc]
    tokenize: str

    def score(self, answer: str, references: Sequence[str]) -> float:
        return float(self._bleu(effective_order=True).sentence_score(answer, list(references)).score) / 100

    def corpus(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        most = max(map(len, references))
        streams = [[right[at] if at < len(right) else None for right in references] for at in range(most)]
        return float(self._bleu().corpus_score(list(answers), streams).score) / 100

    def _bleu(self, **options: Any) -> Any:
        return _library("sacrebleu.metrics", self.name).BLEU(tokenize=self.tokenize, **options)


@dataclass(frozen=True)
class Rouge(Metric):
    """ROUGE (Lin 2004), F-measure, by rouge-score, which reads the letters a-z and digits alone."""

    name: str  # type: ignore[misc]
    kind: str

    def score(self, answer: str, references: Sequence[str]) -> float:
        scorer = _library("rouge_score.rouge_scorer", self.name).RougeScorer([self.kind])
        return float(scorer.score_multi(list(references), answer)[self.kind].fmeasure)


@dataclass(frozen=True)
class LongBenchScore(Metric):
    """A score of LongBench (arXiv 2308.14508), as lm-evaluation-harness has it."""

    name: str  # type: ignore[misc]
    function: str

    def score(self, answer: str, references: Sequence[str]) -> float:
        score = getattr(_library("lm_eval.tasks.longbench.metrics", self.name), self.function)
        return max(float(score(answer, each)) for each in references)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        ExactMatch(),
        StringMatch(),
        LongBenchScore("f1", "qa_f1_score"),
        LongBenchScore("f1-zh", "qa_f1_zh_score"),
        Bleu("bleu", "13a"),
        Bleu("bleu-zh", "zh"),
        Rouge("rouge-1", "rouge1"),
        Rouge("rouge-2", "rouge2"),
        Rouge("rouge-l", "rougeL"),
        LongBenchScore("longbench-rouge", "rouge_score"),
        LongBenchScore("longbench-rouge-zh", "rouge_zh_score"),
        LongBenchScore("longbench-code-sim", "code_sim_score"),
        LongBenchScore("longbench-count", "count_score"),
        LongBenchScore("longbench-retrieval", "retrieval_score"),
        LongBenchScore("longbench-retrieval-zh", "retrieval_zh_score"),
    )
}


def find_metric(name: str) -> Metric:
    """The metric of that name. Raises InputError for an unknown one."""
    return find_by_name("metric", name, METRICS)


@cache
def _library(module: str, metric: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries that suggest faster libraries
            return importlib.import_module(module)
    except ImportError as error:
        raise InputError("metric", metric, f"its library installed: pip install 'ropewalk[eval]' ({error})") from None
