"""Each private hook into torch still exists and means what ropewalk relies on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from ropewalk.compat import torch as hooks

# torch.func compiles torch's own decompositions with torch.jit.script when it is first used.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")


def test_no_mode_is_active_in_plain_code():
    assert not hooks.is_dispatch_mode_active()
    assert not hooks.is_function_transform_active()
    assert not hooks.is_jit_tracing()
    assert not hooks.is_forward_mode_active()
    assert not hooks.is_profiler_active()


def test_dispatch_modes_are_detected():
    with FakeTensorMode():
        assert hooks.is_dispatch_mode_active()


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap], ids=["grad", "vmap"])
def test_function_transforms_are_detected(transform):
    seen = []

    def function(x):
        seen.append(hooks.is_function_transform_active())
        return x.sum()

    transform(function)(torch.ones(2))
    assert seen == [True]


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")  # it is what is tested
def test_jit_tracing_is_detected():
    seen = []

    def function(x):
        seen.append(hooks.is_jit_tracing())
        return x + 1

    torch.jit.trace(function, torch.ones(1), check_trace=False)
    assert seen == [True]


def test_forward_mode_is_detected():
    with forward_ad.dual_level():
        assert hooks.is_forward_mode_active()


def test_forward_mode_is_detected_inside_torch_func_jvp():
    seen = []

    def function(x):
        seen.append(hooks.is_forward_mode_active())
        return x

    torch.func.jvp(function, (torch.ones(1),), (torch.ones(1),))
    assert seen == [True]


def test_the_profiler_is_detected():
    with torch.profiler.profile():
        assert hooks.is_profiler_active()


@pytest.mark.parametrize("mode", [torch.inference_mode, FakeTensorMode])
def test_tensors_created_without_modes_are_plain(mode):
    with mode(), hooks.without_modes():
        created = torch.ones(2)
    assert type(created) is torch.Tensor
    assert not created.is_inference()


def test_tensors_created_without_modes_do_not_belong_to_a_function_transform():
    created = []

    def function(x):
        with hooks.without_modes():
            created.append(torch.ones(2))
        return x.sum()

    torch.func.grad(function)(torch.ones(2))
    assert not torch._C._functorch.is_functorch_wrapped_tensor(created[0])


def test_below_autograd_skips_autograd():
    x = torch.ones(2, requires_grad=True)
    with hooks.below_autograd():
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad


def test_view_base():
    x = torch.ones(4)
    assert hooks.view_base(x) is None
    assert hooks.view_base(x[1:][1:]) is x


def test_bfloat16_instructions_agree_with_the_flags_of_the_kernel():
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    if not {"sse2"} & flags:
        pytest.skip("needs /proc/cpuinfo of an x86 CPU")
    assert hooks.cpu_has_bfloat16_instructions() == bool({"amx_tile", "avx512_bf16"} & flags)


def test_no_other_file_uses_private_names_of_torch():
    """All private hooks live in compat/torch.py, where the versions they were checked with are recorded."""
    package = Path(hooks.__file__).parents[1]
    private = re.compile(r"torch(\.\w+)*\._[a-z]|forward_ad\._|_python_dispatch|\._base\b", re.IGNORECASE)
    files = [path for path in package.rglob("*.py") if path != Path(hooks.__file__)]
    assert [path for path in files if private.search(path.read_text(encoding="utf-8"))] == []
