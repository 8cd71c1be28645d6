"""ropewalk lets a language model with rotary position embeddings read texts longer than those it was trained on.

    import ropewalk as rw

    model, tokenizer = rw.load("smollm2")
    rw.extend(model, target=32_768)

Importing ropewalk needs numpy only. Functions are imported when they are first used, because most of them need torch
and transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ropewalk import positions as _positions
from ropewalk import scaling as _scaling
from ropewalk.errors import InputError
from ropewalk.frequencies import Frequencies
from ropewalk.positions import PositionMethod, parse
from ropewalk.rope import Rope
from ropewalk.scaling import Scaling
from ropewalk.scaling.policies import ContinuousPolicy, RequestPolicy, SteppedPolicy

if TYPE_CHECKING:  # names that are defined dynamically below, for editors and type checkers
    from ropewalk.evaluate.curve import perplexity_curve
    from ropewalk.evaluate.evaluation import run_evaluation
    from ropewalk.models.extend import extend, extended, restore
    from ropewalk.models.load import load
    from ropewalk.ops import rotate
    from ropewalk.planning import plan
    from ropewalk.positions.dual_chunk import DualChunk
    from ropewalk.positions.jet_long import JetLong
    from ropewalk.positions.near_exact import NearExact
    from ropewalk.positions.rerope import LeakyReRoPE, ReRoPE
    from ropewalk.positions.self_extend import SelfExtend
    from ropewalk.scaling.abf import ABF
    from ropewalk.scaling.by_parts import DynamicNTKByParts, NTKByParts
    from ropewalk.scaling.cope import CoPE
    from ropewalk.scaling.critical_base import CriticalBase
    from ropewalk.scaling.learned import Learned
    from ropewalk.scaling.linear import Linear
    from ropewalk.scaling.llama3 import Llama3
    from ropewalk.scaling.longrope import LongRoPE
    from ropewalk.scaling.mrrope import MrRoPEPro, MrRoPEUni
    from ropewalk.scaling.none import NoScaling
    from ropewalk.scaling.ntk import NTK, DynamicNTK
    from ropewalk.scaling.proportional import Proportional
    from ropewalk.scaling.tutorial import LogNTK, PowerNTK
    from ropewalk.scaling.yarn import DynamicYaRN, YaRN
    from ropewalk.serving.export import export_model
    from ropewalk.serving.verify import verify
    from ropewalk.tuning.run import tune

__version__ = "0.1.0"

_LAZY_IMPORTS = {
    "export_model": "ropewalk.serving.export",
    "extend": "ropewalk.models.extend",
    "extended": "ropewalk.models.extend",
    "load": "ropewalk.models.load",
    "perplexity_curve": "ropewalk.evaluate.curve",
    "plan": "ropewalk.planning",
    "restore": "ropewalk.models.extend",
    "rotate": "ropewalk.ops",
    "run_evaluation": "ropewalk.evaluate.evaluation",
    "tune": "ropewalk.tuning.run",
    "verify": "ropewalk.serving.verify",
}
# These methods make models worse and exist for comparison only: `rw.PowerNTK` works, but nothing advertises it.
_UNLISTED_IMPORTS = {"LogNTK": "ropewalk.scaling.tutorial", "PowerNTK": "ropewalk.scaling.tutorial"}

# Every other registered method is a public name, so that a new method needs no change here.
_REGISTERED = (*_scaling.REGISTRY.values(), *_positions.REGISTRY.values())
_METHODS: dict[str, type] = {cls.__name__: cls for cls in _REGISTERED if cls.__name__ not in _UNLISTED_IMPORTS}
globals().update(_METHODS)

__all__ = [  # noqa: PLE0604
    "ContinuousPolicy", "Frequencies", "InputError", "PositionMethod", "RequestPolicy", "Rope", "Scaling",
    "SteppedPolicy", "parse", *_LAZY_IMPORTS, *_METHODS,
]  # fmt: skip


def __getattr__(name: str) -> Any:
    module = _LAZY_IMPORTS.get(name) or _UNLISTED_IMPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'ropewalk' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
