"""What a backend of the rotation is: one file of this folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor


class Backend(ABC):
    """One way to turn channels.

    Attributes:
        name: what a user calls it.
        devices: the types of device that it serves; empty for all.
        rank: among those that can run, the highest is chosen.
    """

    name: ClassVar[str]
    devices: ClassVar[frozenset[str]] = frozenset()
    rank: ClassVar[int] = 0

    def missing(self) -> str | None:
        """Why it cannot run here; None when it can."""
        return None

    @property
    def variant(self) -> str:
        """What of it runs here, for people."""
        return self.name

    @abstractmethod
    def turn(
        self,
        xs: Sequence[Tensor],
        outs: Sequence[Tensor],
        angles: Sequence[Tensor],
        start: int,
        interleaved: bool,
        inverse: bool,
    ) -> None:
        """Write every x of `xs`, turned, into its place in `outs`.

        Args:
            xs: one or two tensors [B, H, T, D] of one dtype (float64, float32, bfloat16, float16), B, T and D in
                common; any strides, but 1 in D.
            outs: of the same shapes; the very tensors of `xs` to turn in place, then channels that do not turn are not
                touched.
            angles: as angles.py has them, on the device of `xs`, any strides; tables are float32. For float64 they are
                tables alone, in float64.
            start: the first channel that turns. P pairs: start + 2 P <= D.
            interleaved: pair i is channels (2i, 2i + 1) instead of (i, i + P), counted from `start`.
            inverse: turn by the opposite angles; the factor multiplies as before.

        Computes in float32, or float64 for float64, and rounds once.
        """


def strides_of(part: Tensor) -> tuple[int, ...]:
    """The strides of a part of the angles; where one row is for all, every row is the first."""
    strides = part.stride()
    return (0, *strides[1:]) if part.shape[0] == 1 else strides
