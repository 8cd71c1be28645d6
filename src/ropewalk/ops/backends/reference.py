"""The rotation in plain torch: the definition, and what runs where nothing faster can."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ropewalk.ops import angles as forms
from ropewalk.ops.backends.base import Backend

_BLOCK = 2**18  # numbers that are in float32 at a time


class Reference(Backend):
    """Blocks of tokens, small enough to stay in a cache."""

    name = "reference"

    def turn(
        self,
        xs: Sequence[Tensor],
        outs: Sequence[Tensor],
        angles: Sequence[Tensor],
        start: int,
        interleaved: bool,
        inverse: bool,
    ) -> None:
        exact = torch.float64 if xs[0].dtype == torch.float64 else torch.float32
        cos_BHTP, sin_BHTP = (part_BTP[:, None] for part_BTP in forms.tables(angles, exact))
        if inverse:
            sin_BHTP = -sin_BHTP
        pairs = cos_BHTP.shape[-1]
        for x_BHTD, out_BHTD in zip(xs, outs, strict=True):
            if out_BHTD is not x_BHTD:
                before, after = slice(start), slice(start + 2 * pairs, None)
                out_BHTD[..., before], out_BHTD[..., after] = x_BHTD[..., before], x_BHTD[..., after]
            sources, targets = (forms.pairs_of(each, start, pairs, interleaved) for each in (x_BHTD, out_BHTD))
            tokens = x_BHTD.shape[-2]
            step = max(1, _BLOCK * tokens // max(1, x_BHTD.numel()))
            for begin in range(0, tokens, step):
                block = slice(begin, begin + step)
                a, b = (each[..., block, :].to(exact) for each in sources)
                cos, sin = cos_BHTP[..., block, :], sin_BHTP[..., block, :]
                turned = torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * cos, a, sin)
                for target, values in zip(targets, turned, strict=True):
                    target[..., block, :] = values
