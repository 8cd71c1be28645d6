"""JsonServer against a local HTTP server: retries, limits, redirects, and the key."""

from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from tests.helpers.completions_server import run_server
from tests.helpers.fuzz_servers import run_raw_server

from ropewalk import InputError, json_requests
from ropewalk.json_requests import JsonServer, RequestRefusedError

KEY = "sk-s3cret"


@pytest.fixture
def waits(monkeypatch):
    """The seconds that were waited before each retry, without waiting."""
    waited = []
    monkeypatch.setattr(json_requests, "sleep", waited.append)
    return waited


def in_seconds(seconds):
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("retry_after", "expected"),
    [("7", 7), ("0", 1), ("-5", 1), (lambda: in_seconds(90), 90), ("Fri, 01 Jan 2021 00:00:00 -0000", 1)],
)
def test_a_request_is_repeated_as_late_as_the_server_asks(waits, status, retry_after, expected):
    value = retry_after() if callable(retry_after) else retry_after
    responses = [(status, {}, {"Retry-After": value})] * 6 + [(200, {"done": True})]
    with run_server(lambda body: responses.pop(0)) as url:
        assert JsonServer(url).request("POST", "completions", {}) == {"done": True}
    assert waits == pytest.approx([expected] * 6, abs=2)


@pytest.mark.parametrize("retry_after", [None, "soon", "nan", ""])
def test_a_rate_limit_without_a_time_is_repeated_like_a_server_error(waits, retry_after):
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    responses = [(429, {}, headers)] * 3 + [(200, {"done": True})]
    with run_server(lambda body: responses.pop(0)) as url:
        assert JsonServer(url).request("POST", "completions", {}) == {"done": True}
    assert waits == [1, 2, 4]


@pytest.mark.parametrize(("seconds", "expected_waits"), [("601", []), ("250", [250, 250]), ("inf", [])])
def test_a_server_that_asks_to_wait_too_long_is_an_error_of_one_line(waits, seconds, expected_waits):
    with (
        run_server(lambda body: (429, {}, {"Retry-After": seconds})) as url,
        pytest.raises(RuntimeError, match=rf"^[^\n]*status 429, and asks to wait {seconds} s$"),
    ):
        JsonServer(url).request("POST", "completions", {})
    assert waits == expected_waits


def test_other_errors_wait_no_longer_because_of_the_header(waits):
    with run_server(lambda body: (500, {}, {"Retry-After": "50"})) as url, pytest.raises(RuntimeError):
        JsonServer(url).request("POST", "completions", {})
    assert waits == [1, 2, 4]


@pytest.mark.parametrize("status", [200, 307, 400, 500])
def test_a_large_response_is_read_up_to_the_limit_only(waits, monkeypatch, status):
    monkeypatch.setattr(json_requests, "MAX_RESPONSE_BYTES", 2**20)
    content = b"x" * 2**26
    with run_server(lambda body: (status, content, {"Location": "/elsewhere"})) as url:
        tracemalloc.start()
        with pytest.raises(RequestRefusedError, match="the response has more than 1 MiB"):
            JsonServer(url).request("POST", "completions", {})
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8 * 2**20
    assert waits == []


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"not gzip", {"Content-Encoding": "gzip"}),
        (b"{}", {"Content-Length": "100"}),
        (b"{}", {"Content-Length": "1, 2"}),
        (b"{}", {"Transfer-Encoding": "chunked"}),
    ],
)
def test_a_broken_response_is_repeated_and_then_an_error_of_one_line(waits, content, headers):
    with (
        run_server(lambda body: (200, content, headers)) as url,
        pytest.raises(RuntimeError, match=r"^[^\n]*did not respond: [^\n]*$"),
    ):
        JsonServer(url).request("POST", "completions", {})
    assert waits == [1, 2, 4]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_refused_and_the_other_host_gets_no_request(waits, status):
    elsewhere = []
    with run_server(lambda body: (200, {}), log=elsewhere) as other:
        headers = {"Location": other.replace("://", "://user:pass@") + "/completions?token=abc"}
        with run_server(lambda body: (status, {}, headers), models=lambda path: (status, {}, headers)) as url:
            for method, path in (("GET", "models"), ("POST", "completions")):
                with pytest.raises(RequestRefusedError, match=f"redirects to {other}/completions") as caught:
                    JsonServer(url, KEY).request(method, path, {})
                assert "pass" not in str(caught.value)
                assert "abc" not in str(caught.value)
    assert elsewhere == []


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("status_line", [b"HTTP/1.1 20\r\n", b"HTTP/1.1 " + b"9" * 5000 + b"\r\n", b"\x1b[31m\r\n"])
def test_a_broken_status_is_one_short_line(waits, method, status_line):
    with run_raw_server() as (url, responses):
        responses["version"] = status_line + b"\r\n{}"
        with pytest.raises((InputError, RuntimeError), match=r"^[^\n\x1b]*$") as caught:
            JsonServer(url, KEY).request(method, "path", {})
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("location", ["http://[broken", "", "\x01"])
def test_a_redirect_to_nowhere_is_refused(location):
    with run_server(lambda body: (302, {}, {"Location": location})) as url, pytest.raises(RequestRefusedError):
        JsonServer(url).request("POST", "completions", {})


def test_the_key_is_sent_to_the_server_only_if_it_was_given(tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login user password s3cret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    log = []
    with run_server(lambda body: (200, {}), log=log) as url:
        JsonServer(url, KEY).request("GET", "models")
        JsonServer(url).request("GET", "models")
    assert [headers.get("Authorization") for _, headers in log] == [f"Bearer {KEY}", None]


@pytest.mark.parametrize("status", [401, 400])
def test_an_error_that_repeats_the_key_is_shown_without_it(status):
    server_error = {"error": f"wrong key {KEY}"}
    with run_server(lambda body: (status, server_error)) as url, pytest.raises(RequestRefusedError) as caught:
        JsonServer(url, KEY).request("POST", "completions", {})
    assert KEY not in f"{caught.value} {caught.value.server_message} {caught.value.value}"
    assert "wrong key (key)" in str(caught.value)
    assert ("--api-key-env" in str(caught.value)) == (status == 401)


def test_a_url_that_no_retry_can_mend_is_refused_at_once(waits):
    with pytest.raises(InputError, match="the URL of a running server"):
        JsonServer("http://a..b/v1").request("GET", "models")
    assert waits == []


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"\xff", b'{"a": 1', b"", b"<html>", b"[1]", b"null", b'data: {"a": 1}']
)
def test_content_that_is_no_json_object_is_refused_with_one_line(content):
    with run_server(lambda body: (200, content)) as url, pytest.raises(RequestRefusedError) as caught:
        JsonServer(url).request("POST", "completions", {})
    assert "\n" not in str(caught.value)


def test_find_value_returns_a_text_or_none():
    values = {"/v1/a": {"version": "1.2"}, "/v1/b": {"version": 3}, "/v1/c": [], "/v1/d": {"version": None}}
    with run_server(lambda body: (200, {}), models=lambda path: (200, values.get(path, b"<html>"))) as url:
        found = [JsonServer(url).find_value(f"{url}/{name}", "version", 5.0) for name in "abcde"]
    assert found == ["1.2", "3", None, None, None]
    assert JsonServer(url).find_value(f"{url}/a", "version", 5.0) is None  # the server has stopped
