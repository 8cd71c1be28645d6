from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from ropewalk.errors import InputError
from ropewalk.evaluate.field_checks import check_fields, is_text
from ropewalk.evaluate.json_lines import read_json_records, read_lines
from ropewalk.evaluate.prompt_encoder import PromptEncoder
from ropewalk.evaluate.sample import Sample
from ropewalk.evaluate.tasks.base import Task
from ropewalk.evaluate.tasks.exact_length import cut_to_length
from ropewalk.files import parse_json

_FIELD = "mrcr: file"
_ROLES = ("user", "assistant")
_EXTRA_TOKENS = 32  # an answer may have so many more than the correct one

Message = Mapping[str, str]  # its role and its content


@dataclass(frozen=True)
class Mrcr(Task):
    """MRCR by OpenAI (huggingface.co/datasets/openai/mrcr): repeat one of several replies to the same request.

    A conversation loses turns with other requests, drawn at random, and the end of the reply of one more, so that the
    prompt has exactly the length. One that is too short is left out.

    The score is that of OpenAI: 0 unless the answer begins with the random string, else the ratio of
    `difflib.SequenceMatcher` for what follows it and the correct reply.

    Options: `file`, rows of the data set, one JSON object per line: `prompt`, a list of messages or its JSON; `answer`;
    `random_string_to_prepend`.
    """

    name = "mrcr"
    main_score = "match"
    positional = "file"
    chat_choices = ("auto", "on")

    file: str

    def fingerprint(self) -> dict[str, str]:
        return {"file": hashlib.sha256("\n".join(read_lines(self._path, _FIELD)).encode()).hexdigest()}

    def make_samples(self, tokenizer: Any, length: int, count: int, seed: int, chat: bool = False) -> list[Sample]:
        encoder = PromptEncoder(tokenizer, chat)
        samples: list[Sample] = []
        longest = 0
        for name, record in read_json_records(self._path, _FIELD):
            messages = _read_messages(name, record)
            tokens = len(encoder.encode_conversation(messages))
            longest = max(longest, tokens)
            if tokens >= length:
                samples.append(_make_sample(encoder, length, len(samples), name, record, messages, seed))
            if len(samples) == count:
                break
        if not samples:
            raise InputError("lengths", length, f"at most {longest:,} tokens, the longest prompt of {self.file}")
        return samples

    def score(self, sample: Sample, answer: str) -> dict[str, float]:
        (reference,), prefix = sample.references, sample.task_data
        answer = answer.removeprefix(" ")  # the delimiter after `Assistant:` in plain text
        if not answer.startswith(prefix):
            return {self.main_score: 0.0}
        matcher = SequenceMatcher(None, answer.removeprefix(prefix), reference.removeprefix(prefix))
        return {self.main_score: matcher.ratio()}

    @property
    def _path(self) -> Path:
        return Path(self.file).expanduser()


def _read_messages(field: str, record: Mapping[str, Any]) -> list[Message]:
    """Return the messages of a row; check its other fields, too."""
    try:
        check_fields(record, {"answer": is_text, "random_string_to_prepend": is_text})
        prompt = record.get("prompt")
        messages: Any = parse_json(prompt) if isinstance(prompt, str) else prompt
        check_fields({"prompt": messages}, {"prompt": _is_conversation})
    except ValueError as error:
        raise InputError(field, str(error), "prompt, answer and random_string_to_prepend of a row of MRCR") from None
    return list(messages)


def _is_conversation(value: Any) -> bool:
    """Return whether the value is a list of messages of a user and an assistant, of which the user's is the last."""
    if not (isinstance(value, list) and value and all(isinstance(message, dict) for message in value)):
        return False
    are_valid = (is_text(message.get("content")) and message.get("role") in _ROLES for message in value)
    return all(are_valid) and value[-1]["role"] == "user"


def _make_sample(
    encoder: PromptEncoder,
    length: int,
    index: int,
    field: str,
    record: Mapping[str, Any],
    messages: Sequence[Message],
    seed: int,
) -> Sample:
    answer, prefix = record["answer"], record["random_string_to_prepend"]
    turns = [start for start, roles in enumerate(pairwise(m["role"] for m in messages)) if roles == _ROLES]
    wanted = [start for start in turns if messages[start + 1]["content"] == answer.removeprefix(prefix)]
    if not wanted:
        raise InputError(f"{field}, answer", answer, "random_string_to_prepend, then one of the assistant's messages")
    # An introduction may precede the request in the first message, so that turn is kept, and requests are compared at
    # their ends.
    request = messages[wanted[0]]["content"]
    contents = {start: messages[start]["content"] for start in turns if start > 0}
    fillers = [start for start, said in contents.items() if not (said.endswith(request) or request.endswith(said))]
    random.Random(f"{seed}/{index}").shuffle(fillers)
    conversation = Conversation(encoder, messages, fillers)
    removed = conversation.count_turns_to_remove(length, field)
    characters = [len(messages[position]["content"]) for position in conversation.positions(removed)]
    before = conversation.positions(removed).index(wanted[0] + 1)
    return Sample(
        index=index,
        prompt=conversation.encode_exactly(length, removed),
        references=(answer,),
        max_new_tokens=len(encoder.tokenizer(answer, add_special_tokens=False)["input_ids"]) + _EXTRA_TOKENS,
        metadata={"depth": round(sum(characters[:before]) / sum(characters), 4)},
        task_data=prefix,
    )


@dataclass(frozen=True)
class Conversation:
    """A conversation from which turns can be removed.

    Attributes:
        encoder: encodes the prompt.
        messages: all messages.
        fillers: the first messages of the turns that may be removed, in the order to remove them.
    """

    encoder: PromptEncoder
    messages: Sequence[Message]
    fillers: Sequence[int]

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

    def count_turns_to_remove(self, length: int, field: str) -> int:
        """Return how many fillers can be removed such that more than `length` tokens are left, or exactly as many.

        Raises InputError if `length` is less than what must be kept.
        """
        least, most = 0, len(self.fillers)
        if (shortest := len(self.encode(most))) > length:
            raise InputError("lengths", length, f"at least {shortest:,} tokens, what {field} must keep")
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
