"""Runs in the python of transformers, 4 or 5; see running.py for what it is asked and what it answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache


def tables(model: Any, positions: list[int], length: int) -> list[dict[str, Any]]:
    """What each kind of rotary module gives at these positions, in a text of `length` tokens."""
    found: dict[tuple[str, str], tuple[Any, str]] = {}
    for module in model.modules():
        if not hasattr(module, "config"):
            continue
        for name, _ in module.named_buffers(recurse=False):
            if name.endswith("inv_freq") and not name.endswith("original_inv_freq"):
                found.setdefault((type(module).__name__, name), (module, name[: -len("inv_freq")].rstrip("_")))
    answers, here = [], next(model.parameters())
    # Frequencies that follow the text are those of the greatest position asked for.
    places = torch.tensor([*positions, length - 1], device=here.device)[None]
    for module, kind in found.values():
        table = module(here.float(), places, **({"layer_type": kind} if kind else {}))
        if isinstance(table, tuple) and table[0].ndim == 3:  # complex ones and those of several axes are passed over
            answers.append({name: part[0, :-1].tolist() for name, part in zip(("cos", "sin"), table, strict=True)})
    return answers


class Reader:
    """Reads a prompt that continues the last one through the KV cache that the last one left."""

    def __init__(self, model: Any) -> None:
        self.model, self.cache = model, DynamicCache()
        self.read: list[int] = []

    def log_probs(self, prompt: list[int]) -> torch.Tensor:
        """After the prompt, [vocabulary]."""
        known = len(self.read)
        if prompt[:known] != self.read or len(prompt) == known:
            self.cache, known = DynamicCache(), 0
        ids = torch.tensor([prompt[known:]], device=self.model.device)
        answer = self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.read = list(prompt)
        return torch.log_softmax(answer.logits[0, -1].float(), -1)


def loaded(path: str) -> Any:
    """The model that is verified."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def run(job: dict[str, Any]) -> dict[str, Any]:
    """The answer to a job."""
    model = loaded(job["path"])
    reader, answers = Reader(model), []
    with torch.inference_mode():
        for number, prompt in enumerate(job["prompts"], 1):
            best = reader.log_probs(prompt).topk(job["top"])
            answers.append(list(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
            print(f"{number} of {len(job['prompts'])} prompts, {len(prompt)} tokens", file=sys.stderr, flush=True)
        # Afterwards: a module that follows the text would go on from there.
        read = tables(model, job["positions"], job["length"])
    return {"version": transformers.__version__, "tables": read, "answers": answers}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run(json.loads(Path(sys.argv[1]).read_text()))))
