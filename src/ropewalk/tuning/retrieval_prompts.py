"""Long texts with facts planted at many depths, and questions about each of them at the end.

One such text has both losses of a tuning step: the language-model loss on the user's own text, and the loss on the
answers. Every fact of a text is of another kind, so that each question has one possible answer. The wordings are not
those of the evaluation tasks `passkey` and `needle`, which must stay unseen.

    planter = FactPlanter(tokenizer)
    facts = planter.draw_facts(12, rng)
    planted = planter.insert(token_ids[: planter.text_tokens(32_768, facts)], facts, rng)
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ropewalk.errors import InputError

# Each kind of fact: the wordings of its statement, and those of its question, which ends where the answer begins.
# Placeholders: {digits}, {word} and {name} are the answer; {city} is drawn once for both.
_KINDS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("The password of the archive is {digits}.", "To enter the archive, type the password {digits}."),
        ("Question: What is the password of the archive? Answer: The password is", "The password of the archive is"),
    ),
    (
        ("Flight {digits} leaves for {city} at dawn.", "At dawn the plane to {city} departs as flight {digits}."),
        ("The plane to {city} departs at dawn as flight",),
    ),
    (("The combination of my locker is {digits}.",), ("I open my locker with the combination",)),
    (
        ("Invoice {digits} was never paid.", "Nobody ever paid invoice {digits}."),
        ("Which invoice was never paid? It was invoice",),
    ),
    (("Room {digits} is reserved for the doctor.",), ("The doctor asked for the reserved room. It was room",)),
    (
        ("The telephone number of the inn is {digits}.", "Call the inn at {digits}."),
        ("The telephone number of the inn is", "To call the inn, dial"),
    ),
    (("serial_code = {digits}",), ("serial_code =", "The serial code is")),
    (("The bell weighs {digits} pounds.",), ("Question: How much does the bell weigh? Answer: In pounds, it weighs",)),
    (("On the last page someone had written {digits}.",), ("What someone had written on the last page was",)),
    (
        ("Container {digits} holds the diamonds.", "The diamonds were packed into container {digits}."),
        ("The diamonds are in container",),
    ),
    (("The license plate of the truck ends in {digits}.",), ("The last digits on the license plate of the truck are",)),
    (("Exactly {digits} bees live in the hive.",), ("The exact count of bees in the hive is",)),
    (
        ("The code name of the mission is {word}.", "They called the mission {word}."),
        ("The code name of the mission is", "Question: What did they call the mission? Answer:"),
    ),
    (("The treasure is buried under the {word}.",), ("To find the treasure, dig under the",)),
    (("The ship that sails for {city} is the {word}.",), ("The name of the ship that sails for {city} is the",)),
    (("The winner of the prize is {name}.", "{name} won the prize."), ("The prize was won by",)),
    (("The secret ingredient of the soup is {word}.",), ("The cook told us the secret ingredient of the soup:",)),
    (("The night watchman is called {name}.",), ("The name of the night watchman is",)),
)
_WORDS = (
    *("lantern", "walnut", "copper", "falcon", "ribbon", "marble", "pepper", "anchor", "violet", "tunnel", "garlic"),
    *("saddle", "mirror", "harvest", "button", "pillow", "ginger", "bridge", "candle", "thunder", "basket", "silver"),
    *("orchid", "hammer", "cotton", "window", "feather", "barrel", "compass", "meadow", "cherry", "clover"),
)
_PERSONS = (
    *("Adele", "Bertram", "Cosima", "Duncan", "Edith", "Floyd", "Gemma", "Horace", "Imogen", "Jasper", "Keira"),
    *("Lionel", "Mabel", "Norman", "Opal", "Percy", "Quentin", "Ruby", "Silas", "Thelma", "Ursula", "Wendell"),
)
_CITIES = ("Lisbon", "Oslo", "Cairo", "Lima", "Hanoi", "Dublin", "Quito", "Riga", "Perth", "Boston", "Kyoto", "Accra")
MAX_FACTS = len(_KINDS)
_NEAR = 100  # tokens within which the end of a sentence is looked for
_TEXT, _FRAME, _ANSWER = range(3)  # what a token is: the user's text, a statement or question, an answer


class Fact(NamedTuple):
    """The token ids of a statement, of the question about it, and of the answer."""

    statement: list[int]
    question: list[int]
    answer: list[int]


@dataclass(frozen=True)
class PlantedText:
    """The token ids of a text with planted facts, and what each of them is.

    Attributes:
        ids_T: token ids, [T] int64.
        is_text_T: whether a token is one of the user's own text, [T] bool.
        is_answer_T: whether a token belongs to an answer at the end, [T] bool.
    """

    ids_T: NDArray[np.int64]
    is_text_T: NDArray[np.bool_]
    is_answer_T: NDArray[np.bool_]


class FactPlanter:
    """Plants facts between the sentences of tokenized texts."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        with_special = list(tokenizer("a", verbose=False)["input_ids"])
        is_prefixed = tokenizer.bos_token_id is not None and with_special[:1] == [tokenizer.bos_token_id]
        self._prefix = [tokenizer.bos_token_id] if is_prefixed else []
        pieces = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
        self._ends_sentence_V = np.array([piece.rstrip(" ").endswith((".", "!", "?", "\n", "。")) for piece in pieces])

    def draw_facts(self, count: int, rng: random.Random) -> list[Fact]:
        """Return facts of different kinds. Raises InputError for more than `MAX_FACTS`."""
        if not 0 <= count <= MAX_FACTS:
            raise InputError("facts", count, f"from 0 to {MAX_FACTS}")
        return [self._make_fact(kind, rng) for kind in rng.sample(_KINDS, count)]

    def text_tokens(self, length: int, facts: Sequence[Fact]) -> int:
        """Return the tokens that facts leave to the user's text. Raises InputError if that is less than one each."""
        planted = len(self._prefix) + sum(len(part) for fact in facts for part in fact)
        if length - planted < max(len(facts), 1):
            raise InputError("window", length, f"more than {planted + len(facts):,} tokens, for {len(facts)} facts")
        return length - planted

    def insert(
        self, token_ids: Sequence[int] | NDArray[np.int64], facts: Sequence[Fact], rng: random.Random
    ) -> PlantedText:
        """Return the whole of a text with facts in it, and questions at its end.

        The facts are spread evenly over the text, each at a random place of its share, at the end of a sentence. The
        questions follow in random order.
        """
        text_T = np.asarray(token_ids, dtype=np.int64)
        parts: list[tuple[int, Any]] = [(_FRAME, self._prefix)]
        start = 0
        for index, fact in enumerate(facts):
            depth = (index + rng.random()) / len(facts)
            end = max(start, self._nearest_sentence_end(text_T, int(depth * len(text_T))))
            parts += [(_TEXT, text_T[start:end]), (_FRAME, fact.statement)]
            start = end
        parts.append((_TEXT, text_T[start:]))
        for fact in rng.sample(facts, len(facts)):
            parts += [(_FRAME, fact.question), (_ANSWER, fact.answer)]
        ids_T = np.concatenate([np.asarray(ids, dtype=np.int64) for _, ids in parts])
        kind_T = np.repeat([kind for kind, _ in parts], [len(ids) for _, ids in parts])
        return PlantedText(ids_T, kind_T == _TEXT, kind_T == _ANSWER)

    def _make_fact(self, kind: tuple[tuple[str, ...], tuple[str, ...]], rng: random.Random) -> Fact:
        statements, questions = kind
        smallest = 10 ** rng.choice((3, 4, 4, 5, 6))
        answers = {
            "digits": str(rng.randrange(smallest, 10 * smallest)),
            "word": rng.choice(_WORDS),
            "name": rng.choice(_PERSONS),
        }
        city = rng.choice(_CITIES)
        statement, question = rng.choice(statements), rng.choice(questions)
        answer = next(value for key, value in answers.items() if f"{{{key}}}" in statement)
        asked = "\n" + question.format(city=city)
        question_ids = self._tokenize(asked)
        whole_ids = self._tokenize(f"{asked} {answer}")
        # A tokenizer may merge the end of the question with the answer.
        shared = next(
            (i for i, (a, b) in enumerate(zip(question_ids, whole_ids, strict=False)) if a != b), len(question_ids)
        )
        statement_ids = self._tokenize("\n" + statement.format(city=city, **answers) + "\n")
        return Fact(statement_ids, whole_ids[:shared], whole_ids[shared:])

    def _nearest_sentence_end(self, text_T: NDArray[np.int64], position: int) -> int:
        """Return the position after the sentence end nearest to `position`, or `position` if none is near."""
        first, last = max(position - _NEAR, 0), position + _NEAR
        ends = np.flatnonzero(self._ends_sentence_V[text_T[first:last]]) + first + 1
        return int(ends[np.abs(ends - position).argmin()]) if len(ends) else position

    def _tokenize(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
