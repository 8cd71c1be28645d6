from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from ropewalk.evaluate.tasks.retrieval import PromptTemplate, RetrievalTask
from ropewalk.evaluate.texts import BUILT_IN, Text, read_text


@dataclass(frozen=True)
class Needle(RetrievalTask):
    """A statement hidden in the user's own text (after G. Kamradt's needle in a haystack, 2023, in different words).

    Options besides those of all retrieval tasks: `text`, a name for `read_text`.
    """

    name = "needle"
    positional = "text"

    text: str = BUILT_IN

    def fingerprint(self) -> dict[str, str]:
        _read_text_once.cache_clear()  # the file may have changed since the last evaluation in this process
        return {"text": _read_text_once(self.text).digest}

    def prompt_template(self, chat: bool = False) -> PromptTemplate:
        if self.values == 1:
            stated, asked, verb = "the lucky number", "the lucky number", "is"
        else:
            stated, asked, verb = "a lucky number", "the lucky numbers", "are"
        if chat:
            question, begins = f"\n\nWhat {verb} {asked} of {{name}}?", asked.capitalize()
        else:
            question, begins = "\n\nRemember:", asked
        return PromptTemplate(
            before="",
            statement=(
                f"\nRemember: {stated} of {{name}} is {{value}}. {stated.capitalize()} of {{name}} is {{value}}.\n"
            ),
            question=question,
            answer_prefix=f"{begins} of {{name}} {verb}",
        )

    def read_haystack(self, characters: int) -> str:
        return _read_text_once(self.text).content[:characters]


@cache
def _read_text_once(name: str) -> Text:
    return read_text(name)
