"""The ten faults, each as it has been seen in the field.

A fault of the configuration is planted in what the engine is given. One that no configuration can make is planted in
transformers' own code, while it runs as the engine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import log
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers.models.llama import modeling_llama

from ropewalk.serving.verify import verification
from ropewalk.serving.verify.runners import in_transformers

FACTOR = 4
MEANT = f"yarn:factor={FACTOR}"
_ATTENTION = 0.1 * log(FACTOR) + 1


def of_the_configuration(original_length: int, base: float) -> dict[str, dict[str, Any]]:
    """By name, what is written into `rope_parameters` in place of what should stand there."""
    return {
        "factor off by a quarter": {"factor": FACTOR + 0.25},
        "scaling ignored": {"rope_type": "default"},
        "attention factor dropped": {"attention_factor": 1.0},
        "attention factor twice": {"attention_factor": _ATTENTION**2},
        "wrong original length": {"original_max_position_embeddings": 2 * original_length},
        "betas swapped": {"beta_fast": 1.0, "beta_slow": 32.0},
        "base wrong": {"rope_theta": 1.25 * base},
    }


def written_into(folder: str, rope: dict[str, Any]) -> str:
    """The fault in the config.json of what was exported."""
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"].update(rope)
    path.write_text(json.dumps(config))
    return folder


def _interleaved(x):
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def _rounded(self, x, position_ids):
    return tuple(part.half().float() for part in _forward(self, x, position_ids))


def _all_shifted(self, x, position_ids):
    return _forward(self, x, position_ids + 1)


def _new_shifted(self, x, position_ids):
    return _forward(self, x, position_ids + (position_ids[..., :1] > 0))


_rotary = modeling_llama.LlamaRotaryEmbedding
_forward = _rotary.forward
OF_THE_CODE: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "half and interleaved layout confused": (modeling_llama, "rotate_half", _interleaved),
    "tables in float16": (_rotary, "forward", _rounded),
    "all positions off by one": (_rotary, "forward", _all_shifted),
    "new positions off by one against the cache": (_rotary, "forward", _new_shifted),
}


@contextmanager
def transformers_here(*fault: Any) -> Iterator[None]:
    """Inside, `verify` runs transformers in this process, with the fault; the reference is computed without."""

    def run(engine, python, job, say):
        if not fault:
            return in_transformers.run(job)
        with patch.object(*fault):
            return in_transformers.run(job)

    with patch.object(verification, "run", run):
        yield
