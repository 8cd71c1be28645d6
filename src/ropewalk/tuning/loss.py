"""The loss of a causal language model on each token of a text, with gradients, in little memory.

As in evaluate/perplexity.py, the logits of a long text never exist as a whole. Here the head runs again in the backward
pass, block by block, so that no block of logits is kept either.

Shapes: B batch (1), T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from ropewalk.evaluate.perplexity import find_body, head_only

_HEAD_BLOCK = 1024  # tokens whose logits exist at the same time


def differentiable_nll(model: Any, ids_T: Tensor) -> Tensor:
    """Return the negative log-likelihood of each token after the first, in nats, [T-1] float32.

    Args:
        model: a causal language model of transformers.
        ids_T: token ids, on the device of the model.
    """
    body = find_body(model)
    ids_BT = ids_T[None]
    hidden_BTD = body(input_ids=ids_BT, use_cache=False).last_hidden_state

    def block_nll(block_BTD: Tensor, block_BT: Tensor, targets_T: Tensor) -> Tensor:
        with head_only(body, BaseModelOutputWithPast(last_hidden_state=block_BTD)):  # type: ignore[arg-type]
            logits_TV = model(input_ids=block_BT, use_cache=False).logits[0]
        return nn.functional.cross_entropy(logits_TV.float(), targets_T, reduction="none")

    parts = []
    for start in range(0, len(ids_T) - 1, _HEAD_BLOCK):
        block = slice(start, min(start + _HEAD_BLOCK, len(ids_T) - 1))
        arguments = hidden_BTD[:, block], ids_BT[:, block], ids_T[block.start + 1 : block.stop + 1]
        parts.append(checkpoint(block_nll, *arguments, use_reentrant=False))
    return torch.cat(parts)


@contextmanager
def gradient_checkpointing(model: Any) -> Iterator[None]:
    """Within the block, the backward pass computes the activations of each layer again instead of keeping them.

    The rest of the model stays in evaluation mode, so that dropout stays off.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    before = [(layer, layer.training) for layer in layers]
    was_on = model.is_gradient_checkpointing
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in layers:
        layer.training = True  # not layer.train(), which would reach the dropout inside
    try:
        yield
    finally:
        for layer, training in before:
            layer.training = training
        if not was_on:
            model.gradient_checkpointing_disable()
