"""The interface of a rotation backend. Each file of this folder defines one.

To add a backend, add a file with a subclass of `Backend`; it is found by its folder. tests/ops runs every backend
against the same expected values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(slots=True)
class RotationTask:
    """One call of the rotation, as every backend receives it.

    Attributes:
        inputs: one or two tensors (q, k) [B, H, T, D] of one dtype (float64, float32, bfloat16, float16) with equal B,
            T and D; any strides, except 1 in D.
        outputs: tensors of the same shapes to write to; the tensors of `inputs` themselves to rotate in place.
        angles: a representation of `ropewalk.ops.angles`, on the device of `inputs`, any strides. float64 channels
            always come with tables.
        start: the first channel that rotates; with P pairs, start + 2 P <= D.
        interleaved: whether pair i is channels (2i, 2i + 1) rather than (i, i + P), counted from `start`.
        inverse: whether to rotate by the opposite angles; the attention factor multiplies as before.
    """

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    angles: Sequence[Tensor]
    start: int
    interleaved: bool
    inverse: bool


class Backend(ABC):
    """An implementation of the rotation.

    Attributes:
        name: the name by which users select it.
        devices: the torch device types that it serves; empty for all.
        rank: the usable backend with the highest rank serves a device.
    """

    name: ClassVar[str]
    devices: ClassVar[frozenset[str]] = frozenset()
    rank: ClassVar[int] = 0

    def unavailable_reason(self) -> str | None:
        """Return why this backend cannot run here, or None if it can."""
        return None

    @property
    def variant(self) -> str:
        """The name with what was selected on this machine, such as the instruction set; for display."""
        return self.name

    @abstractmethod
    def rotate(self, task: RotationTask) -> None:
        """Write the rotated inputs to the outputs.

        Compute in float32, or float64 for float64 channels, and round once. Copy the channels outside
        start .. start + 2P - 1 unless the task is in place.
        """


def row_strides(angles_part: Tensor) -> tuple[int, ...]:
    """Return the strides of one tensor of the angles, with stride 0 for a single row that the whole batch shares."""
    strides = angles_part.stride()
    return (0, *strides[1:]) if angles_part.shape[0] == 1 else strides
