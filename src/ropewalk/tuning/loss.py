"""The loss of a causal language model on each token of a text, with gradients, in little memory.

As in evaluate/perplexity.py, the logits of a long text never exist as a whole. Here the head runs again in the backward
pass, block by block, so that no block of logits is kept either.

Shapes: B batch (1), T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutputWithPast

from ropewalk.evaluate.perplexity import find_body, head_only
from ropewalk.models.patching import AttributePatch, Patch

_HEAD_BLOCK = 1024  # tokens whose logits exist at the same time


def differentiable_nll(model: Any, ids_T: Tensor) -> Tensor:
    """Return the negative log-likelihood of each token after the first, in nats, [T-1].

    Args:
        model: a causal language model of transformers.
        ids_T: token ids, on the device of the model.
    """
    body = find_body(model)
    ids_BT = ids_T[None]
    hidden_BTD = body(input_ids=ids_BT, use_cache=False).last_hidden_state

    def block_nll(block_BTD: Tensor, block_BT: Tensor, targets_T: Tensor) -> Tensor:
        with head_only(body, BaseModelOutputWithPast(last_hidden_state=block_BTD)):
            logits_TV = model(input_ids=block_BT, use_cache=False).logits[0]
        logits_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
        return nn.functional.cross_entropy(logits_TV, targets_T, reduction="none")

    parts = []
    for start in range(0, len(ids_T) - 1, _HEAD_BLOCK):
        block = slice(start, min(start + _HEAD_BLOCK, len(ids_T) - 1))
        arguments = hidden_BTD[:, block], ids_BT[:, block], ids_T[block.start + 1 : block.stop + 1]
        parts.append(checkpoint(block_nll, *arguments, use_reentrant=False))
    return torch.cat(parts)


def checkpoint_patches(layers: Iterable[Any]) -> list[Patch]:
    """Return patches that make the backward pass compute the activations of each layer again instead of keeping them.

    The switch of transformers for this needs layers in training mode, with their dropout.
    """
    recompute = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    return [AttributePatch(layer, "forward", partial(recompute, layer.forward)) for layer in layers]
