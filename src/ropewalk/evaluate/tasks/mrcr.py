from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import partial
from itertools import pairwise
from typing import Any

from ropewalk.errors import InputError
from ropewalk.evaluate.field_checks import check_fields, input_error_for_fields, is_text
from ropewalk.evaluate.json_lines import read_json_records
from ropewalk.evaluate.prompt_encoder import PromptEncoder
from ropewalk.evaluate.sample import Sample
from ropewalk.evaluate.tasks.exact_length import cut_to_length
from ropewalk.evaluate.tasks.file_task import FileTask
from ropewalk.files import parse_json

_ROLES = ("user", "assistant")
_MAX_SHOWN = 5  # lengths in a message
_EXTRA_TOKENS = 32  # an answer may have so many more than the correct one

Message = Mapping[str, str]  # its role and its content


@dataclass(frozen=True)
class Mrcr(FileTask):
    """MRCR by OpenAI (huggingface.co/datasets/openai/mrcr): repeat one of several replies to the same request.

    A conversation loses turns with other requests, drawn at random, and the end of the reply of one more, so that the
    prompt has exactly the length. One that is too short, or too long without these turns, is left out.

    The score is that of OpenAI: 0 unless the answer begins with the random string, else the ratio of
    `difflib.SequenceMatcher` for what follows it and the correct reply.

    Options: `file`, rows of the data set, one JSON object per line: `prompt`, a list of messages or its JSON; `answer`;
    `random_string_to_prepend`.
    """

    name = "mrcr"
    main_score = "match"

    def make_samples(self, tokenizer: Any, length: int, count: int, seed: int, chat: bool = False) -> list[Sample]:
        encoder = PromptEncoder(tokenizer, chat)
        samples: list[Sample] = []
        ranges = []  # of lengths that the conversations can have
        for name, record in read_json_records(self.file, self.file_field):
            conversation = _read_conversation(encoder, name, record, f"{seed}/{len(samples)}")
            ranges.append(conversation.shortest_and_longest())
            if ranges[-1][0] <= length <= ranges[-1][1]:
                samples.append(_make_sample(conversation, length, len(samples), record))
            if len(samples) == count:
                break
        if not samples:
            shown = ", ".join(f"{shortest:,} to {longest:,}" for shortest, longest in ranges[:_MAX_SHOWN])
            raise InputError(
                "lengths", length, f"tokens that a conversation of {self.file} can have: {shown or 'none'}"
            )
        return samples

    def score(self, sample: Sample, answer: str) -> dict[str, float]:
        (reference,), prefix = sample.references, sample.task_data
        answer = answer.removeprefix(" ")  # the delimiter after `Assistant:` in plain text
        if not answer.startswith(prefix):
            return {self.main_score: 0.0}
        matcher = SequenceMatcher(None, answer.removeprefix(prefix), reference.removeprefix(prefix))
        return {self.main_score: matcher.ratio()}


def _read_messages(field: str, record: Mapping[str, Any]) -> list[Message]:
    """Return the messages of a row; check its other fields, too."""
    with input_error_for_fields(field, "prompt, answer and random_string_to_prepend of a row of MRCR"):
        check_fields(record, {"answer": is_text, "random_string_to_prepend": is_text})
        prompt = record.get("prompt")
        messages: Any = parse_json(prompt) if isinstance(prompt, str) else prompt
        check_fields({"prompt": messages}, {"prompt": _is_conversation})
    return list(messages)


def _is_conversation(value: Any) -> bool:
    """Return whether the value is a list of messages of a user and an assistant, of which the user's is the last."""
    if not (isinstance(value, list) and value and all(isinstance(message, dict) for message in value)):
        return False
    are_valid = (is_text(message.get("content")) and message.get("role") in _ROLES for message in value)
    return all(are_valid) and value[-1]["role"] == "user"


def _read_conversation(encoder: PromptEncoder, field: str, record: Mapping[str, Any], seed: str) -> Conversation:
    messages = _read_messages(field, record)
    turns = [start for start, roles in enumerate(pairwise(m["role"] for m in messages)) if roles == _ROLES]
    reply = record["answer"].removeprefix(record["random_string_to_prepend"])
    wanted = next((start for start in turns if messages[start + 1]["content"] == reply), None)
    if wanted is None:
        expected = "random_string_to_prepend, then one of the assistant's messages"
        raise InputError(f"{field}, answer", record["answer"], expected)
    # The first message may begin with an introduction. So the first turn is never removed, and two requests are the
    # same if one of them ends with the other.
    request = messages[wanted]["content"]
    fillers = []
    for start in turns:
        other = messages[start]["content"]
        if start > 0 and not other.endswith(request) and not request.endswith(other):
            fillers.append(start)
    random.Random(seed).shuffle(fillers)
    return Conversation(encoder, messages, wanted + 1, fillers)


def _make_sample(conversation: Conversation, length: int, index: int, record: Mapping[str, Any]) -> Sample:
    answer, removed = record["answer"], conversation.count_turns_to_remove(length)
    answer_ids = conversation.encoder.tokenizer(answer, add_special_tokens=False, verbose=False)["input_ids"]
    return Sample(
        index=index,
        prompt=conversation.encode_exactly(length, removed),
        references=(answer,),
        max_new_tokens=len(answer_ids) + _EXTRA_TOKENS,
        metadata={"depth": conversation.depth(removed)},
        task_data=record["random_string_to_prepend"],
    )


@dataclass(frozen=True)
class Conversation:
    """A conversation from which turns can be removed.

    Attributes:
        encoder: encodes the prompt.
        messages: all messages.
        wanted: position of the reply to repeat.
        fillers: the first messages of the turns that may be removed, in the order to remove them.
    """

    encoder: PromptEncoder
    messages: Sequence[Message]
    wanted: int
    fillers: Sequence[int]

    def shortest_and_longest(self) -> tuple[int, int]:
        """Return the numbers of tokens without all fillers and with them."""
        return len(self.encode(len(self.fillers))), len(self.encode(0))

    def depth(self, removed: int) -> float:
        """Return the depth of the reply to repeat, in characters, from 0 to 1."""
        positions = self.positions(removed)
        characters = [len(self.messages[position]["content"]) for position in positions]
        return round(sum(characters[: positions.index(self.wanted)]) / sum(characters), 4)

    def positions(self, removed: int) -> list[int]:
        """Return the positions of the messages that are left without the first `removed` fillers."""
        without = {position for start in self.fillers[:removed] for position in (start, start + 1)}
        return [position for position in range(len(self.messages)) if position not in without]

    def encode(self, removed: int, shortened: int = -1, end: int = 0, padding: str = "") -> list[int]:
        """Return the token ids without the first `removed` fillers.

        Of the message at the position `shortened` there are the first `end` characters, with a padding after them.
        """
        messages = []
        for position in self.positions(removed):
            message = self.messages[position]
            if position == shortened:
                message = {**message, "content": message["content"][:end] + padding}
            messages.append(message)
        return self.encoder.encode_conversation(messages)

    def count_turns_to_remove(self, length: int) -> int:
        """Return how many fillers can be removed such that at least `length` tokens are left."""
        least, most = 0, len(self.fillers)
        while least < most:  # the answer is from `least` to `most`
            middle = (least + most + 1) // 2
            if len(self.encode(middle)) >= length:
                least = middle
            else:
                most = middle - 1
        return least

    def encode_exactly(self, length: int, removed: int) -> list[int]:
        """Return the token ids of a prompt with exactly `length` tokens, for which one more reply loses its end."""
        whole = self.encode(removed)
        if len(whole) == length:
            return whole
        # Usually the turn that would be removed next; its reply may be too short, as its request would go with it.
        for start in self.fillers[removed:]:
            size = len(self.messages[start + 1]["content"])
            shortest = len(self.encode(removed, start + 1))
            if shortest <= length:
                budget = max(length - shortest, 1)
                guess = size * budget // max(len(whole) - shortest, 1)
                encode = partial(self.encode, removed, start + 1)
                return cut_to_length(encode, size, length, budget, guess)
        raise InputError("lengths", length, "a length that the turns of a conversation can have", "try 100 tokens more")
