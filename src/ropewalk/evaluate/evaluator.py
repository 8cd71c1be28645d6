"""The model that finds the key tokens of a text: another model, or the measured one under a scaling.

A model that judges itself favors its own scaling. It misses tokens that only a better scaling would predict, and it
picks tokens that its own scaling predicts by chance. Another model that was trained on the length is fairer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ropewalk.errors import InputError, UnknownNameError
from ropewalk.evaluate.key_tokens import KeyTokenRule, find_key_tokens, token_offsets, translate_key_tokens
from ropewalk.evaluate.model_source import ModelSource, load_source, read_source_config
from ropewalk.evaluate.texts import Text
from ropewalk.models.digest import model_digest
from ropewalk.models.extend import extended
from ropewalk.models.load import load_config
from ropewalk.planning import plan
from ropewalk.positions import REGISTRY as POSITION_METHODS
from ropewalk.positions import PositionMethod, parse
from ropewalk.scaling import BY_NAME_OR_ALIAS as SCALINGS
from ropewalk.scaling import Scaling

_METHOD_NAMES = {*SCALINGS, *POSITION_METHODS}


@dataclass(frozen=True)
class Evaluator:
    """The model that finds key tokens, and its scaling.

    Attributes:
        model: the name of another model; None for the measured model itself.
        scaling: the scaling or position method under which it reads, the long context and the short ones alike.
        length: tokens of the text.
    """

    model: str | None
    scaling: Scaling | PositionMethod
    length: int

    @property
    def name(self) -> str:
        """The name that results show. It does not identify the weights; see `digest`."""
        scaled_length = f" at {self.length} tokens" if self.scaling.is_dynamic else ""
        return f"{self.model or 'itself'} under {self.scaling}{scaled_length}"

    @functools.cached_property
    def digest(self) -> str:
        """The digest of the evaluator's weights; empty if it is the measured model itself."""
        return "" if self.model is None else model_digest(self.model)

    def find(
        self,
        model: Any,
        tokenizer: Any,
        text: Text,
        ids_T: Tensor,
        rule: KeyTokenRule,
        dtype: str | None = None,
        on_tokens: Callable[[float], None] | None = None,
    ) -> NDArray[np.int64]:
        """Return the indices of the key tokens among the first `length` tokens of a text.

        Args:
            model, tokenizer: the measured model; the model is restored afterwards.
            text, ids_T: the text, and its tokens under `tokenizer`.
            rule: what makes a token a key token.
            dtype: of another model; see `ropewalk.load`.
            on_tokens: called with the number of tokens read since its last call.

        Raises InputError for another model if one of the tokenizers does not report the characters of its tokens.
        """
        ids_T = ids_T[: self.length]
        if self.model is None:
            return self._read(model, ids_T, rule, on_tokens)
        ids, offsets = token_offsets(tokenizer, text.content)
        evaluator_model, evaluator_tokenizer = load_source(self.model, dtype)
        read_text = text.content[: max(end for _, end in offsets[: self.length])]
        evaluator_ids, evaluator_offsets = token_offsets(evaluator_tokenizer, read_text)
        indices = self._read(evaluator_model, ids_T.new_tensor(evaluator_ids), rule, on_tokens)
        if evaluator_ids == ids[: self.length]:
            return indices
        return translate_key_tokens(indices, evaluator_offsets, offsets[: self.length])

    def _read(
        self, model: Any, ids_T: Tensor, rule: KeyTokenRule, on_tokens: Callable[[float], None] | None
    ) -> NDArray[np.int64]:
        # A dynamic scaling reads the short contexts with the frequencies of the long one: only the context differs.
        scaled_length = None if isinstance(self.scaling, PositionMethod) else len(ids_T)
        with extended(model, self.scaling, length=scaled_length):
            return find_key_tokens(model, ids_T, rule, on_tokens)


def choose_evaluator(spec: str, model: ModelSource, length: int) -> Evaluator:
    """Return the evaluator of a text of `length` tokens.

    Args:
        spec: a scaling of the measured model, or the name of another model, which reads the text under the scaling that
            `ropewalk.plan` chooses for it; empty for the measured model under the planned scaling.
        model: the measured model.
        length: tokens of the text.

    Raises InputError for a scaling with a wrong option and a model that cannot be found, and what `plan` raises.
    """
    if spec.startswith("{") or spec.partition(":")[0] in _METHOD_NAMES:
        return Evaluator(None, parse(spec), length)
    if not spec:
        model_config = read_source_config(model)
        return Evaluator(None, plan(model_config, length).scaling, length)
    try:
        model_config = load_config(spec)
    except UnknownNameError as error:
        nearest = [*get_close_matches(spec.partition(":")[0], _METHOD_NAMES, n=1), *error.nearest]
        hint = f"did you mean {nearest[0]}?" if nearest else ""
        raise InputError("evaluator", spec, "a scaling, or a model that transformers can load", hint) from None
    return Evaluator(spec, plan(model_config, length).scaling, length)
