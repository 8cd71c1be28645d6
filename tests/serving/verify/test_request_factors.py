"""An engine that gives each request its own factor: right ones pass, and each way to confuse the factors fails.

The engine is simulated with transformers. `make test-engines` runs vLLM itself (test_installed_engines.py).
"""

from __future__ import annotations

import json
import threading
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.helpers.completions_server import run_server

import ropewalk as rw
from ropewalk.cli import main
from ropewalk.compat.transformers import cache_for_call, find_output_cache
from ropewalk.models.extend import extended
from ropewalk.serving.export import export_model
from ropewalk.serving.verify import engine_under_test, verify
from ropewalk.serving.verify.length_rule import LengthRule
from ropewalk.serving.verify.prompts import build_prompts
from ropewalk.serving.verify.reference import ReferenceModel
from ropewalk.serving.verify.run_engine import EngineOutput
from ropewalk.serving.vllm_plugin.request_factors import RequestFactors, find_request_factors

ORIGINAL, LENGTH = 64, 256
FACTORS = RequestFactors(ORIGINAL, (1, 2, 4))


def largest_factor_for_all(factors, prompts, max_tokens):
    return [factors.choose(max(map(len, prompts)) + max_tokens)] * len(prompts)


# For each fault: how the factors of the prompts that are sent at once are chosen, as indices.
CHOICES = {
    "": lambda factors, prompts, max_tokens: [factors.choose(len(prompt) + max_tokens) for prompt in prompts],
    "factors ignored": lambda factors, prompts, max_tokens: [0] * len(prompts),
    "always the largest factor": lambda factors, prompts, max_tokens: [len(factors.factors) - 1] * len(prompts),
    "max_tokens left out": lambda factors, prompts, max_tokens: [factors.choose(len(prompt)) for prompt in prompts],
    "one factor for a batch": largest_factor_for_all,
}
FAULTS = [*filter(None, CHOICES), "generated tokens without a factor", "rows of factor 2 unscaled"]


class SimulatedEngine:
    """The small model, with a factor for each request if its configuration asks for it.

    `fault`: a name of FAULTS, or "" for none.
    """

    def __init__(self, folder, fault=""):
        self.model, _ = rw.load(folder, dtype="float32")
        self.rope = rw.Rope(32, 10_000.0, ORIGINAL)
        self.fault = fault
        self.factors = None

    def run(self, engine, python, job, on_progress):
        self.factors = find_request_factors(json.loads(self._config_file(job).read_text()))
        alone = [self.generate([prompt], 1)[0] for prompt in job["prompts"]]
        batch = self.generate([prompt[:-1] for prompt in job["batch"]], 2, [prompt[-1] for prompt in job["batch"]])
        tops = [[self.top(log_p, job["top"]) for log_p in part] for part in (alone, batch)]
        return EngineOutput("0", self.read_tables(job["positions"]), *tops)

    @torch.inference_mode()
    def generate(self, prompts, max_tokens, generated=None):
        """Return the log-probabilities of the last generated token of each request, [vocabulary]."""
        choose = CHOICES.get(self.fault, CHOICES[""])
        indices = choose(self.factors, prompts, max_tokens) if self.factors else [0] * len(prompts)
        results = []
        for i, (prompt, index) in enumerate(zip(prompts, indices, strict=True)):
            with self.under_factor(index):
                output = self.model(torch.tensor([prompt]), use_cache=max_tokens > 1)
            if max_tokens > 1:
                with self.under_factor(0 if self.fault == "generated tokens without a factor" else index):
                    cache = cache_for_call(self.model, find_output_cache(output))
                    output = self.model(torch.tensor([[generated[i]]]), **cache)
            results.append(torch.log_softmax(output.logits[0, -1].float(), -1))
        return results

    def under_factor(self, index):
        return extended(self.model, rw.YaRN(factor=self.factors.factors[index])) if index else nullcontext()

    def read_tables(self, rows):
        lengths = self.factors.lengths if self.factors else (LENGTH,)
        cos, sin = [], []
        for index, length in enumerate(lengths):
            is_scaled = index > 0 and not (self.fault == "rows of factor 2 unscaled" and index == 1)
            scaling = rw.YaRN(factor=self.factors.factors[index]) if is_scaled else rw.NoScaling()
            part = scaling.frequencies(self.rope).cos_sin(range(length), dtype="float32")
            cos.append(part[0])
            sin.append(part[1])
        if max(rows) >= sum(lengths):
            return []
        return [{"cos": np.concatenate(cos)[rows].tolist(), "sin": np.concatenate(sin)[rows].tolist()}]

    @staticmethod
    def top(log_p, count):
        top = log_p.topk(count)
        return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))

    @staticmethod
    def _config_file(job):
        return Path(job["path"]) / "config.json"


@pytest.fixture
def run_verify(small_model, work, monkeypatch):
    def run_verify(fault="", **options):
        monkeypatch.setattr(engine_under_test, "run_engine", SimulatedEngine(small_model, fault).run)
        options = {"python": "/bin/true", "length": LENGTH, "work": work / "simulated", **options}
        return verify(small_model, "dynamic-yarn", "vllm", **options)

    return run_verify


def test_every_factor_is_compared_on_both_sides_of_its_border(run_verify):
    result = run_verify()
    assert result.verdict == "pass", result.why
    assert result.through == "request factors"
    factors = dict(zip(result.behaviour["depths"], result.behaviour["factors"], strict=True))
    assert [factors[depth] for depth in (63, 64, 127, 128, 255)] == [1, 2, 2, 4, 4]
    for part in (result.tables, result.behaviour, result.batch):
        assert part["verdict"] == "pass"
        assert part["ratio"] < 3
    assert result.behaviour["ignored"] > 100 * result.behaviour["control"]
    assert len(result.batch["differences"]) == len(result.batch["controls"]) == len(factors)


@pytest.mark.parametrize("fault", FAULTS)
def test_confused_factors_fail(run_verify, fault):
    result = run_verify(fault)
    assert result.verdict == "fail"
    failed = [part for part in ("tables", "behaviour", "batch") if getattr(result, part)["verdict"] == "fail"]
    expected = {
        "rows of factor 2 unscaled": ["tables"],
        "one factor for a batch": ["batch"],
        "generated tokens without a factor": ["batch"],
    }
    assert failed == expected.get(fault, ["behaviour", "batch"])


def test_a_static_scaling_in_their_place_fails(run_verify, small_model, tmp_path):
    export = export_model(small_model, "none", "vllm", tmp_path / "out", LENGTH)
    result = run_verify(served=export.path)
    assert result.behaviour["verdict"] == result.batch["verdict"] == "fail"


def test_the_reference_of_a_request_is_the_static_model_at_its_factor(small_model, tmp_path):
    reference = ReferenceModel(small_model, tmp_path)
    text = [7 * i % 256 for i in range(LENGTH)]
    prompts = build_prompts(text, LENGTH - 1, ORIGINAL, factor_lengths=FACTORS.lengths)
    rule = LengthRule(request_factors=FACTORS)
    dynamic = reference.log_probs(rw.DynamicYaRN(), prompts, rule)
    statics = {1: rw.NoScaling(), 2: rw.YaRN(factor=2), 4: rw.YaRN(factor=4)}
    by_factor = {factor: reference.log_probs(static, prompts, rule) for factor, static in statics.items()}
    factors = rule.find_factors(prompts.depths)
    assert set(factors) == set(statics)
    for row, factor in enumerate(factors):
        np.testing.assert_allclose(dynamic[row], by_factor[factor][row], atol=1e-5)
    assert abs(by_factor[2] - by_factor[4]).max() > 0.1


@pytest.mark.parametrize("fault", ["", "one factor for a batch", "max_tokens left out"])
def test_a_running_server_gets_the_requests_at_once(small_model, work, fault):
    engine = SimulatedEngine(small_model, fault)
    engine.factors = FACTORS
    bodies, waiting, most_waiting = [], set(), []
    model_is_free = threading.Lock()

    def respond(body):
        bodies.append(body)
        waiting.add(id(body))
        most_waiting.append(len(waiting))
        with model_is_free:
            waiting.discard(id(body))
            return 200, answer(body)

    def answer(body):
        prompt, max_tokens = body["prompt"], body["max_tokens"]
        prompts = [prompt, [0] * (LENGTH - 2)] if max_tokens > 1 else [prompt]  # beside the longest request of a batch
        log_p = engine.generate(prompts, max_tokens, [*body.get("allowed_token_ids", []), 0])[0]
        top = {f"token_id:{token}": logprob for token, logprob in engine.top(log_p, body["logprobs"])}
        return {"choices": [{"text": "", "logprobs": {"top_logprobs": [{}] * (max_tokens - 1) + [top]}}]}

    with run_server(respond) as url:
        result = verify(small_model, "dynamic-yarn", "vllm", length=LENGTH, url=url, work=work / "simulated")
    assert result.verdict == ("fail" if fault else "pass"), result.why
    assert result.tables is None
    assert max(most_waiting) > 3
    batch = [body for body in bodies if body["max_tokens"] == 2]
    assert len(batch) == len(result.batch["depths"])
    assert all(len(body["prompt"]) + 1 in result.batch["depths"] and body["ignore_eos"] for body in batch)


def test_human_output_counts_the_requests_of_each_factor(small_model, monkeypatch, capsys):
    monkeypatch.setattr(engine_under_test, "run_engine", SimulatedEngine(small_model).run)
    options = ["--scaling", "dynamic-yarn", "--engine", "vllm", "--length", str(LENGTH), "--python", "/bin/true"]
    with pytest.raises(SystemExit) as exit_info:
        main(["verify", small_model, *options])
    out = capsys.readouterr().out
    assert exit_info.value.code == 0
    assert "written as request factors" in out
    assert "log-probabilities in a batch" in out
    assert "requests: 7 under factor 1, " in out
