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
SHARED_PREFIX = 96  # tokens that all prompts begin with
PROMPTS = (20, 110, 119, 121, 200, 247, 249, 300, 500)  # tokens; each generates 8
LONG_ANSWERS = (60, 62, 64, 66, 150, 152, 154)  # tokens; each generates 40
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
CACHED = {"enable_prefix_caching": True}
N_GRAMS = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1, "prompt_lookup_max": 3}
FAULTS = ("positions not shifted", "rows of equal strides", "no salt", "attention factor of the next")
REFUSALS = {"another version": "it was tested with 0.0.1", "another signature": "the signature of vllm.model_executor"}


def _shuffle(seed):
    return tuple(random.Random(seed).sample(PROMPTS, len(PROMPTS)))


# For each server: its checkpoint, its options, and the lengths of the prompts that it gets at once.
SERVERS = {
    **{factor: (factor, {}, (PROMPTS, LONG_ANSWERS)) for factor in ("1", "2", "4")},
    "at once": ("dynamic", {}, (PROMPTS,)),
    "shuffled": ("dynamic", {}, tuple(map(_shuffle, range(5)))),
    "one by one": ("dynamic", CACHED, tuple((length,) for length in reversed(PROMPTS))),
    "chunked": ("dynamic", {"max_num_batched_tokens": 64, "max_num_seqs": 4}, (PROMPTS,)),
    "small cache": ("dynamic", {"num_gpu_blocks_override": 24}, (LONG_ANSWERS,)),  # the prompts alone need 23 blocks
    **{fault: ("dynamic", CACHED, tuple((length,) for length in PROMPTS)) for fault in FAULTS},
    **{fault: ("dynamic", {}, (PROMPTS,)) for fault in REFUSALS},
    # Last, because it loads numba, after which vLLM cannot be started a second time in a process.
    "n-grams": ("dynamic", {"speculative_config": N_GRAMS}, (PROMPTS, LONG_ANSWERS)),
}


def new_tokens(length):
    return 40 if length in LONG_ANSWERS else 8


def factor_of(length):
    return next(factor for factor in FACTORS if length + new_tokens(length) <= factor * ORIGINAL)


@pytest.fixture(scope="module")
def requests():
    """A request for each length of a prompt."""
    generator = random.Random(0)
    prefix = [generator.randrange(VOCABULARY) for _ in range(SHARED_PREFIX)]
    return {
        length: {
            "prompt": (prefix + [generator.randrange(VOCABULARY) for _ in range(length)])[:length],
            "max_tokens": new_tokens(length),
        }
        for length in (*PROMPTS, *LONG_ANSWERS)
    }


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
def results(checkpoints, requests, tmp_path_factory):
    """The results of all servers by name. They run in one process, because importing vLLM takes long."""
    try:
        python = find_python(find_engine("vllm"))
    except MissingPackageError:
        pytest.skip("vLLM is not installed (make engines)")
    job = [
        {
            "path": str(checkpoints[checkpoint]),
            "options": {**OPTIONS, **options},
            "batches": [[requests[length] for length in batch] for batch in batches],
            "fault": name if name in (*FAULTS, *REFUSALS) else None,
        }
        for name, (checkpoint, options, batches) in SERVERS.items()
    ]
    salted = [[{**requests[119], "cache_salt": salt}] for salt in ("a", "b", "a")]
    next(server for server in job if server["options"].get("enable_prefix_caching"))["batches"] += salted
    folder = tmp_path_factory.mktemp("job")
    (folder / "job.json").write_text(json.dumps(job))
    script = Path(__file__).parents[3] / "benchmarks" / "vllm_servers.py"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [python, script, folder / "job.json", folder / "result.json"],
        check=True,
        env={**environment, "VLLM_LOGGING_LEVEL": "ERROR"},
    )
    return dict(zip(SERVERS, json.loads((folder / "result.json").read_text()), strict=True))


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


def by_length(results, name):
    """Yield the lengths of a server's prompts with their results."""
    assert "error" not in results[name], results[name]
    for lengths, batch in zip(SERVERS[name][2], results[name]["batches"], strict=False):
        yield from zip(lengths, batch, strict=True)


def worst_difference(results, name):
    """Return the largest difference of a server from the servers that are static at the factors of the requests."""
    static = {factor: dict(by_length(results, str(factor))) for factor in FACTORS}
    return max(difference(found, static[factor_of(length)][length]) for length, found in by_length(results, name))


@pytest.mark.parametrize("name", ["at once", "shuffled", "one by one", "chunked", "small cache", "n-grams"])
def test_every_request_is_read_under_its_own_factor(results, name):
    assert worst_difference(results, name) < NOISE


def test_static_servers_differ_from_each_other(results):
    """Otherwise the test above could not fail."""
    for name, other in (("1", "2"), ("2", "4"), ("1", "4")):
        expected = dict(by_length(results, other))
        assert min(difference(found, expected[length]) for length, found in by_length(results, name)) > 100 * NOISE


def test_requests_are_preempted_when_the_cache_is_small(results):
    assert results["small cache"]["preemptions"] > 0


def test_prefixes_are_shared_within_a_factor_only(results):
    seen = set()
    for length, found in by_length(results, "one by one"):
        is_shared = factor_of(length) in seen and length > SHARED_PREFIX
        assert (found["cached_tokens"] > 0) == is_shared, length
        seen.add(factor_of(length))


def test_the_salt_of_the_user_still_separates(results):
    first, second, third = (batch[0]["cached_tokens"] for batch in results["one by one"]["batches"][-3:])
    assert (first, second) == (0, 0)
    assert third > 0


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(results, fault):
    assert worst_difference(results, fault) > 1000 * NOISE


@pytest.mark.parametrize("refusal", REFUSALS)
def test_unknown_versions_of_vllm_are_refused_before_serving(results, refusal):
    assert REFUSALS[refusal] in results[refusal]["error"]
