"""The scalings and position methods that the benchmarks of position methods compare, and the rows of their results."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from benchmarks.common import load_result, save_result
from benchmarks.speed.environment import describe_device
from ropewalk.models.extend import extended
from ropewalk.positions import PositionMethod, parse
from ropewalk.positions.base import resolve_window
from ropewalk.scaling.policies import parse_policy


@dataclass(frozen=True)
class Variant:
    """A method, with the policy of a dynamic scaling.

    Attributes:
        spec: of the method.
        policy: spec of the policy; None for a method that follows none.
        has_cost: whether its cost is measured; all static scalings cost as much as YaRN.
    """

    spec: str
    policy: str | None = None
    has_cost: bool = False

    @property
    def label(self) -> str:
        return self.spec if self.policy is None else f"{self.spec}, {self.policy}"

    def reach(self, original_length: int) -> float:
        """Return the longest text, in tokens, that the options of the method are for."""
        method: Any = parse(self.spec)
        factor = getattr(method, "factor", None) or getattr(method, "group", None)
        if factor is None:
            return math.inf
        if not isinstance(method, PositionMethod):
            return factor * original_length
        window = resolve_window(method.window, original_length)
        return factor * (original_length - window) + window


VARIANTS = (  # the most interesting ones first, in case that a run is cut
    Variant("none", has_cost=True),
    Variant("yarn:factor=2", has_cost=True),
    Variant("yarn:factor=4"),
    Variant("dynamic-yarn", "stepped", has_cost=True),
    Variant("dynamic-yarn", "continuous", has_cost=True),
    Variant("leaky-rerope", has_cost=True),
    Variant("self-extend", has_cost=True),
    Variant("near-exact", has_cost=True),
    Variant("dual-chunk", has_cost=True),
    Variant("jet-long", has_cost=True),
    Variant("rerope", has_cost=True),
    Variant("leaky-rerope:factor=2"),
    Variant("leaky-rerope:factor=3"),
    Variant("leaky-rerope:factor=4"),
    Variant("leaky-rerope:factor=8"),
    Variant("leaky-rerope:factor=4,window=2048"),
    Variant("leaky-rerope:factor=8,window=1024"),
    Variant("leaky-rerope:logit_scaling=log-n"),
    Variant("leaky-rerope:logit_scaling=yarn"),
    Variant("self-extend:group=4"),
    Variant("self-extend:group=8"),
    Variant("self-extend:group=8,window=1024"),
    Variant("near-exact:scaling=yarn"),
    Variant("mrrope-pro:factor=2"),
    Variant("mrrope-pro:factor=4"),
    Variant("mrrope-uni:factor=2"),
    Variant("mrrope-uni:factor=4"),
    Variant("yarn:critical=17,factor=4"),
    Variant("ntk-by-parts:factor=2"),
    Variant("ntk-by-parts:factor=4"),
    Variant("ntk:factor=2"),
    Variant("ntk:factor=4"),
    Variant("linear:factor=2"),
    Variant("linear:factor=4"),
    Variant("llama3:factor=4"),
    Variant("critical-base:factor=4"),
    Variant("cope"),
    Variant("cope:factor=2"),
    Variant("dynamic-ntk", "continuous"),
    Variant("dynamic-ntk-by-parts", "continuous"),
)


class ResultRows:
    """The rows of one results file, from one device; each is written when it is made, and is not made again.

    Args:
        rows: those of an earlier run.
        save: called after every new row with all rows.
        origin: what every row holds beside its key and its values: dtype and device.
    """

    def __init__(
        self, rows: list[dict[str, Any]], save: Callable[[list[dict[str, Any]]], None], origin: dict[str, str]
    ) -> None:
        self.rows, self._save, self._origin = rows, save, origin

    def __contains__(self, key: dict[str, Any]) -> bool:
        return any(key.items() <= row.items() for row in self.rows)

    def add(self, key: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
        """Add a row, unless there is one with this key."""
        if key in self:
            return
        started = time.perf_counter()
        measured = measure()
        row = {**key, **measured, **self._origin, "seconds": round(time.perf_counter() - started, 2)}
        self.rows.append(row)
        self._save(self.rows)
        values = {name: round(x, 3) if isinstance(x, float) else x for name, x in measured.items()}
        print(" ".join(str(x) for x in (*key.values(), values, f"{row['seconds']} s")), flush=True)


def describe_origin(model: Any) -> dict[str, str]:
    """Return dtype and device of a model."""
    return {"dtype": str(model.dtype).removeprefix("torch."), "device": describe_device(model.device)}


def open_rows(name: str, model_name: str, model: Any) -> ResultRows:
    """Return the rows of results/NAME.json. Exits if they are of another model or device: a table compares its rows."""
    document, origin = load_result(name), describe_origin(model)
    rows: list[dict[str, Any]] = document.get("rows", [])
    for row in rows:
        expected = f"{document['model']} in {row['dtype']} on {row['device']}"
        found = f"{model_name} in {origin['dtype']} on {origin['device']}"
        if expected != found:
            raise SystemExit(f"got {found}; expected {expected}, as in results/{name}.json; move it away to begin anew")

    def save(rows: list[dict[str, Any]]) -> None:
        length = model.config.max_position_embeddings
        save_result(name, {"model": model_name, "original_length": length, "rows": rows})

    return ResultRows(rows, save, origin)


def select_variants(labels: Sequence[str] | None) -> list[Variant]:
    """Return the variants with these labels, all by default. Exits if there is no such label."""
    known = {variant.label: variant for variant in VARIANTS}
    unknown = set(labels or ()) - set(known)
    if unknown:
        raise SystemExit(f"--methods: got {', '.join(unknown)}; expected {', '.join(known)}")
    return [known[label] for label in labels or known]


def apply_variant(model: Any, variant: Variant) -> AbstractContextManager[Any]:
    """Return a context in which the model has the method of a variant."""
    policy = {} if variant.policy is None else {"policy": parse_policy(variant.policy)}
    return extended(model, parse(variant.spec), **policy)
