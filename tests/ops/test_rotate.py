"""`rotate`, on every backend of this CPU, against the same turn written with complex numbers in float64."""

from contextlib import nullcontext
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import ropewalk as rw
from ropewalk.errors import InputError
from ropewalk.ops import BACKENDS, FixedPointFrequencies, backend_for, rotate, turns, use
from ropewalk.ops.backends import reference
from ropewalk.ops.backends.cpu import NATIVE, Cpu

# Of the pair: what is left by computing in float64 or float32. Of the number: half of the last bit that its dtype has.
COMPUTED = {torch.float64: 2e-15, torch.float32: 3e-7, torch.bfloat16: 3e-7, torch.float16: 3e-7}
ROUNDED = {torch.float64: 0, torch.float32: 0, torch.bfloat16: 2**-8, torch.float16: 2**-11}
LAYOUTS = pytest.mark.parametrize("layout", ["half", "interleaved"])
DTYPES = pytest.mark.parametrize("dtype", list(COMPUTED), ids=lambda dtype: str(dtype).removeprefix("torch."))
PLACES = pytest.mark.parametrize("in_place", [False, True], ids=["out of place", "in place"])
ROPE = rw.Rope(dim=48, base=10_000.0, original_length=2048)
SCALED = [rw.YaRN(factor=factor).frequencies(ROPE) for factor in (2, 4, 7)]  # an attention factor that is not 1


def compiled_variants():
    return [path for path in sorted(NATIVE.glob("*.so")) if Cpu([path]).missing() is None]


@pytest.fixture(params=["reference", *compiled_variants()], ids=lambda each: getattr(each, "stem", each))
def backend(request, monkeypatch):
    """The plain one, and the compiled one for every instruction set that this processor has."""
    if request.param != "reference":
        monkeypatch.setitem(BACKENDS, "c++", Cpu([request.param]))
    use("reference" if request.param == "reference" else "c++")
    yield backend_for("cpu")
    monkeypatch.undo()
    use()


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def strided(kind, batch, heads, tokens, channels, seed):
    """[B, H, T, D] in ways in which it lies in memory."""
    if kind == "BHTD":
        return numbers(batch, heads, tokens, channels, seed=seed)
    if kind == "BTHD":
        return numbers(batch, tokens, heads, channels, seed=seed).transpose(1, 2)
    if kind == "part of qkv":
        return numbers(batch, tokens, 3 * heads + 1, channels + 5, seed=seed)[:, :, heads : 2 * heads, 2:-3].transpose(
            1, 2
        )
    assert kind == "channels apart"
    return numbers(batch, channels, heads, tokens, seed=seed).permute(0, 2, 3, 1)


KINDS = ["BHTD", "BTHD", "part of qkv", "channels apart"]


def like(x, dtype):
    """The same numbers in that dtype, with the same strides."""
    moved = torch.empty_strided(x.shape, x.stride(), dtype=dtype)
    return moved.copy_(x)


def by_hand(x, turn_BTP, layout, start):
    """Pair by pair, a complex number times a complex number."""
    turned, pairs = x.double().numpy().copy(), turn_BTP.shape[-1]
    for pair in range(pairs):
        ab = (
            (start + 2 * pair, start + 2 * pair + 1)
            if layout == "interleaved"
            else (start + pair, start + pairs + pair)
        )
        product = (turned[..., ab[0]] + 1j * turned[..., ab[1]]) * turn_BTP[:, None, :, pair]
        turned[..., ab[0]], turned[..., ab[1]] = product.real, product.imag
    return turned


def assert_turned(turned, x, want, layout, start, pairs):
    """Every channel is right to the rounding of its pair, and those that do not turn have their bits."""
    assert (turned.dtype, turned.shape) == (x.dtype, x.shape)
    wants, errors = (
        pairs_of(each[..., start : start + 2 * pairs], layout) for each in (want, turned.double().numpy() - want)
    )
    rounded = ROUNDED[x.dtype] * np.maximum(np.abs(wants), torch.finfo(x.dtype).smallest_normal)
    assert (np.abs(errors) <= COMPUTED[x.dtype] * np.hypot(*wants) + 1.001 * rounded).all()
    assert torch.equal(turned[..., :start], x[..., :start])
    assert torch.equal(turned[..., start + 2 * pairs :], x[..., start + 2 * pairs :])


def pairs_of(channels, layout):
    """The first and the second of every pair, [2, ..., P]."""
    if layout == "interleaved":
        return np.stack((channels[..., ::2], channels[..., 1::2]))
    return np.stack(np.split(channels, 2, axis=-1))


def check(q, k, turn_BTP, layout, start, in_place, **asked):
    wants = [by_hand(x, turn_BTP, layout, start) for x in (q, k)]
    given_q, given_k = like(q, q.dtype), like(k, k.dtype)
    turned = rotate(given_q, given_k, layout=layout, start=start, in_place=in_place, **asked)
    for x, held, out, want in zip((q, k), (given_q, given_k), turned, wants, strict=True):
        assert_turned(out, x, want, layout, start, turn_BTP.shape[-1])
        assert torch.equal(held, out if in_place else x)
        assert not out.numel() or (out.data_ptr() == held.data_ptr()) == in_place


@LAYOUTS
@DTYPES
@PLACES
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 3], ids=["one for all rows", "one for each row"])
class TestAngles:
    """q of 5 and k of 2 heads, 48 of 56 channels from the third on, at positions up to the last one that is allowed."""

    B, T, START = 3, 37, 3

    def heads(self, kind, dtype):
        return [like(strided(kind, self.B, heads, self.T, 56, seed=heads), dtype) for heads in (5, 2)]

    def positions(self, rows):
        position = torch.randint(-(2**20), 2**20, (rows, self.T), generator=torch.Generator().manual_seed(1))
        position[:, 0] = 2**31 - 1
        return position

    def test_positions(self, backend, kind, dtype, layout, in_place, rows):
        position_BT, scaled = self.positions(rows), SCALED[:rows]
        parts = [scaled[row % rows].cos_sin(position_BT[row % rows].numpy(), "float64") for row in range(self.B)]
        turn_BTP = np.stack([cos + 1j * sin for cos, sin in parts])
        asked = {"positions": position_BT, "frequencies": scaled if rows > 1 else scaled[0]}
        check(*self.heads(kind, dtype), turn_BTP, layout, self.START, in_place, **asked)

    def test_tables(self, backend, kind, dtype, layout, in_place, rows):
        angle_BTP = 4 * numbers(rows, self.T, 24, seed=3)
        # Of the precision that is computed with, and laid out as transformers does interleaved ones.
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        cos, sin = (part.to(exact).repeat_interleave(2, -1)[..., ::2] for part in (angle_BTP.cos(), angle_BTP.sin()))
        turn_BTP = (cos + 1j * sin).expand(self.B, -1, -1).to(torch.complex128).numpy()
        q, k = self.heads(kind, dtype)
        tables = (1.25 * cos, 1.25 * sin)
        check(q, k, 1.25 * turn_BTP, layout, self.START, in_place, tables=tables)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 3), heads=st.tuples(st.integers(1, 4), st.integers(0, 3)), tokens=st.integers(0, 70),
    pairs=st.integers(1, 40), start=st.integers(0, 5), after=st.integers(0, 5),
    layout=st.sampled_from(["half", "interleaved"]), dtype=st.sampled_from(list(COMPUTED)), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_sizes(batch, heads, tokens, pairs, start, after, layout, dtype, seed):
    """Of vectors with something left over, of blocks of tokens, of nothing at all."""
    q, k = (like(numbers(batch, count, tokens, start + 2 * pairs + after, seed=seed), dtype) for count in heads)
    angle_BTP = numbers(1, tokens, pairs, seed=seed + 1)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    tables = angle_BTP.cos().to(exact), angle_BTP.sin().to(exact)
    turn_BTP = (tables[0].double() + 1j * tables[1].double()).expand(batch, -1, -1).numpy()
    check(q, k, turn_BTP, layout, start, in_place=False, tables=tables)


@LAYOUTS
def test_tables_and_heads_of_the_opposite_sign(backend, layout):
    """Views that stand for the negative of what they hold, as the imaginary part of a conjugate does."""
    q, angle_TP = numbers(1, 3, 9, 48).float(), numbers(9, 24).float()
    cis_TP = torch.polar(torch.ones_like(angle_TP), angle_TP).conj()
    assert cis_TP.imag.is_neg()
    want, _ = rotate(q, None, tables=(cis_TP.real.clone(), cis_TP.imag.clone()), layout=layout)
    assert torch.allclose(rotate(q, None, tables=(cis_TP.real, cis_TP.imag), layout=layout)[0], want, atol=1e-6)
    turned, _ = rotate(torch._neg_view(q), None, tables=(cis_TP.real, cis_TP.imag), layout=layout)
    assert torch.allclose(turned, -want, atol=1e-6)


@LAYOUTS
def test_k_with_its_channels_apart(backend, layout):
    q, k = (numbers(1, heads, 9, 48, seed=heads).float() for heads in (3, 2))
    want = rotate(q, k, frequencies=SCALED[0], layout=layout)
    apart = strided("channels apart", 1, 2, 9, 48, seed=0).float().copy_(k)
    for turned, right in zip(rotate(q, apart, frequencies=SCALED[0], layout=layout), want, strict=True):
        assert torch.allclose(turned, right, atol=1e-6)


def test_angles_that_lie_apart(backend):
    """Positions and turns with strides of their own."""
    q = numbers(2, 3, 9, 48).float()
    positions_BT = torch.randint(0, 9999, (2, 9), generator=torch.Generator().manual_seed(1))
    prepared = turns(SCALED[:2])
    apart = FixedPointFrequencies(*(part.T.contiguous().T if part.ndim == 2 else part for part in prepared))
    want, _ = rotate(q, None, positions_BT, prepared)
    assert torch.equal(rotate(q, None, positions_BT.T.contiguous().T, apart)[0], want)


@LAYOUTS
def test_q_alone_and_back_again(backend, layout):
    q = numbers(2, 3, 9, 48).float()
    turned, none = rotate(q, None, frequencies=SCALED[0], layout=layout)
    assert none is None
    back, _ = rotate(turned, None, frequencies=SCALED[0], layout=layout, inverse=True)
    assert torch.allclose(back, q * SCALED[0].attention_factor ** 2, atol=1e-5)


def test_threads_change_nothing(backend):
    q, k = numbers(2, 6, 333, 64, seed=1).bfloat16(), numbers(2, 3, 333, 64, seed=2).bfloat16()
    threads = torch.get_num_threads()
    each = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            each.append(rotate(q, k, frequencies=rw.NoScaling().frequencies(rw.Rope(64, 1e4, 99))))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, first) for other in each[1:] for x, first in zip(other, each[0], strict=True))


def test_blocks_of_the_reference_change_nothing(monkeypatch):
    use("reference")
    try:
        q = numbers(2, 3, 50, 48).float()
        whole, _ = rotate(q, None, frequencies=SCALED[0])
        for block in (1, 100, 7 * 2 * 3 * 48):
            monkeypatch.setattr(reference, "_BLOCK", block)
            assert torch.equal(rotate(q, None, frequencies=SCALED[0])[0], whole)
    finally:
        use()


@LAYOUTS
def test_in_place_writes_nothing_else(backend, layout):
    """What lies between the heads of a fused projection, and before and after them."""
    qkv = numbers(2, 7, 9, 60).bfloat16()
    before = qkv.clone()
    q, k = qkv[:, :, 1:4, 5:55].transpose(1, 2), qkv[:, :, 6:8, 5:55].transpose(1, 2)
    rotate(q, k, frequencies=SCALED[0], layout=layout, start=1, in_place=True)
    touched = qkv != before
    assert touched[:, 1:, [1, 2, 3, 6, 7], 6:54].float().mean() > 0.8
    touched[:, :, [1, 2, 3, 6, 7], 6:54] = False
    assert not touched.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_number_of_half_precision(backend, dtype):
    """Not turned, each comes out as it went in; infinities and NaN, too."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).reshape(1, 1, -1, 64)
    one, nothing = torch.ones(1, every.shape[2], 32), torch.zeros(1, every.shape[2], 32)
    halves = [every.clone(), every.clone()]
    halves[0][..., 32:] = 1  # a factor of 0 makes NaN of an infinity
    halves[1][..., :32] = 1
    for x, part in zip(halves, (slice(32), slice(32, 64)), strict=True):
        turned, _ = rotate(x, None, tables=(one, nothing))
        kept, given = turned[..., part], x[..., part]
        assert torch.equal(kept.isnan(), given.isnan())
        subnormal = given.abs() < torch.finfo(dtype).smallest_normal  # some processors take these for 0
        exact = ~given.isnan() & (~subnormal if dtype == torch.bfloat16 else True)
        assert torch.equal(kept[exact], given[exact])
        assert (kept[subnormal].abs() <= given[subnormal].abs()).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_to_the_nearest_even(backend, dtype):
    """Against torch's own, on numbers of every size, halfway between two neighbours and next to it."""
    bits = torch.arange(0, 2**31 - 2**24, 99_991, dtype=torch.int64)
    halfway = bits >> 16 << 16 | (0x8000 if dtype == torch.bfloat16 else 0x1000)
    sizes = torch.cat([bits, halfway, halfway + 1, halfway - 1])
    sizes = sizes[: len(sizes) // 32 * 32].to(torch.int32).view(torch.float32).reshape(1, -1, 32)
    one = torch.ones(1, 1, sizes.shape[1], 64, dtype=dtype)
    turned, _ = rotate(one, None, tables=(sizes, torch.zeros_like(sizes)))
    right = sizes[0].to(dtype)
    normal = right.abs() >= (torch.finfo(dtype).smallest_normal if dtype == torch.bfloat16 else 0)
    assert torch.equal(turned[0, 0, :, :32][normal], right[normal])


class TestPacked:
    LENGTHS = (3, 1, 7, 5)

    @LAYOUTS
    @PLACES
    def test_texts_one_after_the_other(self, backend, layout, in_place):
        """[T, H, D] is each text by itself."""
        q, k = (numbers(16, heads, 48, seed=heads).float() for heads in (4, 2))
        cu_seqlens = torch.tensor([0, *np.cumsum(self.LENGTHS)], dtype=torch.int32)
        texts = zip(q.clone().split(self.LENGTHS), k.clone().split(self.LENGTHS), strict=True)
        alone = [rotate(*text, frequencies=SCALED[0], layout=layout) for text in texts]
        turned = rotate(q, k, frequencies=SCALED[0], layout=layout, cu_seqlens=cu_seqlens, in_place=in_place)
        for packed, parts in zip(turned, zip(*alone, strict=True), strict=True):
            assert torch.equal(packed, torch.cat(parts))
        assert in_place == torch.equal(q, turned[0])

    def test_with_positions(self):
        q = numbers(5, 2, 48).float()
        positions = torch.tensor([7, 8, 0, 1, 2])
        want, _ = rotate(q.transpose(0, 1)[None], None, positions, SCALED[0])
        assert torch.equal(rotate(q, None, positions, SCALED[0])[0], want[0].transpose(0, 1))


class TestGradients:
    @staticmethod
    def inputs():
        q, k = (numbers(2, heads, 3, 9, seed=heads).requires_grad_() for heads in (2, 1))
        inv_freq, factor = (
            (0.3 + numbers(4, seed=5).abs()).requires_grad_(),
            torch.tensor(1.3).double().requires_grad_(),
        )
        return q, k, inv_freq, factor

    @LAYOUTS
    @pytest.mark.parametrize("inverse", [False, True])
    def test_of_everything(self, backend, layout, inverse):
        def turned(q, k, inv_freq, factor):
            where = {"layout": layout, "start": 1, "inverse": inverse}
            return rotate(q, k, torch.tensor([[5, 0, 2]]), inv_freq, attention_factor=factor, **where)

        assert torch.autograd.gradcheck(turned, self.inputs())
        assert torch.autograd.gradgradcheck(turned, self.inputs())

    @LAYOUTS
    def test_for_each_row(self, layout):
        q, k, _, _ = self.inputs()
        inv_freq_BP, factor_B = numbers(2, 4, seed=7).abs().requires_grad_(), numbers(2, seed=8).requires_grad_()
        positions_BT = torch.tensor([[5, 0, 2], [1, 9, 3]])

        def turned(q, k, inv_freq_BP, factor_B):
            return rotate(q, k, positions_BT, inv_freq_BP, layout, attention_factor=factor_B)

        assert torch.autograd.gradcheck(turned, (q, k, inv_freq_BP, factor_B))

    @LAYOUTS
    @pytest.mark.parametrize("rows", [1, 2])
    def test_of_tables(self, layout, rows):
        q, k, _, _ = self.inputs()
        cos, sin = (numbers(rows, 3, 4, seed=seed).requires_grad_() for seed in (1, 2))
        assert torch.autograd.gradcheck(
            lambda *each: rotate(*each[:2], tables=each[2:], layout=layout), (q, k, cos, sin)
        )

    @LAYOUTS
    def test_in_place(self, backend, layout):
        q, k, inv_freq, _ = self.inputs()

        def turned(q, k):
            return rotate(q * 1, k * 1, None, inv_freq.detach(), layout, attention_factor=1.3, in_place=True)

        def of_projections(q, k):  # views, which is how heads come
            views = [(x * 1).flatten(2).unflatten(2, x.shape[2:]).transpose(1, 2) for x in (q, k)]
            return rotate(*views, None, inv_freq.detach()[:1], layout, in_place=True)

        assert torch.autograd.gradcheck(turned, (q, k))
        assert torch.autograd.gradcheck(of_projections, (q[:, :1], k))

    def test_what_cannot_be_overwritten_is_untouched(self, backend):
        leaf = numbers(1, 2, 5, 48).float().requires_grad_()
        before = leaf.detach().clone()
        inv_freq = torch.rand(24, requires_grad=True)
        for q, frequencies, said in [
            (leaf, SCALED[0], "a leaf that requires a gradient"),
            (leaf[:, 1:], SCALED[0], "a leaf that requires a gradient"),
            (before, inv_freq, "angles that require a gradient"),
        ]:
            with pytest.raises(InputError, match=f"in_place: got '{said}'"):
                rotate(q, None, frequencies=frequencies, in_place=True)
            assert torch.equal(leaf, before)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_are_the_opposite_turn(self, backend, dtype):
        q, upstream = (numbers(2, 3, 40, 48, seed=seed).to(dtype) for seed in (1, 2))
        q.requires_grad_()
        turned, _ = rotate(q, None, frequencies=SCALED[0])
        turned.backward(upstream)
        assert torch.equal(q.grad, rotate(upstream, None, frequencies=SCALED[0], inverse=True)[0])

    def test_of_one_of_two(self, backend):
        q, k = (numbers(1, 2, 5, 48, seed=seed).float().requires_grad_() for seed in (1, 2))
        rotate(q, k, frequencies=SCALED[0])[1].sum().backward()
        assert k.grad.abs().max() > 0
        assert q.grad is None or not q.grad.any()


class TestOperators:
    """What torch.compile and torch.export need."""

    FORMS: ClassVar = {
        "frequencies": {"frequencies": SCALED[0]},
        "turns": {"frequencies": turns(SCALED[0])},
        "turns of each row": {"frequencies": turns(SCALED[:2])},
        "inverse frequencies": {"frequencies": torch.tensor(SCALED[0].inv_freq), "attention_factor": 1.2},
        "tables": {"tables": tuple(torch.from_numpy(part) for part in SCALED[0].cos_sin(np.arange(6)))},
    }

    @staticmethod
    def heads(grad=False):
        return [numbers(2, heads, 6, 48, seed=heads).float().requires_grad_(grad) for heads in (3, 1)]

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("in_place", [False, True])
    def test_compiled_whole(self, form, in_place):
        """Without graph breaks, and at another length without one more kind of graph than dynamic shapes need."""
        torch._dynamo.reset()

        def turned(q, k):
            return rotate(q * 2, k * 2, in_place=in_place, **self.FORMS[form])

        compiled = torch.compile(turned, fullgraph=True, backend="aot_eager")
        q, k = self.heads()
        for ours, want in zip(compiled(q, k), turned(q, k), strict=True):
            assert torch.equal(ours, want)

    def test_direct_calls_are_checked(self):
        """As those that `rotate` makes: with less they would read what is not there."""
        q, k = self.heads()
        cos, sin = (part[None] for part in self.FORMS["tables"]["tables"])
        for angles, said in [
            ([cos[:, :1], sin[:, :1]], "tokens of the angles: got 1; expected 6"),
            ([torch.cat([cos] * 3), torch.cat([sin] * 3)], "rows of the angles: got 3; expected 1, or 2"),
        ]:
            for turn in (torch.ops.ropewalk.rotate, torch.ops.ropewalk.rotate_):
                with pytest.raises(InputError, match=said):
                    turn([q, k], angles, 0, False, False)

    def test_no_gradient_is_lost_in_silence(self):
        q, k = self.heads(grad=True)
        angles = [part[None] for part in self.FORMS["tables"]["tables"]]
        with pytest.raises(RuntimeError, match="no gradient of its own"):
            torch.ops.ropewalk.rotate_([q * 1, k], angles, 0, False, False)
        for differentiated in (self.dual, self.jvp):
            with pytest.raises(RuntimeError, match="forward-mode"):
                differentiated(q.detach())

    @staticmethod
    def dual(q):
        with torch.autograd.forward_ad.dual_level():
            rotate(torch.autograd.forward_ad.make_dual(q, q), None, frequencies=SCALED[0])

    @staticmethod
    def jvp(q):
        torch.func.jvp(lambda x: rotate(x, None, frequencies=SCALED[0])[0], (q,), (q,))

    @pytest.mark.parametrize("in_place", [False, True])
    def test_what_watches_sees_it(self, in_place):
        """A profiler, a mode of torch, a subclass of Tensor, the compiler of TorchScript: the operator is called."""
        q, k = self.heads()

        class Seen(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                calls.append(function)
                return function(*args, **(kwargs or {}))

        calls = []
        with Seen():
            rotate(q, k, frequencies=SCALED[0], in_place=in_place)
        assert any("ropewalk::rotate" in str(call._schema) for call in calls)
        with torch.profiler.profile() as profiled:
            rotate(q, k, frequencies=SCALED[0], in_place=in_place)
        assert any(event.key.startswith("ropewalk::rotate") for event in profiled.key_averages())
        traced = torch.jit.trace(lambda q: rotate(q, None, frequencies=SCALED[0])[0], (q,), check_trace=False)
        assert "ropewalk::rotate" in str(traced.graph)

    @pytest.mark.parametrize("watched", [False, True])
    def test_overwriting_is_told(self, watched):
        """What a gradient needs and is overwritten raises when it is taken."""
        q, weight = self.heads()[0], torch.ones(1, requires_grad=True)
        loss = (weight * q).sum()
        with torch.profiler.profile() if watched else nullcontext():
            rotate(q, None, frequencies=SCALED[0], in_place=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    @pytest.mark.parametrize("mode", [torch.inference_mode, FakeTensorMode])
    def test_what_is_kept_is_of_no_mode(self, mode):
        """The same frequencies, first used inside a mode and then outside it."""
        frequencies = rw.Frequencies(np.linspace(0.1, 1, 24) + (0.5 if mode is FakeTensorMode else 0))
        with mode():
            turns(frequencies)
        q, _ = self.heads(grad=True)
        rotate(q, None, frequencies=frequencies)[0].sum().backward()
        assert q.grad.abs().max() > 0

    def test_compiled_gradients(self):
        torch._dynamo.reset()
        grads = []
        for wrapped in (lambda f: f, lambda f: torch.compile(f, fullgraph=True, backend="aot_eager")):
            q, k = self.heads(grad=True)
            turned = wrapped(lambda q, k: rotate(q, k, frequencies=SCALED[0]))(q, k)
            sum((x**3).sum() for x in turned).backward()
            grads.append((q.grad, k.grad))
        assert all(torch.allclose(one, other) for one, other in zip(*grads, strict=True))

    def test_other_frequencies_compile_anew(self):
        torch._dynamo.reset()
        q, k = self.heads()
        frequencies = SCALED[0]
        compiled = torch.compile(lambda q, k: rotate(q, k, frequencies=frequencies), backend="aot_eager")
        compiled(q, k)
        frequencies = SCALED[1]
        assert torch.equal(compiled(q, k)[0], rotate(q, k, frequencies=SCALED[1])[0])

    @pytest.mark.parametrize("grad", [False, True])
    @pytest.mark.parametrize("form", ["tables", "turns"])
    def test_opcheck(self, form, grad):
        q, k = self.heads(grad)
        angles = (
            [part[None].requires_grad_(grad) for part in (each.clone() for each in self.FORMS["tables"]["tables"])]
            if form == "tables"
            else [torch.arange(6)[None], *self.FORMS["turns"]["frequencies"][:2]]
        )
        torch.library.opcheck(torch.ops.ropewalk.rotate.default, ([q, k], angles, 0, True, False))
        if not grad:
            torch.library.opcheck(torch.ops.ropewalk.rotate_.default, ([q, k], angles, 0, False, True))

    def test_exported(self):
        class Rotation(torch.nn.Module):
            def forward(self, q, k, cos, sin):
                return rotate(q, k, tables=(cos, sin))

        inputs = (*self.heads(), *self.FORMS["tables"]["tables"])
        exported = torch.export.export(Rotation(), inputs)
        assert "ropewalk.rotate.default" in str(exported.graph)
        assert torch.equal(exported.module()(*inputs)[0], Rotation()(*inputs)[0])


class TestMistakes:
    Q, K = torch.zeros(2, 4, 5, 8), torch.zeros(2, 1, 5, 8)
    TABLES = torch.zeros(5, 4), torch.zeros(5, 4)
    SMALL = rw.Frequencies(np.ones(4))

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"layout": "neox"}, "layout: got 'neox'; expected half, interleaved"),
            ({"tables": None}, "frequencies: got None; expected either"),
            ({"frequencies": SCALED[0]}, "expected either frequencies or tables"),
            ({"positions": torch.arange(5)}, "positions: got 'beside tables'"),
            ({"tables": (torch.zeros(5, 8), torch.zeros(5, 8))}, "pairs: got '8 from channel 0 on'; expected 1 to 4"),
            ({"tables": (torch.zeros(6, 4), torch.zeros(6, 4))}, "with T = 5"),
            ({"tables": (torch.zeros(5, 4), torch.zeros(5, 3))}, r"got '\[5, 4\] and \[5, 3\]'"),
            ({"tables": (torch.zeros(3, 5, 4), torch.zeros(3, 5, 4))}, "rows of the angles: got 3; expected 1, or 2"),
            ({"start": 1}, "expected 1 to 3"),
            ({"attention_factor": 2}, "attention_factor: got 2; expected none beside tables"),
            ({"cu_seqlens": torch.tensor([0, 5])}, "positions: got 'beside tables'"),
            ({"tables": (torch.zeros(5, 4, device="meta"),) * 2}, "device of the angles: .*cpu as q"),
            ({"k": Q, "q": Q, "in_place": True}, "in_place: got 'heads that share memory'"),
            ({"start": -1}, "from channel -1"),
            ({"q": Q[0, 0]}, "2 and 4 dimensions"),
            ({"k": K[:, :, :4]}, r"k: got \[2, 1, 4, 8\]"),
            ({"k": K.half()}, "got .torch.float32 on cpu, and torch.float16 on cpu"),
            ({"q": Q.int(), "k": K.int()}, "expected float64, float32, bfloat16, float16"),
            ({"q": Q[:, :1].expand(-1, 4, -1, -1), "in_place": True}, "in_place: got 'heads that share memory'"),
        ],
    )
    def test_of_tables(self, change, said):
        self.refused({"q": self.Q, "k": self.K, "tables": self.TABLES} | change, said)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"positions": torch.arange(4)}, r"positions: got '\[4\] of torch.int64'; .*T = 5"),
            ({"frequencies": []}, "frequencies: got"),
            ({"frequencies": "yarn"}, "frequencies: got"),
            ({"frequencies": torch.tensor(1.0)}, r"frequencies: got '\[\] of torch.float32'"),
            ({"cu_seqlens": torch.tensor([0.0, 5.0])}, r"cu_seqlens: got '\[2\] of torch.float32'"),
            ({"cu_seqlens": torch.tensor([], dtype=torch.int32)}, r"cu_seqlens: got '\[0\]"),
            ({"positions": torch.zeros(5)}, "of torch.float32'; expected whole numbers"),
            ({"positions": torch.zeros(3, 5, dtype=torch.int32)}, "rows of the angles: got 3"),
            ({"frequencies": [SMALL] * 3}, "rows of the angles: got 3"),
            ({"frequencies": SCALED[0]}, "pairs: got '24 from"),
            ({"frequencies": SCALED[0], "attention_factor": 2.0}, "attention_factor: got 2.0"),
            (
                {"positions": torch.arange(5), "cu_seqlens": torch.tensor([0, 5])},
                "cu_seqlens: got 'beside positions'",
            ),
        ],
    )
    def test_of_positions(self, change, said):
        self.refused({"q": self.Q, "k": self.K, "frequencies": torch.ones(4)} | change, said)

    @staticmethod
    def refused(asked, said):
        with pytest.raises(InputError, match=said) as error:
            rotate(**asked)
        assert "\n" not in str(error.value)


class TestBackends:
    def test_the_fastest_is_chosen(self):
        assert backend_for("cpu").name == ("c++" if compiled_variants() else "reference")
        assert backend_for("mps").name == "reference"

    def test_this_machine_compiled_it(self):
        """Where there is a compiler, as wherever these tests run; otherwise the speed of this project is not tested."""
        assert BACKENDS["c++"].missing() is None

    def test_another_is_asked_for(self):
        use("reference")
        try:
            assert backend_for("cpu").name == "reference"
        finally:
            use()

    def test_unknown(self):
        with pytest.raises(InputError, match=r"rotation backend: got 'cuda'; expected .*reference"):
            use("cuda")

    def test_one_that_is_missing(self, monkeypatch):
        monkeypatch.setitem(BACKENDS, "c++", Cpu([]))
        with pytest.raises(InputError, match=r"got 'c.*'; expected .*reference.*compiler"):
            use("c++")
        use()
        assert backend_for("cpu").name == "reference"
        monkeypatch.undo()
        use()

    def test_a_library_that_does_not_load(self, tmp_path):
        (tmp_path / "rotate_x.so").write_bytes(b"not a library")
        assert "rotate_x.so" in Cpu([tmp_path / "rotate_x.so"]).missing()


def test_turned_keys_need_no_memory(tmp_path):
    """In place, the peak of a process rises by less than a tenth of what is turned."""
    import resource

    keys = torch.randn(1, 8, 2**16, 64)
    rotate(keys[:, :, :64], None, frequencies=rw.NoScaling().frequencies(rw.Rope(64, 1e4, 99)), in_place=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rotate(keys, None, frequencies=rw.NoScaling().frequencies(rw.Rope(64, 1e4, 99)), in_place=True)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < keys.numel() * keys.itemsize / 10
