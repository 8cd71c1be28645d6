"""Truncation of prompts that are too long: the middle of the text is dropped, because instructions are at the ends."""

from __future__ import annotations

from typing import Any

from ropewalk.errors import InputError


def truncate_middle(tokenizer: Any, text: str, question: str, length: int, field: str) -> tuple[list[int], bool]:
    """Tokenize a text and the question after it, dropping as much of the middle of the text as necessary.

    Args:
        tokenizer: of the model.
        text: the text that may be truncated.
        question: what follows the text; it is never truncated.
        length: most tokens to return.
        field: the origin of the text, for error messages.

    Returns the token ids and whether the text was truncated.
    Raises InputError if the question alone has more than `length` tokens.
    """
    token_ids = tokenizer(text + question, verbose=False)["input_ids"]
    if len(token_ids) <= length:
        return token_ids, False
    text_ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    keep = len(text_ids) - (len(token_ids) - length)
    least_step = 1
    while keep > 0:
        head, tail = text_ids[: keep // 2], text_ids[len(text_ids) - (keep - keep // 2) :]
        shortened = tokenizer.decode(head) + tokenizer.decode(tail) + question
        token_ids = tokenizer(shortened, verbose=False)["input_ids"]
        if len(token_ids) <= length:
            return token_ids, True
        # The decoded text can have more tokens than it was decoded from, at the joint in particular. The steps grow, so
        # that there are few of them whatever the tokenizer.
        keep -= max(len(token_ids) - length, least_step)
        least_step *= 2
    raise InputError(field, f"{len(token_ids)} tokens without its context", f"at most the {length} requested tokens")
