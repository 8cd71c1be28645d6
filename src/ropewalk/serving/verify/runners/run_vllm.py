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
        max_num_seqs=max(1, len(job["batch"])),
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
    batch_top_logprobs = run_batch(engine, job["batch"], job["top"]) if job["batch"] else []
    return {
        "version": vllm.__version__,
        "tables": tables,
        "top_logprobs": top_logprobs,
        "batch_top_logprobs": batch_top_logprobs,
    }


def run_batch(engine: Any, batch: list[list[int]], top: int) -> list[list[tuple[int, float]]]:
    """Send all prompts at once, with an empty cache, and return the top tokens after each of them.

    The last token of each prompt is generated, because no other one is allowed. vLLM reports log-probabilities as they
    were before that restriction (`logprobs_mode="raw_logprobs"`, its default).
    """
    import vllm

    engine.reset_prefix_cache()
    prompts = [{"prompt_token_ids": prompt[:-1]} for prompt in batch]
    samplings = [
        vllm.SamplingParams(
            max_tokens=2,
            allowed_token_ids=prompt[-1:],
            temperature=0,
            logprobs=top,
            detokenize=False,
            ignore_eos=True,
        )
        for prompt in batch
    ]
    outputs = engine.generate(prompts, samplings, use_tqdm=False)
    return [[(token, entry.logprob) for token, entry in output.outputs[0].logprobs[1].items()] for output in outputs]


def read_tables(model: Any, positions: list[int]) -> list[dict[str, Any]]:
    """Return cos and sin that each rotary module applies at these positions, layout and attention factor included.

    Each module rotates a vector whose pairs are all (1, 0); the rotated pairs are (cos, sin). Modules whose table is
    shorter, because the engine serves another configuration than the expected one, are left out: vLLM would read past
    the end.
    """
    import torch

    device = next(model.parameters()).device
    modules = {
        id(module): module
        for module in model.modules()
        if hasattr(module, "rotary_dim") and hasattr(module, "is_neox_style") and has_row(module, max(positions))
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


def has_row(module: Any, row: int) -> bool:
    """Return whether the table of a rotary module, if it has one, is long enough."""
    table = getattr(module, "cos_sin_cache", None)
    return table is None or len(table) > row
