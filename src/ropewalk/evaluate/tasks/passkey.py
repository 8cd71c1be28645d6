from __future__ import annotations

from dataclasses import dataclass

from ropewalk.evaluate.tasks.retrieval import PromptTemplate, RetrievalTask

_FILLER = "The grass grows. The river runs. The lamp is lit. We walk on. And then we turn back. "


@dataclass(frozen=True)
class Passkey(RetrievalTask):
    """A number hidden in meaningless filler (after Mohtashami and Jaggi, arXiv 2305.16300, in different words)."""

    name = "passkey"

    def prompt_template(self, chat: bool = False) -> PromptTemplate:
        if self.keys == 1 and self.values == 1:
            return PromptTemplate(
                before="One line of this text holds a number to remember. The rest does not matter.\n\n",
                statement="\nRemember this number: {value}. The number to remember is {value}.\n",
                question="\nWhich number was to remember?",
                answer_prefix="The number to remember is",
            )
        noun, verb = ("number", "is") if self.values == 1 else ("numbers", "are")
        return PromptTemplate(
            before="Some lines of this text hold numbers to remember. The rest does not matter.\n\n",
            statement="\nRemember for {name}: {value}. The number to remember for {name} is {value}.\n",
            question="\nWhat was to remember for {name}?",
            answer_prefix=f"The {noun} to remember for {{name}} {verb}",
        )

    def read_haystack(self, characters: int) -> str:
        return _FILLER * (characters // len(_FILLER) + 1)
