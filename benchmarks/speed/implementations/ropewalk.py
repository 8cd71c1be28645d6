"""The rotation of this project."""

from __future__ import annotations

from typing import ClassVar

from benchmarks.speed.cases import Inputs
from benchmarks.speed.implementations.base import Call, Implementation, Role
from ropewalk.ops import rotate, to_fixed_point


class Ropewalk(Implementation):
    """From tables, as the rotary module of a transformers model returns them."""

    name = "ropewalk"
    role: ClassVar[Role] = "ours"

    def prepare(self, inputs: Inputs) -> Call:
        q, k, layout, tables = inputs.q_BHTD, inputs.k_BHTD, inputs.case.shape.layout, inputs.tables
        in_place = self.in_place
        return lambda: rotate(q, k, layout=layout, tables=tables, in_place=in_place)


class RopewalkInPlace(Ropewalk):
    """From tables, in place."""

    name = "ropewalk in place"
    in_place = True


class RopewalkFromPositions(Implementation):
    """From positions: the kernel computes cos and sin, and no table is made or read."""

    name = "ropewalk from positions"
    role: ClassVar[Role] = "ours"

    def prepare(self, inputs: Inputs) -> Call:
        q, k, layout, positions = inputs.q_BHTD, inputs.k_BHTD, inputs.case.shape.layout, inputs.positions_BT
        frequencies = to_fixed_point(inputs.frequencies, inputs.case.device)
        return lambda: rotate(q, k, positions, frequencies, layout)
