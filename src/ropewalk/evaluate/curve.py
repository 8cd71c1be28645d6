"""Perplexity against length, with one pass over the text for each distinct set of frequencies.

Attention is causal, so one pass at the longest length also gives every shorter length that is read with the same
frequencies. A static scaling needs one pass. A dynamic scaling needs one pass for each set of frequencies among its
lengths, and shares the pass of the unscaled model up to the original length. When the text goes through the KV cache
in chunks, the frequencies of a dynamic scaling follow the text under a policy, and one pass gives all lengths.

`perplexity_curve` measures a loaded model and returns rows. `CurveRun` also loads the model, stores every row in a
folder as soon as it is known, and continues there when the same run is started again. It adds what each scaling costs
on short text, and on request the perplexity over key tokens (LongPPL):

    run = CurveRun("smollm2", ["none", "yarn:factor=2"], [8192, 16_384], "pydoc", "runs/curve")
    rows = run.run()
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ropewalk import config as configs
from ropewalk.errors import InputError, check_length
from ropewalk.evaluate.curve_store import CurveRow, CurveStore, RowKey
from ropewalk.evaluate.evaluator import choose_evaluator
from ropewalk.evaluate.key_token_store import KeyTokenStore
from ropewalk.evaluate.key_tokens import DEFAULT_RULE, KeyTokenRule, digest_key_tokens, long_perplexity
from ropewalk.evaluate.model_source import ModelSource, describe_source, load_source, read_source_config, source_digest
from ropewalk.evaluate.perplexity import perplexity_of, token_nll
from ropewalk.evaluate.short_tax import ShortTax, compute_short_tax, window_losses
from ropewalk.evaluate.texts import Text, read_text
from ropewalk.models.extend import ScalingLike, extended, extension_of
from ropewalk.models.wrappers import unwrap_measurable_model
from ropewalk.positions import PositionMethod, parse
from ropewalk.rope import Rope
from ropewalk.scaling import Scaling
from ropewalk.scaling.policies import DEFAULT_POLICY, Policy, RequestPolicy, parse_policy

LAST_TOKENS = 1024  # tokens at the end that `ppl_last` is over


@dataclass(frozen=True)
class CurvePoint:
    """A row that is still to be measured.

    Attributes:
        scaling: the scaling or position method.
        chunk: tokens per forward call through the KV cache; None to read the text at the frequencies of `length`.
        policy: spec of the policy that a dynamic scaling follows in chunks; None if it follows none.
        length: tokens to read.
        scaled_length: length in tokens that fixes a dynamic scaling; None if its frequencies follow the text. Position
            methods have None, too: their options follow each query.
    """

    scaling: Scaling | PositionMethod
    chunk: int | None
    policy: str | None
    length: int
    scaled_length: int | None

    @property
    def key(self) -> RowKey:
        return RowKey(str(self.scaling), self.chunk, self.policy, self.length)


def perplexity_curve(
    model: Any,
    tokens: Sequence[int] | Tensor,
    lengths: Sequence[int],
    scalings: Sequence[ScalingLike] | None = None,
    *,
    chunk: int | None = None,
    policy: Policy | str = DEFAULT_POLICY,
    key_tokens: Sequence[int] | NDArray[np.int64] | None = None,
    done: Collection[tuple[str, int | None, str | None, int]] = (),
    on_row: Callable[[CurveRow], None] | None = None,
    on_tokens: Callable[[float], None] | None = None,
) -> list[CurveRow]:
    """Measure the perplexity of a text at several lengths, under one or several scalings.

    Args:
        model: a causal language model of transformers; it is restored to its present state afterwards.
        tokens: token ids of the text, at least as many as the longest length.
        lengths: in tokens, each at least 2.
        scalings: scalings to compare; by default the one that the model has now. A dynamic scaling is evaluated at
            each length with its frequencies for that length.
        chunk: tokens per forward call through the KV cache; dynamic scalings then follow the text under `policy`.
        policy: how dynamic scalings follow the text in chunks.
        key_tokens: indices of the tokens that `longppl` is over (`ropewalk.evaluate.key_tokens.find_key_tokens`).
        done: rows to skip, each as (scaling, chunk, policy, length).
        on_row: called with each row as soon as it is known.
        on_tokens: called with the number of tokens read since its last call (a fraction, since it is called after
            each layer).

    Returns the rows, ordered by scaling and length. Raises InputError for lengths that the text does not have, and
    RuntimeError if the loss is not a number.
    """
    model = unwrap_measurable_model(model)
    ids_T = _as_token_ids(tokens)
    lengths = _check_lengths(lengths, len(ids_T))
    policy = parse_policy(policy)
    model_config = configs.read(model)
    if scalings is not None:
        chosen = _parse_scalings(scalings)
    else:
        extension, main = extension_of(model), model_config.main_layer_type
        current = extension.scalings[main] if extension else model_config.main_layer.scaling
        chosen = [extension.position_method or current if extension else current]
    rope = model_config.main_layer.rope
    points = plan_points(rope, chosen, lengths, [chunk], policy)
    passes = group_into_passes(rope, [point for point in points if point.key not in done])
    rows: dict[RowKey, CurveRow] = {}

    key_tokens = None if key_tokens is None else np.asarray(key_tokens, np.int64)

    def keep(point: CurvePoint, nll_T: NDArray[np.float64], seconds: float) -> None:
        row = make_row(point.key, nll_T, seconds, key_tokens)
        rows[point.key] = row
        if on_row is not None:
            on_row(row)

    _measure_passes(model, ids_T, passes, policy, keep, on_tokens)
    return [rows[point.key] for point in points if point.key in rows]


class CurveRun:
    """A perplexity curve that is stored in a folder and continues there when it is run again.

    Attributes:
        text: the text.
        original_length: tokens that the model was trained on; None if its configuration does not say.
        evaluator: the model that finds the key tokens; None if they were not requested.
        store: the folder with the rows, which may also hold rows of earlier runs of the same model and text.
    """

    def __init__(
        self,
        model: ModelSource,
        scalings: Sequence[ScalingLike],
        lengths: Sequence[int],
        text: str | Text,
        out: str | Path,
        *,
        dtype: str | None = None,
        chunks: Sequence[int | None] = (None,),
        policy: Policy | str = DEFAULT_POLICY,
        evaluator: str | None = None,
        rule: KeyTokenRule = DEFAULT_RULE,
    ) -> None:
        """Check all arguments, read the text and open the folder. The model is not loaded yet.

        Args:
            model: a name that `ropewalk.load` accepts, or a loaded (model, tokenizer).
            scalings: scalings to compare.
            lengths: in tokens, each at least 2.
            text: a name that `read_text` accepts, or a text.
            out: folder for the results.
            dtype: see `ropewalk.load`; of a model that is given by its name.
            chunks: ways to read the text, each measured for every scaling: None reads it at the frequencies of the
                length, a number through the KV cache with so many tokens per forward call.
            policy: how dynamic scalings follow the text in chunks.
            evaluator: the model that finds the key tokens of LongPPL: a scaling of this model, the name of another
                model, or "" for this model under the scaling that `ropewalk.plan` chooses. By default rows have none.
            rule: what makes a token a key token.

        Raises InputError for a wrong argument, or a folder that holds another curve.
        """
        self._lengths = _check_lengths(lengths)
        parsed = _parse_scalings(scalings)
        if not isinstance(model, str):
            model = (unwrap_measurable_model(model[0]), model[1])
        self._model = model
        self._policy = parse_policy(policy)
        identity = describe_source(model, dtype)
        self._dtype = identity["dtype"]
        self.text = read_text(text) if isinstance(text, str) else text
        model_config = read_source_config(model)
        self._rope = model_config.main_layer.rope
        self.original_length = self._rope.original_length
        self._points = plan_points(self._rope, parsed, self._lengths, chunks, self._policy)
        self._unscaled = model_config.main_layer.scaling
        self._short_points = self._plan_short_points(parsed)
        self.evaluator = None if evaluator is None else choose_evaluator(evaluator, model, self._lengths[-1])
        self._rule = rule
        if self.evaluator and self._lengths[-1] <= rule.short_context:
            expected = f"with LongPPL, at least one above its short context of {rule.short_context:,} tokens"
            raise InputError("lengths", self._lengths[-1], expected)
        header = {
            "model": identity["model"],
            "text": self.text.name,
            "dtype": self._dtype,
            "text_sha256": self.text.digest,
            # Other weights can lie under the same name or path.
            "model_digest": source_digest(model),
        }
        self.store = CurveStore(out, header)

    def rows(self) -> list[CurveRow]:
        """Return the rows of this run that are measured so far, ordered by scaling, way of reading, and length."""
        return [self.store.rows[point.key] for point in self._points if point.key in self.store.rows]

    def short_taxes(self) -> list[ShortTax]:
        """Return what each scaling of this run costs on short text, as far as it is measured.

        The distances of a position method are those of the unscaled model there, so that its cost is exactly 0 without
        being measured.
        """
        unscaled = str(self._unscaled)
        taxes = []
        for scaling in dict.fromkeys(point.scaling for point in self._points):
            tokens = self._short_length
            baseline = self.store.short_losses.get((unscaled, tokens))
            is_exact = isinstance(scaling, PositionMethod)
            losses = baseline if is_exact else self.store.short_losses.get((str(scaling), tokens))
            if losses and baseline and len(losses) == len(baseline) and scaling != self._unscaled:
                taxes.append(compute_short_tax(str(scaling), tokens, losses, baseline))
        return taxes

    def remaining_tokens(self) -> int:
        """Return how many tokens `run` has to read for what the folder lacks."""
        passes = self._remaining_passes()
        if not passes:
            return 0
        evaluation = 0 if self._stored_key_tokens() is not None else self._rule.count_tokens(self._lengths[-1])
        return sum(points[-1].length for points in passes) + evaluation

    def run(
        self,
        on_row: Callable[[CurveRow], None] | None = None,
        on_tokens: Callable[[float], None] | None = None,
    ) -> list[CurveRow]:
        """Measure the rows that the folder lacks, and store each one as soon as it is known.

        The model is loaded only if something is missing. Key tokens are found first.

        Args:
            on_row: called with each row after it is stored.
            on_tokens: see `perplexity_curve`.

        Returns all rows of this run. Raises InputError if the text is too short or another process writes to the
        folder, and RuntimeError if the loss is not a number.
        """
        if self._remaining_passes():
            with self.store.locked():
                self._measure_remaining(on_row, on_tokens)
        return self.rows()

    def _measure_remaining(
        self, on_row: Callable[[CurveRow], None] | None, on_tokens: Callable[[float], None] | None
    ) -> None:
        passes = self._remaining_passes()
        if not passes:  # another process has measured them since this run was made
            return
        model, tokenizer = load_source(self._model, self._dtype)
        ids_T = _as_token_ids(tokenizer(self.text.content, verbose=False)["input_ids"])
        _check_lengths(self._lengths, len(ids_T))
        key_tokens = self._find_key_tokens(model, tokenizer, ids_T, on_tokens)
        name = self.evaluator.name if self.evaluator else None
        rows, short_points = self._remaining_rows(), self._remaining_short_points()

        def store(point: CurvePoint, nll_T: NDArray[np.float64], seconds: float) -> None:
            row = make_row(point.key, nll_T, seconds, key_tokens, name)
            if point in short_points:
                self.store.add_short_losses(row["scaling"], point.length, window_losses(nll_T))
            if point in rows:
                self.store.add(row)
                if on_row is not None:
                    on_row(row)

        _measure_passes(model, ids_T, passes, self._policy, store, on_tokens)

    def _stored_key_tokens(self) -> NDArray[np.int64] | None:
        """Return the key tokens if the folder has them; an empty array if none are requested."""
        if self.evaluator is None:
            return np.zeros(0, np.int64)
        length = self._lengths[-1]
        return KeyTokenStore(self.store.folder).find(self.evaluator.name, self.evaluator.digest, self._rule, length)

    def _find_key_tokens(
        self, model: Any, tokenizer: Any, ids_T: Tensor, on_tokens: Callable[[float], None] | None
    ) -> NDArray[np.int64] | None:
        """Return the key tokens, which are stored once they are known; None if none are requested."""
        if self.evaluator is None:
            return None
        indices = self._stored_key_tokens()
        if indices is None:
            indices = self.evaluator.find(model, tokenizer, self.text, ids_T, self._rule, self._dtype, on_tokens)
            evaluator, length = self.evaluator, self._lengths[-1]
            KeyTokenStore(self.store.folder).add(evaluator.name, evaluator.digest, self._rule, length, indices)
        return indices

    @property
    def _short_length(self) -> int:
        """Tokens of the short text: as many as the model was trained on, or the longest length of this run."""
        return min(self.original_length or 0, self._lengths[-1])

    def _plan_short_points(self, scalings: Sequence[Scaling | PositionMethod]) -> list[CurvePoint]:
        """Return the points that measure the short tax: the unscaled model, and each scaling."""
        length = self._short_length
        if length < 2:
            return []
        measured = [each for each in scalings if isinstance(each, Scaling)]
        return plan_points(self._rope, list(dict.fromkeys([self._unscaled, *measured])), [length], [None], self._policy)

    def _remaining_rows(self) -> list[CurvePoint]:
        """Return the points of this run that are still to be measured.

        A point is measured if it has no stored row. With LongPPL, it is measured again if the stored row belongs to
        different key tokens.
        """
        indices = self._stored_key_tokens()

        def is_done(point: CurvePoint) -> bool:
            row = self.store.rows.get(point.key)
            if row is None or self.evaluator is None:
                return row is not None
            found_by = row["evaluator"], row["key_tokens_digest"]
            return indices is not None and found_by == (self.evaluator.name, digest_key_tokens(indices, point.length))

        return [point for point in self._points if not is_done(point)]

    def _remaining_short_points(self) -> list[CurvePoint]:
        stored = self.store.short_losses
        return [point for point in self._short_points if (point.key.scaling, point.length) not in stored]

    def _remaining_passes(self) -> list[list[CurvePoint]]:
        points = dict.fromkeys([*self._remaining_rows(), *self._remaining_short_points()])
        return group_into_passes(self._rope, list(points))


def plan_points(
    rope: Rope,
    scalings: Sequence[Scaling | PositionMethod],
    lengths: Sequence[int],
    chunks: Sequence[int | None],
    policy: Policy,
) -> list[CurvePoint]:
    """Return the points to measure, ordered by scaling, chunk, and length."""
    points = []
    for scaling in scalings:
        for chunk in chunks:
            if chunk is not None:
                check_length("chunk", chunk)
            follows_text = chunk is not None and scaling.is_dynamic
            for length in lengths:
                scaled_length: int | None = None if isinstance(scaling, PositionMethod) else length
                if follows_text and isinstance(policy, RequestPolicy):  # fixed when the text begins
                    scaled_length = policy.scaled_length(length, scaling.resolve_original_length(rope))
                elif follows_text:
                    scaled_length = None
                points.append(CurvePoint(scaling, chunk, str(policy) if follows_text else None, length, scaled_length))
    return points


def group_into_passes(rope: Rope, points: Sequence[CurvePoint]) -> list[list[CurvePoint]]:
    """Group points that one pass over the text can measure, each group ordered by length.

    Points share a pass if they are read the same way with the same frequencies, even if their scalings differ: a
    dynamic scaling within the original length is the unscaled model. A dynamic scaling that follows the text in
    chunks has its own pass.
    """
    passes: dict[Hashable, list[CurvePoint]] = {}
    for point in points:
        scaling: Any = point.scaling
        read_with: Hashable = scaling
        if point.scaled_length is not None and isinstance(scaling, Scaling):
            if scaling.is_per_layer:
                read_with = scaling.layer_frequencies(rope)
            else:
                read_with = scaling.frequencies(rope, point.scaled_length)
        passes.setdefault((point.chunk, read_with), []).append(point)
    return [sorted(group, key=lambda point: point.length) for group in passes.values()]


def _measure_passes(
    model: Any,
    ids_T: Tensor,
    passes: Sequence[Sequence[CurvePoint]],
    policy: Policy,
    on_point: Callable[[CurvePoint, NDArray[np.float64], float], None],
    on_tokens: Callable[[float], None] | None,
) -> None:
    """Read the text once for each pass, and report each point as soon as its length is reached.

    `on_point` is called with the point, the losses of its tokens in nats, and the seconds that they needed.
    """
    for points in passes:
        longest = points[-1]
        with extended(model, longest.scaling, length=longest.scaled_length, policy=policy):
            parts = token_nll(model, ids_T[: longest.length], on_tokens, longest.chunk)
            nll_T, seconds = np.zeros(0), 0.0
            for point in points:
                while len(nll_T) < point.length - 1:
                    started = time.perf_counter()
                    nll_T = np.concatenate([nll_T, next(parts)])
                    seconds += time.perf_counter() - started  # not the time that `on_point` needs
                on_point(point, nll_T[: point.length - 1], seconds)


def make_row(
    key: RowKey,
    nll_T: NDArray[np.float64],
    seconds: float,
    key_tokens: NDArray[np.int64] | None = None,
    evaluator: str | None = None,
) -> CurveRow:
    """Return the row of a key from the losses of its tokens. Raises RuntimeError if one of them is not finite.

    Args:
        key: what identifies the row.
        nll_T: loss of each token after the first, in nats.
        seconds: time that they needed.
        key_tokens: indices of the key tokens, if they were requested.
        evaluator: name of the evaluator that found them.
    """
    if not np.isfinite(nll_T).all():
        token = int(np.flatnonzero(~np.isfinite(nll_T))[0]) + 1
        raise RuntimeError(f"{key.scaling}: the model's loss at token {token:,} is not a number; try another dtype")
    longppl, key_count = (None, None) if key_tokens is None else long_perplexity(nll_T, key_tokens)
    return CurveRow(
        scaling=key.scaling,
        chunk=key.chunk,
        policy=key.policy,
        length=key.length,
        ppl=perplexity_of(float(nll_T.mean())),
        ppl_last=perplexity_of(float(nll_T[-LAST_TOKENS:].mean())),
        nll=float(nll_T.mean()),
        tokens=len(nll_T),
        seconds=round(seconds, 3),
        longppl=longppl,
        key_tokens=key_count,
        key_tokens_digest=None if key_tokens is None else digest_key_tokens(key_tokens, key.length),
        evaluator=evaluator,
    )


def _as_token_ids(tokens: Sequence[int] | Tensor) -> Tensor:
    """Return token ids as a one-dimensional int64 tensor; a batch of one text is accepted."""
    ids = torch.as_tensor(tokens)
    if ids.ndim == 2 and ids.shape[0] == 1:
        ids = ids[0]
    if ids.ndim != 1 or ids.is_floating_point():
        raise InputError("tokens", f"shape {tuple(ids.shape)}, {ids.dtype}", "one list of token ids")
    return ids.long()


def _check_lengths(lengths: Sequence[int], available: int | None = None) -> list[int]:
    """Return the lengths sorted and without duplicates; `available`: tokens of the text, if they are known yet."""
    if not lengths:
        raise InputError("lengths", [], "at least one length")
    for length in lengths:
        if isinstance(length, bool) or not isinstance(length, int) or length < 2:
            raise InputError("lengths", length, "whole numbers of tokens, at least 2")
        if available is not None and length > available:
            raise InputError("lengths", length, f"at most the {available:,} tokens of the text")
    return sorted(set(lengths))


def _parse_scalings(scalings: Sequence[ScalingLike]) -> list[Scaling | PositionMethod]:
    """Return the scalings without duplicates."""
    if not scalings:
        raise InputError("scaling", [], "at least one scaling")
    return list(dict.fromkeys(parse(scaling) for scaling in scalings))
