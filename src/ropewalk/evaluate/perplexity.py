"""The loss of a causal language model on each token of a text, in little memory.

The logits of a long text never exist as a whole. The body of the model runs first; its head then runs on blocks of
hidden states. The head is the model's own code, so logit soft caps and logit scales are applied. A text whose
activations would need too much memory goes through the KV cache in chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from ropewalk import config as configs
from ropewalk.compat.transformers import cache_for_call
from ropewalk.errors import InputError, UnsupportedModelError
from ropewalk.evaluate.dynamic_cache import continues_from_cache, create_cache
from ropewalk.models.evaluation_mode import evaluation_mode
from ropewalk.models.wrappers import unwrap_measurable_model

# Shape suffixes: B batch (1), T tokens, D hidden size, V vocabulary, R rows of one softmax.
_HEAD_BLOCK = 256  # tokens whose logits exist at the same time
_SOFTMAX_ROWS = 32  # tokens whose logits are converted to float32 at a time; few enough to stay in the CPU cache
_ACTIVATION_BYTES = 512 * 2**20  # upper bound on the activations of one chunk
_MAX_MEAN_NLL = 700.0  # exp of a larger number overflows; a broken model reaches it


def token_nll(
    model: Any,
    ids_T: Tensor,
    on_tokens: Callable[[float], None] | None = None,
    chunk: int | None = None,
    first: int = 1,
    positions_T: Tensor | None = None,
) -> Iterator[NDArray[np.float64]]:
    """Yield the negative log-likelihood of each token from `first` on, in nats, in consecutive parts.

    Args:
        model: a causal language model of transformers, or a wrapper of one. It is in evaluation mode while it reads.
        ids_T: token ids.
        on_tokens: called with the number of tokens read since its last call; a fraction, since it is called after
            each layer.
        chunk: tokens per forward call, the earlier ones being in the KV cache. By default as many as keep the
            activations within 512 MiB, or the whole text if the model cannot continue from a `DynamicCache`.
        first: index of the first token to predict, at least 1. The head does not run for the tokens before it.
        positions_T: position of each token, increasing, in place of 0 to T-1. transformers' flash attention takes a
            jump between two positions for the beginning of another text.

    Raises UnsupportedModelError for a wrapper that adds virtual tokens, and for a model without a language modeling
    head. Raises InputError for a chunk if the model cannot continue from a `DynamicCache`.
    """
    model = unwrap_measurable_model(model)
    body = find_body(model)
    total = len(ids_T)
    ids_BT = ids_T[None].to(model.device)
    chunk_length = min(chunk or _default_chunk(model), total)
    if chunk_length < total and not continues_from_cache(model):
        if chunk is not None:
            expected = f"the whole text at once for {type(model).__name__}, which cannot continue from a DynamicCache"
            raise InputError("chunk", chunk, expected)
        chunk_length = total
    cache = create_cache(model) if chunk_length < total else None
    for start in range(0, total, chunk_length):
        # Inside the loop: a generator must not leave these modes switched on at a yield.
        with torch.inference_mode(), evaluation_mode(model):
            chunk_BT = ids_BT[:, start : start + chunk_length]
            with _count_tokens(model, chunk_BT.shape[1], on_tokens):
                positions = _position_arguments(positions_T, start, chunk_BT)
                options = {**positions, **cache_for_call(body, cache), "use_cache": cache is not None}
                outputs = body(input_ids=chunk_BT, **options)
            skipped = min(max(first - 1 - start, 0), chunk_BT.shape[1])
            targets_T = ids_BT[0, start + skipped + 1 : start + chunk_length + 1]
            outputs.last_hidden_state = outputs.last_hidden_state[:, skipped:]
            nll = _head_nll(model, body, chunk_BT[:, skipped:], outputs, targets_T)
        yield nll


def compute_nll(
    model: Any,
    ids_T: Tensor,
    on_tokens: Callable[[float], None] | None = None,
    *,
    chunk: int | None = None,
    first: int = 1,
    positions_T: Tensor | None = None,
) -> NDArray[np.float64]:
    """Return what `token_nll` yields as one array, [T - first]. Arguments and errors are those of `token_nll`."""
    return np.concatenate(list(token_nll(model, ids_T, on_tokens, chunk, first, positions_T)))


def _position_arguments(positions_T: Tensor | None, start: int, chunk_BT: Tensor) -> dict[str, Tensor]:
    """Return the arguments of a forward call that give the tokens of a chunk their positions."""
    if positions_T is None:
        return {}
    end = start + chunk_BT.shape[1]
    position_ids = positions_T[None, start:end].to(chunk_BT.device)
    # Without a mask, transformers takes a jump between two positions for the beginning of another text.
    return {"position_ids": position_ids, "attention_mask": chunk_BT.new_ones(1, end)}


def perplexity_of(mean_nll: float) -> float:
    """Return the perplexity for a mean loss in nats; finite for any finite loss."""
    return math.exp(min(mean_nll, _MAX_MEAN_NLL))


def find_body(model: Any) -> Any:
    """Return the part of a model that computes the hidden states for its head.

    Raises UnsupportedModelError for a model without a language modeling head.
    """
    if model.base_model is not model:
        return model.base_model
    # Llama 4 names a base model that it does not have: take the outermost part that embeds tokens and has no head.
    embedding = model.get_input_embeddings()
    for part in model.modules():
        is_body = isinstance(part, PreTrainedModel) and part is not model and part.get_output_embeddings() is None
        if is_body and embedding in part.modules():
            return part
    raise UnsupportedModelError(type(model).__name__, "it has no language modeling head")


def _head_nll(model: Any, body: Any, ids_BT: Tensor, outputs: Any, targets_T: Tensor) -> NDArray[np.float64]:
    """Return the loss of each target, running the head of the model on the outputs of its body, block by block."""
    hidden_BTD = outputs.last_hidden_state
    # Allocate the result before the loop: small allocations inside it would fragment the heap between freed logits.
    nll_T = torch.empty(len(targets_T), dtype=torch.float32, device=hidden_BTD.device)
    with head_only(body, outputs):
        for start in range(0, len(targets_T), _HEAD_BLOCK):
            block = slice(start, min(start + _HEAD_BLOCK, len(targets_T)))
            outputs.last_hidden_state = hidden_BTD[:, block]
            logits_TV = model(input_ids=ids_BT[:, block], use_cache=False).logits[0]
            parts = [tensor.split(_SOFTMAX_ROWS) for tensor in (logits_TV, targets_T[block], nll_T[block])]
            for logits_RV, target_R, nll_R in zip(*parts, strict=True):
                nll_R.copy_(nn.functional.cross_entropy(logits_RV.float(), target_R, reduction="none"))
    return nll_T.double().cpu().numpy()


@contextmanager
def head_only(body: Any, outputs: Any) -> Iterator[None]:
    """Within the block, make a call of the model skip its body and run its head on `outputs`."""
    instance_forward = vars(body).get("forward")  # accelerate (device_map) installs its hooks as an instance attribute
    body.forward = lambda *args, **kwargs: outputs
    try:
        yield
    finally:
        del body.forward
        if instance_forward is not None:
            body.forward = instance_forward


@contextmanager
def _count_tokens(model: Any, tokens: int, on_tokens: Callable[[float], None] | None) -> Iterator[None]:
    """Within the block, call `on_tokens` with an equal share of `tokens` whenever a decoder layer finishes."""
    if on_tokens is None:
        yield
        return
    count = configs.get_text_config(model.config).num_hidden_layers
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count)
    layers = next(lists, None)
    if layers is None:
        yield
        on_tokens(tokens)
        return
    hooks = [layer.register_forward_hook(lambda *_: on_tokens(tokens / count)) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _default_chunk(model: Any) -> int:
    """Return how many tokens fit into `_ACTIVATION_BYTES`, from the widths of the widest layer (the MLP)."""
    config = configs.get_text_config(model.config)
    mlp_width = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    if not isinstance(mlp_width, int):  # Gemma 3n lists the width of each layer
        mlp_width = max(mlp_width)
    width = 3 * mlp_width + 4 * config.hidden_size
    return max(_HEAD_BLOCK, _ACTIVATION_BYTES // (width * model.dtype.itemsize))
