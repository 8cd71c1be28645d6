"""Client for servers of the OpenAI completions API: vLLM, SGLang, llama.cpp and others.

client = CompletionsClient("http://127.0.0.1:8000/v1")
text = client.complete([1, 2, 3], max_tokens=16)["text"]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urljoin

from ropewalk.errors import InputError
from ropewalk.json_requests import JsonServer, replace_surrogates
from ropewalk.server_address import check_server_url


class CompletionsClient:
    """One model of a server. Prompts are sent as token ids, so that the server's tokenizer cannot change them.

    Args:
        url: base URL of the API, such as `http://127.0.0.1:8000/v1`.
        model: name of the model on the server; by default the first one that the server lists.
        api_key: key to send with every request; see `read_api_key`.

    Raises InputError for a URL that is malformed or has credentials, for a URL where no such server responds, and for a
    model that the server does not list.
    """

    def __init__(self, url: str, model: str | None = None, api_key: str | None = None) -> None:
        self.url = check_server_url("url", url)
        self._server = JsonServer(self.url, api_key)
        served_models = self._list_models()
        if model is not None and model not in served_models:
            raise InputError("url", f"{url}, which serves {', '.join(served_models)}", f"a server of the model {model}")
        self.model = model or served_models[0]

    def complete(self, prompt: Sequence[int], **options: Any) -> dict[str, Any]:
        """Complete a prompt greedily and return the first choice of the response, with its `text`.

        Args:
            prompt: token ids.
            options: further fields of the request, such as `max_tokens` and `logprobs`.

        Raises RequestRefusedError for a request that the server refuses, RuntimeError if it does not respond.
        """
        body = {"model": self.model, "prompt": list(prompt), "temperature": 0, **options}
        response = self._server.request("POST", "completions", body)
        choices = response.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict) or not isinstance(choice.get("text"), str):
            raise self._server.refusal(200, f"the response has no choice with a text: {response}")
        return {**choice, "text": replace_surrogates(choice["text"])}

    def find_value(self, path: str, key: str, seconds: float) -> str | None:
        """Return a value that the server reports under an absolute path, such as its version; None if it does not."""
        return self._server.find_value(urljoin(self.url, path), key, seconds)

    def _list_models(self) -> list[str]:
        entries = self._server.request("GET", "models").get("data")
        names = [entry.get("id") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
        models = [replace_surrogates(name) for name in names if isinstance(name, str) and name]
        if not models:
            raise InputError("url", f"{self.url}, which lists no model", "a server of the OpenAI completions API")
        return models
