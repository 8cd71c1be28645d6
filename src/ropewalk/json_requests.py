"""Requests to a server that answers in JSON: bounded in size, repeated after failures, never redirected.

server = JsonServer("http://127.0.0.1:8000/v1", api_key)
models = server.request("GET", "models")
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import sleep
from typing import Any

import requests
from urllib3.exceptions import HTTPError, LocationValueError

from ropewalk.errors import InputError, one_line
from ropewalk.files import parse_json
from ropewalk.server_address import remove_credentials

MAX_RESPONSE_BYTES = 16 * 2**20  # a model's answer has kilobytes; without a limit one response could fill the memory
_MAX_ATTEMPTS = 4
_FIRST_RETRY_DELAY = 1.0  # seconds; doubled before each further attempt
_MAX_WAIT = 600.0  # seconds that one request waits in all because the server asks it to (Retry-After)
_MIN_WAIT = 1.0  # seconds, so that Retry-After: 0 does not repeat a request without end
_TIMEOUT = (10.0, 3600.0)  # seconds to connect, and to respond: a long prompt on a slow machine takes minutes
_MAX_SERVER_MESSAGE = 200  # characters
_BLOCK_SIZE = 2**16  # bytes
_URL_ERRORS = (requests.exceptions.InvalidURL, LocationValueError, UnicodeError)
_NETWORK_ERRORS = (requests.RequestException, HTTPError, UnicodeError)  # requests lets some of urllib3's errors through


class RequestRefusedError(InputError):
    """The server refused a request, or its response is not what the API promises.

    Attributes:
        status: HTTP status code of the response.
        server_message: text of the response, or what is wrong with it; at most 200 characters on one line.
    """

    def __init__(self, url: str, status: int, server_message: str) -> None:
        """`url`: base URL of the server."""
        message = one_line(server_message)[:_MAX_SERVER_MESSAGE]
        found = f"{url} ({status}: {message})"
        hint = "name the environment variable with the key: --api-key-env" if status in (401, 403) else ""
        super().__init__("url", found, "a server of the OpenAI completions API that accepts prompts of token ids", hint)
        self.status = status
        self.server_message = message


class JsonServer:
    """A server at a base URL. The key is sent to this server only, and appears in no message.

    Args:
        url: base URL, as `check_server_url` returns it.
        api_key: key to send with every request as a bearer token; None for none.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url
        self._api_key = api_key

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send a request and return the JSON object of the response.

        It is repeated after server errors (5xx) and network errors, and after 429 and 503 as late as the server asks.

        Args:
            method: GET or POST. Only the first contact with a server is a GET: if it fails, the URL is wrong.
            path: path below the base URL.
            body: JSON of the request.

        Raises RequestRefusedError for a request that the server refuses and for a response that is no JSON object,
        InputError for a GET without a response, and RuntimeError for a POST without one.
        """
        final_errors = (*_URL_ERRORS, requests.ConnectionError) if method == "GET" else _URL_ERRORS
        failures, waited = 0, 0.0
        while True:
            try:
                status, headers, content = self._send(method, f"{self.url}/{path}", body, _TIMEOUT)
            except _NETWORK_ERRORS as error:
                problem, wait = _root_cause(error), None
                is_final = isinstance(error, final_errors)
            else:
                if status < 500 and status != 429:
                    return self._parse(status, headers, content)
                problem, wait = f"status {status}", _retry_after(headers) if status in (429, 503) else None
                is_final = False
            if wait is None:
                failures += 1
                wait = _FIRST_RETRY_DELAY * 2 ** (failures - 1)
            else:
                waited += wait
                problem += f", and asks to wait {wait:,.0f} s"
            if is_final or failures == _MAX_ATTEMPTS or waited > _MAX_WAIT:
                break
            sleep(wait)
        printable = filter(str.isprintable, one_line(self._remove_key(problem)))  # parts of it may be from the server
        problem = "".join(printable)[:_MAX_SERVER_MESSAGE]
        if method == "GET":
            raise InputError("url", f"{self.url} ({problem})", "the URL of a running server")
        raise RuntimeError(f"{self.url} did not respond: {problem}")

    def find_value(self, url: str, key: str, seconds: float) -> str | None:
        """Return one value of the JSON object at another URL of this server, as text; None if there is none.

        `seconds`: to wait for the response. The request is not repeated.
        """
        try:
            status, _, content = self._send("GET", url, None, seconds)
            document = parse_json(content, allow_surrogates=True)
        except (*_NETWORK_ERRORS, ValueError):
            return None
        value = document.get(key) if status == 200 and isinstance(document, dict) else None
        return replace_surrogates(str(value))[:_MAX_SERVER_MESSAGE] if value else None

    def refusal(self, status: int, message: str) -> RequestRefusedError:
        """Return the error for a response with this status and text."""
        # Some servers repeat the headers of a request in their errors.
        return RequestRefusedError(self.url, status, self._remove_key(message))

    def _send(
        self, method: str, url: str, body: Mapping[str, Any] | None, timeout: Any
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Return status, headers and content. Raises RequestRefusedError for content beyond the limit."""
        with (
            _Session() as session,
            session.request(method, url, json=body, auth=self._authorize, timeout=timeout, stream=True) as response,
        ):
            content = bytearray()
            for block in response.iter_content(_BLOCK_SIZE):
                content += block
                if len(content) > MAX_RESPONSE_BYTES:
                    limit = f"the response has more than {MAX_RESPONSE_BYTES / 2**20:.0f} MiB"
                    raise self.refusal(response.status_code, limit)
            return response.status_code, response.headers, bytes(content)

    def _parse(self, status: int, headers: Mapping[str, str], content: bytes) -> dict[str, Any]:
        """Return the JSON object of a response. Raises RequestRefusedError for another status or other content."""
        if 300 <= status < 400:
            target = remove_credentials(headers.get("Location", "nowhere")).partition("?")[0]
            raise self.refusal(status, f"redirects to {target}")
        try:
            document = parse_json(content, allow_surrogates=True)
        except ValueError:
            document = None
        if status >= 400 or not isinstance(document, dict):
            raise self.refusal(status, content[: 100 * _MAX_SERVER_MESSAGE].decode("utf-8", "replace"))
        return document

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        # Without a function here, requests would send the password that ~/.netrc has for this host.
        if self._api_key is not None:
            request.headers["Authorization"] = f"Bearer {self._api_key}"
        return request

    def _remove_key(self, text: str) -> str:
        return text if self._api_key is None else text.replace(self._api_key, "(key)")


class _Session(requests.Session):  # type: ignore[misc]
    """A session that follows no redirect, so that prompt and key go only where the user said."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return None. (`allow_redirects=False` alone would still read all of the body, whatever its size.)"""


def replace_surrogates(text: str) -> str:
    """Return the text with U+FFFD for each lone surrogate, which JSON can express and UTF-8 cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that the header Retry-After asks for (RFC 9110, 10.2.3), at least 1; None without one."""
    value = headers.get("Retry-After", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except (ValueError, TypeError, OverflowError):
            return None
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        seconds = (date - datetime.now(UTC)).total_seconds()
    return None if math.isnan(seconds) else max(seconds, _MIN_WAIT)


def _root_cause(error: BaseException) -> str:
    """Describe the first error of a failed request; requests and urllib3 wrap it several times."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
