"""Truncation of prompts that are too long: the middle of the text is dropped, because instructions are at the ends."""

from __future__ import annotations

from ropewalk.errors import InputError
from ropewalk.evaluate.prompt_encoder import PromptEncoder


def truncate_middle(
    encoder: PromptEncoder, text: str, question: str, length: int, field: str, before: str = ""
) -> tuple[list[int], bool]:
    """Encode a text and the question after it, dropping as much of the middle of the text as necessary.

    Args:
        encoder: encodes the prompt.
        text: the text that may be truncated.
        question: what follows the text; it is never truncated.
        length: most tokens to return.
        field: the origin of the text, for error messages.
        before: what precedes the text; it is never truncated.

    Returns the token ids and whether the text was truncated.
    Raises InputError if the question alone has more than `length` tokens.
    """
    token_ids = encoder.encode(before + text + question)
    if len(token_ids) <= length:
        return token_ids, False
    tokenizer = encoder.tokenizer
    text_ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    keep = len(text_ids) - (len(token_ids) - length)
    least_step = 1
    while keep > 0:
        head, tail = text_ids[: keep // 2], text_ids[len(text_ids) - (keep - keep // 2) :]
        token_ids = encoder.encode(before + tokenizer.decode(head) + tokenizer.decode(tail) + question)
        if len(token_ids) <= length:
            return token_ids, True
        # The decoded text can have more tokens than it was decoded from, at the joint in particular. The steps grow, so
        # that there are few of them whatever the tokenizer.
        keep -= max(len(token_ids) - length, least_step)
        least_step *= 2
    raise InputError(field, f"{len(token_ids)} tokens without its context", f"at most the {length} requested tokens")
