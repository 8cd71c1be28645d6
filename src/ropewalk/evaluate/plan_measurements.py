"""Short runs that compare methods for a target length, within a time that the user names.

The steps are ordered so that the measurement can stop after any of them: a round adds one window of the text and some
passkeys for every remaining method, and only steps that all of them have are compared. When one method remains after a
round, the runs end.

    first       every method reads window 0; those far behind the best are dropped
    each round  the next window, first after short contexts only, which tells the key tokens; passkeys; short text

Key tokens are found by all methods together: a token's loss after the long context is the median over the methods that
read the window. One of them alone would favor itself: on SmolLM2 at 16,384 tokens, YaRN 2.5 is 14 % ahead of both
YaRN 2 and YaRN 3 on 17 tokens that it has chosen itself (benchmarks/results/self_evaluation.json).

Every result is stored as soon as it is known, and its time counts when the same plan is measured again.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ropewalk.errors import InputError
from ropewalk.evaluate.field_checks import (
    check_fields,
    is_count,
    is_list_of_numbers,
    is_number,
    is_positive_count,
    is_text,
)
from ropewalk.evaluate.key_tokens import KeyTokenRule, read_short_losses, select_key_tokens
from ropewalk.evaluate.perplexity import compute_nll
from ropewalk.evaluate.sample import Sample
from ropewalk.evaluate.tasks.passkey import Passkey
from ropewalk.files import ensure_writable_folder, parse_json, replace_file_atomically, write_text_atomically
from ropewalk.models.extend import extended
from ropewalk.positions import PositionMethod
from ropewalk.scaling import Scaling

ROUNDS = 4
PASSKEYS = 8  # depths from the beginning of the text to its end
_PASSKEYS_BY_ROUND = ((0, 4, 2, 6), (1, 5, 3, 7), (), ())
_ANSWER_TOKENS = 8  # left at the end of a passkey prompt for the answer
_MIN_KEY_TOKENS = 100  # of a window; with fewer, those that gain most from the long context are added
_MIN_COMPARED = 3  # methods that read the first window even if that takes most of the time
_FIRST_WINDOW_SHARE = 0.4  # of the time, for the first window
_MAX_SHORT_LENGTH = 4096  # tokens of a window of short text
_MAX_BEHIND = 0.1  # nats on the first window behind the best, about 10 % of perplexity: such a method is dropped

Method = Scaling | PositionMethod


class Step(NamedTuple):
    """One run. `kind` is context, target, passkey or short; `method` is a spec; `number` is a window or a depth."""

    kind: str
    method: str
    number: int


class Measurements:
    """The results of the runs, in memory or in a folder.

    Attributes:
        values: by step. Target and context: the losses of the tokens past the short context, in nats, after the whole
            window so far and after the short context. Passkey: the losses of the tokens of the answer. Short: the mean
            loss.
        seconds: time that each step took.
        num_windows: windows of the text to read: as many as it has without overlap, up to `ROUNDS`.
    """

    def __init__(self, header: Mapping[str, Any], path: Path | None) -> None:
        """Read the file, if there is one already. Raises InputError if it is damaged, or of other measurements.

        Args:
            header: what identifies the measurements, ready for JSON.
            path: a JSON file; losses of tokens lie beside it.
        """
        self.header, self.path = dict(header), path
        self.values: dict[Step, Any] = {}
        self.seconds: dict[Step, float] = {}
        self.num_windows = ROUNDS  # until the text is read
        if path is not None:
            ensure_writable_folder(path.parent)
            if path.exists():
                self._read(path)

    def add(self, step: Step, value: Any, seconds: float) -> None:
        """Store a result. It is on disk when this returns."""
        self.values[step], self.seconds[step] = value, seconds
        if self.path is None:
            return
        if isinstance(value, np.ndarray):
            with replace_file_atomically(self._array_path(len(self.values) - 1), "wb") as file:
                np.save(file, value)
        steps = [
            {
                **done._asdict(),
                "seconds": round(self.seconds[done], 3),
                "value": None if isinstance(value, np.ndarray) else value,
            }
            for done, value in self.values.items()
        ]
        document = {**self.header, "windows": self.num_windows, "steps": steps}
        write_text_atomically(self.path, json.dumps(document) + "\n")

    def used_seconds(self) -> float:
        """Return the time of all steps."""
        return sum(self.seconds.values())

    def expected_seconds(self, kind: str) -> float:
        """Return the median time of the steps of a kind, or of a pass over a window, or 0 if there is none yet."""
        for each in (kind, "target"):
            if seconds := [seconds for step, seconds in self.seconds.items() if step.kind == each]:
                return statistics.median(seconds)
        return 0.0

    def _array_path(self, number: int) -> Path:
        assert self.path is not None
        return self.path.with_name(f"{self.path.stem}-{number}.npy")

    def _read(self, path: Path) -> None:
        checks: dict[str, Callable[[Any], bool]] = {
            "kind": is_text, "method": is_text, "number": is_count, "seconds": is_number,
            "value": lambda value: value is None or is_number(value) or (is_list_of_numbers(value) and bool(value)),
        }  # fmt: skip
        try:
            document = check_fields(parse_json(path.read_bytes()), {"steps": lambda value: isinstance(value, list)})
            document.setdefault("windows", ROUNDS)  # a file of an earlier version has none
            self.num_windows = check_fields(document, {"windows": is_positive_count}).pop("windows")
            entries = [check_fields(entry, checks) for entry in document.pop("steps")]
            values = [
                np.load(self._array_path(number), allow_pickle=False) if entry["value"] is None else entry["value"]
                for number, entry in enumerate(entries)
            ]
        except (OSError, ValueError, EOFError) as error:
            found = f"{path}, which cannot be read ({error})"
            raise InputError("out", found, "a folder of measured plans, or a new one") from None
        if document != self.header:
            raise InputError("out", f"{path}, which has other measurements", "another folder")
        for entry, value in zip(entries, values, strict=True):
            step = Step(entry["kind"], entry["method"], entry["number"])
            self.values[step], self.seconds[step] = value, entry["seconds"]


class MeasurementRun:
    """Runs the steps on a model until they are done or the time is over.

    Attributes:
        methods: the methods to compare by spec, the most promising first.
        baseline: the model's own scaling, which the short tax is relative to.
        context_reader: the scaling under which short contexts are read: the model's own, if they fit.
        results: what is measured.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        baseline: Scaling,
        results: Measurements,
        *,
        target: int,
        original_length: int,
        seconds: float,
    ) -> None:
        """Plan the steps.

        Args:
            methods, baseline, results: see above.
            target: tokens of a window of the text.
            original_length: tokens that the model was trained on.
            seconds: time for all steps, those of earlier calls included.
        """
        self.methods = {str(method): method for method in methods}
        self.baseline, self.results = baseline, results
        self.target, self.short_length, self.seconds = target, min(original_length, _MAX_SHORT_LENGTH), seconds
        self.rule = KeyTokenRule.for_length(target)
        fits = self.rule.short_context + self.rule.step <= original_length
        self.context_reader = baseline if fits else methods[0]
        self._samples: list[Sample] = []  # the passkeys, once one is asked for

    def remaining_methods(self) -> list[str]:
        """Return the specs of the methods that read the first window and are not far behind the best of them."""
        first = {name: float(losses_T.mean()) for name, losses_T in self.key_losses(0).items()}
        best = min(first.values(), default=0.0)
        return [name for name, loss in first.items() if loss <= best + _MAX_BEHIND]

    def key_losses(self, window: int) -> dict[str, NDArray[Any]]:
        """Return the losses on the key tokens of a window by method, for the methods that read it."""
        values = self.results.values
        context = values.get(Step("context", str(self.context_reader), window))
        read = {name: values[step] for name in self.methods if (step := Step("target", name, window)) in values}
        if context is None or not read:
            return {}
        long_nll_T = np.median(list(read.values()), axis=0)
        indices = select_key_tokens(long_nll_T, context, self.rule, at_least=_MIN_KEY_TOKENS) - self.rule.short_context
        if not len(indices):  # no token gains anything: a text without long dependencies
            indices = np.arange(len(context))
        return {name: losses_T[indices] for name, losses_T in read.items()}

    def compared(self, kind: str) -> list[int]:
        """Return the indices of the steps of a kind that all remaining methods have."""
        remaining = self.remaining_methods()
        if not remaining:
            return []
        names = [name for name in remaining if kind != "short" or self.changes_short_text(name)]
        names += [str(self.baseline)] if kind == "short" else []
        count = PASSKEYS if kind == "passkey" else ROUNDS
        return [
            index for index in range(count) if all(Step(kind, name, index) in self.results.values for name in names)
        ]

    def changes_short_text(self, name: str) -> bool:
        """Return whether a method changes text within the trained length; the dynamic ones do not, exactly."""
        method = self.methods[name]
        return isinstance(method, Scaling) and not method.is_dynamic and method != self.baseline

    def run(
        self,
        model: Any,
        tokenizer: Any,
        ids_T: Tensor,
        on_step: Callable[[Step, Any, float], None] | None = None,
    ) -> None:
        """Run the steps that are missing, as far as the time allows; a step that has begun is finished.

        Args:
            model, tokenizer: the model; it is restored afterwards.
            ids_T: tokens of the text, at least `target` of them.
            on_step: called after each step with its value and the share of the time that is used.
        """
        self.results.num_windows = min(ROUNDS, max(1, len(ids_T) // self.target))
        while (step := self.next_step()) is not None:
            self.measure(step, model, tokenizer, ids_T)
            if on_step is not None:
                on_step(step, self.results.values[step], min(self.results.used_seconds() / self.seconds, 1.0))

    def measure(self, step: Step, model: Any, tokenizer: Any, ids_T: Tensor) -> None:
        """Run one step, whatever time is left, and store its result. The arguments are those of `run`."""
        started = time.perf_counter()
        value = self._read(step, model, tokenizer, ids_T)
        self.results.add(step, value, time.perf_counter() - started)

    def next_step(self) -> Step | None:
        """Return the first step that is missing, or None if all are done or the time does not allow it."""
        for step in self._steps():
            if step not in self.results.values:
                used, expected = self.results.used_seconds(), self.results.expected_seconds(step.kind)
                return step if used < self.seconds and used + expected <= self.seconds else None
        return None

    def _steps(self) -> Iterator[Step]:
        """Yield the steps in order. Each must be done before the next is requested: later ones depend on it."""
        for index in range(ROUNDS):
            names = list(self.methods) if index == 0 else self.remaining_methods()
            if index and len(names) == 1:
                return  # nothing is left to compare
            readers = names if index < self.results.num_windows else []
            if readers:
                yield Step("context", str(self.context_reader), index)
            for number, name in enumerate(readers):
                step = Step("target", name, index)
                is_late = self.results.used_seconds() > _FIRST_WINDOW_SHARE * self.seconds
                if index == 0 and number >= _MIN_COMPARED and is_late and step not in self.results.values:
                    continue
                yield step
            remaining = self.remaining_methods()
            for depth in _PASSKEYS_BY_ROUND[index]:
                yield from (Step("passkey", name, depth) for name in remaining)
            yield Step("short", str(self.baseline), index)
            yield from (Step("short", name, index) for name in remaining if self.changes_short_text(name))

    def _read(self, step: Step, model: Any, tokenizer: Any, ids_T: Tensor) -> Any:
        method = self.methods.get(step.method, self.baseline)
        if step.kind == "passkey":
            if not self._samples:
                self._samples = Passkey().make_samples(tokenizer, self.target - _ANSWER_TOKENS, PASSKEYS, seed=0)
            sample = self._samples[step.number]
            answer = tokenizer(f" {sample.references[0]}", add_special_tokens=False)["input_ids"]
            prompt_T = torch.tensor([*sample.prompt, *answer])
            return _read_losses(model, prompt_T, method, first=len(sample.prompt)).tolist()
        if step.kind == "short":
            short_T = select_window(ids_T, self.short_length, step.number, ROUNDS)
            return float(_read_losses(model, short_T, method).mean())
        window_T = select_window(ids_T, self.target, step.number, self.results.num_windows)
        if step.kind == "context":
            with extended(model, method, length=self.rule.short_context):
                return read_short_losses(model, window_T, self.rule).astype(np.float32)
        return _read_losses(model, window_T, method, first=self.rule.short_context)


def select_window(ids_T: Tensor, length: int, index: int, count: int) -> Tensor:
    """Return one of `count` windows of a text, spread evenly from its beginning to its end; they may overlap."""
    start = round(index * (len(ids_T) - length) / max(count - 1, 1))
    return ids_T[start : start + length]


def _read_losses(model: Any, ids_T: Tensor, method: Method, first: int = 1) -> NDArray[np.float32]:
    """Return the losses of the tokens from `first` on under a method, with its parameters for this length."""
    length = None if isinstance(method, PositionMethod) else len(ids_T)
    with extended(model, method, length=length):
        return compute_nll(model, ids_T, first=first).astype(np.float32)
