"""Runs in the python of xllamacpp, which is llama.cpp's server as a library; see running.py for question and answer."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import xllamacpp


def started(job: dict[str, Any]) -> Any:
    """The server, as exact as it can be: keys, values and attention in float32."""
    asked = xllamacpp.CommonParams()
    asked.model.path = job["path"]
    asked.n_ctx = job["length"]
    asked.n_parallel = 1
    asked.n_gpu_layers = 0
    asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = int(
        os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1
    )
    asked.cache_type_k = asked.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    asked.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    asked.warmup = asked.fit_params = asked.ctx_shift = False
    asked.cache_ram_mib = 0
    return xllamacpp.Server(asked)


def run(job: dict[str, Any]) -> dict[str, Any]:
    """The answer to a job."""
    server, answers = started(job), []
    for number, prompt in enumerate(job["prompts"], 1):
        asked = {"prompt": prompt, "max_tokens": 1, "logprobs": job["top"], "temperature": 0, "cache_prompt": True}
        answer = server.handle_completions(asked)
        if not answer.get("choices"):
            raise RuntimeError(f"llama.cpp refused {len(prompt)} tokens: {answer}")
        best = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        answers.append([(each["id"], each["logprob"]) for each in best])
        print(f"{number} of {len(job['prompts'])} prompts, {len(prompt)} tokens", file=sys.stderr, flush=True)
    return {"version": xllamacpp.__version__, "tables": None, "answers": answers}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run(json.loads(Path(sys.argv[1]).read_text()))))
