"""Prompts with an exact number of tokens, made of a long text with statements inserted at given depths."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import pairwise

from ropewalk.errors import InputError
from ropewalk.evaluate.prompt_encoder import PromptEncoder

_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s)|[。！？]+")
_LINE_END = re.compile(r"(?=\n)")
_MAX_SENTENCE_CHARACTERS = 500  # a text with longer sentences on average is a log or a table: insert between its lines
_PADDINGS = ("", ".", " a", " -", ",", "\n", " a a", "\n-")  # appended to the text to reach an exact number of tokens


class Haystack:
    """A long text that statements are inserted into, between sentences."""

    def __init__(self, encoder: PromptEncoder, read_text: Callable[[int], str], length: int) -> None:
        """Read enough of the text for prompts of a given length.

        Args:
            encoder: encodes the prompts.
            read_text: returns the first characters of the text, as many as requested or all of a shorter text.
            length: tokens of the prompts.
        """
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
        insertions = sorted((self._nearest_sentence_end(depth * budget), statement) for depth, statement in statements)

        question, answer_prefix = questions[question_index]

        def encode_prompt(end: int, padding: str = "") -> list[int]:
            parts, start = [before], 0
            for position, statement in insertions:
                stop = min(position, end)
                parts += [self._text[start:stop], statement]
                start = stop
            return self._encode("".join([*parts, self._text[start:end], padding, question]), answer_prefix)

        # Find how many characters of the text to use, by interpolation between bounds that exclude the solution.
        too_short, too_long = -1, len(self._text) + 1
        sentence = min(bisect_left(self._token_offsets, budget), len(self._token_offsets) - 1)
        end = round(self._sentence_ends[sentence] * budget / max(self._token_offsets[sentence], 1))
        while too_long - too_short > 1:
            if not too_short < end < too_long:
                end = (too_short + too_long) // 2
            token_ids = encode_prompt(end)
            if len(token_ids) == length:
                return token_ids
            if len(token_ids) > length:
                too_long = end
            elif end == len(self._text):
                raise InputError("lengths", length, f"at most {len(token_ids):,} tokens, the length of the text")
            else:
                too_short = end
            end += round((length - len(token_ids)) * end / budget)

        # One more character can add several tokens, so that no number of characters gives exactly `length` tokens.
        for distance in range(50):
            for near in (too_short + distance, too_short - distance):
                if not 0 <= near <= len(self._text):
                    continue
                for padding in _PADDINGS:
                    token_ids = encode_prompt(near, padding)
                    if len(token_ids) == length:
                        return token_ids
        raise InputError("lengths", length, "a length that this tokenizer can produce", "try one token more")

    def _set_text(self, text: str) -> None:
        """Set the text and the offsets of its sentence ends, in characters and in tokens.

        Each sentence is tokenized alone, so the offsets in tokens are approximate.
        """
        self._text = text
        line_ends = [match.end() for match in _LINE_END.finditer(text)]
        ends = [match.end() for match in _SENTENCE_END.finditer(text)]
        # A blank line ends a sentence, too. (As a regular expression, this would read a run of blank lines once for
        # each of them.)
        ends += [end for end, following in pairwise(line_ends) if not text[end:following].strip()]
        if len(ends) * _MAX_SENTENCE_CHARACTERS < len(text):
            ends = line_ends
        self._sentence_ends = sorted({0, *ends, len(text)})
        self._token_offsets = [0]
        sentences = [text[start:end] for start, end in pairwise(self._sentence_ends)]
        if sentences:
            for token_ids in self._tokenizer(sentences, add_special_tokens=False, verbose=False)["input_ids"]:
                self._token_offsets.append(self._token_offsets[-1] + len(token_ids))

    def _nearest_sentence_end(self, tokens: float) -> int:
        """Return the sentence end nearest to an offset in tokens, as an offset in characters."""
        after = min(bisect_left(self._token_offsets, tokens), len(self._token_offsets) - 1)
        before = max(after - 1, 0)
        if abs(self._token_offsets[before] - tokens) <= abs(self._token_offsets[after] - tokens):
            return self._sentence_ends[before]
        return self._sentence_ends[after]
