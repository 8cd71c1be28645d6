"""The interface of an implementation. To compare another project, add a file with a subclass of `Implementation`.

Shapes: B batch rows, H heads, T tokens, D rotary channels of a head, S = B x T tokens of all rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.util import find_spec
from typing import ClassVar, Literal

from torch import Tensor

from benchmarks.speed.cases import Case, Inputs

Call = Callable[[], object]
Role = Literal["limit", "ours", "peer"]


class Implementation(ABC):
    """A way to rotate q and k, or a plain copy of them as the limit.

    Attributes:
        name: the name in tables and results.
        role: "ours" for ropewalk, "peer" for another project, "limit" for a copy.
        in_place: whether it overwrites q and k.
        package: the distribution of the project, whose version is recorded.
    """

    name: ClassVar[str]
    role: ClassVar[Role] = "peer"
    in_place: ClassVar[bool] = False
    package: ClassVar[str | None] = None

    def unavailable_reason(self, case: Case) -> str | None:
        """Return why it cannot run this case here, or None if it can."""
        return None

    @abstractmethod
    def prepare(self, inputs: Inputs) -> Call:
        """Return a function without arguments that rotates q and k once.

        The function returns q and k, [B, H, T, D] each, unless it works in place. Everything that a model does once for
        all layers (tables, compilation) happens here, where it is not timed.
        """

    def get_result(self, inputs: Inputs, returned: object) -> tuple[Tensor, Tensor]:
        """Return q and k after a call, [B, H, T, D] each, in the layout of the case."""
        return (inputs.q_BHTD, inputs.k_BHTD) if self.in_place else returned  # type: ignore[return-value]


def find_missing_requirement(
    case: Case, *modules: str, needs_cuda: bool = True, supports_interleaved: bool = True
) -> str | None:
    """Return which requirement is not met: a CUDA device, the half layout, or one of the modules; else None."""
    if needs_cuda and case.device.type != "cuda":
        return "runs on CUDA devices only"
    if not supports_interleaved and case.is_interleaved:
        return "supports the half layout only"
    if not any(map(is_installed, modules)):  # the last check, because it may import a large package
        return f"{' or '.join(modules)} is not installed"
    return None


def is_installed(module: str) -> bool:
    """Return whether a module can be found."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that would contain it
        return False


def flatten_tokens(x_BHTD: Tensor) -> Tensor:
    """Return a view [S, H x D], the shape in serving engines; [S, H, D] if the former would need a copy."""
    x_SHD = x_BHTD.transpose(1, 2).flatten(0, 1)
    return x_SHD.flatten(1) if x_SHD.is_contiguous() else x_SHD
