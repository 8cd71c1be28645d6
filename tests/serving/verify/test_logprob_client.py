"""Log-probabilities of a server: right formats are read, all others are refused in one line."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tests.helpers.completions_server import run_server

from ropewalk import InputError
from ropewalk.serving.verify import verify
from ropewalk.serving.verify.logprob_client import LogprobClient

SECRET = "s3cret"
PROMPTS = [[1], [1, 2]]


class WordTokenizer:
    """Token 0 is "a", 1 is "b"; tokens 2 and 3 have the same text."""

    def __len__(self):
        return 4

    def batch_decode(self, token_ids):
        return ["abcc"[token] for (token,) in token_ids]


REFERENCE = SimpleNamespace(vocabulary_size=8, tokenizer=WordTokenizer())


def request_logprobs(logprobs, log=None, **options):
    response = {"choices": [{"text": "", "logprobs": logprobs}]}
    with run_server(lambda body: (200, response), log=log) as url:
        return LogprobClient(url, REFERENCE, **options).run(PROMPTS, lambda _: None)


@pytest.mark.parametrize(
    ("logprobs", "expected"),
    [
        ({"top_logprobs": [{"token_id:5": -0.5, "token_id:7": 0}]}, [(5, -0.5), (7, 0.0)]),
        ({"top_logprobs": [{"b": -0.5, "c": -1.0, "other": -2.0}]}, [(1, -0.5)]),
        ({"content": [{"top_logprobs": [{"id": 3, "logprob": -0.5}, {"token": "x"}]}]}, [(3, -0.5)]),
    ],
)
def test_formats_of_engines_are_read(logprobs, expected):
    output = request_logprobs(logprobs)
    assert output.top_logprobs == [expected, expected]
    assert output.version == "unknown"


@pytest.mark.parametrize(
    "logprobs",
    [
        *(None, {}, [], "text", 3, {"top_logprobs": None}, {"top_logprobs": []}, {"top_logprobs": [None]}),
        *({"top_logprobs": [[]]}, {"top_logprobs": ["x"]}, {"top_logprobs": {"0": {}}}, {"top_logprobs": 3}),
        *({"content": [None]}, {"content": "x"}, {"content": [{"top_logprobs": [3]}]}, {"content": {"a": 1}}),
        *[{"top_logprobs": [{"token_id:5": value}]} for value in (None, "x", [], float("nan"), 3.0, 10**400)],
        *[{"top_logprobs": [{f"token_id:{token}": -1.0}]} for token in (8, 10**30, "9" * 5000)],
        *[{"content": [{"top_logprobs": [{"id": token, "logprob": -1}]}]} for token in ("5", -1, 8, 1.5, None, True)],
        *[{"content": [{"top_logprobs": [{"id": 5}]}]}, {"content": [{"top_logprobs": [{"id": 5, "logprob": None}]}]}],
    ],
)
def test_anything_else_is_refused_in_one_line(logprobs):
    with pytest.raises(InputError, match=r"^url: got [^\n]*; expected a server that reports log-probabilities[^\n]*$"):
        request_logprobs(logprobs)


def test_the_key_is_sent_with_every_request_of_this_server():
    log = []
    request_logprobs({"top_logprobs": [{"b": -0.5}]}, log, api_key=SECRET)
    assert {path for path, _ in log} >= {"/v1/models", "/v1/completions", "/version"}
    assert {headers.get("Authorization") for _, headers in log} == {f"Bearer {SECRET}"}


@pytest.mark.parametrize(
    "options",
    [
        {"url": f"http://user:{SECRET}@127.0.0.1:9/v1"},
        {"url": f"http://user:{SECRET}@127.0.0.1:9/v1", "served": "folder"},
        {"url": "http://127.0.0.1:9/v1", "control_url": f"http://{SECRET}@127.0.0.1:9/v1"},
        {"control_url": f"http://{SECRET}@127.0.0.1:9/v1"},
        {"url": "http://127.0.0.1:9/v1", "api_key_env": SECRET},
        {"api_key_env": SECRET},
    ],
)
def test_verify_refuses_credentials_in_the_wrong_place_and_does_not_repeat_them(tiny_folder, options):
    with pytest.raises(InputError) as caught:
        verify(str(tiny_folder), "yarn:factor=2", "vllm", **options)
    assert SECRET not in f"{caught.value} {caught.value.value}"
