"""What `passkey` and `needle` share: statements hidden in a text of an exact number of tokens."""

from __future__ import annotations

import random
import re
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

from ropewalk.errors import InputError, check_length
from ropewalk.evaluate.sample import Sample
from ropewalk.evaluate.tasks.base import Task

_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s)|[。！？]+|(?=\n\s*\n)")
_LINE_END = re.compile(r"(?=\n)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_SPARSE = 500  # characters a sentence, on average, past which lines serve instead: a log, a table
_LAST = ("", ".", " a", " -", ",", "\n", " a a", "\n-")  # ends of a text, where no cut alone has the right length
_NAMES = (
    *("Clara", "Oskar", "Ines", "Tomas", "Vera", "Anton", "Lucia", "Henrik", "Marta", "Felix", "Rosa", "Emil"),
    *("Greta", "Bruno", "Alma", "Viktor", "Nora", "Stefan", "Elena", "Jakob", "Irma", "Leon", "Petra", "Simon"),
    *("Olga", "Karl", "Sofia", "Pavel", "Dora", "Martin", "Lena", "Georg"),
)


@dataclass(frozen=True)
class Wording:
    """The words of a prompt; `{name}` and `{value}` are filled in."""

    before: str
    statement: str
    question: str


@dataclass(frozen=True)
class RetrievalTask(Task):
    """Statements, each a name and a number, hidden in a long text; then the number of one name is asked for.

    `keys` names are hidden, each with `values` numbers. `questions` of the names are asked for, one in a prompt, over
    the same text. The one that is asked for stands at the depth of the sample, and depths are spread evenly over the
    samples, from the beginning of the text (0) to its end (1); the others stand anywhere.
    """

    main = "found"

    keys: int = 1
    values: int = 1
    questions: int = 1

    def __post_init__(self) -> None:
        for option in ("keys", "values", "questions"):
            check_length(f"{self.name}: {option}", getattr(self, option), option)
        if self.keys > len(_NAMES):
            raise InputError(f"{self.name}: keys", self.keys, f"at most {len(_NAMES)}")
        if self.questions > self.keys:
            raise InputError(f"{self.name}: questions", self.questions, f"at most the {self.keys} keys")

    @abstractmethod
    def wording(self) -> Wording:
        """The words around and within the text."""

    @abstractmethod
    def haystack(self, characters: int) -> str:
        """The text to hide them in, at least so many characters of it where it has them."""

    def samples(self, tokenizer: Any, length: int, count: int, seed: int) -> list[Sample]:
        hay = _Haystack(tokenizer, self.haystack, length)
        return [self._sample(hay, length, index, count, seed) for index in range(count)]

    def _sample(self, hay: _Haystack, length: int, index: int, count: int, seed: int) -> Sample:
        text, asked = divmod(index, self.questions)
        dice = random.Random(f"{seed}/{text}")
        names = dice.sample(_NAMES, self.keys)
        numbers = dice.sample(range(10_000, 100_000), self.keys * self.values)
        wording = self.wording()
        hidden = []
        for at, name in enumerate(names):
            of_text = text * self.questions + at  # the sample that asks for it
            for value in numbers[at * self.values : (at + 1) * self.values]:
                own = at < self.questions and value == numbers[at * self.values]
                depth = min(of_text / (count - 1), 1.0) if own and count > 1 else dice.random() if not own else 0.5
                hidden.append((depth, wording.statement.format(name=name, value=value)))
        questions = [wording.question.format(name=name) for name in names[: self.questions]]
        return Sample(
            index=index,
            prompt=hay.fit(length, wording.before, hidden, questions, asked),
            references=tuple(map(str, numbers[asked * self.values : (asked + 1) * self.values])),
            max_new_tokens=8 * self.values + 4,
            metadata={"depth": round(hidden[asked * self.values][0], 4)},
        )

    def score(self, sample: Sample, answer: str) -> dict[str, float]:
        said = {*re.findall(r"\d+", answer), *re.findall(r"\d+", _THOUSANDS.sub("", answer))}
        return {self.main: sum(number in said for number in sample.references) / len(sample.references)}


class _Haystack:
    """A text that is cut to make a prompt an exact number of tokens long."""

    def __init__(self, tokenizer: Any, text: Callable[[int], str], length: int) -> None:
        self._tokenizer = tokenizer
        characters = 8 * length
        self._text = text(characters)
        while not self._measure(length) and len(self._text) >= characters:  # long words: more of the text is needed
            characters *= 4
            self._text = text(characters)

    def _measure(self, length: int) -> bool:
        """Where sentences end, in characters and (each counted alone) in tokens; whether they fill `length`."""
        found = [match.end() for match in _SENTENCE_END.finditer(self._text)]
        if len(found) * _SPARSE < len(self._text):
            found = [match.end() for match in _LINE_END.finditer(self._text)]
        ends = sorted({0, *found, len(self._text)})
        sentences = [self._text[start:end] for start, end in pairwise(ends)]
        counted = self._tokenizer(sentences, add_special_tokens=False, verbose=False)["input_ids"] if sentences else []
        self._ends, self._tokens = [0], [0]
        for end, ids in zip(ends[1:], counted, strict=True):
            self._ends.append(end)
            self._tokens.append(self._tokens[-1] + len(ids))
        return self._tokens[-1] >= length

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, verbose=False)["input_ids"])

    def fit(
        self, length: int, before: str, hidden: Sequence[tuple[float, str]], questions: Sequence[str], asked: int
    ) -> list[int]:
        """The prompt, of exactly `length` tokens, with each hidden statement at the end of the sentence at its depth.

        `questions` over one text find the statements at the same places; `asked` is the one that this prompt ends with.
        Raises InputError when the text is too short for it, or the length too short for the words around it.
        """
        after = questions[asked]
        around = [before, *(statement for _, statement in hidden)]
        room = length - max(len(self._ids("".join([*around, question]))) for question in questions)
        if room < 1:
            raise InputError("lengths", length, f"at least {length - room + 1} tokens, for the question alone")
        places = sorted((self._place(depth * room), statement) for depth, statement in hidden)
        at = min(bisect_left(self._tokens, room), len(self._tokens) - 1)
        cut = round(self._ends[at] * room / max(self._tokens[at], 1))

        def made(cut: int, more: str = "") -> list[int]:
            parts, start = [before], 0
            for place, statement in places:
                end = min(place, cut)
                parts += [self._text[start:end], statement]
                start = end
            return self._ids("".join([*parts, self._text[start:cut], more, after]))

        low, high = -1, len(self._text) + 1  # too few tokens, too many
        while high - low > 1:
            if not low < cut < high:
                cut = (low + high) // 2
            ids = made(cut)
            if len(ids) == length:
                return ids
            low, high = (cut, high) if len(ids) < length else (low, cut)
            if low == len(self._text):
                raise InputError("lengths", length, f"at most {len(ids):,} tokens, which the text is long enough for")
            cut += round((length - len(ids)) * cut / room)
        for near, more in product((low + sign * delta for delta in range(50) for sign in (1, -1)), _LAST):
            if 0 <= near <= len(self._text):
                ids = made(near, more)
                if len(ids) == length:
                    return ids
        raise InputError("lengths", length, "a length that this tokenizer can make of the text; try one token more")

    def _place(self, tokens: float) -> int:
        """The sentence end, in characters, nearest to so many tokens."""
        after = min(bisect_left(self._tokens, tokens), len(self._tokens) - 1)
        nearest = min((max(after - 1, 0), after), key=lambda at: abs(self._tokens[at] - tokens))
        return self._ends[nearest]
