"""CompletionsClient against a local HTTP server: requests, retries, and one-line errors."""

from __future__ import annotations

import pickle

import pytest
from tests.helpers.completions_server import run_server

from ropewalk import InputError, json_requests
from ropewalk.completions import CompletionsClient
from ropewalk.json_requests import RequestRefusedError


@pytest.fixture(autouse=True)
def no_retry_delay(monkeypatch):
    monkeypatch.setattr(json_requests, "sleep", lambda seconds: None)


def test_prompt_is_sent_as_token_ids_with_temperature_0():
    requests = []

    def respond(body):
        requests.append(body)
        return 200, {"choices": [{"text": "w1"}]}

    with run_server(respond, models=("first", "second")) as url:
        assert CompletionsClient(url).complete([5, 6], max_tokens=3) == {"text": "w1"}
        assert CompletionsClient(url, "second").model == "second"
    assert requests == [{"model": "first", "prompt": [5, 6], "temperature": 0, "max_tokens": 3}]


def test_request_is_retried_after_server_errors():
    responses = [(503, {}), (500, b"not json"), (200, {"choices": [{"text": "there"}]})]
    with run_server(lambda body: responses.pop(0)) as url:
        assert CompletionsClient(url).complete([1])["text"] == "there"


def test_repeated_server_errors_raise_runtime_error():
    with run_server(lambda body: (503, {})) as url, pytest.raises(RuntimeError, match="did not respond: status 503"):
        CompletionsClient(url).complete([1])


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ((400, {"error": "prompt must be a string"}), r"url: .*400: .*prompt must be a string.*token ids"),
        ((200, b"<html>"), "url: .*200: <html>"),
        ((200, [1]), "completions API"),
    ],
)
def test_refused_request_and_wrong_content_raise_one_line(response, message):
    with run_server(lambda body: response) as url, pytest.raises(RequestRefusedError, match=message) as caught:
        CompletionsClient(url).complete([1])
    assert "\n" not in str(caught.value)


def test_refusal_has_status_and_server_message_also_after_pickling():
    with run_server(lambda body: (400, b"at most  20\nlogprobs")) as url, pytest.raises(RequestRefusedError) as caught:
        CompletionsClient(url).complete([1])
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert (error.status, error.server_message) == (400, "at most 20 logprobs")


@pytest.mark.parametrize(
    "choices", [None, [], "text", [None], ["text"], {"0": 1}, [{}], [{"message": {"content": "a"}}]]
)
def test_response_without_a_choice_is_refused(choices):
    response = {"choices": choices, "error": "over capacity"}
    with (
        run_server(lambda body: (200, response)) as url,
        pytest.raises(RequestRefusedError, match="no choice with a text"),
    ):
        CompletionsClient(url).complete([1])


@pytest.mark.parametrize("text", [None, 3, ["a"], {"a": 1}, True])
def test_text_of_another_type_is_refused(text):
    response = {"choices": [{"text": text}]}
    with (
        run_server(lambda body: (200, response)) as url,
        pytest.raises(RequestRefusedError, match="no choice with a text"),
    ):
        CompletionsClient(url).complete([1])


def test_lone_surrogate_in_a_text_becomes_a_replacement_character():
    content = rb'{"choices": [{"text": "a\ud800b \ud83d\ude00"}]}'
    with run_server(lambda body: (200, content)) as url:
        assert CompletionsClient(url).complete([1])["text"] == "a\ufffdb \U0001f600"


@pytest.mark.parametrize(
    "data", [None, [], "tiny", {"id": "tiny"}, [None], ["tiny"], [{}], [{"id": 3}], [{"id": ""}], 3]
)
def test_server_that_lists_no_model_is_refused(data):
    with (
        run_server(lambda body: (200, {}), models=lambda path: (200, {"data": data})) as url,
        pytest.raises(InputError, match="which lists no model"),
    ):
        CompletionsClient(url)


def test_key_is_sent_with_every_request():
    log = []
    with run_server(lambda body: (200, {"choices": [{"text": ""}]}), log=log) as url:
        CompletionsClient(url, api_key="k").complete([1])
    assert [(path, headers["Authorization"]) for path, headers in log] == [
        ("/v1/models", "Bearer k"),
        ("/v1/completions", "Bearer k"),
    ]


def test_url_without_a_server_is_refused():
    with run_server(lambda body: (200, {})) as url:
        pass
    with pytest.raises(InputError, match=r"Connection refused.*the URL of a running server"):
        CompletionsClient(url)


def test_model_that_the_server_does_not_list_is_refused():
    with run_server(lambda body: (200, {})) as url, pytest.raises(InputError, match="serves tiny"):
        CompletionsClient(url, "other")
