"""Servers that tell log-probabilities in the ways that servers do."""

from __future__ import annotations

import pytest
import torch
from tests.helpers.completions_server import serving

import ropewalk as rw
from ropewalk import InputError
from ropewalk.serving.verify import verify

LENGTH = 256
MEANT = "yarn:factor=4"


class Telling:
    """A server of the small model under a scaling, in the words of vLLM, SGLang or llama.cpp."""

    def __init__(self, folder, scaling, words="vllm", most=20, noise=0.0):
        self.model, self.tokenizer = rw.load(folder, dtype="float32")
        rw.extend(self.model, scaling)
        self.words, self.most, self.noise = words, most, noise
        self.asked = []

    @torch.inference_mode()
    def __call__(self, body):
        self.asked.append(body)
        if body["logprobs"] > self.most:
            said = f"Requested sample logprobs of {body['logprobs']}, which is greater than max expected {self.most}"
            return 400, {"error": {"message": said}}
        log_p = torch.log_softmax(self.model(torch.tensor([body["prompt"]])).logits[0, -1].float(), -1)
        log_p = log_p + self.noise * torch.randn(log_p.shape, generator=torch.Generator().manual_seed(len(self.asked)))
        best = log_p.topk(body["logprobs"])
        told = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return 200, {"choices": [{"text": "", "logprobs": self._told(list(told))}]}

    def _told(self, best):
        if self.words == "nothing":
            return None
        if self.words == "llama.cpp":
            return {"content": [{"top_logprobs": [{"id": i, "token": "?", "logprob": p} for i, p in best]}]}
        named = [f"token_id:{i}" if self.words == "vllm" else self.tokenizer.decode([i]) for i, _ in best]
        return {"top_logprobs": [dict(zip(named, (p for _, p in best), strict=True))]}


@pytest.mark.parametrize("words", ["vllm", "sglang", "llama.cpp"])
def test_the_same_scaling_passes_and_another_fails(small, work, words):
    with serving(Telling(small, MEANT, words)) as url:
        right = verify(small, MEANT, "vllm", length=LENGTH, url=url, work=work)
        wrong = verify(small, "yarn:factor=4.25", "vllm", length=LENGTH, url=url, work=work)
    assert right.verdict == "pass", right.why
    assert right.tables is None
    assert right.given == url
    assert wrong.verdict == "fail"
    assert wrong.ratio > 100


def test_as_few_tokens_as_a_server_allows(small, work):
    server = Telling(small, MEANT, most=5)
    with serving(server) as url:
        assert verify(small, MEANT, "vllm", length=LENGTH, url=url, work=work).passed
    assert [body["logprobs"] for body in server.asked[:4]] == [64, 20, 5, 5]


def test_a_noisy_server_is_no_proof_until_it_is_asked_without_the_scaling(small, work):
    ignored = verify_by(small, work, Telling(small, MEANT)).behaviour["ignored"]
    noise = ignored / 4
    noisy = verify_by(small, work, Telling(small, MEANT, noise=noise))
    assert noisy.verdict == "unclear"
    assert "ignored" in noisy.why
    with (
        serving(Telling(small, MEANT, noise=ignored / 50)) as url,
        serving(Telling(small, "none", noise=ignored / 50)) as other,
    ):
        found = verify(small, MEANT, "vllm", length=LENGTH, url=url, control_url=other, work=work)
    assert found.verdict == "pass", found.why


def verify_by(small, work, server):
    with serving(server) as url:
        return verify(small, MEANT, "vllm", length=LENGTH, url=url, work=work)


def test_a_server_that_tells_nothing_is_refused(small, work):
    with serving(Telling(small, MEANT, "nothing")) as url, pytest.raises(InputError, match="log-probabilities"):
        verify(small, MEANT, "vllm", length=LENGTH, url=url, work=work)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "localhost:8000", "http://127.0.0.1:9/v1"])
def test_addresses_that_are_none(small, work, url):
    with pytest.raises(InputError, match="url"):
        verify(small, MEANT, "vllm", length=LENGTH, url=url, work=work)
