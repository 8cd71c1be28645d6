"""Real vLLM with the plugin: every request is read as by a server that is static at the request's factor.

A tiny model with random weights, L = 128. Its attention is sharp, so that every fault of a rotation shows.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from ropewalk.errors import MissingPackageError
from ropewalk.serving.engines import find_engine
from ropewalk.serving.verify.environments import find_python

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.engines
ORIGINAL, FACTORS, VOCABULARY = 128, (1, 2, 4), 512
NEW_TOKENS = 8
SHARED_PREFIX = 96  # tokens that prompts of all factors begin with
LENGTHS = (20, 110, 119, 121, 200, 247, 249, 300, 500)
NOISE = 1e-4  # nats; batching changes the order of float32 sums. The faults below differ by more than 0.1.
BASE = {"rope_theta": 10_000.0}
ROPE_DICTS = {
    "dynamic": {
        **BASE,
        "rope_type": "ropewalk_dynamic_yarn",
        "original_max_position_embeddings": ORIGINAL,
        "factors": list(FACTORS),
    },
    "1": {**BASE, "rope_type": "default"},
    "2": {**BASE, "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": ORIGINAL},
    "4": {**BASE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
}
OPTIONS = {"max_model_len": max(FACTORS) * ORIGINAL, "block_size": 32}
SMALL_CACHE = {"num_gpu_blocks_override": 24}  # the prompts need 65 blocks
FAULTS = ("positions not shifted", "rows of equal strides", "no salt", "attention factor of another factor")


def factor_of(length):
    return next(factor for factor in FACTORS if length + NEW_TOKENS <= factor * ORIGINAL)


def request(prompt, salt=None):
    return {"prompt": prompt, "max_tokens": NEW_TOKENS, "cache_salt": salt}


@pytest.fixture(scope="module")
def prompts():
    generator = random.Random(0)
    tokens = [generator.randrange(VOCABULARY) for _ in range(SHARED_PREFIX)]
    return [(tokens + [generator.randrange(VOCABULARY) for _ in range(max(LENGTHS))])[:length] for length in LENGTHS]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder for each rope dict, with the same weights."""
    config = transformers.LlamaConfig(
        hidden_size=256,
        intermediate_size=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=3,
        vocab_size=VOCABULARY,
        max_position_embeddings=max(FACTORS) * ORIGINAL,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.data *= 3
    folders = {}
    for name, rope_dict in ROPE_DICTS.items():
        folders[name] = tmp_path_factory.mktemp("checkpoints") / name
        model.save_pretrained(folders[name])
        file = folders[name] / "config.json"
        fields = json.loads(file.read_text())
        file.write_text(json.dumps({**fields, "rope_parameters": rope_dict}))
    return folders


@pytest.fixture(scope="module")
def results(checkpoints, prompts, tmp_path_factory):
    """The results of all servers by name; they run in one process, because starting vLLM takes long."""
    try:
        python = find_python(find_engine("vllm"))
    except MissingPackageError:
        pytest.skip("vLLM is not installed (make engines)")
    in_order = [request(prompt) for prompt in prompts]
    shuffled = [random.Random(seed).sample(in_order, len(in_order)) for seed in range(5)]
    dynamic = str(checkpoints["dynamic"])
    servers = {
        **{name: (str(folder), {}, [in_order]) for name, folder in checkpoints.items()},
        "shuffled": (dynamic, {"enable_prefix_caching": False}, shuffled),
        "one by one": (dynamic, {"enable_prefix_caching": True}, [[each] for each in reversed(in_order)]),
        "salted": (dynamic, {"enable_prefix_caching": True}, [[request(prompts[1], salt)] for salt in ("a", "b", "a")]),
        "chunked": (dynamic, {"max_num_batched_tokens": 64, "max_num_seqs": 4}, [in_order]),
        "small cache": (dynamic, SMALL_CACHE, [in_order]),
        **{fault: (dynamic, {"enable_prefix_caching": True}, [[each] for each in in_order]) for fault in FAULTS},
    }
    job = [
        {"path": path, "options": {**OPTIONS, **options}, "batches": batches}
        | {"fault": name if name in FAULTS else None}
        for name, (path, options, batches) in servers.items()
    ]
    folder = tmp_path_factory.mktemp("job")
    (folder / "job.json").write_text(json.dumps(job))
    script = Path(__file__).with_name("run_servers.py")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [python, script, folder / "job.json", folder / "result.json"],
        check=True,
        env={**environment, "VLLM_LOGGING_LEVEL": "ERROR"},
    )
    return dict(zip(servers, json.loads((folder / "result.json").read_text()), strict=True))


def difference(found, expected):
    """Return the largest difference of the log-probabilities; infinite if most of the likeliest tokens differ."""
    worst = 0.0
    for found_step, expected_step in zip(found["logprobs"], expected["logprobs"], strict=True):
        found_top, expected_top = dict(map(tuple, found_step)), dict(map(tuple, expected_step))
        shared = found_top.keys() & expected_top.keys()
        if len(shared) < len(expected_top) / 2:
            return float("inf")
        worst = max(worst, *(abs(found_top[token] - expected_top[token]) for token in shared))
    return worst


def differences(results, name, prompts):
    """Return for each prompt the difference of a server from the static server at the factor of the request."""
    worst = {}
    for batch, requests in zip(results[name]["batches"], _requests_of(name, prompts), strict=True):
        for found, length in zip(batch, requests, strict=True):
            index = LENGTHS.index(length)
            expected = results[str(factor_of(length))]["batches"][0][index]
            worst[length] = max(worst.get(length, 0.0), difference(found, expected))
    return worst


def _requests_of(name, prompts):
    if name == "shuffled":
        return [random.Random(seed).sample(LENGTHS, len(LENGTHS)) for seed in range(5)]
    if name == "one by one":
        return [[length] for length in reversed(LENGTHS)]
    if name in FAULTS:
        return [[length] for length in LENGTHS]
    return [LENGTHS]


@pytest.mark.parametrize("name", ["dynamic", "shuffled", "one by one", "chunked", "small cache"])
def test_every_request_is_read_under_its_own_factor(results, prompts, name):
    assert "error" not in results[name], results[name]
    assert max(differences(results, name, prompts).values()) < NOISE


def test_static_servers_differ_from_each_other(results):
    """Otherwise the test above could not fail."""
    for name, other in (("1", "2"), ("2", "4"), ("1", "4")):
        pairs = zip(results[name]["batches"][0], results[other]["batches"][0], strict=True)
        assert min(difference(*pair) for pair in pairs) > 100 * NOISE


def test_requests_are_preempted_when_the_cache_is_small(results):
    assert results["small cache"]["preemptions"] > 0


def test_prefixes_are_shared_within_a_factor_only(results):
    by_length = dict(
        zip(reversed(LENGTHS), (batch[0]["cached_tokens"] for batch in results["one by one"]["batches"]), strict=True)
    )
    first_of_factor = {factor: max(length for length in LENGTHS if factor_of(length) == factor) for factor in FACTORS}
    for length, cached in by_length.items():
        assert (cached > 0) == (length != first_of_factor[factor_of(length)] and length > SHARED_PREFIX), by_length


def test_the_salt_of_the_user_still_separates(results):
    first, second, third = (batch[0]["cached_tokens"] for batch in results["salted"]["batches"])
    assert (first, second) == (0, 0)
    assert third > 0


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(results, prompts, fault):
    assert max(differences(results, fault, prompts).values()) > 1000 * NOISE
