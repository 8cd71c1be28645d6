"""Run requests on vLLM servers, in vLLM's own Python: `python vllm_servers.py JOB_FILE RESULT_FILE`.

With VLLM_USE_V2_MODEL_RUNNER=1 in the environment, vLLM uses model runner V2, and its Triton kernels run on the CPU in
Triton's interpreter.

The job is a list of servers, which run one after the other in this process:

    {"path": checkpoint, "options": arguments of vllm.LLM, "fault": name of a fault to plant or null,
     "batches": [[{"prompt": [token ids], "max_tokens": n} ...] ...]}

A server with "batches" null is not started: its configuration is checked only. Servers can also run side by side, to
compare their speed: each round sends the batch to all of them in turn, and the result has the CPU "seconds" of each.

    {"paths": [checkpoint ...], "options": arguments of vllm.LLM, "batch": [request ...], "rounds": n}

Options of a request:

    "cache_salt": text         "score_prompt": bool
    "sampling": arguments of vllm.SamplingParams
    "lora": folder of an adapter
    "embeddings": bool         send the embeddings of the prompt instead of its token ids
    "priority": number
    "abort_after": n           send it once before, and abort it after n steps
    "reload_weights": bool     load the weights again before
    "warm_up": bool            send vLLM's own warm-up requests before; only model runner V2 has them
    "beams": n                 beam search; the result has also "replayed", the log-probabilities of each of its tokens
                               from a request for that token alone

The requests of a batch are sent at once. The result has for each server an "error", or its number of "preemptions", the
"seconds" of each batch, and "batches": for each request "cached_tokens", the generated "tokens" and their "logprobs",
the ten likeliest of each as [[token, log-probability] ...] (of all n texts, one after the other), and with
`score_prompt` the "prompt_logprobs" of all tokens of the prompt but the first. A beam search gives the likeliest
sequence.
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# vLLM reads these variables when it is imported.
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
TOP = 10
DEFAULTS = {"dtype": "float32", "enforce_eager": True, "skip_tokenizer_init": True, "max_logprobs": TOP}


def main(job_file: str, result_file: str) -> None:
    if os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1":
        interpret_triton()
    results = []
    for server in json.loads(Path(job_file).read_text()):
        try:
            results.append(run_job(server))
        except Exception as error:
            traceback.print_exc()
            results.append({"error": " ".join(f"{type(error).__name__}: {error}".split())})
        Path(result_file).write_text(json.dumps(results))


def interpret_triton() -> None:
    """Run Triton kernels in Triton's interpreter, and present it to vLLM as Triton's CPU backend.

    The interpreter has two gaps. It refuses integer masks, so they are converted to boolean ones. Its `tl.range` counts
    in Python integers, which vLLM's top-k kernel cannot use, so vLLM's torch implementation of top-k is used instead.
    """
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.backends import backends
    from triton.runtime.interpreter import InterpreterBuilder

    def with_boolean_mask(method: Callable[..., Any], index: int) -> Callable[..., Any]:
        def call(self: Any, *arguments: Any) -> Any:
            arguments[index].data = arguments[index].data.astype(bool)
            return method(self, *arguments)

        return call

    for name, index in (("create_masked_load", 1), ("create_masked_store", 2)):
        setattr(InterpreterBuilder, name, with_boolean_mask(getattr(InterpreterBuilder, name), index))
    backends["cpu"] = SimpleNamespace(driver=None)
    from vllm.v1.sample.ops import topk_topp_sampler

    topk_topp_sampler.HAS_TRITON = False


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    if "paths" in job:
        return run_in_turn(**job)
    return check_configuration(**job) if job["batches"] is None else run_server(**job)


def run_in_turn(paths: list[str], options: dict[str, Any], batch: list[Any], rounds: int) -> dict[str, Any]:
    import vllm

    engines = [vllm.LLM(path, **DEFAULTS | options) for path in paths]
    for engine in engines:
        run_batch(engine, batch)  # the first one warms up
    seconds: list[list[float]] = [[] for _ in engines]
    for number in range(rounds):
        servers = list(zip(engines, seconds, strict=True))
        for engine, times in servers if number % 2 else reversed(servers):
            started = time.process_time()
            run_batch(engine, batch)
            times.append(time.process_time() - started)
    return {"seconds": seconds}


def check_configuration(path: str, options: dict[str, Any], batches: None, fault: str | None) -> dict[str, Any]:
    import vllm

    from ropewalk.serving.vllm_plugin import hooks

    config = vllm.EngineArgs(model=path, **DEFAULTS | options).create_engine_config()
    restore = plant(fault)
    try:
        hooks.check_server(config)
    finally:
        restore()
    return {"batches": []}


def run_server(path: str, options: dict[str, Any], batches: list[Any], fault: str | None) -> dict[str, Any]:
    import vllm
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.v1.core.sched.scheduler import Scheduler

    from ropewalk.serving.vllm_plugin import hooks

    preempted = []
    preempt = Scheduler._preempt_request

    def count_and_preempt(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        preempted.append(request)
        return preempt(self, request, *args, **kwargs)

    Scheduler._preempt_request = count_and_preempt
    hooks._modules.clear()
    restore = plant(fault)
    try:
        engine = vllm.LLM(path, **DEFAULTS | options)
        results, seconds = [], []
        for batch in batches:
            started = time.perf_counter()
            results.append(run_batch(engine, batch))
            seconds.append(time.perf_counter() - started)
        return {"batches": results, "seconds": seconds, "preemptions": len(preempted)}
    finally:
        Scheduler._preempt_request = preempt
        restore()
        engine = None
        gc.collect()
        cleanup_dist_env_and_memory()


def run_batch(engine: Any, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if batch[0].get("beams"):
        return [run_beam_search(engine, request) for request in batch]
    if any(request.get("reload_weights") for request in batch):
        engine.collective_rpc("reload_weights")
    if any(request.get("warm_up") for request in batch):
        engine.collective_rpc(warm_up)
    prompts = [make_prompt(engine, request) for request in batch]
    samplings = [make_sampling(request) for request in batch]
    for request, prompt, sampling in zip(batch, prompts, samplings, strict=True):
        if "abort_after" in request:
            request_id = engine.llm_engine.add_request("aborted", prompt, sampling)
            for _ in range(request["abort_after"]):
                engine.llm_engine.step()
            engine.llm_engine.abort_request([request_id], internal=True)
    outputs = engine.generate(
        prompts,
        samplings,
        use_tqdm=False,
        lora_request=[make_lora_request(request) for request in batch],
        priority=[request.get("priority", 0) for request in batch],
    )
    return [
        {
            "logprobs": [logprobs for text in output.outputs for logprobs in list_logprobs(text.logprobs)],
            "tokens": [token for text in output.outputs for token in text.token_ids],
            "prompt_logprobs": output.prompt_logprobs and _logprobs_of_tokens(output),
            "cached_tokens": output.num_cached_tokens,
        }
        for output in outputs
    ]


def warm_up(worker: Any) -> None:
    from vllm.v1.worker.gpu.warmup import run_mixed_prefill_decode_warmup, warmup_kernels

    if worker.use_v2_model_runner:
        steps = (worker.model_runner, worker.execute_model, worker.sample_tokens)
        warmup_kernels(*steps)
        run_mixed_prefill_decode_warmup(*steps, num_tokens=64)


def make_prompt(engine: Any, request: dict[str, Any]) -> dict[str, Any]:
    salt = {"cache_salt": request["cache_salt"]} if request.get("cache_salt") else {}
    if not request.get("embeddings"):
        return {"prompt_token_ids": request["prompt"], **salt}
    import torch

    embeddings = engine.apply_model(lambda model: model.embed_input_ids(torch.tensor(request["prompt"])))[0]
    return {"prompt_embeds": embeddings, **salt}


def make_sampling(request: dict[str, Any]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    options = request.get("sampling", {})
    if "structured_outputs" in options:
        options = {**options, "structured_outputs": StructuredOutputsParams(**options["structured_outputs"])}
    arguments = {
        "max_tokens": request["max_tokens"],
        "temperature": 0,
        "logprobs": TOP,
        "prompt_logprobs": 0 if request.get("score_prompt") else None,
        "detokenize": False,
        "ignore_eos": True,
    }
    return SamplingParams(**arguments | options)


def make_lora_request(request: dict[str, Any]) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest("adapter", 1, request["lora"]) if request.get("lora") else None


def run_beam_search(engine: Any, request: dict[str, Any]) -> dict[str, Any]:
    from vllm.sampling_params import BeamSearchParams

    params = BeamSearchParams(beam_width=request["beams"], max_tokens=request["max_tokens"], ignore_eos=True)
    best = engine.beam_search([{"prompt_token_ids": request["prompt"]}], params)[0].sequences[0]
    lengths = range(len(request["prompt"]), len(best.tokens))
    replayed = run_batch(engine, [{"prompt": best.tokens[:length], "max_tokens": 1} for length in lengths])
    return {
        "logprobs": list_logprobs(best.logprobs),
        "tokens": best.tokens[len(request["prompt"]) :],
        "replayed": [result["logprobs"][0] for result in replayed],
    }


def list_logprobs(steps: list[Any]) -> list[list[tuple[int, float]]]:
    return [[(token, entry.logprob) for token, entry in step.items()] for step in steps]


def _logprobs_of_tokens(output: Any) -> list[float]:
    pairs = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    return [entries[token].logprob for token, entries in pairs]


def plant(fault: str | None) -> Callable[[], None]:
    """Replace one part of the plugin, or of vLLM, by another one; return a function that puts it back."""
    import vllm.config
    import vllm.envs

    from ropewalk.serving.vllm_plugin import hooks, runners

    if fault is None:
        return lambda: None
    arguments_of_factor = hooks._arguments_of_factor

    def row_of_equal_strides(request_id: str, sampling_params: Any, factors: Any) -> int:
        return sampling_params.extra_args[runners.FACTOR_ARGUMENT] * factors.original_length

    def attention_factor_of_the_next(rope_dict: Any, factor: float, factors: Any) -> Any:
        arguments = arguments_of_factor(rope_dict, factor, factors)
        if factor == factors.factors[1]:
            arguments["rope_parameters"]["attention_factor"] = 0.1 * math.log(factors.factors[2]) + 1
        return arguments

    signatures = {**hooks._SIGNATURES, next(iter(hooks._SIGNATURES)): ("head_dim",)}
    owner, name, broken = {
        "positions not shifted": (runners, "_find_first_row", lambda *arguments: 0),
        "rows of equal strides": (runners, "_find_first_row", row_of_equal_strides),
        "no salt": (hooks, "_add_to_salt", lambda factor, salt: salt),
        "attention factor of the next": (hooks, "_arguments_of_factor", attention_factor_of_the_next),
        "another version": (hooks, "TESTED_VERSIONS", ("0.0.1",)),
        "another signature": (hooks, "_SIGNATURES", signatures),
        "a missing function": (hooks, "_SIGNATURES", {"vllm.LLM.missing": ()}),
        # These cannot be started on a CPU, or need large models.
        "microbatching": (vllm.config.ParallelConfig, "use_ubatching", True),
        "the Rust frontend": (vllm.envs, "VLLM_USE_RUST_FRONTEND", True),
        "latent attention": (vllm.config.ModelConfig, "use_mla", True),
        "gpt-oss": (vllm.config.ModelConfig, "architecture", "GptOssForCausalLM"),
    }[fault]
    original = vars(owner)[name] if name in vars(owner) else getattr(owner, name)
    setattr(owner, name, broken)
    return lambda: setattr(owner, name, original)


if __name__ == "__main__":
    main(*sys.argv[1:])
