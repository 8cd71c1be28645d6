"""Client for servers of the OpenAI completions API: vLLM, SGLang, llama.cpp and others.

client = CompletionsClient("http://127.0.0.1:8000/v1")
text = client.complete([1, 2, 3], max_tokens=16)["text"]
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import requests

from ropewalk.errors import InputError, one_line

_MAX_ATTEMPTS = 4
_FIRST_RETRY_DELAY = 1.0  # seconds; doubled before each further attempt
_TIMEOUT = (10.0, 3600.0)  # seconds to connect, and to respond: a long prompt on a slow machine takes minutes
_MAX_SERVER_MESSAGE = 200  # characters


class RequestRefusedError(InputError):
    """The server refused a request, or its response is not the JSON object that the API promises.

    Attributes:
        status: HTTP status code of the response.
        server_message: text of the response, at most 200 characters on one line.
    """

    def __init__(self, url: str, status: int, server_message: str) -> None:
        """`url`: base URL of the server."""
        found = f"{url} ({status}: {server_message})"
        super().__init__("url", found, "a server of the OpenAI completions API that accepts prompts of token ids")
        self.status = status
        self.server_message = server_message


class CompletionsClient:
    """One model of a server. Prompts are sent as token ids, so that the server's tokenizer cannot change them.

    Args:
        url: base URL of the API, such as `http://127.0.0.1:8000/v1`.
        model: name of the model on the server; by default the first one that the server lists.

    Raises InputError for a malformed URL, for a URL where no such server responds, and for a model that the server
    does not list.
    """

    def __init__(self, url: str, model: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InputError("url", url, "a URL such as http://127.0.0.1:8000/v1")
        self.url = url.rstrip("/")
        entries = self._request("GET", "models").get("data") or [{}]
        served_models = [str(entry.get("id")) for entry in entries]
        if model is not None and model not in served_models:
            raise InputError("url", f"{url}, which serves {', '.join(served_models)}", f"a server of the model {model}")
        self.model = model or served_models[0]

    def complete(self, prompt: Sequence[int], **options: Any) -> dict[str, Any]:
        """Complete a prompt greedily and return the first choice of the response.

        Args:
            prompt: token ids.
            options: further fields of the request, such as `max_tokens` and `logprobs`.

        Raises RequestRefusedError for a request that the server refuses, RuntimeError if it does not respond.
        """
        body = {"model": self.model, "prompt": list(prompt), "temperature": 0, **options}
        choices = self._request("POST", "completions", body).get("choices")
        if not choices:
            raise RuntimeError(f"{self.url}: the response has no choices")
        return dict(choices[0])

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send a request and return the JSON of the response; retry after server errors (5xx) and network errors.

        Only the constructor sends GET requests: it reports a server that cannot be reached as a wrong URL.
        """
        for attempt in range(_MAX_ATTEMPTS):
            if attempt:
                time.sleep(_FIRST_RETRY_DELAY * 2 ** (attempt - 1))
            try:
                response = requests.request(method, f"{self.url}/{path}", json=body, timeout=_TIMEOUT)
                if response.status_code < 500:
                    return self._parse(response)
                problem = f"status {response.status_code}"
            except requests.RequestException as error:
                problem = _root_cause(error)
                if isinstance(error, requests.ConnectionError) and method == "GET":
                    break
        if method == "GET":
            raise InputError("url", f"{self.url} ({problem})", "the URL of a running server")
        raise RuntimeError(f"{self.url} did not respond: {problem}")

    def _parse(self, response: requests.Response) -> dict[str, Any]:
        """Return the JSON object of a response. Raises RequestRefusedError for an error status or other content."""
        try:
            content = response.json()
        except ValueError:
            content = None
        if response.status_code >= 400 or not isinstance(content, dict):
            message = one_line(response.text)[:_MAX_SERVER_MESSAGE]
            raise RequestRefusedError(self.url, response.status_code, message)
        return content


def _root_cause(error: BaseException) -> str:
    """Describe the first error of a failed request; requests and urllib3 wrap it several times."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
