"""A server that is asked over the network: what it says, and what is said when it does not."""

from __future__ import annotations

import pytest
from tests.helpers.completions_server import serving

from ropewalk import InputError, completions
from ropewalk.completions import CompletionsClient


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    monkeypatch.setattr(completions, "_PAUSE", 0.0)


def test_a_prompt_goes_as_token_ids_and_greedily():
    asked = []

    def answer(body):
        asked.append(body)
        return 200, {"choices": [{"text": "w1"}]}

    with serving(answer, models=("first", "second")) as url:
        assert CompletionsClient(url).complete([5, 6], max_tokens=3) == {"text": "w1"}
        assert CompletionsClient(url, "second").model == "second"
    assert asked == [{"model": "first", "prompt": [5, 6], "temperature": 0, "max_tokens": 3}]


def test_a_server_that_stumbles_is_asked_again():
    answers = [(503, {}), (500, b"not json"), (200, {"choices": [{"text": "there"}]})]
    with serving(lambda body: answers.pop(0)) as url:
        assert CompletionsClient(url).complete([1])["text"] == "there"


def test_one_that_stays_down_is_a_failure_of_the_work():
    with serving(lambda body: (503, {})) as url, pytest.raises(RuntimeError, match="did not answer: status 503"):
        CompletionsClient(url).complete([1])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((400, {"error": "prompt must be a string"}), r"url: .*400: .*prompt must be a string.*token ids"),
        ((200, b"<html>"), "url: .*200: <html>"),
        ((200, [1]), "completions protocol"),
    ],
)
def test_one_that_does_not_speak_the_protocol_is_told_in_one_line(answer, message):
    with serving(lambda body: answer) as url, pytest.raises(InputError, match=message) as caught:
        CompletionsClient(url).complete([1])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["localhost:8000", "file:///etc/passwd", "", "http://"])
def test_an_address_must_be_one(url):
    with pytest.raises(InputError, match=r"url: got .*http://127"):
        CompletionsClient(url)


def test_nobody_there():
    with serving(lambda body: (200, {})) as url:
        pass
    with pytest.raises(InputError, match=r"Connection refused.*the address of a server that runs"):
        CompletionsClient(url)


def test_a_model_that_it_does_not_serve():
    with serving(lambda body: (200, {})) as url, pytest.raises(InputError, match="serves tiny"):
        CompletionsClient(url, "other")
