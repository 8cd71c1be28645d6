"""Do threads that share one model get the answers that they get alone, and what does a dynamic scaling cost per token?

    python -m benchmarks.threads [--device cuda] [--generations 200] [--threads 4] [--rounds 15]

A Llama with random weights (4 layers, 8 heads of 64, L = 256, float32) generates 24 tokens after prompts of 100 to 500
tokens, under dynamic-yarn and each policy: first one after the other, then in threads. `wrong` counts the answers that
differ. `decode` is the time per token of one generation past L under each policy over that of the untouched model, the
medians of interleaved rounds with their quartiles. Writes results/threads_DEVICE.json.
"""

from __future__ import annotations

import argparse
import random
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import ropewalk as rw
from benchmarks.common import save_result

ORIGINAL_LENGTH, VOCABULARY, NEW_TOKENS = 256, 512, 24
POLICIES = ("stepped", "request", "continuous")
DECODED = 64  # tokens of one timed generation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--generations", type=int, default=200)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    model = build_model(args.device)
    rng = random.Random(0)
    prompts = [
        torch.tensor([[rng.randrange(VOCABULARY) for _ in range(rng.randrange(100, 500))]], device=args.device)
        for _ in range(args.generations)
    ]
    answers = {policy: count_wrong_answers(model, prompts, policy, args.threads) for policy in POLICIES}
    document = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else args.device,
        "threads": args.threads,
        "answers": answers,
        "decode": measure_decode(model, prompts[0], args.rounds),
    }
    print(document)
    save_result(f"threads_{args.device}", document)


def build_model(device: str) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1024,
        num_attention_heads=8,
        num_key_value_heads=4,
        num_hidden_layers=4,
        vocab_size=VOCABULARY,
        max_position_embeddings=ORIGINAL_LENGTH,
    )
    model = LlamaForCausalLM(config).to(device).eval()
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.data *= 3  # sharp attention, so that a wrong rotation changes the answer
    return model


def generate(model: Any, prompt: Any, new_tokens: int = NEW_TOKENS) -> list[int]:
    mask = torch.ones_like(prompt)
    options = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    tokens: list[int] = model.generate(prompt, attention_mask=mask, **options)[0, prompt.shape[1] :].tolist()
    return tokens


def count_wrong_answers(model: Any, prompts: list[Any], policy: str, threads: int) -> dict[str, int]:
    with rw.extended(model, "dynamic-yarn", policy=policy):
        alone = [generate(model, prompt) for prompt in prompts]
        barrier = threading.Barrier(threads)  # all threads start together
        with ThreadPoolExecutor(threads, initializer=barrier.wait) as pool:
            together = list(pool.map(lambda prompt: _generate_or_refuse(model, prompt), prompts))
    refused = sum(answer is None for answer in together)
    wrong = sum(answer not in (None, expected) for answer, expected in zip(together, alone, strict=True))
    return {"generations": len(prompts), "wrong": wrong, "refused": refused}


def _generate_or_refuse(model: Any, prompt: Any) -> list[int] | None:
    try:
        return generate(model, prompt)
    except RuntimeError:
        return None


def measure_decode(model: Any, prompt: Any, rounds: int) -> dict[str, Any]:
    """Return the time per token under each policy over that of the untouched model, and its quartiles."""
    prompt = prompt[:, :100].repeat(1, 4)[:, : ORIGINAL_LENGTH + 10]  # past L from the first token on
    seconds: dict[str, list[float]] = {name: [] for name in ("untouched", "yarn", *POLICIES)}
    for _ in range(rounds):
        seconds["untouched"].append(_time_generation(model, prompt))
        with rw.extended(model, "yarn:factor=2"):
            seconds["yarn"].append(_time_generation(model, prompt))
        for policy in POLICIES:
            with rw.extended(model, "dynamic-yarn", policy=policy):
                seconds[policy].append(_time_generation(model, prompt))
    result: dict[str, Any] = {
        "microseconds per token, untouched": 1e6 * statistics.median(seconds["untouched"]) / DECODED
    }
    for name in list(seconds)[1:]:
        ratios = [own / plain for own, plain in zip(seconds[name], seconds["untouched"], strict=True)]
        result[name] = [round(value, 3) for value in statistics.quantiles(ratios, n=4)]
    return result


def _time_generation(model: Any, prompt: Any) -> float:
    if prompt.device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    generate(model, prompt, DECODED)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
