"""ropewalk lets a language model with rotary position embeddings read past its trained length.

The core is numpy alone; what needs torch and transformers is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ropewalk import scaling as _scaling
from ropewalk.errors import InputError
from ropewalk.frequencies import Frequencies
from ropewalk.planning import plan
from ropewalk.rope import Rope
from ropewalk.scaling import Scaling, parse
from ropewalk.scaling import policies as _policy

if TYPE_CHECKING:  # for editors and type checkers; at run time every registered method is here
    from ropewalk.evaluate.evaluation import run_evaluation
    from ropewalk.evaluate.perplexity import perplexity_curve
    from ropewalk.models.extend import extend, restore
    from ropewalk.models.load import load
    from ropewalk.scaling.abf import ABF
    from ropewalk.scaling.by_parts import DynamicNTKByParts, NTKByParts
    from ropewalk.scaling.critical_base import CriticalBase
    from ropewalk.scaling.linear import Linear
    from ropewalk.scaling.llama3 import Llama3
    from ropewalk.scaling.longrope import LongRoPE
    from ropewalk.scaling.none import NoScaling
    from ropewalk.scaling.ntk import NTK, DynamicNTK
    from ropewalk.scaling.policies import ContinuousPolicy, RequestPolicy, SteppedPolicy
    from ropewalk.scaling.proportional import Proportional
    from ropewalk.scaling.tutorial import LogNTK, PowerNTK
    from ropewalk.scaling.yarn import DynamicYaRN, YaRN

__version__ = "0.1.0"

_LAZY = {
    "extend": "ropewalk.models.extend",
    "restore": "ropewalk.models.extend",
    "load": "ropewalk.models.load",
    "perplexity_curve": "ropewalk.evaluate.perplexity",
    "run_evaluation": "ropewalk.evaluate.evaluation",
}
_METHODS = {cls.__name__: cls for cls in _scaling.REGISTRY.values()}
_POLICIES = {cls.__name__: cls for cls in _policy.POLICIES.values()}
globals().update(_METHODS | _POLICIES)

__all__ = ["Frequencies", "InputError", "Rope", "Scaling", "parse", "plan", *_LAZY, *_METHODS, *_POLICIES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'ropewalk' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
