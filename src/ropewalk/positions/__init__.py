"""The position methods, one file for each, and `parse`, which reads them and the scalings.

Every concrete `PositionMethod` in this package is registered under its name; see `ropewalk.registry`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ropewalk import scaling as scalings
from ropewalk.errors import InputError
from ropewalk.positions.base import FarSegment, PositionMethod
from ropewalk.registry import discover_subclasses, find_by_name
from ropewalk.scaling import Scaling

REGISTRY: dict[str, type[PositionMethod]] = discover_subclasses(__name__, __path__, PositionMethod)  # type: ignore[type-abstract]
__all__ = ["REGISTRY", "FarSegment", "PositionMethod", "parse", "parse_scaling"]

_BY_NAME_OR_ALIAS: dict[str, type[Any]] = {**scalings.BY_NAME_OR_ALIAS, **REGISTRY}


def parse(spec: str | Mapping[str, Any] | Scaling | PositionMethod) -> Scaling | PositionMethod:
    """Parse a scaling or a position method from a spec, a dict or the JSON of a dict.

    Args:
        spec: `name:option=value,...`; a dict of `to_dict` (`{"name": "self-extend", "group": 4}`); a rope dict of
            transformers, which describes a scaling; or a method, which is returned as is.

    Raises InputError that names the wrong option, its value and the allowed values.
    """
    if isinstance(spec, Scaling | PositionMethod):
        return spec
    method: Scaling | PositionMethod = scalings.parse_method(spec, _find_method)
    return method


def parse_scaling(spec: str | Mapping[str, Any] | Scaling | PositionMethod, use: str) -> Scaling:
    """Parse a scaling, where a position method is of no use.

    Args:
        spec: see `parse`.
        use: what the scaling is for, as in "which engines apply".

    Raises InputError for a position method, and what `parse` raises.
    """
    method = parse(spec)
    if isinstance(method, PositionMethod):
        expected = f"a method that changes frequencies, {use}; {method.name} changes positions"
        raise InputError("scaling", str(method), expected, method.engines or "the nearest are dynamic-yarn and yarn")
    return method


def _find_method(name: object) -> type[Any]:
    return find_by_name("scaling", name, _BY_NAME_OR_ALIAS, [*scalings.REGISTRY, *REGISTRY])
