"""verify by URL, against servers that report log-probabilities in the formats of vLLM, SGLang and llama.cpp."""

from __future__ import annotations

import pytest
import torch
from tests.helpers.completions_server import run_server

import ropewalk as rw
from ropewalk import InputError
from ropewalk.serving.verify import verify

LENGTH = 256
EXPECTED = "yarn:factor=4"


class LogprobServer:
    """Handler of requests that serves the small model under a scaling.

    Args:
        folder: the model.
        scaling: scaling that the server applies.
        log_format: "vllm", "sglang", "llama.cpp", or "none" for a server without log-probabilities.
        max_logprobs: more are refused with the message of vLLM.
        noise: standard deviation that is added to the log-probabilities.
    """

    def __init__(self, folder, scaling, log_format="vllm", max_logprobs=20, noise=0.0):
        self.model, self.tokenizer = rw.load(folder, dtype="float32")
        rw.extend(self.model, scaling)
        self.log_format, self.max_logprobs, self.noise = log_format, max_logprobs, noise
        self.requests = []

    @torch.inference_mode()
    def __call__(self, body):
        self.requests.append(body)
        count = body["logprobs"]
        if count > self.max_logprobs:
            message = f"Requested sample logprobs of {count}, which is greater than max allowed: {self.max_logprobs}"
            return 400, {"error": {"message": message}}
        log_p = torch.log_softmax(self.model(torch.tensor([body["prompt"]])).logits[0, -1].float(), -1)
        generator = torch.Generator().manual_seed(len(self.requests))
        log_p = log_p + self.noise * torch.randn(log_p.shape, generator=generator)
        top = log_p.topk(count)
        pairs = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        return 200, {"choices": [{"text": "", "logprobs": self._format(pairs)}]}

    def _format(self, pairs):
        if self.log_format == "none":
            return None
        if self.log_format == "llama.cpp":
            return {"content": [{"top_logprobs": [{"id": i, "token": "?", "logprob": p} for i, p in pairs]}]}
        if self.log_format == "vllm":
            return {"top_logprobs": [{f"token_id:{i}": p for i, p in pairs}]}
        return {"top_logprobs": [{self.tokenizer.decode([i]): p for i, p in pairs}]}


@pytest.mark.parametrize("log_format", ["vllm", "sglang", "llama.cpp"])
def test_expected_scaling_passes_and_another_fails(small_model, work, log_format):
    with run_server(LogprobServer(small_model, EXPECTED, log_format)) as url:
        right = verify(small_model, EXPECTED, "vllm", length=LENGTH, url=url, work=work)
        wrong = verify(small_model, "yarn:factor=4.25", "vllm", length=LENGTH, url=url, work=work)
    assert right.verdict == "pass", right.why
    assert right.tables is None
    assert right.given == url
    assert wrong.verdict == "fail"
    assert wrong.ratio > 100


def test_number_of_logprobs_is_reduced_to_what_the_server_allows(small_model, work):
    server = LogprobServer(small_model, EXPECTED, max_logprobs=5)
    with run_server(server) as url:
        assert verify(small_model, EXPECTED, "vllm", length=LENGTH, url=url, work=work).passed
    assert [body["logprobs"] for body in server.requests[:4]] == [64, 20, 5, 5]


def test_noisy_server_is_unclear_without_a_control_and_passes_with_one(small_model, work):
    def verify_by_url(server):
        with run_server(server) as url:
            return verify(small_model, EXPECTED, "vllm", length=LENGTH, url=url, work=work)

    ignored = verify_by_url(LogprobServer(small_model, EXPECTED)).behaviour["ignored"]
    noisy = verify_by_url(LogprobServer(small_model, EXPECTED, noise=ignored / 4))
    assert noisy.verdict == "unclear"
    assert "ignored" in noisy.why
    with (
        run_server(LogprobServer(small_model, EXPECTED, noise=ignored / 50)) as url,
        run_server(LogprobServer(small_model, "none", noise=ignored / 50)) as control_url,
    ):
        result = verify(small_model, EXPECTED, "vllm", length=LENGTH, url=url, control_url=control_url, work=work)
    assert result.verdict == "pass", result.why


def test_server_without_logprobs_is_refused(small_model, work):
    with run_server(LogprobServer(small_model, EXPECTED, "none")) as url, pytest.raises(InputError, match="log-prob"):
        verify(small_model, EXPECTED, "vllm", length=LENGTH, url=url, work=work)


def test_refusal_for_another_reason_is_not_retried_with_fewer_logprobs(small_model, work):
    requests = []

    def refuse(body):
        requests.append(body)
        return 400, {"error": "prompt must be a string"}

    with run_server(refuse) as url, pytest.raises(InputError, match="prompt must be a string"):
        verify(small_model, EXPECTED, "vllm", length=LENGTH, url=url, work=work)
    assert len(requests) == 1


@pytest.mark.parametrize("url", ["file:///etc/passwd", "localhost:8000", "http://127.0.0.1:9/v1"])
def test_url_without_a_server_is_refused(small_model, work, url):
    with pytest.raises(InputError, match="url"):
        verify(small_model, EXPECTED, "vllm", length=LENGTH, url=url, work=work)
