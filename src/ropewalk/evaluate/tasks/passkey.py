from __future__ import annotations

from dataclasses import dataclass

from ropewalk.evaluate.tasks.retrieval import RetrievalTask, Wording

_FILLER = "The grass grows. The river runs. The lamp is lit. We walk on. And then we turn back. "


@dataclass(frozen=True)
class Passkey(RetrievalTask):
    """A number hidden in filler that says nothing (the idea: Mohtashami and Jaggi, arXiv 2305.16300; own words)."""

    name = "passkey"

    def wording(self) -> Wording:
        if self.keys == 1 and self.values == 1:
            return Wording(
                before="One line of this text holds a number to remember. The rest does not matter.\n\n",
                statement="\nRemember this number: {value}. The number to remember is {value}.\n",
                question="\nWhich number was to remember? The number to remember is",
            )
        one, verb = ("number", "is") if self.values == 1 else ("numbers", "are")
        return Wording(
            before="Some lines of this text hold numbers to remember. The rest does not matter.\n\n",
            statement="\nRemember for {name}: {value}. The number to remember for {name} is {value}.\n",
            question=f"\nWhat was to remember for {{name}}? The {one} to remember for {{name}} {verb}",
        )

    def haystack(self, characters: int) -> str:
        return _FILLER * (characters // len(_FILLER) + 1)
