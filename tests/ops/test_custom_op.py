"""Gradients of the rotation, and its behavior under torch.compile, torch.export, modes and profilers."""

from __future__ import annotations

from contextlib import nullcontext
from typing import ClassVar

import numpy as np
import pytest
import torch
from tests.helpers.rotation import random_normal
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import ropewalk as rw
from ropewalk.errors import InputError
from ropewalk.ops import custom_op, rotate, to_fixed_point

# torch.func and gradcheck compile torch's own decompositions with torch.jit.script when they are first used.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")

LAYOUTS = pytest.mark.parametrize("layout", ["half", "interleaved"])
ROPE = rw.Rope(dim=48, base=10_000.0, original_length=2048)
YARN = [rw.YaRN(factor=factor).frequencies(ROPE) for factor in (2, 4, 7)]


class TestGradients:
    @staticmethod
    def q_and_k(batch=2, tokens=3):
        return [random_normal(batch, heads, tokens, 9, seed=heads).requires_grad_() for heads in (2, 1)]

    @LAYOUTS
    @pytest.mark.parametrize("inverse", [False, True])
    def test_all_inputs_to_the_second_order(self, backend, layout, inverse):
        inv_freq = (0.3 + random_normal(4, seed=5).abs()).requires_grad_()
        factor = torch.tensor(1.3).double().requires_grad_()
        inputs = (*self.q_and_k(batch=1, tokens=2), inv_freq, factor)

        def function(q, k, inv_freq, factor):
            positions = torch.tensor([[5, 2]])
            options = {"layout": layout, "start": 1, "inverse": inverse}
            return rotate(q, k, positions, inv_freq, attention_factor=factor, **options)

        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)

    @LAYOUTS
    def test_frequencies_per_row(self, layout):
        q, k = self.q_and_k()
        inv_freq_BP, factor_B = (
            random_normal(2, 4, seed=7).abs().requires_grad_(),
            random_normal(2, seed=8).requires_grad_(),
        )
        positions_BT = torch.tensor([[5, 0, 2], [1, 9, 3]])

        def function(q, k, inv_freq_BP, factor_B):
            return rotate(q, k, positions_BT, inv_freq_BP, layout, attention_factor=factor_B)

        assert torch.autograd.gradcheck(function, (q, k, inv_freq_BP, factor_B))

    @LAYOUTS
    @pytest.mark.parametrize("rows", [1, 2])
    def test_tables(self, layout, rows):
        q, k = self.q_and_k()
        cos, sin = (random_normal(rows, 3, 4, seed=seed).requires_grad_() for seed in (1, 2))

        def function(q, k, cos, sin):
            return rotate(q, k, tables=(cos, sin), layout=layout)

        assert torch.autograd.gradcheck(function, (q, k, cos, sin))

    @LAYOUTS
    def test_in_place(self, backend, layout):
        q, k = self.q_and_k()
        inv_freq = 0.3 + random_normal(4, seed=5).abs()

        def of_copies(q, k):
            return rotate(q * 1, k * 1, None, inv_freq, layout, attention_factor=1.3, in_place=True)

        def of_views_of_projections(q, k):
            views = [(x * 1).flatten(2).unflatten(2, x.shape[2:]).transpose(1, 2) for x in (q, k)]
            return rotate(*views, None, inv_freq[:1], layout, in_place=True)

        assert torch.autograd.gradcheck(of_copies, (q, k))
        assert torch.autograd.gradcheck(of_views_of_projections, (q[:, :1], k))

    def test_in_place_refuses_to_lose_a_gradient(self, backend):
        leaf = random_normal(1, 2, 5, 48).float().requires_grad_()
        before = leaf.detach().clone()
        inv_freq = torch.rand(24, requires_grad=True)
        for q, frequencies, value in [
            (leaf, YARN[0], "a leaf that requires a gradient"),
            (leaf[:, 1:], YARN[0], "a leaf that requires a gradient"),
            (before, inv_freq, "angles that require a gradient"),
        ]:
            with pytest.raises(InputError, match=f"in_place: got '{value}'"):
                rotate(q, None, frequencies=frequencies, in_place=True)
            assert torch.equal(leaf, before)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_the_gradient_is_the_inverse_rotation(self, backend, dtype):
        q, upstream = (random_normal(2, 3, 40, 48, seed=seed).to(dtype) for seed in (1, 2))
        q.requires_grad_()
        rotated, _ = rotate(q, None, frequencies=YARN[0])
        rotated.backward(upstream)
        assert torch.equal(q.grad, rotate(upstream, None, frequencies=YARN[0], inverse=True)[0])

    def test_a_loss_of_k_alone(self, backend):
        q, k = (random_normal(1, 2, 5, 48, seed=seed).float().requires_grad_() for seed in (1, 2))
        rotate(q, k, frequencies=YARN[0])[1].sum().backward()
        assert k.grad.abs().max() > 0
        assert q.grad is None or not q.grad.any()


class TestOperators:
    ANGLES: ClassVar = {
        "frequencies": {"frequencies": YARN[0]},
        "fixed point": {"frequencies": to_fixed_point(YARN[0])},
        "fixed point per row": {"frequencies": to_fixed_point(YARN[:2])},
        "inverse frequencies": {"frequencies": torch.tensor(YARN[0].inv_freq), "attention_factor": 1.2},
        "tables": {"tables": tuple(torch.from_numpy(part) for part in YARN[0].cos_sin(np.arange(6)))},
    }

    @staticmethod
    def q_and_k(requires_grad=False):
        return [random_normal(2, heads, 6, 48, seed=heads).float().requires_grad_(requires_grad) for heads in (3, 1)]

    @pytest.mark.parametrize("angles", ANGLES)
    @pytest.mark.parametrize("in_place", [False, True])
    def test_torch_compile_makes_one_graph(self, angles, in_place):
        torch._dynamo.reset()

        def function(q, k):
            return rotate(q * 2, k * 2, in_place=in_place, **self.ANGLES[angles])

        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        q, k = self.q_and_k()
        for result, expected in zip(compiled(q, k), function(q, k), strict=True):
            assert torch.equal(result, expected)

    @pytest.mark.parametrize("is_profiled", [False, True])
    def test_rotate_into_other_tensors(self, backend, is_profiled):
        q, k = self.q_and_k()
        angles = [part[None] for part in self.ANGLES["tables"]["tables"]]
        memory = torch.zeros(2, 3, 9, 48)
        outputs = [memory[:, :, 1:7], torch.zeros_like(k)]  # other strides than those of new tensors
        before = [q.clone(), k.clone()]
        with torch.profiler.profile() if is_profiled else nullcontext():
            custom_op.rotate_into(outputs, [q, k], angles, 0, False, False)
        assert all(map(torch.equal, outputs, rotate(q, k, tables=self.ANGLES["tables"]["tables"])))
        assert all(map(torch.equal, (q, k), before))
        assert not memory[:, :, :1].any()
        assert not memory[:, :, 7:].any()
        with pytest.raises(InputError, match="tokens of the angles: got 1; expected 6"):
            custom_op.rotate_into(outputs, [q, k], [part[:, :1] for part in angles], 0, False, False)

    def test_backward_detects_a_tensor_that_was_rotated_into(self, backend):
        q, weight = self.q_and_k()[0], torch.ones(1, requires_grad=True)
        loss = (weight * q).sum()
        angles = [part[None] for part in self.ANGLES["tables"]["tables"]]
        custom_op.rotate_into([q], [q.clone()], angles, 0, False, False)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    def test_direct_calls_are_checked(self):
        """Angles with too few tokens or too many rows would make a kernel read outside of its tensors."""
        q, k = self.q_and_k()
        cos, sin = (part[None] for part in self.ANGLES["tables"]["tables"])
        for angles, message in [
            ([cos[:, :1], sin[:, :1]], "tokens of the angles: got 1; expected 6"),
            ([torch.cat([cos] * 3), torch.cat([sin] * 3)], "rows of the angles: got 3; expected 1, or 2"),
            ([cos, sin[..., :1]], "shapes of the angles: got"),
            ([cos[0], sin[0]], "shapes of the angles: got"),
            ([cos.bfloat16(), sin.bfloat16()], "dtypes of the angles: got .*; expected cos and sin of torch.float32"),
        ]:
            for operator in (torch.ops.ropewalk.rotate, torch.ops.ropewalk.rotate_):
                with pytest.raises(InputError, match=message):
                    operator([q, k], angles, 0, False, False)
        with pytest.raises(InputError, match="k: got"):
            torch.ops.ropewalk.rotate([q, k[:, :, :2]], [cos, sin], 0, False, False)

    def test_fixed_point_frequencies_of_other_dtypes_are_refused(self):
        q, fixed_point = self.q_and_k()[0], to_fixed_point(YARN[0])
        for changes in (
            {"attention_factors_B": fixed_point.attention_factors_B.float()},
            {"high_BP": fixed_point.high_BP.int()},
        ):
            with pytest.raises(InputError, match="dtypes of the angles"):
                rotate(q, None, torch.arange(q.shape[2]), fixed_point._replace(**changes))

    def test_the_in_place_operator_refuses_to_lose_a_gradient(self):
        q, k = self.q_and_k(requires_grad=True)
        angles = [part[None] for part in self.ANGLES["tables"]["tables"]]
        with pytest.raises(RuntimeError, match="has no gradient"):
            torch.ops.ropewalk.rotate_([q * 1, k], angles, 0, False, False)

    def test_dual_tensors_are_refused(self):
        q = self.q_and_k()[0]
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(q, q)
            with pytest.raises(RuntimeError, match="forward-mode"):
                rotate(dual, None, frequencies=YARN[0])

    def test_torch_func_jvp_is_refused(self):
        q = self.q_and_k()[0]
        with pytest.raises(RuntimeError, match="forward-mode"):
            torch.func.jvp(lambda x: rotate(x, None, frequencies=YARN[0])[0], (q,), (q,))

    @pytest.mark.parametrize("in_place", [False, True])
    def test_dispatch_modes_see_the_operator(self, in_place):
        calls = []

        class Recorder(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                calls.append(str(function._schema))
                return function(*args, **(kwargs or {}))

        with Recorder():
            rotate(*self.q_and_k(), frequencies=YARN[0], in_place=in_place)
        assert any("ropewalk::rotate" in call for call in calls)

    @pytest.mark.parametrize("in_place", [False, True])
    def test_the_profiler_sees_the_operator(self, in_place):
        with torch.profiler.profile() as profile:
            rotate(*self.q_and_k(), frequencies=YARN[0], in_place=in_place)
        assert any(event.key.startswith("ropewalk::rotate") for event in profile.key_averages())

    # torch deprecates tracing, and warns that a trace fixes the shapes which the rotation checks.
    @pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning", "ignore::torch.jit.TracerWarning")
    def test_torch_jit_trace_sees_the_operator(self):
        q = self.q_and_k()[0]
        traced = torch.jit.trace(lambda q: rotate(q, None, frequencies=YARN[0])[0], (q,), check_trace=False)
        assert "ropewalk::rotate" in str(traced.graph)

    @pytest.mark.parametrize("is_profiled", [False, True])
    def test_backward_detects_an_overwritten_tensor(self, is_profiled):
        """With and without the dispatcher, the version of a tensor changes when it is rotated in place."""
        q, weight = self.q_and_k()[0], torch.ones(1, requires_grad=True)
        loss = (weight * q).sum()
        with torch.profiler.profile() if is_profiled else nullcontext():
            rotate(q, None, frequencies=YARN[0], in_place=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    @pytest.mark.parametrize("mode", [torch.inference_mode, FakeTensorMode])
    def test_frequencies_cached_under_a_mode_work_outside_of_it(self, mode):
        frequencies = rw.Frequencies(np.linspace(0.1, 1, 24) + (0.5 if mode is FakeTensorMode else 0))
        with mode():
            to_fixed_point(frequencies)
        q, _ = self.q_and_k(requires_grad=True)
        rotate(q, None, frequencies=frequencies)[0].sum().backward()
        assert q.grad.abs().max() > 0

    def test_compiled_gradients(self):
        torch._dynamo.reset()

        def function(q, k):
            return rotate(q, k, frequencies=YARN[0])

        gradients = []
        for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
            q, k = self.q_and_k(requires_grad=True)
            sum((x**3).sum() for x in run(q, k)).backward()
            gradients.append((q.grad, k.grad))
        assert all(torch.allclose(eager, compiled) for eager, compiled in zip(*gradients, strict=True))

    def test_other_frequencies_are_compiled_again(self):
        torch._dynamo.reset()
        q, k = self.q_and_k()
        frequencies = YARN[0]
        compiled = torch.compile(lambda q, k: rotate(q, k, frequencies=frequencies), backend="aot_eager")
        compiled(q, k)
        frequencies = YARN[1]
        assert torch.equal(compiled(q, k)[0], rotate(q, k, frequencies=YARN[1])[0])

    @pytest.mark.parametrize("requires_grad", [False, True])
    @pytest.mark.parametrize("representation", ["tables", "fixed point"])
    def test_opcheck(self, representation, requires_grad):
        q, k = self.q_and_k(requires_grad)
        if representation == "tables":
            tables = self.ANGLES["tables"]["tables"]
            angles = [part.clone()[None].requires_grad_(requires_grad) for part in tables]
        else:
            frequencies = self.ANGLES["fixed point"]["frequencies"]
            angles = [torch.arange(6)[None], frequencies.high_BP, frequencies.attention_factors_B]
        torch.library.opcheck(torch.ops.ropewalk.rotate.default, ([q, k], angles, 0, True, False))
        if not requires_grad:
            torch.library.opcheck(torch.ops.ropewalk.rotate_.default, ([q, k], angles, 0, False, True))

    def test_torch_export_keeps_the_operator(self):
        class Rotation(torch.nn.Module):
            def forward(self, q, k, cos, sin):
                return rotate(q, k, tables=(cos, sin))

        inputs = (*self.q_and_k(), *self.ANGLES["tables"]["tables"])
        exported = torch.export.export(Rotation(), inputs)
        assert "ropewalk.rotate.default" in str(exported.graph)
        assert torch.equal(exported.module()(*inputs)[0], Rotation()(*inputs)[0])
