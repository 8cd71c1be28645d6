"""Short runs that compare methods for a target length, within a time that the user names.

The runs are ordered so that every moment is a fair one to stop at: each round adds one window of the text and some
passkeys for every method that is left, and what is compared is what all of them have.

    round 0     key tokens of window 0; every method reads it; those far behind the best leave
    each round  key tokens of the next window, which the others read; passkeys at two depths; one window of short text

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
from torch import Tensor

from ropewalk.errors import InputError
from ropewalk.evaluate.field_checks import check_fields, is_count, is_number, is_text
from ropewalk.evaluate.key_tokens import KeyTokenRule, find_key_tokens
from ropewalk.evaluate.perplexity import token_nll
from ropewalk.evaluate.sample import Sample
from ropewalk.evaluate.tasks.passkey import Passkey
from ropewalk.evaluate.text_generator import TextGenerator
from ropewalk.files import ensure_writable_folder, parse_json, write_text_atomically
from ropewalk.models.extend import extended
from ropewalk.positions import PositionMethod
from ropewalk.scaling import Scaling
from ropewalk.scaling.policies import DEFAULT_POLICY, parse_policy

ROUNDS = 4
PASSKEYS = 8  # depths from the beginning of the text to its end
_PASSKEYS_BY_ROUND = ((0, 4), (2, 6), (1, 5), (3, 7))
_MIN_KEY_TOKENS = 16  # a window with fewer is compared on all tokens past the short context
_MIN_COMPARED = 3  # methods that read the first window even if that takes most of the time
_FIRST_WINDOW_SHARE = 0.4  # of the time, for the first window
_MAX_BEHIND = 0.1  # nats on the first window behind the best, about 10 % of perplexity: such a method leaves

Method = Scaling | PositionMethod


class Step(NamedTuple):
    """One run. `kind` is key_tokens, target, passkey or short; `method` is a spec; `number` is a window or a depth."""

    kind: str
    method: str
    number: int


class Measurements:
    """The results of the runs, in memory or in a file.

    Attributes:
        values: by step. Key tokens: their indices in the window. Target and short: the mean loss in nats. Passkey: 1 if
            it was found, else 0.
        seconds: time that each step took.
    """

    def __init__(self, header: Mapping[str, Any], path: Path | None) -> None:
        """Read the file, if there is one already. Raises InputError if it is damaged, or of other measurements."""
        self.header, self.path = dict(header), path
        self.values: dict[Step, Any] = {}
        self.seconds: dict[Step, float] = {}
        if path is not None:
            ensure_writable_folder(path.parent)
            if path.exists():
                self._read(path)

    def add(self, step: Step, value: Any, seconds: float) -> None:
        """Store a result. It is on disk when this returns."""
        self.values[step], self.seconds[step] = value, seconds
        if self.path is not None:
            steps = [
                {**done._asdict(), "value": self.values[done], "seconds": round(self.seconds[done], 3)}
                for done in self.values
            ]
            write_text_atomically(self.path, json.dumps({**self.header, "steps": steps}) + "\n")

    def used_seconds(self) -> float:
        """Return the time of all steps."""
        return sum(self.seconds.values())

    def expected_seconds(self, kind: str) -> float:
        """Return the median time of the steps of a kind, or of a pass over a window, or 0 if there is none yet."""
        for each in (kind, "target"):
            if seconds := [seconds for step, seconds in self.seconds.items() if step.kind == each]:
                return statistics.median(seconds)
        return 0.0

    def _read(self, path: Path) -> None:
        checks: dict[str, Callable[[Any], bool]] = {
            "kind": is_text, "method": is_text, "number": is_count, "seconds": is_number,
            "value": lambda value: is_number(value) or (isinstance(value, list) and all(map(is_count, value))),
        }  # fmt: skip
        try:
            document = check_fields(parse_json(path.read_bytes()), {"steps": lambda value: isinstance(value, list)})
            entries = [check_fields(entry, checks) for entry in document.pop("steps")]
        except (OSError, ValueError) as error:
            found = f"{path}, which cannot be read ({error})"
            raise InputError("out", found, "a folder of measured plans, or a new one") from None
        if document != self.header:
            raise InputError("out", f"{path}, which has other measurements", "another folder")
        for entry in entries:
            step = Step(entry["kind"], entry["method"], entry["number"])
            self.values[step], self.seconds[step] = entry["value"], entry["seconds"]


class MeasurementRun:
    """Runs the steps on a model until they are done or the time is over.

    Attributes:
        methods: the methods to compare, the most promising first.
        baseline: the model's own scaling, without which no short tax can be computed.
        evaluator: the scaling under which the model finds key tokens.
        results: what is measured.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        baseline: Scaling,
        evaluator: Scaling,
        results: Measurements,
        *,
        target: int,
        short_length: int,
        seconds: float,
    ) -> None:
        """Plan the steps.

        Args:
            methods, baseline, evaluator, results: see above.
            target: tokens of a window of the text.
            short_length: tokens of a window of short text.
            seconds: time for all steps, those of earlier calls included.
        """
        self.methods = {str(method): method for method in methods}
        self.baseline, self.evaluator, self.results = baseline, evaluator, results
        self.target, self.short_length, self.seconds = target, short_length, seconds
        self.rule = KeyTokenRule.for_length(target)

    def remaining_methods(self) -> list[str]:
        """Return the specs of the methods that read the first window and are not far behind the best of them."""
        first = {
            name: self.results.values[step]
            for name in self.methods
            if (step := Step("target", name, 0)) in self.results.values
        }
        best = min(first.values(), default=0.0)
        return [name for name, loss in first.items() if loss <= best + _MAX_BEHIND]

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
        samples: list[Sample] = []
        while (step := self.next_step()) is not None:
            started = time.perf_counter()
            if step.kind == "passkey" and not samples:
                samples = Passkey().make_samples(tokenizer, self.target, PASSKEYS, seed=0)
            value = self._measure(step, model, tokenizer, ids_T, samples)
            self.results.add(step, value, time.perf_counter() - started)
            if on_step is not None:
                on_step(step, value, min(self.results.used_seconds() / self.seconds, 1.0))

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
            yield Step("key_tokens", str(self.evaluator), index)
            names = list(self.methods) if index == 0 else self.remaining_methods()
            for number, name in enumerate(names):
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

    def _measure(self, step: Step, model: Any, tokenizer: Any, ids_T: Tensor, samples: Sequence[Sample]) -> Any:
        if step.kind == "passkey":
            generator, sample = TextGenerator(model, tokenizer), samples[step.number]
            with generator.scaled(self.methods[step.method], parse_policy(DEFAULT_POLICY)):
                ((_, answer),) = generator.generate([sample])
            return int(Passkey().score(sample, answer)[Passkey.main_score])
        if step.kind == "short":
            window_T = select_window(ids_T, self.short_length, step.number)
            method = self.baseline if step.method == str(self.baseline) else self.methods[step.method]
            return float(_read_losses(model, window_T, method, first=1).mean())
        window_T = select_window(ids_T, self.target, step.number)
        if step.kind == "key_tokens":
            with extended(model, self.evaluator, length=self.target):
                return find_key_tokens(model, window_T, self.rule).tolist()
        losses_T = _read_losses(model, window_T, self.methods[step.method], first=self.rule.short_context)
        key_tokens = self.key_tokens(step.number)
        return float((losses_T[key_tokens - self.rule.short_context] if len(key_tokens) else losses_T).mean())

    def compared_windows(self) -> list[int]:
        """Return the windows that all remaining methods have read: those with key tokens, or else all of them."""
        windows = self.compared("target")
        return [window for window in windows if len(self.key_tokens(window))] or windows

    def key_tokens(self, window: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the key tokens of a window; none if it has too few for a comparison."""
        indices = self.results.values[Step("key_tokens", str(self.evaluator), window)]
        return np.array(indices if len(indices) >= _MIN_KEY_TOKENS else [], np.int64)


def select_window(ids_T: Tensor, length: int, index: int) -> Tensor:
    """Return one of `ROUNDS` windows of a text, spread evenly from its beginning to its end; they may overlap."""
    start = round(index * (len(ids_T) - length) / (ROUNDS - 1))
    return ids_T[start : start + length]


def _read_losses(model: Any, ids_T: Tensor, method: Method, first: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the losses of the tokens from `first` on under a method, with its parameters for this length."""
    length = None if isinstance(method, PositionMethod) else len(ids_T)
    with extended(model, method, length=length):
        return np.concatenate(list(token_nll(model, ids_T, first=first)))
