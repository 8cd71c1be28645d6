"""`bench curve` and `bench decode`: whole models, scaling on against off, fused against unfused.

Shapes: B = 1 row, T tokens, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from benchmarks.speed.device import current
from benchmarks.speed.reason import reason_of
from benchmarks.speed.timing import in_turn, rounded, seconds_of, speed, spread
from torch import Tensor

from ropewalk.errors import InputError
from ropewalk.models.extend import extend, restore
from ropewalk.scaling import Scaling

AT_A_TIME = 8  # tokens decoded in a way's part of a round

# Each way: whether the scaling is on, whether the rotation is fused. All on one model, in turn.
WAYS = {"plain": (False, False), "scaled": (True, False), "fused": (False, True), "scaled, fused": (True, True)}
COMPARED = {
    "scaling on against off": ("scaled", "plain"),
    "scaling on against off, fused": ("scaled, fused", "fused"),
    "fused against unfused": ("fused", "plain"),
    "fused against unfused, scaled": ("scaled, fused", "scaled"),
}


def measure(
    bench: str, model: Any, scaling: Scaling, tokens: int, rounds: int, tell: Callable[[], None]
) -> dict[str, Any]:
    """The row of a length: what `prefill` ("curve") or `decode` says, or the `reason` why it could not be measured.

    Raises InputError for a scaling that the model cannot take.
    """
    try:
        found = (prefill if bench == "curve" else decode)(model, scaling, tokens, rounds, tell)
    except InputError:
        raise
    except Exception as error:  # memory that is short, a cache that the model does not take: other lengths may go
        found = {"reason": reason_of(error)}
    return {"tokens": tokens, **found}


def put(model: Any, way: str, scaling: Scaling) -> None:
    """Make the model go that way from now on."""
    scaled, fused = WAYS[way]
    restore(model)
    if scaled or fused:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nothing is saved here
            extend(model, scaling if scaled else {}, fuse=fused)  # {}: every layer type keeps the scaling it has


def prefill(model: Any, scaling: Scaling, tokens: int, rounds: int, tell: Callable[[], None]) -> dict[str, Any]:
    """A whole pass over `tokens` tokens, each way. The model is left as it came. `tell`: called after each pass."""
    ids_BT = _ids(model, tokens)

    def work(way: str) -> float:
        put(model, way, scaling)
        _forward(model, ids_BT[:, :1], use_cache=False)  # what the first call after a change does once
        seconds = seconds_of(partial(_forward, model, ids_BT, use_cache=False), model.device)
        tell()
        return seconds

    return _measured(model, {way: partial(work, way) for way in WAYS}, tokens, rounds)


def decode(model: Any, scaling: Scaling, context: int, rounds: int, tell: Callable[[], None]) -> dict[str, Any]:
    """Token after token behind a context, each way with a KV cache of its own; otherwise as `prefill`."""
    from transformers import DynamicCache

    ids_BT, caches = _ids(model, context), {way: DynamicCache(config=model.config) for way in WAYS}
    last: dict[str, Tensor] = {}

    def steps(way: str, number: int) -> None:
        for _ in range(number):
            logits_BTV = _forward(model, last.get(way, ids_BT), past_key_values=caches[way])
            last[way] = logits_BTV[:, -1:].argmax(-1)

    def work(way: str) -> float:
        put(model, way, scaling)
        steps(way, 1)  # the context, when it is the first; then the first token after a change of way
        seconds = seconds_of(partial(steps, way, AT_A_TIME), model.device)
        tell()
        return seconds

    return _measured(model, {way: partial(work, way) for way in WAYS}, AT_A_TIME, rounds)


def _measured(model: Any, works: dict[str, Callable[[], float]], tokens: int, rounds: int) -> dict[str, Any]:
    """The numbers of all ways, each of whose works takes so many tokens, and their comparisons."""
    try:
        with torch.inference_mode(), current(model.device):
            for work in works.values():
                work()  # warm
            taken = in_turn(works, rounds)
    finally:
        restore(model)
    ways = {}
    for way, seconds in taken.items():
        ways[way] = {
            "taken": rounded(seconds),
            "seconds": spread(seconds),
            "tokens_per_second": spread([tokens / each for each in seconds]),
        }
    return {
        "rounds": rounds,
        "ways": ways,
        "speed": {name: speed(taken[one], taken[other]) for name, (one, other) in COMPARED.items()},
    }


def _forward(model: Any, ids_BT: Tensor, **options: Any) -> Tensor:
    logits_BTV: Tensor = model(ids_BT, logits_to_keep=1, **options).logits
    return logits_BTV


def _ids(model: Any, tokens: int) -> Tensor:
    """Any tokens: how long a pass takes does not depend on what it reads."""
    vocabulary = model.get_input_embeddings().num_embeddings
    return torch.randint(vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0)).to(model.device)
