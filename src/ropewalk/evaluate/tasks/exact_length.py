"""Prompts with an exact number of tokens: a text is cut after the character that gives it."""

from __future__ import annotations

from collections.abc import Callable

from ropewalk.errors import InputError

_PADDINGS = ("", ".", " a", " -", ",", "\n", " a a", "\n-")  # appended to the text to reach an exact number of tokens


def cut_to_length(
    encode_prompt: Callable[[int, str], list[int]], size: int, length: int, budget: int, guess: int
) -> list[int]:
    """Return the token ids of the prompt that has exactly `length` tokens.

    Args:
        encode_prompt: returns the token ids of the prompt with the first characters of the text, as many as given,
            and with a padding after them.
        size: characters of the whole text.
        length: tokens of the prompt.
        budget: about how many of them belong to the text.
        guess: about how many characters of the text give that length.

    Raises InputError if the whole text is too short.
    """
    # Find how many characters of the text to use, by interpolation between bounds that exclude the solution.
    too_short, too_long = -1, size + 1
    end = guess
    while too_long - too_short > 1:
        if not too_short < end < too_long:
            end = (too_short + too_long) // 2
        token_ids = encode_prompt(end, "")
        if len(token_ids) == length:
            return token_ids
        if len(token_ids) > length:
            too_long = end
        elif end == size:
            raise InputError("lengths", length, f"at most {len(token_ids):,} tokens, the length of the text")
        else:
            too_short = end
        end += round((length - len(token_ids)) * end / budget)

    # One more character can add several tokens, so that no number of characters gives exactly `length` tokens.
    for distance in range(50):
        for near in (too_short + distance, too_short - distance):
            if not 0 <= near <= size:
                continue
            for padding in _PADDINGS:
                token_ids = encode_prompt(near, padding)
                if len(token_ids) == length:
                    return token_ids
    raise InputError("lengths", length, "a length that this tokenizer can produce", "try one token more")
