"""Ask any server of OpenAI's completions protocol for log-probabilities, token by token."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import requests

from ropewalk.completions import CompletionsClient
from ropewalk.errors import InputError
from ropewalk.serving.verify.logprobs import Answer

_TOPS = (64, 20, 5)  # tokens to ask for: servers refuse more than they were set up for, vLLM 20, OpenAI's own 5
_WHERE = {"version": "version", "props": "build_info", "get_server_info": "version", "api/version": "version"}


class LogprobClient:
    """The log-probabilities of a server.

    Args:
        url: where its `/v1` is.
        tokenizer: of the model, for servers that name tokens by their text alone.
    """

    def __init__(self, url: str, tokenizer: Any) -> None:
        self.server, self.tokenizer = CompletionsClient(url), tokenizer
        self._top: int | None = None

    def answers(self, prompts: list[list[int]], say: Callable[[str], None]) -> list[Answer]:
        """For each prompt the likeliest next tokens. Raises InputError for a server that does not tell them."""
        found = []
        for number, prompt in enumerate(prompts, 1):
            found.append(self._answer(prompt))
            if len(prompt) > 1:
                say(f"{self.server.url}: {number} of {len(prompts)} prompts, {len(prompt)} tokens")
        return found

    def version(self) -> str:
        """What the server calls itself, as far as it tells."""
        parts = urlsplit(self.server.url)
        for path, key in _WHERE.items():
            try:
                told = requests.get(urlunsplit((parts.scheme, parts.netloc, f"/{path}", "", "")), timeout=5).json()
            except (requests.RequestException, ValueError):
                continue
            if isinstance(told, dict) and told.get(key):
                return str(told[key])
        return "unknown"

    def _answer(self, prompt: list[int]) -> Answer:
        for top in _TOPS if self._top is None else (self._top,):
            try:
                choice = self.server.complete(prompt, max_tokens=1, logprobs=top, return_tokens_as_token_ids=True)
            except InputError as error:
                if top == _TOPS[-1] or self._top is not None or "logprobs" not in str(error):
                    raise
                continue
            self._top = top
            answer = self._read(choice.get("logprobs"))
            if not answer:
                raise InputError("url", self.server.url, "a server that tells the log-probabilities of its tokens")
            return answer
        raise AssertionError("the last number of tokens either answers or raises")

    def _read(self, told: Any) -> Answer:
        """Of llama.cpp's form, a list with ids; or of OpenAI's, by the text of a token or by `token_id:N`."""
        if not isinstance(told, Mapping):
            return []
        if isinstance(told.get("content"), list) and told["content"]:
            best = told["content"][0].get("top_logprobs") or []
            return [(int(each["id"]), float(each["logprob"])) for each in best if "id" in each]
        by_name = (told.get("top_logprobs") or [None])[0] or {}
        found = [(self._id_of(str(name)), float(value)) for name, value in by_name.items()]
        return [(token, value) for token, value in found if token is not None]

    def _id_of(self, name: str) -> int | None:
        numbered = re.fullmatch(r"token_id:(\d+)", name)
        return int(numbered[1]) if numbered else self._by_text.get(name)

    @cached_property
    def _by_text(self) -> dict[str, int]:
        """Tokens by their text, without those that share theirs."""
        texts = self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))])
        ids: dict[str, int] = {}
        shared = set()
        for token, text in enumerate(texts):
            if ids.setdefault(text, token) != token:
                shared.add(text)
        return {text: token for text, token in ids.items() if text not in shared}
