"""`rotate` on every backend of this CPU, against complex multiplication in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers.rotation import (
    COMPUTE_ERROR,
    assert_rotated,
    expected_rotation,
    random_normal,
    with_dtype,
)

import ropewalk as rw
from ropewalk.errors import InputError
from ropewalk.ops import FixedPointFrequencies, rotate, to_fixed_point, use_backend
from ropewalk.ops.backends import reference

LAYOUTS = pytest.mark.parametrize("layout", ["half", "interleaved"])
DTYPES = pytest.mark.parametrize("dtype", list(COMPUTE_ERROR), ids=lambda dtype: str(dtype).removeprefix("torch."))
IN_PLACE = pytest.mark.parametrize("in_place", [False, True], ids=["out of place", "in place"])
ROPE = rw.Rope(dim=48, base=10_000.0, original_length=2048)
YARN = [rw.YaRN(factor=factor).frequencies(ROPE) for factor in (2, 4, 7)]  # YaRN's attention factor is not 1
UNSCALED = rw.NoScaling().frequencies(rw.Rope(64, 1e4, 99))


def heads_in_memory(kind, batch, heads, tokens, channels, seed):
    """Return [B, H, T, D] with one of the ways in which it is laid out in memory."""
    if kind == "BHTD":
        return random_normal(batch, heads, tokens, channels, seed=seed)
    if kind == "BTHD":
        return random_normal(batch, tokens, heads, channels, seed=seed).transpose(1, 2)
    if kind == "part of qkv":
        qkv = random_normal(batch, tokens, 3 * heads + 1, channels + 5, seed=seed)
        return qkv[:, :, heads : 2 * heads, 2:-3].transpose(1, 2)
    assert kind == "strided channels"
    return random_normal(batch, channels, heads, tokens, seed=seed).permute(0, 2, 3, 1)


MEMORY_KINDS = ["BHTD", "BTHD", "part of qkv", "strided channels"]


def check(q, k, cis_BTP, layout, start, in_place, **angles):
    """Rotate q and k, compare with the expected rotation, and check which memory was written."""
    is_interleaved = layout == "interleaved"
    expected = [expected_rotation(x, cis_BTP, start, is_interleaved) for x in (q, k)]
    passed = [with_dtype(x, x.dtype) for x in (q, k)]
    rotated = rotate(*passed, layout=layout, start=start, in_place=in_place, **angles)
    for x, argument, out, expected_out in zip((q, k), passed, rotated, expected, strict=True):
        assert_rotated(out, x, expected_out, start, cis_BTP.shape[-1], is_interleaved)
        assert torch.equal(argument, out if in_place else x)
        assert not out.numel() or (out.data_ptr() == argument.data_ptr()) == in_place


@LAYOUTS
@DTYPES
@IN_PLACE
@pytest.mark.parametrize("kind", MEMORY_KINDS)
@pytest.mark.parametrize("rows", [1, 3], ids=["shared angles", "angles per row"])
class TestAngles:
    """5 heads of q and 2 of k; 48 of 56 channels rotate, from the third on; positions up to the largest allowed."""

    B, T, START = 3, 37, 3

    def heads(self, kind, dtype):
        return [with_dtype(heads_in_memory(kind, self.B, heads, self.T, 56, seed=heads), dtype) for heads in (5, 2)]

    def test_from_positions(self, backend, kind, dtype, layout, in_place, rows):
        positions_BT = torch.randint(-(2**20), 2**20, (rows, self.T), generator=torch.Generator().manual_seed(1))
        positions_BT[:, 0] = 2**31 - 1
        cis = []
        for row in range(self.B):
            cos_TP, sin_TP = YARN[row % rows].cos_sin(positions_BT[row % rows].numpy(), "float64")
            cis.append(cos_TP + 1j * sin_TP)
        angles = {"positions": positions_BT, "frequencies": YARN[:rows] if rows > 1 else YARN[0]}
        check(*self.heads(kind, dtype), np.stack(cis), layout, self.START, in_place, **angles)

    def test_from_tables(self, backend, kind, dtype, layout, in_place, rows):
        angle_BTP = 4 * random_normal(rows, self.T, 24, seed=3)
        table_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        # transformers repeats every value of an interleaved table, so the pairs are a view with stride 2.
        cos, sin = (
            part.to(table_dtype).repeat_interleave(2, -1)[..., ::2] for part in (angle_BTP.cos(), angle_BTP.sin())
        )
        cis_BTP = (cos + 1j * sin).expand(self.B, -1, -1).to(torch.complex128).numpy()
        tables = (1.25 * cos, 1.25 * sin)
        check(*self.heads(kind, dtype), 1.25 * cis_BTP, layout, self.START, in_place, tables=tables)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 3), heads=st.tuples(st.integers(1, 4), st.integers(0, 3)), tokens=st.integers(0, 70),
    pairs=st.integers(1, 40), start=st.integers(0, 5), after=st.integers(0, 5),
    layout=st.sampled_from(["half", "interleaved"]), dtype=st.sampled_from(list(COMPUTE_ERROR)),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_all_sizes(batch, heads, tokens, pairs, start, after, layout, dtype, seed):
    """Sizes that are no multiple of a vector or of a block of tokens, and empty tensors."""
    channels = start + 2 * pairs + after
    q, k = (with_dtype(random_normal(batch, count, tokens, channels, seed=seed), dtype) for count in heads)
    angle_BTP = random_normal(1, tokens, pairs, seed=seed + 1)
    table_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    tables = angle_BTP.cos().to(table_dtype), angle_BTP.sin().to(table_dtype)
    cis_BTP = (tables[0].double() + 1j * tables[1].double()).expand(batch, -1, -1).numpy()
    check(q, k, cis_BTP, layout, start, in_place=False, tables=tables)


@LAYOUTS
def test_tensors_with_a_lazy_negation(backend, layout):
    """Views that torch negates when they are read, such as the imaginary part of a conjugate."""
    q, angle_TP = random_normal(1, 3, 9, 48).float(), random_normal(9, 24).float()
    cis_TP = torch.polar(torch.ones_like(angle_TP), angle_TP).conj()
    assert cis_TP.imag.is_neg()
    expected, _ = rotate(q, None, tables=(cis_TP.real.clone(), cis_TP.imag.clone()), layout=layout)
    assert torch.allclose(rotate(q, None, tables=(cis_TP.real, cis_TP.imag), layout=layout)[0], expected, atol=1e-6)
    rotated, _ = rotate(torch._neg_view(q), None, tables=(cis_TP.real, cis_TP.imag), layout=layout)
    assert torch.allclose(rotated, -expected, atol=1e-6)


@LAYOUTS
def test_channel_strides_of_k_alone(backend, layout):
    q, k = (random_normal(1, heads, 9, 48, seed=heads).float() for heads in (3, 2))
    expected = rotate(q, k, frequencies=YARN[0], layout=layout)
    strided_k = heads_in_memory("strided channels", 1, 2, 9, 48, seed=0).float().copy_(k)
    for rotated, correct in zip(rotate(q, strided_k, frequencies=YARN[0], layout=layout), expected, strict=True):
        assert torch.allclose(rotated, correct, atol=1e-6)


@LAYOUTS
def test_heads_that_are_expanded(backend, layout):
    """Out of place, heads may share memory; an output never does."""
    q = random_normal(1, 1, 9, 48).float().expand(-1, 3, -1, -1)
    rotated, _ = rotate(q, None, frequencies=YARN[0], layout=layout)
    assert torch.equal(rotated, rotate(q.contiguous(), None, frequencies=YARN[0], layout=layout)[0])


def test_strides_of_positions_and_frequencies(backend):
    q = random_normal(2, 3, 9, 48).float()
    positions_BT = torch.randint(0, 9999, (2, 9), generator=torch.Generator().manual_seed(1))
    frequencies = to_fixed_point(YARN[:2])
    transposed = FixedPointFrequencies(*(part.T.contiguous().T if part.ndim == 2 else part for part in frequencies))
    expected, _ = rotate(q, None, positions_BT, frequencies)
    assert torch.equal(rotate(q, None, positions_BT.T.contiguous().T, transposed)[0], expected)


@LAYOUTS
def test_inverse_of_q_alone(backend, layout):
    q = random_normal(2, 3, 9, 48).float()
    rotated, none = rotate(q, None, frequencies=YARN[0], layout=layout)
    assert none is None
    back, _ = rotate(rotated, None, frequencies=YARN[0], layout=layout, inverse=True)
    assert torch.allclose(back, q * YARN[0].attention_factor ** 2, atol=1e-5)


def test_the_number_of_threads_does_not_change_the_result(backend):
    q, k = (random_normal(2, heads, 333, 64, seed=heads).bfloat16() for heads in (6, 3))
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(rotate(q, k, frequencies=UNSCALED))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(result, results[0], strict=True))


def test_the_block_size_of_the_reference_does_not_change_the_result(monkeypatch):
    use_backend("reference")
    try:
        q = random_normal(2, 3, 50, 48).float()
        whole, _ = rotate(q, None, frequencies=YARN[0])
        for elements in (1, 100, 7 * 2 * 3 * 48):
            monkeypatch.setattr(reference, "_BLOCK_ELEMENTS", elements)
            assert torch.equal(rotate(q, None, frequencies=YARN[0])[0], whole)
    finally:
        use_backend()


@LAYOUTS
def test_in_place_writes_only_the_channels_that_rotate(backend, layout):
    """Memory between, before and after the heads of a fused projection is unchanged."""
    qkv = random_normal(2, 7, 9, 60).bfloat16()
    before = qkv.clone()
    q, k = qkv[:, :, 1:4, 5:55].transpose(1, 2), qkv[:, :, 6:8, 5:55].transpose(1, 2)
    rotate(q, k, frequencies=YARN[0], layout=layout, start=1, in_place=True)
    changed = qkv != before
    assert changed[:, 1:, [1, 2, 3, 6, 7], 6:54].float().mean() > 0.8
    changed[:, :, [1, 2, 3, 6, 7], 6:54] = False
    assert not changed.any()


def test_in_place_needs_no_memory():
    """The peak memory of the process rises by less than a tenth of the size of the tensor."""
    import resource

    keys = torch.randn(1, 8, 2**16, 64)
    rotate(keys[:, :, :64], None, frequencies=UNSCALED, in_place=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rotate(keys, None, frequencies=UNSCALED, in_place=True)
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert growth < keys.numel() * keys.itemsize / 10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rotation_by_zero_keeps_every_half_precision_number(backend, dtype):
    """All 2^16 numbers, infinities and NaN included."""
    all_numbers = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).reshape(1, 1, -1, 64)
    cos, sin = torch.ones(1, all_numbers.shape[2], 32), torch.zeros(1, all_numbers.shape[2], 32)
    for tested, other in ((slice(32), slice(32, 64)), (slice(32, 64), slice(32))):
        x = all_numbers.clone()
        x[..., other] = 1  # 0 times an infinity, from the other channel of the pair, would be NaN
        rotated, _ = rotate(x, None, tables=(cos, sin))
        result, number = rotated[..., tested], x[..., tested]
        assert torch.equal(result.isnan(), number.isnan())
        # Some CPUs flush subnormal bfloat16 numbers to 0.
        is_subnormal = number.abs() < torch.finfo(dtype).smallest_normal
        is_exact = ~number.isnan() & (~is_subnormal if dtype == torch.bfloat16 else True)
        assert torch.equal(result[is_exact], number[is_exact])
        assert (result[is_subnormal].abs() <= number[is_subnormal].abs()).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_results_round_to_nearest_even(backend, dtype):
    """As torch rounds, for numbers of every size, halfway between two neighbors and next to it."""
    bits = torch.arange(0, 2**31 - 2**24, 99_991, dtype=torch.int64)
    halfway = bits >> 16 << 16 | (0x8000 if dtype == torch.bfloat16 else 0x1000)
    cases = torch.cat([bits, halfway, halfway + 1, halfway - 1])
    cos = cases[: len(cases) // 32 * 32].to(torch.int32).view(torch.float32).reshape(1, -1, 32)
    ones = torch.ones(1, 1, cos.shape[1], 64, dtype=dtype)
    rotated, _ = rotate(ones, None, tables=(cos, torch.zeros_like(cos)))
    expected = cos[0].to(dtype)
    is_normal = expected.abs() >= (torch.finfo(dtype).smallest_normal if dtype == torch.bfloat16 else 0)
    assert torch.equal(rotated[0, 0, :, :32][is_normal], expected[is_normal])


class TestPackedSequences:
    LENGTHS = (3, 1, 7, 5)

    @LAYOUTS
    @IN_PLACE
    def test_each_sequence_rotates_as_if_alone(self, backend, layout, in_place):
        q, k = (random_normal(16, heads, 48, seed=heads).float() for heads in (4, 2))
        cu_seqlens = torch.tensor([0, *np.cumsum(self.LENGTHS)], dtype=torch.int32)
        sequences = zip(q.clone().split(self.LENGTHS), k.clone().split(self.LENGTHS), strict=True)
        alone = [rotate(*sequence, frequencies=YARN[0], layout=layout) for sequence in sequences]
        rotated = rotate(q, k, frequencies=YARN[0], layout=layout, cu_seqlens=cu_seqlens, in_place=in_place)
        for packed, parts in zip(rotated, zip(*alone, strict=True), strict=True):
            assert torch.equal(packed, torch.cat(parts))
        assert in_place == torch.equal(q, rotated[0])

    def test_explicit_positions(self):
        q = random_normal(5, 2, 48).float()
        positions = torch.tensor([7, 8, 0, 1, 2])
        expected, _ = rotate(q.transpose(0, 1)[None], None, positions, YARN[0])
        assert torch.equal(rotate(q, None, positions, YARN[0])[0], expected[0].transpose(0, 1))


class TestBadInput:
    Q, K = torch.zeros(2, 4, 5, 8), torch.zeros(2, 1, 5, 8)
    TABLES = torch.zeros(5, 4), torch.zeros(5, 4)
    SMALL = rw.Frequencies(np.ones(4))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"layout": "neox"}, "layout: got 'neox'; expected half, interleaved"),
            ({"tables": None}, "frequencies: got None; expected either"),
            ({"frequencies": YARN[0]}, "expected either frequencies or tables"),
            ({"positions": torch.arange(5)}, "positions: got 'positions or cu_seqlens'; expected none with tables"),
            ({"tables": (torch.zeros(5, 8), torch.zeros(5, 8))}, "pairs: got '8 from channel 0 on'; expected 1 to 4"),
            ({"tables": (torch.zeros(6, 4), torch.zeros(6, 4))}, "with T = 5"),
            ({"tables": (torch.zeros(5, 4), torch.zeros(5, 3))}, r"got '\[5, 4\] and \[5, 3\]'"),
            ({"tables": (torch.zeros(3, 5, 4), torch.zeros(3, 5, 4))}, "rows of the angles: got 3; expected 1, or 2"),
            ({"start": 1}, "expected 1 to 3"),
            ({"attention_factor": 2}, "attention_factor: got 2; expected 1: tables"),
            ({"cu_seqlens": torch.tensor([0, 5])}, "positions: got 'positions or cu_seqlens'"),
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
    def test_with_tables(self, change, message):
        self.check_message({"q": self.Q, "k": self.K, "tables": self.TABLES} | change, message)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"positions": torch.arange(4)}, r"positions: got '\[4\] of torch.int64'; .*T = 5"),
            ({"frequencies": []}, "frequencies: got"),
            ({"frequencies": "yarn"}, "frequencies: got"),
            ({"frequencies": torch.tensor(1.0)}, r"frequencies: got '\[\] of torch.float32'"),
            ({"cu_seqlens": torch.tensor([0.0, 5.0])}, r"cu_seqlens: got '\[2\] of torch.float32'"),
            ({"cu_seqlens": torch.tensor([], dtype=torch.int32)}, r"cu_seqlens: got '\[0\]"),
            ({"positions": torch.zeros(5)}, "of torch.float32'; expected integers"),
            ({"positions": torch.zeros(3, 5, dtype=torch.int32)}, "rows of the angles: got 3"),
            ({"frequencies": [SMALL] * 3}, "rows of the angles: got 3"),
            ({"frequencies": YARN[0]}, "pairs: got '24 from"),
            ({"frequencies": YARN[0], "attention_factor": 2.0}, "attention_factor: got 2.0"),
            (
                {"positions": torch.arange(5), "cu_seqlens": torch.tensor([0, 5])},
                "cu_seqlens: got 'cu_seqlens and positions'; expected one of the two",
            ),
        ],
    )
    def test_with_frequencies(self, change, message):
        self.check_message({"q": self.Q, "k": self.K, "frequencies": torch.ones(4)} | change, message)

    @staticmethod
    def check_message(arguments, message):
        with pytest.raises(InputError, match=message) as error:
            rotate(**arguments)
        assert "\n" not in str(error.value)
