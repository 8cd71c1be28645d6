"""Prompts that are too long: the middle of their text is left out, for questions stand at the ends."""

from __future__ import annotations

from typing import Any

from ropewalk.errors import InputError


def truncate_middle(tokenizer: Any, text: str, after: str, length: int, where: str) -> tuple[list[int], bool]:
    """The token ids of text and what comes after it, at most `length`, and whether the text was cut.

    `where`: for the error. Raises InputError when what comes after it alone is longer.
    """
    ids = tokenizer(text + after, verbose=False)["input_ids"]
    if len(ids) <= length:
        return ids, False
    of_text = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    keep = len(of_text) - (len(ids) - length)
    while keep > 0:
        head, tail = of_text[: keep // 2], of_text[len(of_text) - (keep - keep // 2) :]
        ids = tokenizer(tokenizer.decode(head) + tokenizer.decode(tail) + after, verbose=False)["input_ids"]
        if len(ids) <= length:
            return ids, True
        keep -= len(ids) - length  # at the seam, and where tokens were decoded, there may be some more
    raise InputError(where, f"{len(ids)} tokens without its context", f"at most the {length} tokens asked for")
