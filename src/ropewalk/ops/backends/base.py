"""The interface of a rotation backend. Each file of this folder defines one.

To add a backend, add a file with a subclass of `Backend`; it is found by its folder. tests/ops runs every backend
against the same expected values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
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

    def tensors(self) -> tuple[Tensor, ...]:
        """Return q, its output, k, its output, and three parts of the angles.

        Without k, q takes its place. Tables have two parts, so sin takes the place of the third.
        """
        inputs, outputs, angles = self.inputs, self.outputs, self.angles
        return inputs[0], outputs[0], inputs[-1], outputs[-1], angles[0], angles[1], angles[-1]

    def addresses(self) -> list[int]:
        """Return where the data of `tensors` begins."""
        return [tensor.data_ptr() for tensor in self.tensors()]


# Runs a rotation that was prepared; takes `RotationTask.addresses`.
Launch = Callable[[int, int, int, int, int, int, int], None]


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

    def prepare(self, task: RotationTask) -> Launch | None:
        """Return a launch for all tasks with the signature of this one (see prepared.py), whose tensors are elsewhere.

        None if the backend cannot prepare tasks. Nothing is rotated yet.
        """
        return None


def row_strides(angles_part: Tensor) -> tuple[int, ...]:
    """Return the strides of one tensor of the angles, with stride 0 for a single row that the whole batch shares."""
    strides = angles_part.stride()
    return (0, *strides[1:]) if angles_part.shape[0] == 1 else strides
