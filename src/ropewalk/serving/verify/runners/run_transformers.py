"""Run transformers, version 4 or 5, in float32 with a KV cache."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache


@torch.inference_mode()
def run(job: dict[str, Any], report_progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Load the checkpoint, run all prompts, and return the fields of the `result` message."""
    # Without trust_remote_code=False, transformers asks on the terminal whether to run code from the checkpoint.
    model = AutoModelForCausalLM.from_pretrained(job["path"], dtype=torch.float32, trust_remote_code=False).eval()
    cached_model, top_logprobs = CachedModel(model), []
    for done, prompt in enumerate(job["prompts"], 1):
        top = cached_model.next_log_probs(prompt).topk(job["top"])
        top_logprobs.append(list(zip(top.indices.tolist(), top.values.tolist(), strict=True)))
        report_progress(done, len(prompt))
    # Read the tables last: a dynamic rotary module keeps the frequencies of the longest input that it saw.
    tables = read_tables(model, job["positions"], job["length"])
    return {"version": transformers.__version__, "tables": tables, "top_logprobs": top_logprobs}


class CachedModel:
    """A model that reuses the KV cache of the previous prompt for a prompt that continues it."""

    def __init__(self, model: Any) -> None:
        self.model, self.cache = model, DynamicCache()
        self.cached_tokens: list[int] = []

    def next_log_probs(self, prompt: list[int]) -> torch.Tensor:
        """Return the log-probabilities of the token after the prompt, [vocabulary]."""
        num_cached = len(self.cached_tokens)
        if prompt[:num_cached] != self.cached_tokens or len(prompt) == num_cached:
            self.cache, num_cached = DynamicCache(), 0
        new_tokens = torch.tensor([prompt[num_cached:]], device=self.model.device)
        # transformers 5.24 renamed the argument.
        name = "cache" if "cache" in inspect.signature(self.model.forward).parameters else "past_key_values"
        output = self.model(new_tokens, **{name: self.cache}, use_cache=True, logits_to_keep=1)
        self.cached_tokens = list(prompt)
        return torch.log_softmax(output.logits[0, -1].float(), -1)


def read_tables(model: Any, positions: list[int], length: int) -> list[dict[str, Any]]:
    """Return cos and sin of each kind of rotary module at these positions of a text of `length` tokens."""
    modules: dict[tuple[str, str], tuple[Any, str]] = {}  # by class and buffer name: module and layer type
    for module in model.modules():
        if not hasattr(module, "config"):
            continue
        for name, _ in module.named_buffers(recurse=False):
            if name.endswith("inv_freq") and not name.endswith("original_inv_freq"):
                layer_type = name[: -len("inv_freq")].rstrip("_")  # in transformers 5, one buffer per layer type
                modules.setdefault((type(module).__name__, name), (module, layer_type))
    parameter = next(model.parameters())
    # Dynamic frequencies follow the largest position, so add the last position of the text and drop its row.
    position_ids = torch.tensor([*positions, length - 1], device=parameter.device)[None]
    tables = []
    for module, layer_type in modules.values():
        kwargs = {"layer_type": layer_type} if layer_type else {}
        table = module(parameter.float(), position_ids, **kwargs)
        # Skip modules that return complex numbers and those with several position axes (mrope).
        if isinstance(table, tuple) and table[0].ndim == 3:
            cos, sin = (part[0, :-1].tolist() for part in table)
            tables.append({"cos": cos, "sin": sin})
    return tables
