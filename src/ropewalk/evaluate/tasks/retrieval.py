"""The base of `passkey` and `needle`: statements hidden in a long text, and a question about one of them."""

from __future__ import annotations

import random
import re
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from ropewalk.errors import InputError, check_length
from ropewalk.evaluate.prompt_encoder import PromptEncoder
from ropewalk.evaluate.sample import Sample
from ropewalk.evaluate.tasks.base import Task
from ropewalk.evaluate.tasks.haystack import Haystack, even_depth

_THOUSANDS_SEPARATOR = re.compile(r"(?<=\d),(?=\d{3}\b)")
_NAMES = (
    *("Clara", "Oskar", "Ines", "Tomas", "Vera", "Anton", "Lucia", "Henrik", "Marta", "Felix", "Rosa", "Emil"),
    *("Greta", "Bruno", "Alma", "Viktor", "Nora", "Stefan", "Elena", "Jakob", "Irma", "Leon", "Petra", "Simon"),
    *("Olga", "Karl", "Sofia", "Pavel", "Dora", "Martin", "Lena", "Georg"),
)


@dataclass(frozen=True)
class PromptTemplate:
    """The fixed parts of a prompt.

    Attributes:
        before: the beginning of the prompt.
        statement: what is hidden in the text, with the placeholders `{name}` and `{value}`.
        question: the end of what the user says, with the placeholder `{name}`.
        answer_prefix: the beginning of the answer, which the model continues, with the placeholder `{name}`.
    """

    before: str
    statement: str
    question: str
    answer_prefix: str


@dataclass(frozen=True)
class RetrievalTask(Task):
    """Names with numbers are hidden in a long text; the model is asked for the numbers of one name.

    The first statement about that name is at the depth of the sample. Depths are spread evenly over the samples, from
    the beginning of the text (0) to its end (1). All other statements are at random depths.

    Options: `keys`, how many names are hidden; `values`, how many numbers each name has; `questions`, how many of the
    names are asked for, each in a prompt of its own with the same text.
    """

    main_score = "found"
    chat_choices = ("auto", "on")

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
    def prompt_template(self, chat: bool = False) -> PromptTemplate:
        """Return the fixed parts of the prompts, as plain text or for a chat."""

    @abstractmethod
    def read_haystack(self, characters: int) -> str:
        """Return the text to hide statements in: at least `characters` of it, or all of a shorter one."""

    def make_samples(self, tokenizer: Any, length: int, count: int, seed: int, chat: bool = False) -> list[Sample]:
        haystack = Haystack(PromptEncoder(tokenizer, chat), self.read_haystack, length)
        template = self.prompt_template(chat)
        return [self._make_sample(haystack, template, length, index, count, seed) for index in range(count)]

    def _make_sample(
        self, haystack: Haystack, template: PromptTemplate, length: int, index: int, count: int, seed: int
    ) -> Sample:
        text_index, question_index = divmod(index, self.questions)  # consecutive samples share a text
        rng = random.Random(f"{seed}/{text_index}")
        names = rng.sample(_NAMES, self.keys)
        numbers = rng.sample(range(10_000, 100_000), self.keys * self.values)
        statements = []
        for key, name in enumerate(names):
            for value in range(self.values):
                if key < self.questions and value == 0:
                    index_that_asks = text_index * self.questions + key
                    depth = even_depth(index_that_asks, count)
                else:
                    depth = rng.random()
                number = numbers[key * self.values + value]
                statements.append((depth, template.statement.format(name=name, value=number)))
        questions = [
            (template.question.format(name=name), template.answer_prefix.format(name=name))
            for name in names[: self.questions]
        ]
        first = question_index * self.values  # the first statement about the name that is asked for
        return Sample(
            index=index,
            prompt=haystack.build_prompt(length, template.before, statements, questions, question_index),
            references=tuple(str(number) for number in numbers[first : first + self.values]),
            max_new_tokens=8 * self.values + 4,
            metadata={"depth": round(statements[first][0], 4)},
        )

    def score(self, sample: Sample, answer: str) -> dict[str, float]:
        """Return the fraction of the references that the answer contains as whole numbers, such as 12345 or 12,345."""
        numbers = {*re.findall(r"\d+", answer), *re.findall(r"\d+", _THOUSANDS_SEPARATOR.sub("", answer))}
        return {self.main_score: sum(number in numbers for number in sample.references) / len(sample.references)}
