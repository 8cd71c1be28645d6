"""Real vLLM with the plugin: every request is read as by a server that is static at the request's factor."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest

from ropewalk.serving.export import export_model

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.engines
ORIGINAL, FACTORS, VOCABULARY = 128, (1, 2, 4), 512
SHARED_PREFIX = 96  # tokens that all prompts begin with
PROMPTS = (20, 110, 119, 121, 200, 247, 249, 300, 500)  # tokens; each generates 8
LONG_ANSWERS = (60, 62, 64, 66, 150, 152, 154)  # tokens; each generates 40
ONE_OF_EACH = (110, 121, 249)  # one prompt for each factor
BETWEEN_FACTORS = 119  # tokens of the prompt of the beam search, which generates 16
NOISE = 1e-4  # nats; batching changes the order of float32 sums. The faults below differ by more than 0.1.
# What a request asks for beside the likeliest tokens. All of them go to one server, which is enabled to do them.
FEATURES = {
    "three texts": {"sampling": {"n": 3, "temperature": 1.0, "top_k": 1}},
    "three texts with seeds": {"sampling": {"n": 3, "temperature": 1.0, "top_k": 1, "seed": 7}},
    "structured output": {"sampling": {"structured_outputs": {"regex": "[ab]{8}"}}},
    "embeddings as prompt": {"embeddings": True},
    "aborted and sent again": {"abort_after": 2},
    "log-probabilities of the prompt": {"score_prompt": True},
    "weights loaded again": {"reload_weights": True},
}
FEATURE_OPTIONS = {"skip_tokenizer_init": False, "enable_prompt_embeds": True, "async_scheduling": True}
BEAM_SEARCH = {"beams": 2, "max_tokens": 16}

OPTIONS = {"max_model_len": max(FACTORS) * ORIGINAL, "block_size": 32}
CACHED = {"enable_prefix_caching": True}
LORA = {"enable_lora": True, "max_lora_rank": 8}
SMALL_CACHE = {"num_gpu_blocks_override": 24}  # the prompts of the long answers alone need 23 blocks
N_GRAMS = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1, "prompt_lookup_max": 3}
FAULTS = ("positions not shifted", "rows of equal strides", "no salt", "attention factor of the next")


def new_tokens(length):
    return 40 if length in LONG_ANSWERS else 8


def factor_of(length):
    return next(factor for factor in FACTORS if length + new_tokens(length) <= factor * ORIGINAL)


def up_to(factor, lengths):
    """The prompts whose answers end within the table of a static server."""
    return tuple(length for length in lengths if factor_of(length) <= factor)


def shuffle(seed):
    return tuple(random.Random(seed).sample(PROMPTS, len(PROMPTS)))


# For each server: its checkpoint, its options, and the batches that it gets, as a feature and the lengths of prompts.
PLAIN = ""
SERVERS = {
    **{
        str(factor): (
            str(factor),
            {**FEATURE_OPTIONS, "enable_prefix_caching": False},
            (
                (PLAIN, up_to(factor, PROMPTS)),
                (PLAIN, up_to(factor, LONG_ANSWERS)),
                *((feature, tuple(n for n in ONE_OF_EACH if factor_of(n) == factor)) for feature in FEATURES),
            ),
        )
        for factor in FACTORS
    },
    "at once": (
        "dynamic",
        {"enable_prefix_caching": False},
        ((PLAIN, PROMPTS), *((PLAIN, shuffle(n)) for n in range(5))),
    ),
    "one by one": ("dynamic", CACHED, tuple((PLAIN, (length,)) for length in reversed(PROMPTS))),
    "chunked": ("dynamic", {"max_num_batched_tokens": 64, "max_num_seqs": 4}, ((PLAIN, PROMPTS),)),
    "small cache": ("dynamic", SMALL_CACHE, ((PLAIN, LONG_ANSWERS),)),
    "warmed up": ("dynamic", {"enable_prefix_caching": False}, (("warmed up", ONE_OF_EACH),)),
    "priorities": ("dynamic", {**SMALL_CACHE, "scheduling_policy": "priority"}, (("priorities", LONG_ANSWERS),)),
    "features": ("dynamic", {**CACHED, **FEATURE_OPTIONS}, tuple((feature, ONE_OF_EACH) for feature in FEATURES)),
    "LoRA": ("dynamic", LORA, (("LoRA", ONE_OF_EACH), (PLAIN, ONE_OF_EACH))),
    "LoRA 2": ("2", LORA, (("LoRA", (121,)),)),
    **{fault: ("dynamic", CACHED, tuple((PLAIN, (length,)) for length in PROMPTS)) for fault in FAULTS},
    # Last, because it loads numba, after which vLLM cannot be started a second time in a process.
    "n-grams": ("dynamic", {"speculative_config": N_GRAMS}, ((PLAIN, PROMPTS), (PLAIN, LONG_ANSWERS))),
}


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
def adapter(model, tmp_path_factory):
    """The folder of a LoRA adapter with large weights."""
    import peft

    folder = tmp_path_factory.mktemp("adapter")
    config = peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(folder)
    adapted.unload()
    return str(folder)


@pytest.fixture(scope="module", params=["V1", "V2"])
def results(request, run_servers, checkpoints, requests, adapter):
    """The results of all servers by name."""
    features = {PLAIN: {}, "priorities": {}, "warmed up": {"warm_up": True}, "LoRA": {"lora": adapter}, **FEATURES}
    job = [
        {
            "path": str(checkpoints[checkpoint]),
            "options": {**OPTIONS, **options},
            "batches": [[{**requests[n], **features[feature]} for n in lengths] for feature, lengths in batches],
            "fault": name if name in FAULTS else None,
        }
        for name, (checkpoint, options, batches) in SERVERS.items()
    ]
    servers = dict(zip(SERVERS, job, strict=True))
    for priority, sent in enumerate(reversed(servers["priorities"]["batches"][0])):  # the last one is served first
        sent["priority"] = priority
    servers["one by one"]["batches"] += [[{**requests[119], "cache_salt": salt}] for salt in ("a", "b", "a")]
    servers["features"]["batches"].append([{**requests[BETWEEN_FACTORS], **BEAM_SEARCH}])
    return dict(zip(SERVERS, run_servers(job, request.param), strict=True))


def difference(found, expected):
    """Return the largest difference of the log-probabilities; infinite if most of the likeliest tokens differ."""
    prompt_pairs = zip(found.get("prompt_logprobs") or [], expected.get("prompt_logprobs") or [], strict=True)
    worst = max((abs(x - y) for x, y in prompt_pairs), default=0.0)
    for found_step, expected_step in zip(found["logprobs"], expected["logprobs"], strict=True):
        found_top, expected_top = dict(map(tuple, found_step)), dict(map(tuple, expected_step))
        shared = found_top.keys() & expected_top.keys()
        if len(shared) < len(expected_top) / 2:
            return float("inf")
        worst = max(worst, *(abs(found_top[token] - expected_top[token]) for token in shared))
    return worst


def list_results(results, name):
    """Yield the feature and the length of each request of a server with its result."""
    assert "error" not in results[name], results[name]
    for (feature, lengths), batch in zip(SERVERS[name][2], results[name]["batches"], strict=False):
        for length, result in zip(lengths, batch, strict=True):
            yield (feature, length), result


def worst_difference(results, name, feature=None):
    """Return the largest difference of a server from those that are static at the factors of the requests."""
    static = {factor: dict(list_results(results, str(factor))) for factor in FACTORS}
    differences = [
        difference(found, static[factor_of(length)][own_feature if own_feature in FEATURES else PLAIN, length])
        for (own_feature, length), found in list_results(results, name)
        if feature in {None, own_feature}
    ]
    return max(differences)


@pytest.mark.parametrize(
    "name", ["at once", "one by one", "chunked", "small cache", "warmed up", "priorities", "n-grams"]
)
def test_every_request_is_read_under_its_own_factor(results, name):
    assert worst_difference(results, name) < NOISE


@pytest.mark.parametrize("feature", FEATURES)
def test_features_of_vllm_keep_the_factor(results, feature):
    assert worst_difference(results, "features", feature) < NOISE


def test_features_change_the_answers(results):
    """Otherwise the test above would test one thing several times."""
    found = dict(list_results(results, "features"))
    assert len(found["three texts", 121]["tokens"]) == 3 * 8
    assert len(set(found["structured output", 121]["tokens"])) <= 2 < len(set(found["three texts", 121]["tokens"]))
    assert len(found["log-probabilities of the prompt", 121]["prompt_logprobs"]) == 120


def test_adapters_are_read_under_the_factor(results):
    found, expected = dict(list_results(results, "LoRA")), dict(list_results(results, "LoRA 2"))
    assert difference(found["LoRA", 121], expected["LoRA", 121]) < NOISE
    assert difference(found["LoRA", 121], found[PLAIN, 121]) > 1000 * NOISE


def test_steps_of_a_beam_search_get_the_factor_of_their_length(results):
    """Each step is a request of its own, so the factor grows with the text as it does from turn to turn of a chat."""
    (found,) = results["features"]["batches"][-1]
    assert BETWEEN_FACTORS < ORIGINAL < BETWEEN_FACTORS + BEAM_SEARCH["max_tokens"]
    assert difference({"logprobs": found["replayed"]}, found) < NOISE  # a beam search reports four tokens of each step


def test_static_servers_differ_from_each_other(results):
    """Otherwise the tests above could not fail."""
    for name, other in (("1", "2"), ("2", "4"), ("1", "4")):
        found, expected = dict(list_results(results, name)), dict(list_results(results, other))
        assert min(difference(found[key], expected[key]) for key in found if key in expected) > 100 * NOISE


@pytest.mark.parametrize("name", ["small cache", "priorities"])
def test_requests_are_preempted_when_the_cache_is_small(results, name):
    assert results[name]["preemptions"] > 0


def test_prefixes_are_shared_within_a_factor_only(results):
    seen = set()
    for (_, length), found in list_results(results, "one by one"):
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


@pytest.fixture
def server(model, tokenizer, vllm_python, vllm_environment, tmp_path):
    """The URL and the model's name of a server that was started with the command of an export."""
    trained = tmp_path / "trained"
    model.save_pretrained(trained)
    tokenizer.save_pretrained(trained)
    fields = json.loads((trained / "config.json").read_text())
    (trained / "config.json").write_text(json.dumps({**fields, "max_position_embeddings": ORIGINAL}))
    export = export_model(str(trained), "dynamic-yarn", "vllm", tmp_path / "served", max(FACTORS) * ORIGINAL)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The `vllm` command of the CPU package looks for the metadata of a package named vllm, and fails.
    command = export.command.replace("vllm serve ", "python -m vllm.entrypoints.openai.api_server --model ")
    command = (
        f"{command} --host 127.0.0.1 --port {port} --dtype float32 --enforce-eager --max-logprobs 10 --block-size 32"
    )
    environment = {
        **vllm_environment,
        "PATH": f"{vllm_python.parent}:{os.environ['PATH']}",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with subprocess.Popen(
        f"{command} --enable-prompt-tokens-details", shell=True, env=environment, start_new_session=True
    ) as process:
        try:
            wait_until_healthy(process, f"http://127.0.0.1:{port}/health")
            yield f"http://127.0.0.1:{port}/v1/completions", export.path
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)


def wait_until_healthy(process, url):
    while process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"vllm serve ended with status {process.returncode}")


def complete(server, request):
    """Send a request to a server; return its result in the form of the other tests."""
    url, name = server
    options = {"temperature": 0, "logprobs": 10, "return_tokens_as_token_ids": True, "ignore_eos": True}
    body = json.dumps({"model": name, **request, **options}).encode()
    sent = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(sent, timeout=120) as response:
        answer = json.load(response)
    steps = answer["choices"][0]["logprobs"]["top_logprobs"]
    return {
        "logprobs": [
            [(int(token.removeprefix("token_id:")), logprob) for token, logprob in step.items()] for step in steps
        ],
        "cached_tokens": (answer["usage"]["prompt_tokens_details"] or {}).get("cached_tokens", 0),
    }


@pytest.mark.parametrize("results", ["V1"], indirect=True)
def test_the_exported_command_serves_over_http(server, results, requests):
    for length in (*ONE_OF_EACH, *ONE_OF_EACH):
        static = dict(list_results(results, str(factor_of(length))))
        assert difference(complete(server, requests[length]), static[PLAIN, length]) < NOISE
    salted = [complete(server, {**requests[121], "cache_salt": salt})["cached_tokens"] for salt in ("a", "b", "a")]
    assert salted == [0, 0, 96]
