"""Read log-probabilities from any server of the OpenAI completions API."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

from ropewalk.completions import CompletionsClient
from ropewalk.errors import InputError
from ropewalk.json_requests import RequestRefusedError
from ropewalk.serving.verify.reference import ReferenceModel
from ropewalk.serving.verify.run_engine import TOP_K, EngineOutput, TopLogprobs

# Numbers of tokens to request per prompt, tried in this order: servers refuse more than their limit, which is 20 by
# default in vLLM and 5 at OpenAI.
_TOP_K_TO_TRY = (TOP_K, 20, 5)
# Paths that report the version, and the key of the version: vLLM, llama.cpp, SGLang (now and before), Ollama.
_VERSION_KEYS = {
    "/version": "version",
    "/props": "build_info",
    "/server_info": "version",
    "/get_server_info": "version",
    "/api/version": "version",
}
_VERSION_TIMEOUT = 5.0  # seconds for each of these paths
_MAX_LOGPROB = 0.01  # above 0, for the rounding of half precision
_EXPECTED = "a server that reports log-probabilities of tokens"


class LogprobClient:
    """Client for the log-probabilities of a server.

    Args:
        url: base URL of the API.
        reference: the model; its tokenizer is loaded for servers that report tokens by their text only.
        api_key: key to send with every request; see `read_api_key`.

    Raises InputError for a URL where no such server responds.
    """

    def __init__(self, url: str, reference: ReferenceModel, api_key: str | None = None) -> None:
        self._completions = CompletionsClient(url, api_key=api_key)
        self.url, self.reference = self._completions.url, reference
        self._top_k_to_try: tuple[int, ...] = _TOP_K_TO_TRY

    def run(
        self, prompts: list[list[int]], on_progress: Callable[[str], None], batch: Sequence[list[int]] = ()
    ) -> EngineOutput:
        """Return the version of the server and the likeliest next tokens after each prompt.

        Args:
            prompts: prompts to send one after the other.
            on_progress: called with one line of text after each prompt.
            batch: prompts to send at once after them, for a server of vLLM; their last tokens are generated.

        Raises InputError for a server that reports no log-probabilities.
        """
        top_logprobs = []
        for done, prompt in enumerate(prompts, 1):
            top_logprobs.append(self._request(prompt, max_tokens=1))
            if len(prompt) > 1:
                on_progress(f"{self.url}: {done} of {len(prompts)} prompts, {len(prompt)} tokens")
        with ThreadPoolExecutor(max(1, len(batch))) as executor:
            batch_top_logprobs = list(executor.map(self._request_last_generated, batch))
        return EngineOutput(self._request_version(), None, top_logprobs, batch_top_logprobs)

    def _request_last_generated(self, prompt: list[int]) -> TopLogprobs:
        """Return the top tokens after a prompt whose last token the server generates, because it may do nothing else.

        vLLM reports log-probabilities as they were before that restriction, unless it is started with another
        `--logprobs-mode`.
        """
        return self._request(prompt[:-1], max_tokens=2, allowed_token_ids=prompt[-1:], ignore_eos=True)

    def _request(self, prompt: list[int], **options: Any) -> TopLogprobs:
        """Return the top tokens at the place of the last generated token."""
        logprobs = self._complete(prompt, **options).get("logprobs")
        try:
            top = self._parse(logprobs)
        except (AttributeError, LookupError, TypeError, ValueError, OverflowError):
            raise InputError("url", f"{self.url}, with logprobs {logprobs}", _EXPECTED) from None
        if not top:
            raise InputError("url", self.url, _EXPECTED)
        return top

    def _request_version(self) -> str:
        """Return the version that the server reports, or "unknown"."""
        for path, key in _VERSION_KEYS.items():
            version = self._completions.find_value(path, key, _VERSION_TIMEOUT)
            if version is not None:
                return version
        return "unknown"

    def _complete(self, prompt: list[int], **options: Any) -> dict[str, Any]:
        """Request as many top tokens as the server accepts, and return the choice."""
        while True:
            try:
                return self._completions.complete(
                    prompt, logprobs=self._top_k_to_try[0], return_tokens_as_token_ids=True, **options
                )
            except RequestRefusedError as error:
                if len(self._top_k_to_try) == 1 or "logprobs" not in error.server_message:
                    raise
                self._top_k_to_try = self._top_k_to_try[1:]

    def _parse(self, logprobs: Any) -> TopLogprobs:
        """Parse the `logprobs` of a choice, for its last token. Returns nothing if the server reports none.

        llama.cpp reports a list of objects with ids. vLLM and SGLang follow OpenAI, with one dict for each token from
        candidate to log-probability; a candidate is `token_id:N` in vLLM and its text in SGLang.

        Raises AttributeError, LookupError, TypeError, ValueError or OverflowError for anything else.
        """
        if logprobs is None:
            return []
        if logprobs.get("content"):
            entries = logprobs["content"][-1].get("top_logprobs") or []
            pairs = [(entry["id"], entry["logprob"]) for entry in entries if "id" in entry]
        else:
            by_token = (logprobs.get("top_logprobs") or [None])[-1] or {}
            pairs = [(self._find_token_id(token), logprob) for token, logprob in by_token.items()]
        return [self._check_pair(token_id, logprob) for token_id, logprob in pairs if token_id is not None]

    def _check_pair(self, token_id: Any, logprob: Any) -> tuple[int, float]:
        """Return a token id and its log-probability. Raises ValueError or TypeError if they cannot be these."""
        number = float(logprob)
        if type(token_id) is not int or not 0 <= token_id < self.reference.vocabulary_size:
            raise ValueError("no token id")
        if not number <= _MAX_LOGPROB:
            raise ValueError("no log-probability")
        return token_id, number

    def _find_token_id(self, token: str) -> int | None:
        numbered = re.fullmatch(r"token_id:(\d+)", token)
        return int(numbered[1]) if numbered else self._id_by_text.get(token)

    @cached_property
    def _id_by_text(self) -> dict[str, int]:
        """Token ids by text, without texts that several tokens share."""
        tokenizer = self.reference.tokenizer
        texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
        counts = Counter(texts)
        return {text: token_id for token_id, text in enumerate(texts) if counts[text] == 1}
