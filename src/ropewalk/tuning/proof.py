"""Is a tuned scaling better than the best formula, on texts that it was not tuned on?

    run = ProofRun((model, tokenizer), tuned, target=32_768, texts=["held_out.txt"], out="runs/tuned/proof")
    proof = run.run()
    print(proof.sentence)

Every scaling reads each text once for its perplexity by bucket of tokens. The tuned scaling, the formula with the
lowest perplexity past the original length, and the unscaled model then answer the tasks passkey and needle. The
unscaled model that reads its last L tokens again (the native window) shows how good the perplexity could be.

Results are stored as they become known (`curve-N/` for each text, `retrieval/`), and the same run continues there.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ropewalk import config as configs
from ropewalk.errors import InputError, check_length
from ropewalk.evaluate.curve import CurveRun, make_row
from ropewalk.evaluate.curve_store import RowKey
from ropewalk.evaluate.evaluation import Evaluation
from ropewalk.evaluate.evaluation_store import CellResult
from ropewalk.evaluate.native_window import native_window_nll, native_window_tokens
from ropewalk.evaluate.perplexity import perplexity_of
from ropewalk.evaluate.sample import SampleResult
from ropewalk.evaluate.tasks import Task
from ropewalk.evaluate.tasks.needle import Needle
from ropewalk.evaluate.tasks.passkey import Passkey
from ropewalk.evaluate.texts import Text
from ropewalk.evaluate.worker import CellSummary
from ropewalk.files import ensure_writable_folder, write_text_atomically
from ropewalk.models.extend import ScalingLike
from ropewalk.positions import parse
from ropewalk.scaling import Scaling
from ropewalk.scaling.yarn import yarn_mscale

NATIVE_WINDOW = "native-window"
UNSCALED = "none"
_FORMULAS = ("yarn", "ntk", "ntk-by-parts", "mrrope-pro")
# On SmolLM2 at s = 4, YaRN is better with 0.07 ln s + 1 than with 0.1 ln s + 1: results/tune_smollm2_32k.json.
_SMALLER_ATTENTION = 0.7
_MAX_BUCKETS = 8
_EQUAL_PERPLEXITY = 5e-3  # perplexities that differ by a smaller part count as equal
_CHANCE = 0.05  # answers count as equal if chance makes such a difference more often

OnTokens = Callable[[float, str], None]  # called with the tokens read since its last call, and what is measured


@dataclass(frozen=True)
class Retrieval:
    """The answers to one task at one length under one scaling.

    Attributes:
        task: `passkey` or `needle`.
        length: tokens of each prompt.
        scaling: spec of the scaling.
        found: whether each sample was answered correctly, 1 or 0.
        depths: where the fact of each sample was hidden, from 0 (beginning of the text) to 1 (its end).
    """

    task: str
    length: int
    scaling: str
    found: list[float]
    depths: list[float]


@dataclass(frozen=True)
class Proof:
    """A tuned scaling beside formulas, the unscaled model and the native window.

    Attributes:
        model: name of the model.
        dtype: dtype of the model.
        original_length: tokens that the model was trained on, L.
        tuned: spec of the tuned scaling.
        best_formula: spec of the formula with the lowest perplexity past L.
        ends: the last token of each bucket; the first bucket begins with the text and ends at L.
        perplexities: by text, then by scaling (or `native-window`): one perplexity for each bucket.
        retrieval: the answers to passkey and needle.
    """

    model: str
    dtype: str
    original_length: int
    tuned: str
    best_formula: str
    ends: list[int]
    perplexities: dict[str, dict[str, list[float]]]
    retrieval: list[Retrieval]

    @property
    def sentence(self) -> str:
        """What the numbers show: whether the tuned scaling or the best formula is better, and at what."""
        comparisons = [*self._compare_perplexity(), *self._compare_retrieval()]
        better, equal, worse = ([shown for sign, shown in comparisons if sign == each] for each in (1, 0, -1))
        formula = f"{self.best_formula}, the formula with the lowest perplexity"
        if worse and better:
            sentence = f"Against {formula}, the tuned scaling is better in {_and(better)}, but worse in {_and(worse)}."
        elif worse:
            sentence = f"Use {formula}: the tuned scaling is worse in {_and(worse)}."
        elif better:
            sentence = f"The tuned scaling is better than {formula}, in {_and(better)}."
        else:
            sentence = f"The tuned scaling is as good as {formula}."
        return f"{sentence} No clear difference in {_and(equal)}." if equal else sentence

    def to_dict(self) -> dict[str, Any]:
        """Return the document that `proof.json` holds, ready for JSON."""
        return {**asdict(self), "sentence": self.sentence}

    def _compare_perplexity(self) -> Iterator[tuple[int, str]]:
        """Yield whether the tuned scaling is better (1), equal (0) or worse (-1) than the formula, and the numbers."""
        for where, buckets in (("past", slice(1, None)), ("up to", slice(0, 1))):
            tuned, formula = (self._perplexity(spec, buckets) for spec in (self.tuned, self.best_formula))
            is_equal = abs(tuned - formula) < _EQUAL_PERPLEXITY * formula
            sign = 0 if is_equal else 1 if tuned < formula else -1
            yield sign, f"perplexity {where} {self.original_length:,} tokens ({tuned:.2f} against {formula:.2f})"

    def _compare_retrieval(self) -> Iterator[tuple[int, str]]:
        """Yield the same for each task. The samples are the same ones, so a sign test tells differences from chance."""
        for task in dict.fromkeys(retrieval.task for retrieval in self.retrieval):
            tuned, formula = (self._found(task, spec) for spec in (self.tuned, self.best_formula))
            gained = sum(one > other for one, other in zip(tuned, formula, strict=True))
            lost = sum(one < other for one, other in zip(tuned, formula, strict=True))
            sign = 0 if sign_test(gained, lost) > _CHANCE else 1 if gained > lost else -1
            yield sign, f"{task} ({sum(tuned):g} against {sum(formula):g} of {len(tuned)} found)"

    def _perplexity(self, spec: str, buckets: slice) -> float:
        """Return the perplexity over some of the buckets of all texts."""
        sizes = [end - start for start, end in zip([0, *self.ends], self.ends, strict=False)][buckets]
        nll = [
            size * math.log(perplexity)
            for by_scaling in self.perplexities.values()
            for size, perplexity in zip(sizes, by_scaling[spec][buckets], strict=True)
        ]
        return math.exp(sum(nll) / (sum(sizes) * len(self.perplexities)))

    def _found(self, task: str, spec: str) -> list[float]:
        matching = [each.found for each in self.retrieval if (each.task, each.scaling) == (task, spec)]
        return list(itertools.chain.from_iterable(matching))


def sign_test(gained: int, lost: int) -> float:
    """Return how often chance would make the numbers of gains and of losses differ as much, two-sided."""
    count = gained + lost
    tail: float = sum(math.comb(count, k) for k in range(min(gained, lost) + 1)) / 2**count
    return min(1.0, 2 * tail)


class ProofRun:
    """A proof that is stored in a folder and continues there when it is run again.

    Tuned scalings of the same model on the same texts can share a folder: what they have in common is measured once.
    """

    def __init__(
        self,
        source: tuple[Any, Any],
        tuned: ScalingLike,
        target: int,
        texts: Sequence[str],
        out: str | Path,
        *,
        formulas: Sequence[ScalingLike] | None = None,
        samples: int = 8,
    ) -> None:
        """Check all arguments and open the folder.

        Args:
            source: the loaded model and its tokenizer.
            tuned: the tuned scaling.
            target: tokens to read of each text, more than the original length.
            texts: names that `read_text` accepts; the facts of the task needle are hidden in the first.
            out: folder for the results.
            formulas: scalings to compare with; by default yarn, ntk, ntk-by-parts and mrrope-pro with the factor of
                the target, and yarn with a smaller attention factor.
            samples: prompts for each task and length, with facts from the beginning of the text to its end.

        Raises InputError for a wrong argument, a text with fewer tokens, or a folder that holds other results.
        """
        self._source = source
        self._samples = check_length("samples", samples, "samples")
        self._target = check_length("target", target)
        original_length = configs.read(source[0]).main_layer.rope.original_length
        if original_length is None:
            raise InputError("original_length", None, "a model whose configuration has one")
        if target <= original_length:
            raise InputError("target", target, f"more than the original length of the model, {original_length}")
        if not texts:
            raise InputError("text", [], "at least one text that the scaling was not tuned on")
        self._original_length = original_length
        self._ends = bucket_ends(original_length, target)
        self._tuned = parse(tuned)
        self._formulas = [parse(formula) for formula in formulas or _default_formulas(target / original_length)]
        for scaling in (self._tuned, *self._formulas):
            if isinstance(scaling, Scaling) and scaling.is_dynamic:
                raise InputError("scaling", str(scaling), "a static one: the others are read at one length")
        self.folder = ensure_writable_folder(out)
        scalings = [self._tuned, *self._formulas, parse(UNSCALED)]
        self._curves = [
            CurveRun(source, scalings, self._ends, text, self.folder / f"curve-{number}")
            for number, text in enumerate(texts, 1)
        ]
        self._ids = [self._read_ids(curve.text) for curve in self._curves]
        self._tasks: list[Task] = [Passkey(), Needle(text=texts[0])]
        halfway = target // 2
        self._retrieval_lengths = [halfway, target] if halfway > original_length else [target]

    def remaining_tokens(self) -> int:
        """Return about how many tokens `run` has to read."""
        perplexity = sum(curve.remaining_tokens() for curve in self._curves)
        window = native_window_tokens(self._target, self._original_length)
        perplexity += window * sum(not self._has_native_window(curve) for curve in self._curves)
        if perplexity:  # the best formula is not known yet
            return perplexity + 3 * self._samples * len(self._tasks) * sum(self._retrieval_lengths)
        evaluation = self._open_evaluation()
        with evaluation.store:
            return evaluation.remaining_tokens()

    def run(self, on_tokens: OnTokens = lambda tokens, label: None) -> Proof:
        """Measure what the folder lacks, write `proof.json`, and return the proof.

        Raises RuntimeError if a loss is not a number.
        """
        perplexities = self.measure_perplexities(on_tokens)
        evaluation = self._open_evaluation()
        with evaluation.store:
            evaluation.run(on_result=lambda cell, result: on_tokens(_count_tokens(result), cell.task.name))
            cells = evaluation.results()
        proof = Proof(
            model=self._curves[0].store.header["model"],
            dtype=self._curves[0].store.header["dtype"],
            original_length=self._original_length,
            tuned=str(self._tuned),
            best_formula=self._best_formula(),
            ends=self._ends,
            perplexities=perplexities,
            retrieval=[_retrieval(cell) for cell in cells],
        )
        write_text_atomically(self.folder / "proof.json", json.dumps(proof.to_dict(), indent=1) + "\n")
        return proof

    def measure_perplexities(
        self, on_tokens: OnTokens = lambda tokens, label: None
    ) -> dict[str, dict[str, list[float]]]:
        """Measure the perplexities that the folder lacks, and return all of them as in `Proof`."""
        for curve, ids_T in zip(self._curves, self._ids, strict=True):

            def report(tokens: float, label: str = f"perplexity, {Path(curve.text.name).name}") -> None:
                on_tokens(tokens, label)

            curve.run(on_tokens=report)
            self._measure_native_window(curve, ids_T, report)
        return {curve.text.name: self._perplexities(curve) for curve in self._curves}

    def _read_ids(self, text: Text) -> Tensor:
        """Return the token ids of a text up to the target, [target]."""
        ids = self._source[1](text.content, verbose=False)["input_ids"]
        if len(ids) < self._target:
            raise InputError(
                "text", f"{text.name}, {len(ids):,} tokens", f"at least the target, {self._target:,} tokens"
            )
        return torch.tensor(ids[: self._target])

    def _has_native_window(self, curve: CurveRun) -> bool:
        return all(_native_window_key(end) in curve.store.rows for end in self._ends)

    def _measure_native_window(self, curve: CurveRun, ids_T: Tensor, on_tokens: Callable[[float], None]) -> None:
        """Store the rows of the native window beside those of the scalings, unless they are there."""
        if self._has_native_window(curve):
            return
        with curve.store.locked():
            started = time.perf_counter()
            nll_T = native_window_nll(self._source[0], ids_T, self._original_length, on_tokens=on_tokens)
            seconds = time.perf_counter() - started
            for end in self._ends:
                curve.store.add(make_row(_native_window_key(end), nll_T[: end - 1], seconds))

    def _nll_by_bucket(self, curve: CurveRun, label: str) -> NDArray[np.float64]:
        """Return the summed loss of the tokens of each bucket under a scaling or in the native window, in nats."""
        rows = [curve.store.rows[RowKey(label, None, None, end)] for end in self._ends]
        return np.diff([row["nll"] * row["tokens"] for row in rows], prepend=0.0)

    def _perplexities(self, curve: CurveRun) -> dict[str, list[float]]:
        """Return the perplexity of each bucket by scaling, the tuned one first and the native window last."""
        counts = np.diff(self._ends, prepend=1)  # the first token has no loss
        labels = dict.fromkeys([str(self._tuned), *map(str, self._formulas), UNSCALED, NATIVE_WINDOW])
        return {label: [perplexity_of(nll) for nll in self._nll_by_bucket(curve, label) / counts] for label in labels}

    def _best_formula(self) -> str:
        """Return the formula with the lowest perplexity past the original length, over all texts."""
        return min(
            map(str, self._formulas),
            key=lambda formula: sum(self._nll_by_bucket(curve, formula)[1:].sum() for curve in self._curves),
        )

    def _open_evaluation(self) -> Evaluation:
        """Return the evaluation of the tuned scaling, the best formula and the unscaled model; close its store."""
        scalings, out = [self._tuned, self._best_formula(), UNSCALED], self.folder / "retrieval"
        return Evaluation(self._source, scalings, self._tasks, self._retrieval_lengths, out, samples=self._samples)


def _and(parts: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def _default_formulas(factor: float) -> list[dict[str, Any]]:
    formulas: list[dict[str, Any]] = [{"name": name, "factor": factor} for name in _FORMULAS]
    attention_factor = round(yarn_mscale(factor, _SMALLER_ATTENTION), 4)
    return [*formulas, {"name": "yarn", "factor": factor, "attention_factor": attention_factor}]


def bucket_ends(original_length: int, target: int) -> list[int]:
    """Return the last token of each bucket: L, then multiples of L that leave at most 8 buckets, and the target."""
    step = original_length * math.ceil((target / original_length - 1) / (_MAX_BUCKETS - 1))
    return [*range(original_length, target, step), target]


def _native_window_key(end: int) -> RowKey:
    return RowKey(NATIVE_WINDOW, None, None, end)


def _count_tokens(result: SampleResult | CellSummary) -> int:
    return 0 if isinstance(result, CellSummary) else result["tokens"]


def _retrieval(cell: CellResult) -> Retrieval:
    samples = cell.sample_results
    return Retrieval(
        task=cell.description["task_name"],
        length=cell.description["length"],
        scaling=cell.description["scaling"],
        found=[sample["scores"]["found"] for sample in samples],
        depths=[sample["about"]["depth"] for sample in samples],
    )
