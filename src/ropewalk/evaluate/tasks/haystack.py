"""Prompts with an exact number of tokens, made of a long text with statements inserted at given depths."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import pairwise

from ropewalk.errors import InputError
from ropewalk.evaluate.prompt_encoder import PromptEncoder
from ropewalk.evaluate.tasks.exact_length import cut_to_length

_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s)|[。！？]+")
_LINE_END = re.compile(r"(?=\n)")
_MAX_SENTENCE_CHARACTERS = 500  # a text with longer sentences on average is a log or a table: insert between its lines


def even_depth(index: int, count: int) -> float:
    """Return the depth of one of `count` samples, spread evenly from the beginning of the text (0) to its end (1)."""
    return min(index / (count - 1), 1.0) if count > 1 else 0.5


def find_sentence_ends(text: str) -> list[int]:
    """Return the offsets of the ends of sentences, or of lines in a text without sentences."""
    line_ends = [match.end() for match in _LINE_END.finditer(text)]
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    # A blank line ends a sentence, too. (As a regular expression, this would read a run of blank lines once for each of
    # them.)
    ends += [end for end, following in pairwise(line_ends) if not text[end:following].strip()]
    return line_ends if len(ends) * _MAX_SENTENCE_CHARACTERS < len(text) else ends


class Haystack:
    """A long text that statements are inserted into, between sentences."""

    def __init__(
        self,
        encoder: PromptEncoder,
        read_text: Callable[[int], str],
        length: int,
        find_ends: Callable[[str], list[int]] = find_sentence_ends,
    ) -> None:
        """Read enough of the text for prompts of a given length.

        Args:
            encoder: encodes the prompts.
            read_text: returns the first characters of the text, as many as requested or all of a shorter text.
            length: tokens of the prompts.
            find_ends: returns the offsets in a text after which statements may be inserted.
        """
        self._find_ends = find_ends
        self._encode = encoder.encode
        self._tokenizer = encoder.tokenizer
        characters = 8 * length
        self._set_text(read_text(characters))
        # A text with long words needs more characters.
        while self._token_offsets[-1] < length and len(self._text) >= characters:
            characters *= 4
            self._set_text(read_text(characters))

    def build_prompt(
        self,
        length: int,
        before: str,
        statements: Sequence[tuple[float, str]],
        questions: Sequence[tuple[str, str]],
        question_index: int,
    ) -> list[int]:
        """Return the token ids of a prompt with exactly `length` tokens.

        The prompt is `before`, the beginning of the text with the statements inserted, and one of the questions. The
        positions of the statements are the same for each of the questions.

        Args:
            length: tokens of the prompt.
            before: the beginning of the prompt.
            statements: depth of each statement, from 0 (beginning of the text) to 1 (end), and the statement. It is
                inserted at the end of the sentence that is nearest to its depth.
            questions: all questions about this text, each with the beginning of the answer, which the model continues.
                Each of them ends a prompt of its own.
            question_index: index of the question in this prompt.

        Raises InputError if the text is too short for `length`, or `length` too short for the rest of the prompt.
        """
        frame = before + "".join(statement for _, statement in statements)
        budget = length - max(len(self._encode(frame + question, prefix)) for question, prefix in questions)
        if budget < 1:
            raise InputError("lengths", length, f"at least {length - budget + 1} tokens, for the question alone")
        insertions = sorted((self._nearest_end(depth * budget), statement) for depth, statement in statements)

        question, answer_prefix = questions[question_index]

        def encode_prompt(end: int, padding: str) -> list[int]:
            parts, start = [before], 0
            for position, statement in insertions:
                stop = min(position, end)
                parts += [self._text[start:stop], statement]
                start = stop
            return self._encode("".join([*parts, self._text[start:end], padding, question]), answer_prefix)

        sentence = min(bisect_left(self._token_offsets, budget), len(self._token_offsets) - 1)
        guess = round(self._ends[sentence] * budget / max(self._token_offsets[sentence], 1))
        return cut_to_length(encode_prompt, len(self._text), length, budget, guess)

    def _set_text(self, text: str) -> None:
        """Set the text and the offsets of its ends, in characters and in tokens.

        The text between two ends is tokenized alone, so the offsets in tokens are approximate.
        """
        self._text = text
        self._ends = sorted({0, *self._find_ends(text), len(text)})
        self._token_offsets = [0]
        pieces = [text[start:end] for start, end in pairwise(self._ends)]
        if pieces:
            for token_ids in self._tokenizer(pieces, add_special_tokens=False, verbose=False)["input_ids"]:
                self._token_offsets.append(self._token_offsets[-1] + len(token_ids))

    def _nearest_end(self, tokens: float) -> int:
        """Return the end nearest to an offset in tokens, as an offset in characters."""
        after = min(bisect_left(self._token_offsets, tokens), len(self._token_offsets) - 1)
        before = max(after - 1, 0)
        if abs(self._token_offsets[before] - tokens) <= abs(self._token_offsets[after] - tokens):
            return self._ends[before]
        return self._ends[after]
