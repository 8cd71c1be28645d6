"""Results of probing a module, stored on the module and reused until it changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")

_ATTRIBUTE = "_ropewalk_probe"


def cached_probe(module: Any, fingerprint: str, probe: Callable[[], Result]) -> Result:
    """Return the result of the last probe of this module, or probe it now if it has changed since.

    Args:
        module: where the result is stored. It is copied and pickled together with the module.
        fingerprint: everything that the result depends on, as text.
        probe: computes the result; it must be picklable.
    """
    stored_fingerprint, stored_result = vars(module).get(_ATTRIBUTE, (None, None))
    if stored_fingerprint == fingerprint:
        return stored_result
    result = probe()
    setattr(module, _ATTRIBUTE, (fingerprint, result))
    return result


def config_text(config: Any) -> str:
    """Return a transformers config as text, for a fingerprint."""
    return json.dumps(config.to_dict(), default=str)
