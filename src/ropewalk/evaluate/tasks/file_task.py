"""Base class of tasks that read their questions from a file of the user."""

from __future__ import annotations

from dataclasses import dataclass

from ropewalk.evaluate.json_lines import digest_lines
from ropewalk.evaluate.tasks.base import Task


@dataclass(frozen=True)
class FileTask(Task):
    """A task with the option `file`. Its prompts use the chat template if the model has one."""

    positional = "file"
    chat_choices = ("auto", "on")

    file: str

    @property
    def file_field(self) -> str:
        """The name of the option in messages."""
        return f"{self.name}: file"

    def fingerprint(self) -> dict[str, str]:
        return {"file": digest_lines(self.file, self.file_field)}
