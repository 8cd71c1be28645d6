"""Dense references of position methods on whole models: every pair of a query and a key at its relative position.

`oracle_logits` knows nothing of channel layouts. Each attention layer computes its own q, once for every key: the
tables that it gets are those of its rotary module at the relative positions to that key. The keys have position 0.

Shapes: B batch rows, H heads, T tokens, D channels.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from ropewalk import config as configs

_NAME = "dense_oracle"


class _Oracle:
    """Replaces the attention of one model while it reads one text."""

    def __init__(self, model: Any, relative_TT: np.ndarray, is_local: Any, logit_factor_T: np.ndarray | None) -> None:
        self.model, self.is_local = model, is_local
        self.relative_TT = torch.from_numpy(relative_TT).tril()
        self.logit_factor_T = None if logit_factor_T is None else torch.from_numpy(logit_factor_T)
        self.tables: list[tuple[Any, Any, tuple, dict]] = []  # what each rotary module returned, and for what
        self.inputs: dict[Any, tuple[Any, tuple, dict]] = {}  # what each module was called with
        self.captured: list[tuple[Tensor, Tensor]] | None = None

    def logits(self, ids: Tensor, **options: Any) -> Tensor:
        text_config = configs.get_text_config(self.model.config)
        previous = text_config._attn_implementation
        with ExitStack() as stack:
            for module in self.model.modules():
                if any(name.endswith("inv_freq") for name, _ in module.named_buffers(recurse=False)):
                    handle = module.register_forward_hook(self._record_table, with_kwargs=True)
                else:
                    handle = module.register_forward_pre_hook(self._record_inputs, with_kwargs=True)
                stack.callback(handle.remove)
            AttentionInterface.register(_NAME, self._attend)
            AttentionMaskInterface.register(_NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
            text_config._attn_implementation = _NAME
            stack.callback(setattr, text_config, "_attn_implementation", previous)
            with torch.no_grad():
                return self.model(input_ids=ids, use_cache=False, **options).logits.float()

    def _record_table(self, module: Any, args: tuple, kwargs: dict, table: Any) -> None:
        if self.captured is None:
            self.tables.append((table, module, args, kwargs))

    def _record_inputs(self, module: Any, args: tuple, kwargs: dict) -> None:
        if self.captured is None:
            self.inputs[module] = module, args, kwargs

    def _attend(self, module, query, key, value, attention_mask, scaling=None, **kwargs):
        if self.captured is not None:
            self.captured.append((query, key))
            return value.new_zeros(value.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None
        logits_BHTT = self._plain_logits(query, key)
        if not self.is_local(module, kwargs):
            logits_BHTT = self._far_logits(module)
            if logits_BHTT is None:
                logits_BHTT = self._plain_logits(query, key)
            elif self.logit_factor_T is not None:
                logits_BHTT = logits_BHTT * self.logit_factor_T[:, None]
        logits_BHTT = logits_BHTT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if kwargs.get("softcap") is not None:
            logits_BHTT = kwargs["softcap"] * torch.tanh(logits_BHTT / kwargs["softcap"])
        logits_BHTT = logits_BHTT + attention_mask
        if kwargs.get("s_aux") is not None:
            sinks = kwargs["s_aux"].view(1, -1, 1, 1).expand(*logits_BHTT.shape[:3], 1)
            logits_BHTT = torch.cat([logits_BHTT, sinks], dim=-1)
        weights_BHTT = logits_BHTT.softmax(-1)[..., : key.shape[2]]
        values = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        return (weights_BHTT @ values.double()).to(query.dtype).transpose(1, 2).contiguous(), None

    @staticmethod
    def _plain_logits(query: Tensor, key: Tensor) -> Tensor:
        return query.double() @ key.double().repeat_interleave(query.shape[1] // key.shape[1], dim=1).mT

    def _far_logits(self, module: Any) -> Tensor | None:
        """Return q . k of every pair at its relative position; None if the module gets no rotary table."""
        _, args, kwargs = self.inputs[module]
        found = [
            entry for entry in self.tables if any(_is_table(value, entry[0]) for value in (*args, *kwargs.values()))
        ]
        own = [entry for entry in self.tables if entry[1] in list(module.modules())]  # computed inside (Moshi)
        if not found and not own:
            return None
        table, rotary, rotary_args, rotary_kwargs = (found or own)[-1]
        hidden = next(x for x in (kwargs.get("hidden_states"), *args) if isinstance(x, Tensor) and x.ndim == 3)
        rows = []
        for row in range(hidden.shape[0]):
            tokens = hidden.shape[1]
            captured = []
            for positions_NT in (self.relative_TT.mT.float(), torch.zeros(tokens, tokens)):
                new_table = self._table_at(rotary, rotary_args, rotary_kwargs, positions_NT)
                repeated = hidden[row : row + 1].expand(tokens, -1, -1)
                swapped = [self._swap(x, table, new_table, hidden, repeated) for x in args]
                options = {name: self._swap(x, table, new_table, hidden, repeated) for name, x in kwargs.items()}
                self.captured = captured
                handle = rotary.register_forward_hook(lambda *_, new_table=new_table: new_table)
                module(*swapped, **options)
                handle.remove()
                self.captured = None
            # A layer may call attention several times with the same q and k (DiffLlama).
            (query_NHTD, _), (_, key_NKTD) = captured[0], captured[len(captured) // 2]
            keys = key_NKTD[0].double().repeat_interleave(query_NHTD.shape[1] // key_NKTD.shape[1], dim=0)  # [H, N, D]
            rows.append(torch.einsum("nhtd,hnd->htn", query_NHTD.double(), keys))
        return torch.stack(rows)

    def _table_at(self, rotary: Any, args: tuple, kwargs: dict, positions_NT: Tensor) -> Any:
        self.captured = []
        before = kwargs.get("position_ids", args[1] if len(args) > 1 else None)
        if before.ndim == 3:
            positions_NT = positions_NT.expand(len(before), -1, -1)
        if "position_ids" in kwargs:
            table = rotary(*args, **kwargs | {"position_ids": positions_NT})
        else:
            table = rotary(args[0], positions_NT, *args[2:], **kwargs)
        self.captured = None
        return table

    @staticmethod
    def _swap(value: Any, table: Any, new_table: Any, hidden: Tensor, repeated: Tensor) -> Any:
        if _is_table(value, table):
            return new_table
        return repeated if value is hidden else value


def _is_table(value: Any, table: Any) -> bool:
    if isinstance(value, tuple) and isinstance(table, tuple):
        return len(value) == len(table) and all(one is other for one, other in zip(value, table, strict=True))
    return value is table and isinstance(value, Tensor)


def is_local_call(model: Any) -> Any:
    """Return the function that tells whether an attention module of the model attends to a window only."""
    layer_types = getattr(configs.get_text_config(model.config), "layer_types", None) or []

    def is_local(module: Any, options: dict) -> bool:
        index = getattr(module, "layer_idx", None)
        layer_type = layer_types[index] if index is not None and 0 <= index < len(layer_types) else ""
        return bool(options.get("sliding_window")) or "chunked" in layer_type or "sliding" in layer_type

    return is_local


def oracle_logits(
    model: Any, ids: Tensor, relative_TT: np.ndarray, logit_factor_T: np.ndarray | None = None, **options: Any
) -> Tensor:
    """Return the logits of an unextended model in which key n has the relative position relative_TT[m, n] to query m.

    Layers with a sliding window and layers without rotary embedding are left alone.
    """
    return _Oracle(model, relative_TT, is_local_call(model), logit_factor_T).logits(ids, **options)
