"""This project's rotation."""

from __future__ import annotations

from typing import ClassVar, Literal

from benchmarks.speed.peers.base import Call, Peer
from benchmarks.speed.shapes import Inputs

from ropewalk.ops import rotate, turns


class Ropewalk(Peer):
    """From the tables of the rotary module, as in a transformers model."""

    name = "ropewalk"
    role: ClassVar[Literal["ours"]] = "ours"

    def prepare(self, inputs: Inputs) -> Call:
        q, k, layout, tables = inputs.q_BHTD, inputs.k_BHTD, inputs.case.shape.layout, inputs.tables
        in_place = self.in_place
        return lambda: rotate(q, k, layout=layout, tables=tables, in_place=in_place)


class RopewalkInPlace(Ropewalk):
    """The same, over q and k."""

    name = "ropewalk in place"
    in_place = True


class RopewalkFromPositions(Peer):
    """Angles formed where they are used: no table is made or read."""

    name = "ropewalk from positions"
    role: ClassVar[Literal["ours"]] = "ours"

    def prepare(self, inputs: Inputs) -> Call:
        q, k, layout, positions = inputs.q_BHTD, inputs.k_BHTD, inputs.case.shape.layout, inputs.positions_BT
        frequencies = turns(inputs.frequencies, inputs.case.device)
        return lambda: rotate(q, k, positions, frequencies, layout)
