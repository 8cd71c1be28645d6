"""Repeated calls of `rotate` skip the checks and the plan, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.helpers.rotation import expected_rotation, random_normal

import ropewalk as rw
from ropewalk.errors import InputError
from ropewalk.ops import backend_for, prepared, rotate, rotation, to_fixed_point, use_backend

# torch.func compiles torch's own decompositions with torch.jit.script when it is first used.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")

ROPE = rw.Rope(dim=48, base=10_000.0, original_length=2048)
YARN = rw.YaRN(factor=4).frequencies(ROPE)
FIXED_POINT = to_fixed_point(YARN)
LAYOUTS = pytest.mark.parametrize("layout", ["half", "interleaved"])
IN_PLACE = pytest.mark.parametrize("in_place", [False, True], ids=["out of place", "in place"])
ANGLES = pytest.mark.parametrize("kind", ["tables", "tables of one row", "positions", "positions of one row"])


@pytest.fixture(autouse=True)
def no_launches(monkeypatch):
    """Start every test without prepared launches."""
    monkeypatch.setattr(prepared, "_launches", {})


def q_and_k(seed=0, dtype=torch.float32):
    return [random_normal(2, heads, 6, 56, seed=10 * seed + heads).to(dtype) for heads in (3, 1)]


def angles_of(kind, seed):
    """Return new angle tensors, as arguments of `rotate`, and cos + i sin as [B, T, P]."""
    positions_BT = torch.randint(0, 2**20, (2, 6), generator=torch.Generator().manual_seed(seed))
    if "one row" in kind:
        positions_BT = positions_BT[:1]
    cos_BTP, sin_BTP = YARN.cos_sin(positions_BT.numpy(), "float64")
    cis_BTP = np.broadcast_to(cos_BTP + 1j * sin_BTP, (2, 6, 24))
    if "positions" in kind:
        positions = positions_BT[0] if "one row" in kind else positions_BT
        return {"positions": positions, "frequencies": FIXED_POINT}, cis_BTP
    tables = tuple(torch.from_numpy(part).float() for part in (cos_BTP, sin_BTP))
    return {"tables": tuple(part[0] for part in tables) if "one row" in kind else tables}, cis_BTP


def fail(*_):
    raise AssertionError("a repeated call was checked or planned again")


def can_prepare():
    return backend_for("cpu").name != "reference"


@LAYOUTS
@IN_PLACE
@ANGLES
@pytest.mark.parametrize("has_k", [True, False])
def test_repeated_calls_rotate_the_tensors_of_each_call(backend, monkeypatch, layout, in_place, kind, has_k):
    for repetition in range(3):
        q, k = q_and_k(repetition)
        angles, cis_BTP = angles_of(kind, repetition)
        expected = [expected_rotation(x, cis_BTP, 4, layout == "interleaved") for x in (q, k)]
        before = [q.clone(), k.clone()]
        rotated = rotate(q, k if has_k else None, layout=layout, start=4, in_place=in_place, **angles)
        for x, original, out, correct in zip((q, k), before, rotated, expected, strict=True):
            if out is None:
                assert not has_k
                continue
            assert np.allclose(out.double().numpy(), correct, atol=2e-6)
            assert torch.equal(x, out if in_place else original)
            assert (out.data_ptr() == x.data_ptr()) == in_place
        if can_prepare():
            monkeypatch.setattr(rotation, "check_angles", fail)
            monkeypatch.setattr(type(backend_for("cpu")), "prepare", fail)


@pytest.mark.parametrize(
    "changed",
    [
        {"layout": "interleaved"},
        {"start": 2},
        {"inverse": True},
        {"in_place": True},
        {"q": q_and_k()[0].transpose(1, 2).contiguous().transpose(1, 2)},
        {"q": q_and_k()[0].bfloat16(), "k": q_and_k()[1].bfloat16()},
        {"q": torch._neg_view(q_and_k()[0])},
        {"q": torch.cat([torch.zeros(1), q_and_k()[0].flatten()])[1:].view(2, 3, 6, 56)},  # not aligned to 16 bytes
        {"k": None},
        {"k": random_normal(2, 4, 6, 56).float()},
        {"k": random_normal(2, 1, 56, 6).float().transpose(2, 3)},
        {"positions": torch.arange(6)},
        {"positions": torch.arange(6, dtype=torch.int32)[None]},
        {"positions": torch.arange(24).view(12, 2).T[:, ::2]},
        {"positions": torch.arange(12).view(2, 6)[:, :]},
        {"frequencies": to_fixed_point([YARN, rw.NoScaling().frequencies(ROPE)])},
        {"frequencies": YARN},
    ],
    ids=", ".join,
)
def test_a_call_that_differs_is_not_taken_for_the_repeated_one(backend, changed):
    def arguments():
        q, k = q_and_k()
        call = {"q": q, "k": k, "positions": torch.arange(12).view(2, 6), "frequencies": FIXED_POINT} | changed
        return {name: part.clone() if name in ("q", "k") and part is not None else part for name, part in call.items()}

    common = dict(zip(("q", "k"), q_and_k(), strict=True)) | {"positions": torch.arange(12).view(2, 6)}
    use_backend("reference")
    expected = rotate(**arguments())
    use_backend(backend.name)
    for _ in range(2):
        rotate(**common, frequencies=FIXED_POINT)
    for _ in range(2):
        for out, correct in zip(rotate(**arguments()), expected, strict=True):
            assert (out is None) == (correct is None)
            tolerance = 2e-2 if out is not None and out.dtype == torch.bfloat16 else 2e-6
            assert out is None or torch.allclose(out, correct, atol=tolerance)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"positions": torch.zeros(2, 6)}, "positions: got .*float32"),
        ({"positions": torch.zeros(3, 6, dtype=torch.int64)}, "rows of the angles: got 3"),
        ({"attention_factor": 2.0}, "attention_factor: got 2.0"),
        ({"cu_seqlens": torch.tensor([0, 6])}, "cu_seqlens: got"),
        ({"layout": ["half"]}, "layout: got"),
        ({"start": 9}, "pairs: got '24 from channel 9 on'"),
        ({"k": torch.zeros(2, 1, 5, 56)}, "k: got"),
        ({"k": torch.zeros(2, 1, 6, 56).half()}, "q and k: got"),
        ({"tables": (torch.zeros(6, 24),) * 2}, "expected either frequencies or tables"),
        ({"positions": torch.zeros(2, 6, dtype=torch.int64, device="meta")}, "device of the angles"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_refused_after_good_calls(backend, changed, message):
    q, k = q_and_k()
    good = {"q": q, "k": k, "positions": torch.arange(12).view(2, 6), "frequencies": FIXED_POINT}
    for _ in range(2):
        rotate(**good)
    with pytest.raises(InputError, match=message):
        rotate(**good | changed)


def test_heads_that_share_memory_are_refused_after_good_calls(backend):
    q = random_normal(2, 3, 6, 48).float()
    for in_place in (False, True):
        for _ in range(2):
            rotate(q.clone(), q.clone(), torch.arange(6)[None], FIXED_POINT, in_place=in_place)
    for heads in ((q, q), (q[:, :1].expand(-1, 3, -1, -1), None)):
        for _ in range(2):
            rotate(*heads, torch.arange(6)[None], FIXED_POINT)
            with pytest.raises(InputError, match="heads that share memory"):
                rotate(*heads, torch.arange(6)[None], FIXED_POINT, in_place=True)


def test_gradients_after_calls_without_them(backend):
    q, k = q_and_k()
    arguments = {"positions": torch.arange(6)[None], "frequencies": FIXED_POINT}
    for _ in range(2):
        rotate(q, k, **arguments)
    q.requires_grad_()
    rotated, _ = rotate(q, k, **arguments)
    rotated.backward(rotated.detach())
    factor = YARN.attention_factor**2
    assert torch.allclose(q.grad, torch.cat([factor * q[..., :48], q[..., 48:]], -1), atol=1e-5)
    with torch.no_grad():
        assert not rotate(q, k, **arguments)[0].requires_grad
    assert rotate(q, k, **arguments)[0].requires_grad


def test_what_observes_the_operator_sees_repeated_calls(backend):
    q, k = q_and_k()
    angles, _ = angles_of("tables", 0)
    for _ in range(2):
        rotate(q, k, **angles)
    with torch.profiler.profile() as profile:
        rotate(q, k, **angles)
    assert any(event.key == "ropewalk::rotate" for event in profile.key_averages())
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        assert type(rotate(q, k, **angles)[0]).__name__ == "FakeTensor"
    with pytest.raises(RuntimeError, match="forward-mode"), torch.autograd.forward_ad.dual_level():
        rotate(torch.autograd.forward_ad.make_dual(q, q), k, **angles)
    with pytest.raises(RuntimeError, match="functorch"):  # not a gradient of zero
        torch.func.grad(lambda q: rotate(q, k, **angles)[0].sum())(q)
    torch._dynamo.reset()
    compiled = torch.compile(lambda q, k: rotate(q, k, **angles), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k)[0], rotate(q, k, **angles)[0])


def test_autocast_changes_nothing(backend):
    q, k = q_and_k()
    angles, _ = angles_of("tables", 0)
    expected = rotate(q, k, **angles)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            assert all(torch.equal(*pair) for pair in zip(rotate(q, k, **angles), expected, strict=True))


def test_backward_detects_a_tensor_that_a_repeated_call_has_overwritten(backend):
    q, weight = q_and_k()[0], torch.ones(1, requires_grad=True)
    positions = torch.arange(6)[None]
    for _ in range(2):
        rotate(q, None, positions, FIXED_POINT, in_place=True)
    loss = (weight * q).sum()
    rotate(q, None, positions, FIXED_POINT, in_place=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_another_backend_takes_over_at_once(backend, monkeypatch):
    q, k = q_and_k()
    arguments = {"positions": torch.arange(6)[None], "frequencies": FIXED_POINT}
    for _ in range(2):
        rotate(q, k, **arguments)
    use_backend("reference")
    calls = []
    monkeypatch.setattr(type(backend_for("cpu")), "rotate", lambda self, task: calls.append(task))
    rotate(q, k, **arguments)
    assert len(calls) == 1


def test_a_change_of_the_number_of_threads_is_followed(backend):
    q, k = (random_normal(1, heads, 2**13, 48, seed=heads).float() for heads in (2, 1))
    expected, threads = rotate(q, k, torch.arange(2**13)[None], FIXED_POINT), torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            rotated = rotate(q, k, torch.arange(2**13)[None], FIXED_POINT)
            assert all(torch.equal(*pair) for pair in zip(rotated, expected, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_the_number_of_kept_launches_is_limited(monkeypatch):
    monkeypatch.setattr(prepared, "_MAX_LAUNCHES", 4)
    for tokens in range(1, 12):
        rotate(torch.zeros(1, 1, tokens, 48), None, torch.arange(tokens)[None], FIXED_POINT)
        assert len(prepared._launches) <= 4


def test_empty_tensors(backend):
    for _ in range(2):
        rotated, _ = rotate(torch.zeros(2, 3, 0, 48), None, torch.zeros(1, 0, dtype=torch.int64), FIXED_POINT)
        assert rotated.shape == (2, 3, 0, 48)
