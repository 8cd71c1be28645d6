"""The rotation as custom operators of torch, so that torch.compile and torch.export keep it as one node.

    ropewalk::rotate(Tensor[] x, Tensor[] angles, int start, bool interleaved, bool inverse) -> Tensor[]
    ropewalk::rotate_(Tensor(a!)[] x, Tensor[] angles, int start, bool interleaved, bool inverse) -> ()

`x` is one or two tensors [B, H, T, D], `angles` either representation of `ropewalk.ops.angles`. The gradient of a
rotation is the rotation by the opposite angles. Tables may require a gradient, too.

`rotate` and `rotate_in_place` are the functions to call. They call the backend directly where nothing observes the
operator, which saves the dispatcher's overhead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ropewalk.compat.torch import (
    below_autograd,
    is_dispatch_mode_active,
    is_forward_mode_active,
    is_function_transform_active,
    is_jit_tracing,
    is_profiler_active,
    view_base,
)
from ropewalk.errors import InputError
from ropewalk.ops.angles import split_pairs
from ropewalk.ops.backends import BACKENDS, Backend, RotationTask, backend_for
from ropewalk.ops.backends.base import Launch
from ropewalk.ops.checks import check_angles, check_q_and_k
from ropewalk.ops.prepared import find_launch, keep_launch, signature_of

Options = tuple[int, bool, bool]  # start, interleaved, inverse: the last three arguments of the operators

_LIBRARY: Any = torch.library.Library("ropewalk", "DEF")  # type: ignore[no-untyped-call]
_PLAIN_TENSORS = {Tensor}
_OTHER_ARGUMENTS = "Tensor[] angles, int start, bool interleaved, bool inverse"
_LIBRARY.define(f"rotate(Tensor[] x, {_OTHER_ARGUMENTS}) -> Tensor[]", tags=(torch.Tag.pt2_compliant_tag,))
_LIBRARY.define(f"rotate_(Tensor(a!)[] x, {_OTHER_ARGUMENTS}) -> ()", tags=(torch.Tag.pt2_compliant_tag,))


# --- the functions that the rest of ropewalk calls -------------------------------------------------------------------


def rotate(xs: list[Tensor], angles: list[Tensor], *options: *Options) -> list[Tensor]:
    """Return rotated copies of one or two tensors, through the operator only if something observes it.

    The caller has checked the angles with `check_angles`.
    """
    function = torch.ops.ropewalk.rotate.default if is_observed((*xs, *angles)) else _rotate
    rotated: list[Tensor] = function(xs, angles, *options)
    return rotated


def rotate_in_place(xs: list[Tensor], angles: list[Tensor], *options: *Options) -> list[Tensor]:
    """Overwrite one or two tensors with their rotation and return them; differentiable in `xs`.

    The caller has checked the angles with `check_angles`.

    Raises InputError where autograd would lose what is overwritten: for leaves that require a gradient and views of
    them, and for tables that require a gradient.
    """
    if not is_observed((*xs, *angles)):
        _rotate_in_place(xs, angles, *options)
        return xs
    is_grad_enabled = torch.is_grad_enabled()
    if is_grad_enabled and _tables_require_grad(angles):
        raise InputError("in_place", "angles that require a gradient", "a rotation out of place for them")
    if not (is_grad_enabled and _require_grad(xs)):
        torch.ops.ropewalk.rotate_.default(xs, angles, *options)
        return xs
    for x in xs:
        base = view_base(x)
        if x.requires_grad and (x.is_leaf or (base is not None and base.is_leaf)):
            raise InputError(
                "in_place", "a leaf that requires a gradient", "a rotation out of place, as for every torch operator"
            )
    return [_RotateInPlace.apply(angles, options, x) for x in xs]  # type: ignore[no-untyped-call]


def rotate_into(outputs: list[Tensor], inputs: list[Tensor], angles: list[Tensor], *options: *Options) -> None:
    """Overwrite `outputs`, which share no memory with `inputs`, by the rotation of `inputs`; without a gradient.

    Both are one or two tensors [B, H, T, D] of equal shapes.
    """
    check_angles(inputs[0], angles, start=options[0])
    with torch.no_grad():
        if is_observed((*inputs, *outputs, *angles)):
            for output, rotated in zip(outputs, rotate(inputs, angles, *options), strict=True):
                output.copy_(rotated)
            return
        task = RotationTask(inputs, outputs, angles, *options)
        _backend_of(task).rotate(task)
        record_overwrite(outputs)


def prepare(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], angles: Sequence[Tensor], *options: *Options
) -> Launch | None:
    """Return a launch of a rotation that nothing observes; None if its backend cannot prepare rotations."""
    task = RotationTask(inputs, outputs, angles, *options)
    return _backend_of(task).prepare(task)


def record_overwrite(xs: list[Tensor]) -> None:
    """Tell autograd that the tensors were overwritten, so that it detects saved tensors among them."""
    torch.autograd.graph.increment_version(xs)


def is_observed(tensors: Sequence[Tensor]) -> bool:
    """Return whether anything needs to see the operator: autograd, a compiler, a mode, a profiler or a subclass.

    The dispatcher and the way back to Python take 10 us with warm caches and 100 us with cold ones, as long as the
    rotation of a hundred tokens, so a plain eager call goes to the backend directly.
    """
    if (
        torch.compiler.is_compiling()
        or is_jit_tracing()
        or is_dispatch_mode_active()
        or is_function_transform_active()
        or is_forward_mode_active()
        or is_profiler_active()
    ):
        return True
    return set(map(type, tensors)) != _PLAIN_TENSORS or (torch.is_grad_enabled() and _require_grad(tensors))


def _require_grad(tensors: Sequence[Tensor]) -> bool:
    return any(tensor.requires_grad for tensor in tensors)


def _tables_require_grad(angles: Sequence[Tensor]) -> bool:
    # Only tables can require a gradient: positions and fixed-point frequencies are integers. torch.compile cannot read
    # `requires_grad` of constants, which those frequencies are.
    return len(angles) == 2 and _require_grad(angles)


# --- the kernels of the operators ------------------------------------------------------------------------------------


def _rotate(xs: list[Tensor], angles: list[Tensor], *options: *Options) -> list[Tensor]:
    outputs = [torch.empty_like(x) for x in xs]
    _run_backend(xs, outputs, angles, *options)
    return outputs


def _rotate_in_place(xs: list[Tensor], angles: list[Tensor], *options: *Options) -> None:
    _run_backend(xs, xs, angles, *options)
    record_overwrite(xs)


def _run_backend(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], angles: Sequence[Tensor], *options: *Options
) -> None:
    task = RotationTask(inputs, outputs, angles, *options)
    call = len(inputs), outputs is inputs, options
    signature = signature_of(backend_for(inputs[0].device.type), call, inputs[0], inputs[-1], angles)
    launch = find_launch(signature)
    if launch is not None:
        launch(*task.addresses())
        return
    backend = _backend_of(task)
    launch = backend.prepare(task)
    if launch is None:
        backend.rotate(task)
    else:
        launch(*task.addresses())
        keep_launch(signature, launch)


def _backend_of(task: RotationTask) -> Backend:
    """Return the backend of the device, or for tensors that it does not support the reference backend."""
    has_lazy_negation = any(tensor.is_neg() for tensor in (*task.inputs, *task.angles))
    has_strided_channels = any(tensor.stride(-1) != 1 for tensor in (*task.inputs, *task.outputs))
    if has_lazy_negation or has_strided_channels:
        return BACKENDS["reference"]
    return backend_for(task.inputs[0].device.type)


def _with_checks(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Return the kernel with checks of its arguments: the operators may also be called directly."""

    def checked(xs: list[Tensor], angles: list[Tensor], *options: *Options) -> Any:
        check_q_and_k(xs[0], xs[-1])
        check_angles(xs[0], angles, start=options[0])
        if is_forward_mode_active():
            # torch would return a tangent of zero without a word.
            raise RuntimeError("ropewalk::rotate has no forward-mode derivative (jvp); use reverse mode")
        return kernel(xs, angles, *options)

    return checked


def _rotate_in_place_without_gradient(xs: list[Tensor], angles: list[Tensor], *options: *Options) -> None:
    """Run `rotate_` below autograd, after checking that no gradient is lost."""
    if torch.is_grad_enabled() and _require_grad([*xs, *angles]):
        raise RuntimeError("ropewalk::rotate_ has no gradient; use ropewalk.ops.rotate(..., in_place=True)")
    with below_autograd():
        torch.ops.ropewalk.rotate_.default(xs, angles, *options)


_LIBRARY.impl("rotate", _with_checks(_rotate), "CompositeExplicitAutograd")
_LIBRARY.impl("rotate_", _with_checks(_rotate_in_place), "CompositeExplicitAutograd")
_LIBRARY.impl("rotate_", _rotate_in_place_without_gradient, "Autograd")
torch.library.register_fake("ropewalk::rotate", lambda xs, *_: [torch.empty_like(x) for x in xs], lib=_LIBRARY)
torch.library.register_fake("ropewalk::rotate_", lambda *_: None, lib=_LIBRARY)


# --- gradients -------------------------------------------------------------------------------------------------------


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    xs, angles, *ctx.options = inputs
    ctx.tables_require_grad = _tables_require_grad(angles)
    ctx.angle_count = len(angles)
    # Only the gradient of the tables needs the channels; that of the channels needs the angles alone.
    ctx.save_for_backward(*angles, *(xs if ctx.tables_require_grad else ()))


def _backward(ctx: Any, grads: Sequence[Tensor]) -> tuple[Any, ...]:
    saved = ctx.saved_tensors  # read once: gradient checkpointing recomputes them at every access
    angles, xs = list(saved[: ctx.angle_count]), saved[ctx.angle_count :]
    start, interleaved, inverse = ctx.options
    x_grads = rotate(list(grads), angles, start, interleaved, not inverse)
    angle_grads: list[Tensor | None] = [None] * ctx.angle_count
    if ctx.tables_require_grad:
        cos_BTP, sin_BTP = angles
        cos_grad, sin_grad = torch.zeros_like(cos_BTP), torch.zeros_like(sin_BTP)
        pairs, dtype = cos_BTP.shape[-1], cos_BTP.dtype
        for x_BHTD, grad_BHTD in zip(xs, grads, strict=True):
            first, second = split_pairs(x_BHTD.to(dtype), start, pairs, interleaved)
            first_grad, second_grad = split_pairs(grad_BHTD.to(dtype), start, pairs, interleaved)
            cos_grad = cos_grad + (first_grad * first + second_grad * second).sum(1).sum_to_size(cos_BTP.shape)
            sin_grad = sin_grad + (second_grad * first - first_grad * second).sum(1).sum_to_size(sin_BTP.shape)
        angle_grads = [cos_grad, -sin_grad if inverse else sin_grad]
    return x_grads, angle_grads, None, None, None


torch.library.register_autograd("ropewalk::rotate", _backward, setup_context=_save_for_backward, lib=_LIBRARY)


class _RotateInPlace(torch.autograd.Function):
    """`rotate_` under autograd. The backward pass rotates the gradient back, so it needs no overwritten value.

    It handles one tensor per call: torch forbids views among several outputs that are modified in place.
    """

    @staticmethod
    def forward(ctx: Any, angles: list[Tensor], options: Options, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        ctx.options = options
        ctx.save_for_backward(*angles)
        torch.ops.ropewalk.rotate_.default([x], angles, *options)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        start, interleaved, inverse = ctx.options
        (x_grad,) = rotate([grad], list(ctx.saved_tensors), start, interleaved, not inverse)
        return None, None, x_grad
