from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ropewalk.errors import InputError, check_number
from ropewalk.files import parse_json, write_text_atomically
from ropewalk.frequencies import Frequencies
from ropewalk.method import whole
from ropewalk.rope import Rope
from ropewalk.scaling.base import Scaling
from ropewalk.spec import build_from_options, format_spec

_DIGEST_DIGITS = 8
EXPECTED_FILE = "the scaling.json that `ropewalk tune` wrote"


@dataclass(frozen=True, repr=False)
class Learned(Scaling):
    """Divide the frequency of each pair by a number that was learned for one model (`ropewalk tune`).

    All layers share one set of divisors, or each layer has its own. The spec `learned:file=DIR/scaling.json` is shown
    with a digest of the numbers, so that a file that has changed is not taken for the one of before.

    Args:
        divisors: of the unscaled frequencies, one above 0 for each of dim/2 pairs; or one such list for each layer.
        attention_factor: multiplies cos and sin; a number, or one for each layer.
        target: the length that it was learned for, in tokens.
        model, date, version: what it was learned for, when, and by which version of ropewalk.
        file: the path of the JSON file; required without divisors, which are then read from it.
        digest: of the divisors, attention factors and original length, as 8 hexadecimal digits; checked if given.
    """

    name = "learned"
    formula = "theta_i / lambda_i, lambda_i and the attention factor learned, for all layers or for each"
    source = "`ropewalk tune`"
    positional: ClassVar[str] = "file"

    divisors: tuple[float, ...] | tuple[tuple[float, ...], ...] | None = None
    attention_factor: float | tuple[float, ...] = 1.0
    target: int | None = field(default=None, metadata=whole("tokens"))
    model: str | None = field(default=None, compare=False)
    date: str | None = field(default=None, compare=False)
    version: str | None = field(default=None, compare=False)
    file: str | None = field(default=None, compare=False)
    digest: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.divisors is None:
            self._read_file()
        super().__post_init__()
        self._check_divisors()
        self._check_attention_factor()
        content = [self.divisors, self.attention_factor, self.original_length]
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:_DIGEST_DIGITS]
        if self.digest not in (None, digest):
            raise InputError("learned: digest", self.digest, f"{digest}, that of the numbers in {self.file}")
        object.__setattr__(self, "digest", digest)

    @property
    def is_per_layer(self) -> bool:
        return isinstance(self._sets[0], tuple)

    @property
    def num_layers(self) -> int | None:
        """The number of layers that have a set of their own; None if all layers share one."""
        return len(self._sets) if self.is_per_layer else None

    def frequencies(self, rope: Rope, length: int | None = None) -> Frequencies:
        if self.is_per_layer:
            expected = "one set for all layers here; ropewalk.extend takes a set for each layer"
            raise InputError("scaling", str(self), expected)
        return self._set_frequencies(rope, self._sets, self.attention_factor)

    def layer_frequencies(self, rope: Rope) -> tuple[Frequencies, ...]:
        if not self.is_per_layer:
            return super().layer_frequencies(rope)
        assert isinstance(self.attention_factor, tuple)
        return tuple(
            self._set_frequencies(rope, divisors, factor)
            for divisors, factor in zip(self._sets, self.attention_factor, strict=True)
        )

    def extension_factor(self, rope: Rope, length: int | None = None) -> float:
        return 1.0 if self.target is None else max(1.0, self.target / self.resolve_original_length(rope))

    def to_rope_parameters(self, rope: Rope, length: int | None = None) -> dict[str, Any] | None:
        if self.is_per_layer:
            return None
        frequencies = self.frequencies(rope)
        return {
            "rope_type": "longrope",
            "short_factor": list(self._sets),
            "long_factor": list(self._sets),
            "factor": self.extension_factor(rope),
            "attention_factor": frequencies.attention_factor,
            "original_max_position_embeddings": self.resolve_original_length(rope),
        }

    def to_dict(self) -> dict[str, Any]:
        options = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "digest"}
        return {"name": self.name, **{name: _as_lists(value) for name, value in options.items() if value is not None}}

    def write(self, path: Path) -> Learned:
        """Write the scaling to a JSON file, and return it as read from there."""
        content = {name: value for name, value in self.to_dict().items() if name != "file"}
        write_text_atomically(path, json.dumps(content, indent=1) + "\n")
        return Learned(file=str(path))

    def __str__(self) -> str:
        numbers = ("divisors", "attention_factor", "original_length", "target")
        return format_spec(self, ("file", "digest") if self.file else numbers)

    def __repr__(self) -> str:
        return f"Learned(file={self.file!r}, digest={self.digest!r})"

    @property
    def _sets(self) -> tuple[Any, ...]:
        assert self.divisors is not None  # read in __post_init__
        return self.divisors

    def _set_frequencies(self, rope: Rope, divisors: Sequence[float], attention_factor: Any) -> Frequencies:
        if len(divisors) != rope.dim // 2:
            raise InputError(
                "learned: divisors", f"{len(divisors)} numbers", f"{rope.dim // 2} numbers, one for each pair"
            )
        return Frequencies(rope.inv_freq / np.array(divisors), attention_factor)

    def _read_file(self) -> None:
        """Set the fields from the file."""
        if self.file is None:
            raise InputError("learned: file", None, EXPECTED_FILE)
        for f in fields(self):
            if f.name not in ("file", "digest") and getattr(self, f.name) != f.default:
                raise InputError(
                    f"learned: {f.name}", getattr(self, f.name), f"that of {self.file}, without the option"
                )
        content = read_scaling_file(self.file)
        if content.get("name") != self.name or "divisors" not in content:
            raise InputError("learned: file", f"{self.file} without name learned and divisors", EXPECTED_FILE)
        options = {key: value for key, value in content.items() if key not in ("name", "file")}
        stored = build_from_options(Learned, options)
        for f in fields(self):
            if f.name not in ("file", "digest"):
                object.__setattr__(self, f.name, getattr(stored, f.name))

    def _check_divisors(self) -> None:
        sets = self.divisors
        if not isinstance(sets, list | tuple) or not sets:
            raise InputError("learned: divisors", sets, "a list of numbers, one for each pair, or a list per layer")
        if isinstance(sets[0], list | tuple):
            checked: Any = tuple(_checked_set(f"learned: divisors[{i}]", layer) for i, layer in enumerate(sets))
            counts = sorted({len(layer) for layer in checked})
            if len(counts) > 1:
                raise InputError("learned: divisors", f"lists of {counts[0]} to {counts[-1]}", "lists of equal length")
        else:
            checked = _checked_set("learned: divisors", sets)
        object.__setattr__(self, "divisors", checked)

    def _check_attention_factor(self) -> None:
        name, value = "learned: attention_factor", self.attention_factor
        if not self.is_per_layer:
            object.__setattr__(self, "attention_factor", check_number(name, value, minimum=0, exclusive=True))
            return
        factors = value if isinstance(value, list | tuple) else [value] * len(self._sets)
        if len(factors) != len(self._sets):
            raise InputError(name, f"{len(factors)} numbers", f"{len(self._sets)} numbers, one for each layer")
        object.__setattr__(self, "attention_factor", _checked_set(name, factors))


def read_scaling_file(path: str) -> dict[str, Any]:
    """Return the dict of a scaling in a JSON file. Raises InputError if the file has none."""
    try:
        content = parse_json(Path(path).expanduser().read_bytes())
    except OSError as error:
        raise InputError("scaling", f"{path} ({error.strerror})", EXPECTED_FILE) from None
    except ValueError as error:
        raise InputError("scaling", f"{path} ({error})", EXPECTED_FILE) from None
    if not isinstance(content, dict):
        raise InputError("scaling", path, EXPECTED_FILE)
    return content


def _checked_set(name: str, numbers: Any) -> tuple[float, ...]:
    """Return numbers above 0 as floats. Raises InputError for anything else."""
    if not isinstance(numbers, list | tuple) or not numbers:
        raise InputError(name, numbers, "a list of numbers, one for each pair")
    return tuple(check_number(f"{name}[{i}]", number, minimum=0, exclusive=True) for i, number in enumerate(numbers))


def _as_lists(value: Any) -> Any:
    return [_as_lists(item) for item in value] if isinstance(value, tuple) else value
