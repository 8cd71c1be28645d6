"""The loss of a model on each token, computed from all logits of one plain forward call."""

from __future__ import annotations

import torch


def plain_nll(model, ids):
    """Return the negative log-likelihood of each token after the first, in nats, in float64."""
    with torch.inference_mode():
        logits_TV = model(torch.tensor([ids]), use_cache=False).logits[0, :-1].double()
    return torch.nn.functional.cross_entropy(logits_TV, torch.tensor(ids[1:]), reduction="none").numpy()
