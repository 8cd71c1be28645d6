"""The limit: what it costs to move q and k once and turn nothing."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from ropewalk.bench.peers.base import Call, Peer
from ropewalk.bench.shapes import Inputs


class Copy(Peer):
    """Into memory that is new each time: what a rotation out of place is held against."""

    name = "copy"
    role: ClassVar[Literal["limit"]] = "limit"

    def prepare(self, inputs: Inputs) -> Call:
        return lambda: (inputs.q_BHTD.clone(), inputs.k_BHTD.clone())


class CopyInto(Peer):
    """Into memory that is there already: what a rotation in place is held against."""

    name = "copy into"
    role: ClassVar[Literal["limit"]] = "limit"

    def prepare(self, inputs: Inputs) -> Call:
        q_BHTD, k_BHTD = torch.empty_like(inputs.q_BHTD), torch.empty_like(inputs.k_BHTD)
        return lambda: (q_BHTD.copy_(inputs.q_BHTD), k_BHTD.copy_(inputs.k_BHTD))
