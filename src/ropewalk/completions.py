"""A server that speaks OpenAI's completions protocol: vLLM, SGLang, llama.cpp and their like."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import requests

from ropewalk.errors import InputError

_ATTEMPTS = 4
_PAUSE = 1.0  # seconds before the second attempt, doubled before each one after it
_TIMEOUT = (10.0, 3600.0)  # seconds to connect, and to answer: a long prompt on a slow machine


class CompletionsClient:
    """One model of such a server, asked with token ids, so that a prompt is what it is meant to be.

    Args:
        url: where its `/v1` is, as `http://127.0.0.1:8000/v1`.
        model: the name it serves the model under; by default the first that it lists.

    Raises InputError for an address that is none, and for one where no such server answers.
    """

    def __init__(self, url: str, model: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InputError("url", url, "an address such as http://127.0.0.1:8000/v1")
        self.url = url.rstrip("/")
        listed = [str(each.get("id")) for each in self._asked("GET", "models").get("data") or [{}]]
        if model is not None and model not in listed:
            raise InputError("url", f"{url}, which serves {', '.join(listed)}", f"a server of {model}")
        self.model = model or listed[0]

    def complete(self, prompt: Sequence[int], **options: Any) -> dict[str, Any]:
        """The first choice of a completion of these token ids, greedily; `options` go into the request as they are.

        Raises InputError for a request that the server refuses, RuntimeError when it does not answer.
        """
        body = {"model": self.model, "prompt": list(prompt), "temperature": 0, **options}
        choices = self._asked("POST", "completions", body).get("choices")
        if not choices:
            raise RuntimeError(f"{self.url}: an answer without choices")
        first: dict[str, Any] = choices[0]
        return first

    def _asked(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        for attempt in range(_ATTEMPTS):
            try:
                answer = requests.request(method, f"{self.url}/{path}", json=body, timeout=_TIMEOUT)
                if answer.status_code < 500:
                    return self._read(answer)
                trouble = f"status {answer.status_code}"
            except requests.RequestException as error:
                trouble = _reason(error)
                if isinstance(error, requests.ConnectionError) and method == "GET":
                    break
            if attempt < _ATTEMPTS - 1:
                time.sleep(_PAUSE * 2**attempt)
        if method == "GET":
            raise InputError("url", f"{self.url} ({trouble})", "the address of a server that runs")
        raise RuntimeError(f"{self.url} did not answer: {trouble}")

    def _read(self, answer: requests.Response) -> dict[str, Any]:
        try:
            content = answer.json()
        except ValueError:
            content = None
        if answer.status_code >= 400 or not isinstance(content, dict):
            said = " ".join(answer.text.split())[:200]
            allowed = "a server of OpenAI's completions protocol that takes prompts as token ids"
            raise InputError("url", f"{self.url} ({answer.status_code}: {said})", allowed)
        return content


def _reason(error: BaseException) -> str:
    """What lies at the bottom of a failed request, which libraries wrap several times over."""
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
