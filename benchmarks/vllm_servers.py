"""Run requests on vLLM servers, in vLLM's own Python: `python vllm_servers.py JOB_FILE RESULT_FILE`.

The job is a list of servers, which run one after the other in this process:

    {"path": checkpoint, "options": arguments of vllm.LLM, "fault": name of a fault to plant or null,
     "batches": [[{"prompt": [token ids], "max_tokens": n, "cache_salt": text or null} ...] ...]}

The requests of a batch are sent at once. The result has for each server an "error", or its number of "preemptions", the
"seconds" of each batch, and "batches": for each request "cached_tokens" and "logprobs", the ten likeliest of each
generated token as [[token, log-probability] ...].
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
from typing import Any

# vLLM reads these variables when it is imported.
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
TOP = 10


def main(job_file: str, result_file: str) -> None:
    results = []
    for server in json.loads(Path(job_file).read_text()):
        try:
            results.append(run_server(**server))
        except Exception as error:
            traceback.print_exc()
            results.append({"error": " ".join(f"{type(error).__name__}: {error}".split())})
        Path(result_file).write_text(json.dumps(results))


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
        engine = vllm.LLM(
            path, dtype="float32", enforce_eager=True, skip_tokenizer_init=True, max_logprobs=TOP, **options
        )
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
    import vllm

    prompts, samplings = [], []
    for request in batch:
        salt = {"cache_salt": request["cache_salt"]} if request.get("cache_salt") else {}
        prompts.append({"prompt_token_ids": request["prompt"], **salt})
        samplings.append(
            vllm.SamplingParams(
                max_tokens=request["max_tokens"], temperature=0, logprobs=TOP, detokenize=False, ignore_eos=True
            )
        )
    outputs = engine.generate(prompts, samplings, use_tqdm=False)
    return [
        {
            "logprobs": [
                [(token, entry.logprob) for token, entry in step.items()] for step in output.outputs[0].logprobs
            ],
            "cached_tokens": output.num_cached_tokens,
        }
        for output in outputs
    ]


def plant(fault: str | None) -> Callable[[], None]:
    """Replace one part of the plugin by a broken one; return a function that puts it back."""
    from ropewalk.serving.vllm_plugin import hooks

    if fault is None:
        return lambda: None
    arguments_of_factor = hooks._arguments_of_factor

    def rows_of_equal_strides(requests: Any, factors: Any) -> list[int]:
        return [hooks._factor_index(request) * factors.original_length for request in requests]

    def attention_factor_of_the_next(rope_dict: Any, factor: float, factors: Any) -> Any:
        arguments = arguments_of_factor(rope_dict, factor, factors)
        if factor == factors.factors[1]:
            arguments["rope_parameters"]["attention_factor"] = 0.1 * math.log(factors.factors[2]) + 1
        return arguments

    name, broken = {
        "positions not shifted": ("_choose_shifts", lambda requests, factors: [0] * len(requests)),
        "rows of equal strides": ("_choose_shifts", rows_of_equal_strides),
        "no salt": ("_add_to_salt", lambda factor, salt: salt),
        "attention factor of the next": ("_arguments_of_factor", attention_factor_of_the_next),
        "another version": ("TESTED_VERSIONS", ("0.0.1",)),
        "another signature": ("_SIGNATURES", {**hooks._SIGNATURES, next(iter(hooks._SIGNATURES)): ("head_dim",)}),
    }[fault]
    original = getattr(hooks, name)
    setattr(hooks, name, broken)
    return lambda: setattr(hooks, name, original)


if __name__ == "__main__":
    main(*sys.argv[1:])
