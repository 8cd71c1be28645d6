"""`rotate` against the same turn written with complex numbers in float64."""

import numpy as np
import pytest
import torch

from ropewalk.ops import rotate as rotating
from ropewalk.ops.rotate import rotate

HEADS, TOKENS, CHANNELS = 3, 7, 12
ROUNDING = {torch.float32: 2**-23, torch.bfloat16: 2**-8, torch.float16: 2**-11}  # of the largest number in a pair
LAYOUTS = pytest.mark.parametrize("interleaved", [False, True], ids=["half", "interleaved"])
PLACES = pytest.mark.parametrize(("start", "pairs"), [(0, 6), (0, 2), (4, 4), (3, 2)])


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tables(batch, tokens, pairs, seed=1):
    """Angles of either sign, and a factor that is not 1."""
    angle_BTP = 5 * numbers(batch, tokens, pairs, seed=seed).double()
    return 1.25 * angle_BTP.cos(), 1.25 * angle_BTP.sin()


def by_hand(x, cos_BTP, sin_BTP, start, interleaved):
    """Pair by pair, a complex number times a complex number."""
    x, turn_BTP = x.double().numpy(), (cos_BTP.float() + 1j * sin_BTP.float()).to(torch.complex128).numpy()
    turned, pairs = x.copy(), turn_BTP.shape[-1]
    for pair in range(pairs):
        one, other = (start + 2 * pair, start + 2 * pair + 1) if interleaved else (start + pair, start + pairs + pair)
        turn = turn_BTP[:, None, :, pair] if x.ndim == 4 else turn_BTP[..., pair]
        product = (x[..., one] + 1j * x[..., other]) * turn
        turned[..., one], turned[..., other] = product.real, product.imag
    return turned


def check(x, cos_BTP, sin_BTP, start, interleaved):
    turned = rotate(x, cos_BTP.float(), sin_BTP.float(), start, interleaved)
    assert turned.dtype == x.dtype
    assert turned.shape == x.shape
    want = by_hand(x, cos_BTP, sin_BTP, start, interleaved)
    largest = np.abs(want).max() if x.dtype == torch.float32 else np.abs(want)  # rounded once, from float32
    assert (np.abs(turned.double().numpy() - want) <= ROUNDING[x.dtype] * largest + 1e-6).all()


@LAYOUTS
@PLACES
@pytest.mark.parametrize("rows", [1, 2], ids=["one table", "a table for each row"])
def test_with_heads(interleaved, start, pairs, rows):
    check(numbers(2, HEADS, TOKENS, CHANNELS), *tables(rows, TOKENS, pairs), start, interleaved)


@LAYOUTS
@PLACES
@pytest.mark.parametrize("rows", [1, 3], ids=["one table", "a table for each row"])
def test_without_heads(interleaved, start, pairs, rows):
    check(numbers(3, TOKENS, CHANNELS), *tables(rows, TOKENS, pairs), start, interleaved)


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(interleaved, dtype):
    check(numbers(2, HEADS, TOKENS, CHANNELS).to(dtype), *tables(2, TOKENS, 5), 1, interleaved)


@LAYOUTS
@PLACES
def test_other_channels_keep_their_bits(interleaved, start, pairs):
    x = numbers(1, HEADS, TOKENS, CHANNELS).bfloat16()
    turned = rotate(x, *(part.float() for part in tables(1, TOKENS, pairs)), start, interleaved)
    assert torch.equal(turned[..., :start], x[..., :start])
    assert torch.equal(turned[..., start + 2 * pairs :], x[..., start + 2 * pairs :])


@pytest.mark.parametrize("shape", [(2, HEADS, 50, CHANNELS), (2, 50, CHANNELS)], ids=["heads", "no heads"])
@pytest.mark.parametrize("block", [1, 100, 7 * 2 * HEADS * CHANNELS])
def test_blocks_of_tokens_change_nothing(shape, block, monkeypatch):
    x, cos_sin = numbers(*shape), [part.float() for part in tables(2, 50, 4)]
    whole = rotate(x, *cos_sin, 2, True)
    monkeypatch.setattr(rotating, "_BLOCK", block)
    assert torch.equal(rotate(x, *cos_sin, 2, True), whole)


def test_more_tokens_than_a_block():
    check(numbers(1, 2, 2**17, 8), *tables(1, 2**17, 4), 0, False)


def test_the_input_is_left_alone():
    x, (cos, sin) = numbers(2, HEADS, TOKENS, CHANNELS), tables(1, TOKENS, 6)
    before = x.clone()
    turned = rotate(x, cos.float(), sin.float(), 0, False)
    assert torch.equal(x, before)
    assert turned.data_ptr() != x.data_ptr()


def test_no_tokens():
    empty = numbers(2, HEADS, 0, CHANNELS)
    assert rotate(empty, *(part.float() for part in tables(1, 0, 6)), 0, False).shape == empty.shape


def test_a_view_that_is_not_contiguous():
    check(numbers(2, TOKENS, HEADS, CHANNELS).transpose(1, 2), *tables(1, TOKENS, 6), 0, True)
