"""Truncation of prompts that are too long: the middle of the text is dropped, because instructions are at the ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ropewalk.errors import InputError


def truncate_middle(
    tokenizer: Any, text: str, encode_prompt: Callable[[str], list[int]], length: int, field: str
) -> tuple[str, list[int]]:
    """Drop as much of the middle of a text as necessary for the prompt around it.

    Args:
        tokenizer: of the model.
        text: the text that may be truncated.
        encode_prompt: returns the token ids of the prompt with such a text.
        length: most tokens of the prompt.
        field: the origin of the text, for error messages.

    Returns the text and the token ids of its prompt.
    Raises InputError if the prompt without the text has more than `length` tokens.
    """
    token_ids = encode_prompt(text)
    if len(token_ids) <= length:
        return text, token_ids
    text_ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    keep = len(text_ids) - (len(token_ids) - length)
    least_step = 1
    while True:
        keep = max(keep, 0)
        head, tail = text_ids[: keep // 2], text_ids[len(text_ids) - (keep - keep // 2) :]
        shortened = tokenizer.decode(head) + tokenizer.decode(tail)
        token_ids = encode_prompt(shortened)
        if len(token_ids) <= length:
            return shortened, token_ids
        if not keep:
            found = f"{len(token_ids)} tokens without its context"
            raise InputError(field, found, f"at most the {length} requested tokens")
        # The decoded text can have more tokens than it was decoded from, at the joint in particular. The steps grow, so
        # that there are few of them whatever the tokenizer.
        keep -= max(len(token_ids) - length, least_step)
        least_step *= 2
