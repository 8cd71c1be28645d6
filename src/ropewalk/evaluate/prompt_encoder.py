"""Prompts as token ids: as plain text, or as the user's turn in the chat template of the tokenizer.

encoder = PromptEncoder(tokenizer, chat=True)
token_ids = encoder.encode("Which number was to remember?", answer_prefix="The number to remember is")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ropewalk.errors import InputError

CHAT_CHOICES = ("auto", "on", "off")


@dataclass(frozen=True)
class PromptEncoder:
    """Encodes whole prompts of a task.

    Attributes:
        tokenizer: of the model.
        chat: whether prompts go through the chat template of the tokenizer.
    """

    tokenizer: Any
    chat: bool = False

    def encode(self, text: str, answer_prefix: str = "") -> list[int]:
        """Return the token ids of a prompt.

        Args:
            text: what the user says.
            answer_prefix: beginning of the answer, which the model continues. In plain text a space precedes it, unless
                `text` ends with white space; a chat template has its own delimiters.

        Raises InputError if the chat template fails.
        """
        if not self.chat:
            delimiter = " " if answer_prefix and text == text.rstrip() else ""
            return list(self.tokenizer(text + delimiter + answer_prefix, verbose=False)["input_ids"])
        if not answer_prefix:
            return self.encode_conversation([{"role": "user", "content": text}])
        messages = [{"role": "user", "content": text.rstrip()}, {"role": "assistant", "content": answer_prefix}]
        return self.encode_conversation(messages, add_generation_prompt=False)

    def encode_conversation(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> list[int]:
        """Return the token ids of a conversation; the arguments are those of `render_chat`.

        In plain text each message is a paragraph that begins with its role, and the model answers as the assistant.
        """
        if not self.chat:
            paragraphs = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
            return self.encode("\n\n".join([*paragraphs, "Assistant:"]))
        rendered = render_chat(self.tokenizer, messages, add_generation_prompt)
        # The template writes the special tokens, such as the one at the beginning of a text.
        return list(self.tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"])

    def count_template_tokens(self) -> int:
        """Return how many tokens the chat template adds to a prompt with an answer prefix; 0 for plain text."""
        plain = PromptEncoder(self.tokenizer).encode("a", "a")
        return len(self.encode("a", "a")) - len(plain)


def render_chat(tokenizer: Any, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
    """Render a conversation with the chat template of a tokenizer, as lm-evaluation-harness does.

    A template that fails on a system message is rendered without it (`HFLM.apply_chat_template` of lm-eval 0.4.13).

    Args:
        tokenizer: with a chat template.
        messages: the conversation; each message has a `role` and its `content`.
        add_generation_prompt: whether the model answers the last message; otherwise it continues that message.

    Raises InputError if the template fails.
    """
    from jinja2 import TemplateError

    options = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
    without_system = [message for message in messages if message["role"] != "system"]
    try:
        try:
            return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **options))
        except TemplateError:
            if len(without_system) == len(messages):
                raise
            return str(tokenizer.apply_chat_template(without_system, tokenize=False, **options))
    except (TemplateError, ValueError) as error:
        # transformers quotes the whole prompt after the first sentence.
        reason = str(error).partition("\n")[0]
        raise InputError(
            "chat", f"a chat template that fails ({reason})", "off, or a template for a user's turn"
        ) from None
