"""Ten faults of serving engines, each seen in practice, to plant in transformers.

Faults of the configuration are written into the config.json that the engine loads. Faults that no configuration can
cause are patched into the code of transformers while it runs as the engine.
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

from ropewalk.serving.verify import engine_under_test
from ropewalk.serving.verify.run_engine import EngineOutput
from ropewalk.serving.verify.runners import run_transformers

FACTOR = 4
EXPECTED = f"yarn:factor={FACTOR}"
_ATTENTION_FACTOR = 0.1 * log(FACTOR) + 1


def config_faults(original_length: int, base: float) -> dict[str, dict[str, Any]]:
    """Return for each fault, by name, the wrong fields of `rope_parameters`."""
    return {
        "factor off by a quarter": {"factor": FACTOR + 0.25},
        "scaling ignored": {"rope_type": "default"},
        "attention factor dropped": {"attention_factor": 1.0},
        "attention factor twice": {"attention_factor": _ATTENTION_FACTOR**2},
        "wrong original length": {"original_max_position_embeddings": 2 * original_length},
        "betas swapped": {"beta_fast": 1.0, "beta_slow": 32.0},
        "base wrong": {"rope_theta": 1.25 * base},
    }


def write_config_fault(folder: str, fields: dict[str, Any]) -> str:
    """Write the wrong fields into the config.json of an exported folder, and return the folder."""
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"].update(fields)
    path.write_text(json.dumps(config))
    return folder


def _rotate_interleaved(x):
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def _float16_tables(self, x, position_ids):
    return tuple(part.half().float() for part in _original_forward(self, x, position_ids))


def _shift_all_positions(self, x, position_ids):
    return _original_forward(self, x, position_ids + 1)


def _shift_positions_after_cache(self, x, position_ids):
    return _original_forward(self, x, position_ids + (position_ids[..., :1] > 0))


_rotary_class = modeling_llama.LlamaRotaryEmbedding
_original_forward = _rotary_class.forward
# By name: arguments of unittest.mock.patch.object.
CODE_FAULTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "half and interleaved layout confused": (modeling_llama, "rotate_half", _rotate_interleaved),
    "tables in float16": (_rotary_class, "forward", _float16_tables),
    "all positions off by one": (_rotary_class, "forward", _shift_all_positions),
    "new positions off by one against the cache": (_rotary_class, "forward", _shift_positions_after_cache),
}


@contextmanager
def transformers_in_process(*fault: Any) -> Iterator[None]:
    """Make `verify` run transformers in this process, with a fault of CODE_FAULTS if one is given.

    Only the engine has the fault; the reference is computed without it.
    """

    def run_engine(engine, python, job, on_progress):
        if not fault:
            return EngineOutput(**run_transformers.run(job, lambda done, tokens: None))
        with patch.object(*fault):
            return EngineOutput(**run_transformers.run(job, lambda done, tokens: None))

    with patch.object(engine_under_test, "run_engine", run_engine):
        yield
