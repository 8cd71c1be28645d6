"""Metrics that score an answer against correct answers, by name.

Each metric calls the reference implementation of its field and returns a score from 0 to 1; tables show percentages.
"""

from __future__ import annotations

import importlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from ropewalk.errors import MissingPackageError
from ropewalk.registry import find_by_name


class Metric(ABC):
    """A score for an answer, given one or more correct answers."""

    name: ClassVar[str]

    @abstractmethod
    def score(self, answer: str, references: Sequence[str]) -> float:
        """Return the score of one answer, from 0 to 1: against the best matching reference, unless stated otherwise."""

    def corpus_score(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """Return the score of all answers of a corpus: the mean of their scores, unless stated otherwise."""
        scores = [self.score(answer, correct) for answer, correct in zip(answers, references, strict=True)]
        return sum(scores) / len(scores)


@dataclass(frozen=True)
class ExactMatch(Metric):
    """1 if the answer equals a reference, ignoring case, punctuation and outer spaces (lm-evaluation-harness)."""

    name = "exact-match"

    def score(self, answer: str, references: Sequence[str]) -> float:
        exact_match = _import("lm_eval.api.metrics", self.name).exact_match_hf_evaluate
        options = {"ignore_case": True, "ignore_punctuation": True}
        return max(
            float(exact_match([answer.strip()], [reference.strip()], **options)["exact_match"])
            for reference in references
        )


@dataclass(frozen=True)
class StringMatch(Metric):
    """The fraction of references that the answer contains, ignoring case (RULER, as in lm-evaluation-harness)."""

    name = "string-match"

    def score(self, answer: str, references: Sequence[str]) -> float:
        return float(_import("lm_eval.tasks.ruler.common_utils", self.name).string_match_all([answer], [references]))


@dataclass(frozen=True)
class SubstringExactMatch(Metric):
    """1 if the answer contains a reference, both normalized as in SQuAD (DrQA; HELMET, arXiv 2410.02694)."""

    name = "substring-exact-match"

    def score(self, answer: str, references: Sequence[str]) -> float:
        normalize = _import("lm_eval.tasks.longbench.metrics", self.name).normalize_answer
        normalized = normalize(answer)
        # A reference of articles and punctuation alone would be in every answer.
        return float(any(text in normalized for reference in references if (text := normalize(reference))))


@dataclass(frozen=True)
class Bleu(Metric):
    """BLEU (Papineni et al. 2002) by sacrebleu; the score of a corpus is corpus BLEU, not a mean of sentence scores."""

    name: str  # type: ignore[misc]
    tokenize: str

    def score(self, answer: str, references: Sequence[str]) -> float:
        return float(self._bleu(effective_order=True).sentence_score(answer, list(references)).score) / 100

    def corpus_score(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        # sacrebleu expects the first references of all answers, then the second ones, and so on, padded with None.
        most = max(len(correct) for correct in references)
        streams = [[correct[i] if i < len(correct) else None for correct in references] for i in range(most)]
        return float(self._bleu().corpus_score(list(answers), streams).score) / 100

    def _bleu(self, **options: Any) -> Any:
        return _import("sacrebleu.metrics", self.name).BLEU(tokenize=self.tokenize, **options)


@dataclass(frozen=True)
class Rouge(Metric):
    """ROUGE F-measure (Lin 2004) by rouge-score, which ignores all characters other than a-z and digits."""

    name: str  # type: ignore[misc]
    rouge_type: str

    def score(self, answer: str, references: Sequence[str]) -> float:
        scorer = _import("rouge_score.rouge_scorer", self.name).RougeScorer([self.rouge_type])
        return float(scorer.score_multi(list(references), answer)[self.rouge_type].fmeasure)


@dataclass(frozen=True)
class LongBenchScore(Metric):
    """A metric of LongBench (arXiv 2308.14508), as implemented in lm-evaluation-harness."""

    name: str  # type: ignore[misc]
    function: str

    def score(self, answer: str, references: Sequence[str]) -> float:
        function = getattr(_import("lm_eval.tasks.longbench.metrics", self.name), self.function)
        return max(float(function(answer, reference)) for reference in references)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        ExactMatch(),
        StringMatch(),
        SubstringExactMatch(),
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
    """Return the metric with a name. Raises UnknownNameError."""
    return find_by_name("metric", name, METRICS)


@cache
def _import(module: str, metric: str) -> Any:
    """Import the module that implements a metric. Raises MissingPackageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some libraries recommend faster ones when they are imported
            return importlib.import_module(module)
    except ImportError as error:
        package = error.name or module.partition(".")[0]
        raise MissingPackageError(f"the metric {metric}", package, "pip install 'ropewalk[eval]'") from None
