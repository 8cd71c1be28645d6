"""What a contestant is: one file of this folder.

Shapes: B rows of the batch, H heads, T tokens, D channels of a head, S = B x T tokens of all rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.util import find_spec
from typing import ClassVar, Literal

from benchmarks.speed.shapes import Case, Inputs
from torch import Tensor

Call = Callable[[], object]


class Peer(ABC):
    """One way to turn q and k, or, as the limit, to move them.

    Attributes:
        name: what the tables call it.
        role: "peer" for another project's, "ours", or "limit" for a plain copy, which turns nothing.
        in_place: whether it overwrites q and k.
        package: the distribution that it comes from, whose version is kept with the numbers.
    """

    name: ClassVar[str]
    role: ClassVar[Literal["limit", "ours", "peer"]] = "peer"
    in_place: ClassVar[bool] = False
    package: ClassVar[str | None] = None

    def missing(self, case: Case) -> str | None:
        """Why it cannot do this case here; None when it may try."""
        return None

    @abstractmethod
    def prepare(self, inputs: Inputs) -> Call:
        """What does it once: takes nothing, and returns q and k, each [B, H, T, D], unless it works in place.

        All that a model does once and not in every layer (tables, compilation) is done here, where it is not timed.
        """

    def answer(self, inputs: Inputs, returned: object) -> tuple[Tensor, Tensor]:
        """q and k after a call, each [B, H, T, D] in the layout of the case."""
        return (inputs.q_BHTD, inputs.k_BHTD) if self.in_place else returned  # type: ignore[return-value]


def needs(case: Case, *modules: str, cuda: bool = True, interleaved: bool = True) -> str | None:
    """Why one who needs these modules, a CUDA device, the half layout is not there; None when all is."""
    if cuda and case.device.type != "cuda":
        return "runs on CUDA devices"
    if not interleaved and case.shape.layout == "interleaved":
        return "turns the half layout"
    if not any(map(found, modules)):  # last: to look for a module is to import the package that it is in
        return f"{' or '.join(modules)} is not installed"
    return None


def found(module: str) -> bool:
    """Whether it is installed."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False


def in_one_row(x_BHTD: Tensor) -> Tensor:
    """A view [S, H x D] of all tokens in one row, as serving engines have them; [S, H, D] where that is no view."""
    x_SHD = x_BHTD.transpose(1, 2).flatten(0, 1)
    return x_SHD.flatten(1) if x_SHD.is_contiguous() else x_SHD
