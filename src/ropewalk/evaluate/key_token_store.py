"""The key tokens of a text, kept in the folder of its curve: each evaluator finds them once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ropewalk.errors import InputError
from ropewalk.evaluate.field_checks import check_fields, is_count, is_object, is_positive_count, is_text
from ropewalk.evaluate.key_tokens import KeyTokenRule
from ropewalk.files import parse_json, write_text_atomically

_FILE = "key_tokens.json"
_CHECKS: dict[str, Callable[[Any], bool]] = {
    "evaluator": is_text,
    "digest": is_text,
    "rule": is_object,
    "tokens": is_positive_count,
    "indices": lambda value: isinstance(value, list) and all(map(is_count, value)),
}


class KeyTokenStore:
    """The file `key_tokens.json` in the folder of a curve, which belongs to one model and one text."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE

    def find(self, evaluator: str, digest: str, rule: KeyTokenRule, tokens: int) -> NDArray[np.int64] | None:
        """Return the key tokens that an evaluator has found among at least `tokens` tokens; None if it has not.

        Args:
            evaluator, digest: the name of the evaluator and the digest of its model.
            rule: what makes a token a key token.
            tokens: length of the text.

        Raises InputError for a damaged file.
        """
        for entry in self._entries():
            same = (entry["evaluator"], entry["digest"]) == (evaluator, digest)
            if same and entry["rule"] == dataclasses.asdict(rule) and entry["tokens"] >= tokens:
                return np.array(entry["indices"], np.int64)
        return None

    def add(self, evaluator: str, digest: str, rule: KeyTokenRule, tokens: int, indices: NDArray[np.int64]) -> None:
        """Store key tokens; call it while the folder is locked."""
        entry = {
            "evaluator": evaluator,
            "digest": digest,
            "rule": dataclasses.asdict(rule),
            "tokens": tokens,
            "indices": indices.tolist(),
        }
        write_text_atomically(self._path, json.dumps([*self._entries(), entry]) + "\n")

    def _entries(self) -> Iterator[dict[str, Any]]:
        if not self._path.exists():
            return
        try:
            entries = parse_json(self._path.read_bytes())
            if not isinstance(entries, list):
                raise ValueError("not a list")
            checked = [check_fields(entry, _CHECKS) for entry in entries]
        except (OSError, ValueError) as error:
            found = f"{self._path}, which cannot be read ({error})"
            raise InputError("out", found, "a folder of a curve, or a new one") from None
        yield from checked
