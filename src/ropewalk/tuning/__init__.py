"""Learn or search a scaling for a model whose weights stay as they are; one file per method.

`ropewalk.tune` (run.py) prepares the text, calls a method, stores its scaling and proves it on text it never saw.
"""

from __future__ import annotations

from ropewalk import spec as specs
from ropewalk.registry import discover_subclasses, find_by_name
from ropewalk.tuning.base import Tuner

__all__ = ["TUNERS", "Tuner", "parse_tuner"]


def parse_tuner(spec: str | Tuner) -> Tuner:
    """Create a tuning method from a spec such as `gradient:steps=100`.

    A tuner is returned unchanged. Raises InputError for an unknown method or option and for a value that is not
    allowed.
    """
    if isinstance(spec, Tuner):
        return spec
    return specs.parse_spec(spec, lambda name: find_by_name("method", name, TUNERS))


# After `parse_tuner`, which run.py imports from here.
TUNERS: dict[str, type[Tuner]] = discover_subclasses(__name__, __path__, Tuner)  # type: ignore[type-abstract]
