"""Run vLLM in float32, in this process."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

# vLLM reads these variables when it is imported.
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


def run(job: dict[str, Any], report_progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Load the checkpoint, run all prompts, and return the fields of the `result` message."""
    import vllm

    engine = vllm.LLM(
        job["path"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=job["length"],
        max_num_seqs=1,
        enable_prefix_caching=True,
        max_logprobs=job["top"],
        skip_tokenizer_init=True,
    )
    tables = engine.apply_model(lambda model: read_tables(model, job["positions"]))[0]
    sampling = vllm.SamplingParams(max_tokens=1, temperature=0, logprobs=job["top"], detokenize=False, ignore_eos=True)
    top_logprobs = []
    for done, prompt in enumerate(job["prompts"], 1):
        output = engine.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)[0].outputs[0]
        top_logprobs.append([(token, entry.logprob) for token, entry in output.logprobs[0].items()])
        report_progress(done, len(prompt))
    return {"version": vllm.__version__, "tables": tables, "top_logprobs": top_logprobs}


def read_tables(model: Any, positions: list[int]) -> list[dict[str, Any]]:
    """Return cos and sin that each rotary module applies at these positions, layout and attention factor included.

    Each module rotates a vector whose pairs are all (1, 0); the rotated pairs are (cos, sin).
    """
    import torch

    device = next(model.parameters()).device
    modules = {
        id(module): module
        for module in model.modules()
        if hasattr(module, "rotary_dim") and hasattr(module, "is_neox_style")
    }
    tables = []
    for module in modules.values():
        channels = torch.arange(module.rotary_dim)
        half = module.rotary_dim // 2
        if module.is_neox_style:
            first, second = channels[:half], channels[half:]
        else:
            first, second = channels[::2], channels[1::2]
        vectors = torch.zeros(len(positions), module.head_size, device=device)
        vectors[:, first] = 1.0
        rotated, _ = module(torch.tensor(positions, device=device), vectors.clone(), vectors.clone())
        tables.append({"cos": rotated[:, first].tolist(), "sin": rotated[:, second].tolist()})
    return tables
