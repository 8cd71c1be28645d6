"""Perplexity against length, from as few passes over the text as there are different frequencies.

Attention is causal: one pass at the longest length gives every shorter length of the same frequencies. Static
scalings take one pass; a dynamic scaling takes one for each set of frequencies its lengths call for. Read through the
KV cache, as a chat or a server does, any scaling takes one: its frequencies follow the text under a policy.

A pass keeps no more than a block of logits. The model's body runs first, its head then on one block of hidden
states after the other, in the model's own code, so that soft caps and logit scales are what they are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DynamicCache

from ropewalk import config as configs
from ropewalk.errors import InputError, check_length
from ropewalk.models.extend import ScalingLike, extended, extension_of
from ropewalk.scaling import Scaling, parse
from ropewalk.scaling.policies import DEFAULT_POLICY, Policy, RequestPolicy, parse_policy

Key = tuple[str, int | None, str | None, int]  # of a row: scaling, chunk, policy, length
LAST = 1024  # `ppl_last` is over this many tokens at the end
_BLOCK = 256  # tokens whose logits exist at a time
_ROWS = 32  # of them in float32 at a time, few enough to stay in the processor's cache
_ACTIVATION_BYTES = 512 * 2**20  # what the activations of one chunk may take


class CurveRow(TypedDict):
    """One point of the curve.

    `ppl` is over the first `length` tokens and `ppl_last` over the last 1,024 of them; `nll` is the mean in nats over
    the `tokens` that were predicted (the first of a text is not); `seconds` the time of the pass when it got there.
    `chunk` is None for a text that was read at once, at the frequencies of its length; otherwise it was read through
    the KV cache, so many tokens at a time, and `policy` says how a dynamic scaling followed it.
    """

    scaling: str
    chunk: int | None
    policy: str | None
    length: int
    ppl: float
    ppl_last: float
    nll: float
    tokens: int
    seconds: float


def perplexity_curve(
    model: Any,
    tokens: Sequence[int] | Tensor,
    lengths: Sequence[int],
    scalings: Sequence[ScalingLike] | None = None,
    *,
    chunk: int | None = None,
    policy: Policy | str = DEFAULT_POLICY,
    done: Collection[Key] = (),
    on_row: Callable[[CurveRow], None] | None = None,
    on_tokens: Callable[[float], None] | None = None,
) -> list[CurveRow]:
    """Perplexity of a text at several lengths, under one or several scalings.

    Args:
        model: a causal language model of transformers; afterwards it is as it was.
        tokens: the text, at least as many tokens as the greatest length.
        lengths: in tokens, each at least 2.
        scalings: what to compare; by default the scaling the model has now. A dynamic scaling is read, at each
            length, with its frequencies at that length.
        chunk: read through the KV cache, so many tokens at a time; dynamic scalings then follow by `policy`.
        done: keys of rows to leave out.
        on_row: called with each row as soon as it is known.
        on_tokens: called with the number of tokens (a fraction, as layers finish) that were read since the last call.

    Returns the rows, ordered by scaling and length. Raises InputError for lengths that the text does not have.
    """
    ids_T = _ids(tokens)
    lengths = _checked(lengths, len(ids_T))
    rows: list[CurveRow] = []
    chosen = _scalings(model, scalings)
    if chunk is not None:
        check_length("chunk", chunk)
    followed = parse_policy(policy)
    for group in passes(model, lengths, chosen, done, chunk, followed):
        last = group[-1]
        with extended(model, last.scaling, length=last.made_for, policy=followed):
            for row in _read(model, ids_T, group, on_tokens):
                rows.append(row)
                if on_row is not None:
                    on_row(row)
    order = [str(scaling) for scaling in chosen]
    return sorted(rows, key=lambda row: (order.index(row["scaling"]), row["length"]))


@dataclass(frozen=True)
class Point:
    """One row to be; `made_for`: tokens that the frequencies are fixed for, None where they follow the text."""

    scaling: Scaling
    chunk: int | None
    policy: str | None
    length: int
    made_for: int | None

    @property
    def key(self) -> Key:
        return str(self.scaling), self.chunk, self.policy, self.length


def key(row: CurveRow) -> Key:
    """What tells a row from the others of its model and text."""
    return row["scaling"], row["chunk"], row["policy"], row["length"]


def passes(
    model_or_config: Any,
    lengths: Sequence[int],
    scalings: Sequence[Scaling],
    done: Collection[Key] = (),
    chunk: int | None = None,
    policy: Policy = DEFAULT_POLICY,
) -> list[list[Point]]:
    """The passes that give every point that is not done, each a list of points by length.

    Points with equal frequencies share a pass, across scalings too: a dynamic one within the original length is read
    along with no scaling. A dynamic one that follows the text through the cache, in chunks, has one of its own.
    """
    model_config = configs.read(model_or_config)
    rope = model_config.main_layer.rope
    groups: dict[Hashable, list[Point]] = {}
    for scaling in scalings:
        for length in lengths:
            followed = chunk is not None and scaling.is_dynamic
            made_for: int | None = length
            if followed:
                fixed = isinstance(policy, RequestPolicy)
                made_for = policy.scaled_for(length, scaling.resolve_original_length(rope)) if fixed else None
            point = Point(scaling, chunk, str(policy) if followed else None, length, made_for)
            if point.key not in done:
                shared = scaling if made_for is None else scaling.frequencies(rope, made_for)
                groups.setdefault(shared, []).append(point)
    return [sorted(group, key=lambda point: point.length) for group in groups.values()]


def _ids(tokens: Sequence[int] | Tensor) -> Tensor:
    ids = torch.as_tensor(tokens)
    if ids.ndim == 2 and ids.shape[0] == 1:
        ids = ids[0]
    if ids.ndim != 1 or ids.is_floating_point():
        raise InputError("tokens", f"shape {tuple(ids.shape)}, {ids.dtype}", "one list of token ids")
    return ids.long()


def _checked(lengths: Sequence[int], available: int) -> list[int]:
    for length in lengths:
        if isinstance(length, bool) or not isinstance(length, int) or length < 2:
            raise InputError("lengths", length, "whole numbers of tokens, at least 2")
        if length > available:
            raise InputError("lengths", length, f"at most the {available:,} tokens of the text")
    if not lengths:
        raise InputError("lengths", "none", "at least one length")
    return sorted(set(lengths))


def _scalings(model: Any, scalings: Sequence[ScalingLike] | None) -> list[Scaling]:
    if scalings is not None:
        return list(dict.fromkeys(parse(scaling) for scaling in scalings))
    extension, model_config = extension_of(model), configs.read(model)
    held = extension.scalings if extension else {kind: layer.scaling for kind, layer in model_config.ropes.items()}
    return [held[model_config.main_layer_type]]


def _read(
    model: Any, ids_T: Tensor, group: list[Point], on_tokens: Callable[[float], None] | None
) -> Iterator[CurveRow]:
    """Read the text once, at the frequencies the model has; a row as soon as its length is reached."""
    waiting, nll, seconds = list(group), np.zeros(0), 0.0
    parts = token_nll(model, ids_T[: group[-1].length], on_tokens, group[-1].chunk)
    while waiting:
        started = time.perf_counter()
        nll = np.concatenate([nll, next(parts)])
        seconds += time.perf_counter() - started  # of reading alone, not of what is done with the rows
        while waiting and len(nll) >= waiting[0].length - 1:
            point = waiting.pop(0)
            yield _row(point, nll[: point.length - 1], seconds)


def _row(point: Point, nll: NDArray[np.float64], seconds: float) -> CurveRow:
    if not np.isfinite(nll).all():
        at = int(np.flatnonzero(~np.isfinite(nll))[0]) + 1
        raise RuntimeError(f"{point.scaling}: the model's loss at token {at:,} is not a number; try another dtype")
    return CurveRow(
        scaling=str(point.scaling),
        chunk=point.chunk,
        policy=point.policy,
        length=point.length,
        ppl=_perplexity(nll),
        ppl_last=_perplexity(nll[-LAST:]),
        nll=float(nll.mean()),
        tokens=len(nll),
        seconds=round(seconds, 3),
    )


def _perplexity(nll: NDArray[np.float64]) -> float:
    return math.exp(min(float(nll.mean()), 700.0))  # a broken model's loss must not overflow


def token_nll(
    model: Any, ids_T: Tensor, on_tokens: Callable[[float], None] | None = None, chunk: int | None = None
) -> Iterator[NDArray[np.float64]]:
    """Negative log-likelihood, in nats, of each token after the first, in consecutive parts.

    `chunk`: tokens that go through the model at once, the earlier ones in its KV cache; by default as many as keep
    the activations within half a gibibyte.
    """
    total = len(ids_T)
    chunk = min(chunk or _chunk(model), total)
    ids_BT = ids_T[None].to(model.device)
    cache = DynamicCache(config=configs.get_text_config(model.config)) if chunk < total else None
    with torch.inference_mode():
        for start in range(0, total, chunk):
            part_BT = ids_BT[:, start : start + chunk]
            with _layers_told(model, part_BT.shape[1], on_tokens):
                outputs = model.base_model(input_ids=part_BT, past_key_values=cache, use_cache=cache is not None)
            targets_T = ids_BT[0, start + 1 : start + chunk + 1]
            yield _head_nll(model, part_BT, outputs, targets_T)


def _head_nll(model: Any, ids_BT: Tensor, outputs: Any, targets_T: Tensor) -> NDArray[np.float64]:
    """NLL of each target from the body's outputs: the head, block by block."""
    hidden_BTD = outputs.last_hidden_state
    # One result, made before the loop: small ones made within it would pin the heap between freed logits.
    nll_T = torch.empty(len(targets_T), dtype=torch.float32, device=hidden_BTD.device)
    with _body_answering(model, outputs):
        for start in range(0, len(targets_T), _BLOCK):
            block = slice(start, min(start + _BLOCK, len(targets_T)))
            outputs.last_hidden_state = hidden_BTD[:, block]
            logits_TV = model(input_ids=ids_BT[:, block], use_cache=False).logits[0]
            rows = zip(logits_TV.split(_ROWS), targets_T[block].split(_ROWS), nll_T[block].split(_ROWS), strict=True)
            for logits_RV, target_R, nll_R in rows:
                nll_R.copy_(nn.functional.cross_entropy(logits_RV.float(), target_R, reduction="none"))
    return nll_T.double().cpu().numpy()


@contextmanager
def _body_answering(model: Any, outputs: Any) -> Iterator[None]:
    """Inside, a call of the model runs its head alone, on these outputs of its body."""
    body = model.base_model
    if body is model:
        raise InputError("model", type(model).__name__, "a model with a language modelling head")
    held = vars(body).get("forward")  # a hook of accelerate (device_map) keeps one of its own here
    body.forward = lambda *args, **kwargs: outputs
    try:
        yield
    finally:
        del body.forward
        if held is not None:
            body.forward = held


@contextmanager
def _layers_told(model: Any, tokens: int, on_tokens: Callable[[float], None] | None) -> Iterator[None]:
    """Inside, each decoder layer that finishes reports its share of `tokens`."""
    count = configs.get_text_config(model.config).num_hidden_layers
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count)
    layers = next(lists, None)
    if on_tokens is None or layers is None:
        yield
        if on_tokens is not None:
            on_tokens(tokens)
        return
    tell = on_tokens
    hooks = [layer.register_forward_hook(lambda *_: tell(tokens / count)) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _chunk(model: Any) -> int:
    config = configs.get_text_config(model.config)
    width = 3 * (getattr(config, "intermediate_size", None) or 4 * config.hidden_size) + 4 * config.hidden_size
    return max(_BLOCK, _ACTIVATION_BYTES // (width * model.dtype.itemsize))
