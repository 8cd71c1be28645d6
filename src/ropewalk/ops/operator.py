"""The rotation as operators of torch, which torch.compile and torch.export keep whole.

    ropewalk::rotate(Tensor[] x, Tensor[] angles, int start, bool interleaved, bool inverse) -> Tensor[]
    ropewalk::rotate_(Tensor(a!)[] x, Tensor[] angles, int start, bool interleaved, bool inverse) -> ()

`x`: one or two tensors [B, H, T, D]; `angles`: a form of angles.py. The gradient is the rotation by the opposite angle;
tables may have one, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from ropewalk.errors import InputError
from ropewalk.ops import angles as forms
from ropewalk.ops.backends import BACKENDS, backend_for

Place = tuple[int, bool, bool]  # start, interleaved, inverse

_LIBRARY: Any = torch.library.Library("ropewalk", "DEF")  # type: ignore[no-untyped-call]
_REST = "Tensor[] angles, int start, bool interleaved, bool inverse"
_LIBRARY.define(f"rotate(Tensor[] x, {_REST}) -> Tensor[]", tags=(torch.Tag.pt2_compliant_tag,))
_LIBRARY.define(f"rotate_(Tensor(a!)[] x, {_REST}) -> ()", tags=(torch.Tag.pt2_compliant_tag,))


def _turn(xs: Sequence[Tensor], outs: Sequence[Tensor], angles: Sequence[Tensor], *place: *Place) -> None:
    backend = backend_for(xs[0].device.type)
    # What no model has is left to torch: channels that lie apart, views that stand for the opposite of what they hold.
    for x in (*xs, *outs):
        if x.stride(-1) != 1 or x.is_neg():
            backend = BACKENDS["reference"]
    for part in angles:
        if part.is_neg():
            backend = BACKENDS["reference"]
    backend.turn(xs, outs, angles, *place)


def _rotated(xs: list[Tensor], angles: list[Tensor], *place: *Place) -> list[Tensor]:
    outs = [torch.empty_like(x) for x in xs]
    _turn(xs, outs, angles, *place)
    return outs


def _rotate_in_place(xs: list[Tensor], angles: list[Tensor], *place: *Place) -> None:
    _turn(xs, xs, angles, *place)
    torch.autograd.graph.increment_version(xs)


def _checked(turn: Any) -> Any:
    """For calls of the operators themselves, which have not come by way of `rotate`."""

    def checked(xs: list[Tensor], angles: list[Tensor], *place: *Place) -> Any:
        forms.check(xs[0], angles, place[0])
        if forward_ad._current_level >= 0:  # it would be 0, in silence
            raise RuntimeError("ropewalk::rotate has no forward-mode derivative (jvp); take the backward one")
        return turn(xs, angles, *place)

    return checked


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    xs, angles, *ctx.place = inputs
    ctx.of_tables = len(angles) == 2 and any(part.requires_grad for part in angles)
    ctx.forms = len(angles)
    ctx.save_for_backward(*angles, *(xs if ctx.of_tables else ()))


def _backward(ctx: Any, grads: Sequence[Tensor]) -> tuple[Any, ...]:
    saved = ctx.saved_tensors  # asked for once, as gradient checkpointing wants it
    angles, xs = saved[: ctx.forms], saved[ctx.forms :]
    start, interleaved, inverse = ctx.place
    turned_back = rotate(list(grads), list(angles), start, interleaved, not inverse)
    of_angles: list[Tensor | None] = [None] * ctx.forms
    if ctx.of_tables:
        cos_BTP, sin_BTP = angles
        of_cos, of_sin = torch.zeros_like(cos_BTP), torch.zeros_like(sin_BTP)
        for x_BHTD, grad_BHTD in zip(xs, grads, strict=True):
            a, b = forms.pairs_of(x_BHTD.to(cos_BTP.dtype), start, cos_BTP.shape[-1], interleaved)
            grad_a, grad_b = forms.pairs_of(grad_BHTD.to(cos_BTP.dtype), start, cos_BTP.shape[-1], interleaved)
            of_cos = of_cos + (grad_a * a + grad_b * b).sum(1).sum_to_size(cos_BTP.shape)
            of_sin = of_sin + (grad_b * a - grad_a * b).sum(1).sum_to_size(sin_BTP.shape)
        of_angles = [of_cos, -of_sin if inverse else of_sin]
    return turned_back, of_angles, None, None, None


_LIBRARY.impl("rotate", _checked(_rotated), "CompositeExplicitAutograd")
_LIBRARY.impl("rotate_", _checked(_rotate_in_place), "CompositeExplicitAutograd")
torch.library.register_fake("ropewalk::rotate", lambda x, *_: [torch.empty_like(each) for each in x], lib=_LIBRARY)
torch.library.register_fake("ropewalk::rotate_", lambda *_: None, lib=_LIBRARY)
torch.library.register_autograd("ropewalk::rotate", _backward, setup_context=_keep, lib=_LIBRARY)
_out_of_place = torch.ops.ropewalk.rotate.default
_in_place = torch.ops.ropewalk.rotate_.default


def _unwatched(xs: Sequence[Tensor], angles: Sequence[Tensor]) -> bool:
    """Whether a call may go to the backend as it is.

    The way through the dispatcher and back to Python takes 10 us with warm caches and 100 with cold ones: as long as
    turning a hundred tokens. So it is gone only where somebody is there to see it: a gradient, a compiler, a mode or
    transform of torch, a profiler, a subclass of Tensor.
    """
    if (
        torch.compiler.is_compiling()
        or is_in_torch_dispatch_mode()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
        or torch._C._autograd._profiler_enabled()
    ):
        return False
    grad = torch.is_grad_enabled()
    return all(type(each) is Tensor and not (grad and each.requires_grad) for each in (*xs, *angles))


def rotate(xs: list[Tensor], angles: list[Tensor], *place: *Place) -> list[Tensor]:
    """`ropewalk::rotate`, of angles that fit."""
    turn = _rotated if _unwatched(xs, angles) else _out_of_place
    turned: list[Tensor] = turn(xs, angles, *place)
    return turned


def _in_place_alone(xs: list[Tensor], angles: list[Tensor], *place: *Place) -> None:
    if torch.is_grad_enabled() and any(each.requires_grad for each in (*xs, *angles)):
        raise RuntimeError(
            "ropewalk::rotate_ has no gradient of its own; `ropewalk.ops.rotate(..., in_place=True)` has"
        )
    with torch._C._AutoDispatchBelowAutograd():
        _in_place(xs, angles, *place)


_LIBRARY.impl("rotate_", _in_place_alone, "Autograd")


class _InPlace(torch.autograd.Function):
    """`rotate_` under autograd: what it overwrites is not needed, since a rotation is undone by turning back.

    One tensor at a time: of several, torch lets none be a view.
    """

    @staticmethod
    def forward(ctx: Any, angles: list[Tensor], place: Place, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        ctx.place = place
        ctx.save_for_backward(*angles)
        _in_place([x], angles, *place)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        start, interleaved, inverse = ctx.place
        return None, None, rotate([grad], list(ctx.saved_tensors), start, interleaved, not inverse)[0]


def rotate_in_place(xs: list[Tensor], angles: list[Tensor], *place: *Place) -> list[Tensor]:
    """`ropewalk::rotate_`, of angles that fit; differentiable in `xs`.

    Raises InputError where torch could not tell what is overwritten: for leaves, and angles that require a gradient.
    """
    if _unwatched(xs, angles):
        _rotate_in_place(xs, angles, *place)
        return xs
    of_tables = torch.is_grad_enabled() and len(angles) == 2 and any(part.requires_grad for part in angles)
    if not of_tables and not (torch.is_grad_enabled() and any(x.requires_grad for x in xs)):
        _in_place(xs, angles, *place)
        return xs
    if of_tables:
        raise InputError("in_place", "angles that require a gradient", "it out of place")
    if any(x.requires_grad and (x.is_leaf or (x._base is not None and x._base.is_leaf)) for x in xs):
        raise InputError(
            "in_place", "a leaf that requires a gradient", "it out of place, as in all operations of torch"
        )
    return [_InPlace.apply(angles, place, x) for x in xs]  # type: ignore[no-untyped-call]
