"""URLs without credentials, and keys that are read by the name of an environment variable."""

from __future__ import annotations

import pytest

from ropewalk import InputError
from ropewalk.server_address import check_server_url, read_api_key, remove_credentials

SECRET = "s3cret"


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/v1", "https://host/v1/", "http://[::1]:8000/v1"])
def test_a_url_is_returned_without_its_last_slash(url):
    assert check_server_url("url", url) == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        *(
            "localhost:8000",
            "file:///etc/passwd",
            "",
            "http://",
            "http://:80/",
            "http://[::1/v1",
            "http://host:port/v1",
        ),
        *("http://host:99999/v1", "http://host/v1#part"),
    ],
)
def test_a_malformed_url_is_refused(url):
    with pytest.raises(InputError, match=r"control_url: got .*; expected a URL such as http://127"):
        check_server_url("control_url", url)


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{SECRET}@host/v1",
        f"https://{SECRET}@host/v1",
        f"http://user:a/{SECRET}@host/v1",
        f"http://user:a@{SECRET}@host/v1",
        f"user:{SECRET}@host/v1",
        f"http://host/v1?api_key={SECRET}",
        f"http://user:{SECRET} @host/v1",
    ],
)
def test_a_url_with_credentials_is_refused_without_repeating_them(url):
    with pytest.raises(InputError, match=r"url: got .*password.*--api-key-env") as caught:
        check_server_url("url", url)
    assert SECRET not in f"{caught.value} {caught.value.value}"


def test_credentials_are_removed_from_every_url_of_a_text():
    text = f"ropewalk eval --url http://user:{SECRET}@host/v1 --out a@b 'https://{SECRET}@other/v1'"
    assert remove_credentials(text) == "ropewalk eval --url http://host/v1 --out a@b 'https://other/v1'"


def test_a_key_is_read_by_the_name_of_its_variable_and_no_other_is(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    monkeypatch.setenv("MY_KEY", f" {SECRET}\n")
    assert read_api_key("MY_KEY") == SECRET
    assert read_api_key("") is None


@pytest.mark.parametrize("value", [None, "", "two words", "kéy", "a\nb"])
def test_a_variable_without_a_key_is_refused_without_repeating_name_or_value(monkeypatch, value):
    if value is not None:
        monkeypatch.setenv(SECRET, value)
    with pytest.raises(InputError, match=r"api_key_env: got .a (name|value)") as caught:
        read_api_key(SECRET)  # as if the key were given in place of the name
    assert SECRET not in str(caught.value)
    assert not value or value not in str(caught.value)
