"""Runs in the python of vLLM, in one process; see running.py for what it is asked and what it answers."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


def tables(model: Any, positions: list[int]) -> list[dict[str, Any]]:
    """What each kind of rotary module makes of unit vectors, the first channel of every pair 1, at these positions."""
    import torch

    kinds, answers, device = {}, [], next(model.parameters()).device
    for module in model.modules():
        if hasattr(module, "rotary_dim") and hasattr(module, "is_neox_style"):
            kinds[id(module)] = module
    for module in kinds.values():
        first = torch.arange(module.rotary_dim)
        half = module.rotary_dim // 2
        first, second = (first[:half], first[half:]) if module.is_neox_style else (first[::2], first[1::2])
        unit = torch.zeros(len(positions), module.head_size, device=device)
        unit[:, first] = 1.0
        turned, _ = module(torch.tensor(positions, device=device), unit.clone(), unit.clone())
        answers.append({"cos": turned[:, first].tolist(), "sin": turned[:, second].tolist()})
    return answers


def run(job: dict[str, Any]) -> dict[str, Any]:
    """The answer to a job."""
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
    read = engine.apply_model(lambda model: tables(model, job["positions"]))[0]
    one = vllm.SamplingParams(max_tokens=1, temperature=0, logprobs=job["top"], detokenize=False, ignore_eos=True)
    answers = []
    for number, prompt in enumerate(job["prompts"], 1):
        answer = engine.generate([{"prompt_token_ids": prompt}], one, use_tqdm=False)[0].outputs[0]
        answers.append([(token, found.logprob) for token, found in answer.logprobs[0].items()])
        print(f"{number} of {len(job['prompts'])} prompts, {len(prompt)} tokens", file=sys.stderr, flush=True)
    return {"version": vllm.__version__, "tables": read, "answers": answers}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run(json.loads(Path(sys.argv[1]).read_text()))))
