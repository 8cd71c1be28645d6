"""Run llama.cpp through xllamacpp, which contains its server as a library."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import xllamacpp


def run(job: dict[str, Any], report_progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Load the checkpoint, run all prompts, and return the fields of the `result` message.

    `tables` is None: llama.cpp has no cos and sin tables that could be read.
    """
    server = _start_server(job["path"], job["length"])
    top_logprobs = []
    for done, prompt in enumerate(job["prompts"], 1):
        request = {"prompt": prompt, "max_tokens": 1, "logprobs": job["top"], "temperature": 0, "cache_prompt": True}
        response = server.handle_completions(request)
        if not response.get("choices"):
            raise RuntimeError(f"llama.cpp refused a prompt of {len(prompt)} tokens: {response}")
        top = response["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        top_logprobs.append([(entry["id"], entry["logprob"]) for entry in top])
        report_progress(done, len(prompt))
    return {"version": xllamacpp.__version__, "tables": None, "top_logprobs": top_logprobs}


def _start_server(checkpoint: str, length: int) -> xllamacpp.Server:
    """Start the server with the most exact settings: keys, values and attention in float32, on the CPU."""
    params = xllamacpp.CommonParams()
    params.model.path = checkpoint
    params.n_ctx = length
    params.n_parallel = 1
    params.n_gpu_layers = 0
    num_threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = num_threads
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.warmup = params.fit_params = params.ctx_shift = False
    params.cache_ram_mib = 0
    return xllamacpp.Server(params)
