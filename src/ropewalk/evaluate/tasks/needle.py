from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from ropewalk.evaluate.tasks.retrieval import RetrievalTask, Wording
from ropewalk.evaluate.texts import BUILT_IN, Text, read_text


@dataclass(frozen=True)
class Needle(RetrievalTask):
    """A statement hidden in a text of the user's (the idea: G. Kamradt, needle in a haystack, 2023; own words)."""

    name = "needle"
    positional = "text"

    text: str = BUILT_IN

    def fingerprint(self) -> dict[str, str]:
        return {"text": _text(self.text).digest}

    def wording(self) -> Wording:
        one, verb = ("the lucky number", "is") if self.values == 1 else ("a lucky number", "are")
        asked = one if self.values == 1 else "the lucky numbers"
        return Wording(
            before="",
            statement=f"\nRemember: {one} of {{name}} is {{value}}. {one.capitalize()} of {{name}} is {{value}}.\n",
            question=f"\n\nRemember: {asked} of {{name}} {verb}",
        )

    def haystack(self, characters: int) -> str:
        return _text(self.text).content[:characters]


@cache
def _text(name: str) -> Text:
    return read_text(name)
