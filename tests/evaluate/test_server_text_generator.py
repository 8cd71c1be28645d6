"""Answers of a server, and what happens to requests in flight."""

from __future__ import annotations

import threading

import pytest
from tests.helpers.completions_server import run_server

import ropewalk as rw
from ropewalk import json_requests
from ropewalk.completions import CompletionsClient
from ropewalk.evaluate.sample import Sample
from ropewalk.evaluate.server_text_generator import ServerTextGenerator


def make_samples(count):
    return [Sample(index, [index], (), max_new_tokens=4) for index in range(count)]


def echo(request):
    return 200, {"choices": [{"text": f"answer {request['prompt'][0]}"}]}


@pytest.mark.parametrize("concurrent_requests", [1, 3, 100])
def test_every_prompt_is_answered_once(concurrent_requests):
    samples = make_samples(8)
    with run_server(echo) as url:
        generator = ServerTextGenerator(CompletionsClient(url), None, concurrent_requests)
        answers = [(sample.index, answer) for sample, answer in generator.generate(samples)]
    assert sorted(answers) == [(index, f"answer {index}") for index in range(8)]


def test_answers_before_an_error_are_yielded_and_no_further_prompt_is_sent():
    requests = []

    def refuse_the_third(request):
        requests.append(request)
        return echo(request) if request["prompt"] != [2] else (400, {"error": "too long"})

    with run_server(refuse_the_third) as url:
        answers = ServerTextGenerator(CompletionsClient(url), None, 1).generate(make_samples(50))
        assert [next(answers)[0].index for _ in range(2)] == [0, 1]
        with pytest.raises(rw.InputError, match="too long"):
            next(answers)
    assert len(requests) == 3


def test_a_closed_generator_neither_waits_for_a_hanging_server_nor_sends_more():
    is_released, requests = threading.Event(), []

    def hang_after_the_first(request):
        requests.append(request)
        if request["prompt"] != [0]:
            is_released.wait()
        return echo(request)

    with run_server(hang_after_the_first) as url:
        answers = ServerTextGenerator(CompletionsClient(url), None, 2).generate(make_samples(50))
        assert next(answers)[0].index == 0
        answers.close()  # would never return if it waited for the server
        is_released.set()
    assert len(requests) <= 4


def test_a_large_answer_is_one_line(monkeypatch):
    monkeypatch.setattr(json_requests, "MAX_RESPONSE_BYTES", 2**16)
    with (
        run_server(lambda request: (200, {"choices": [{"text": "x" * 2**17}]})) as url,
        pytest.raises(rw.InputError, match=r"^[^\n]*the response has more than 0 MiB[^\n]*$"),
    ):
        list(ServerTextGenerator(CompletionsClient(url), None, 1).generate(make_samples(3)))
