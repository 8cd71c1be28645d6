"""The rotation as one Triton kernel: q and k in a single launch, whatever their strides.

Imported only where Triton is installed; backends/triton.py launches it.

A program turns a tile of a few tokens, some heads of q or of k, and all pairs. It reads the angles of its tokens once,
or forms them, for all of its heads; it waits for nothing but memory, so that what counts is that enough bytes are
asked for at a time, in accesses of 16 bytes: see `_TILE_BYTES` in backends/triton.py.

Shapes: B batch, H heads, T tokens, D channels of a head, P pairs. TOKENS, HEADS and PAIRS are those of a tile, powers
of two.
"""

# A kernel is typed by Triton's compiler.
# mypy: ignore-errors

from __future__ import annotations

import math

import triton
import triton.language as tl


@triton.jit
def _series(square, first: tl.constexpr, terms: tl.constexpr):
    """The Taylor series of cos(x) (first = 0) or sin(x) / x (first = 1) by x^2, up to x^(2 terms)."""
    value = square * 0 + 1
    for n in tl.static_range(terms, 0, -1):
        value = 1 - value * square * (1.0 / ((2 * n - 1 + first) * (2 * n + first)))
    return value


@triton.jit
def cos_sin(reduced, real: tl.constexpr):
    """cos and sin of angles in units of 2^-64 turn, int64; relative error below 3e-7, in float64 5e-16.

    The nearest quarter of a turn is taken off in integers, exactly. What is left is within pi / 4, where short series
    reach the rounding of `real`; the sin and cos of the device would reduce once more, with a slow path for large
    angles that costs registers and local memory, and are not the same on all devices.
    """
    quadrant = ((reduced + 2**61) >> 62).to(tl.int32)
    angle = (reduced << 2).to(real) * (2 * math.pi / 2**66)
    square = angle * angle
    # The first term left out is below 3e-9 of the whole, for float64 below 2e-19.
    terms: tl.constexpr = 8 if real == tl.float64 else 4
    near_sin = angle * _series(square, 1, terms)
    near_cos = _series(square, 0, terms + 1)
    swapped = quadrant & 1 != 0
    cos = tl.where(swapped, near_sin, near_cos)
    sin = tl.where(swapped, near_cos, near_sin)
    return tl.where((quadrant + 1) & 2 != 0, -cos, cos), tl.where(quadrant & 2 != 0, -sin, sin)


@triton.jit
def _turn_tile(
    x, out, x_strides, out_strides, first, second, factors, first_strides, second_strides, factor_strides,
    row, token_T, tokens, head,
    H: tl.constexpr, D: tl.constexpr, P: tl.constexpr, START: tl.constexpr, HEADS: tl.constexpr, PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr, INVERSE: tl.constexpr, FORMED: tl.constexpr, IN_PLACE: tl.constexpr,
):  # fmt: skip
    """Turn some heads of x from `head` on; FORMED: first and second are positions and turns, otherwise cos and sin."""
    real: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    head_H = head + tl.arange(0, HEADS).to(tl.int64)
    pair_P = tl.arange(0, PAIRS)
    mask_TH = (token_T < tokens)[:, None] & (head_H < H)[None, :]
    # 64 bits for what is counted in strides, which passes 2^31 in long texts; channels stay within a head.
    x_TH = x + row * x_strides[0] + (token_T[:, None] * x_strides[2] + head_H[None, :] * x_strides[1])
    out_TH = out + row * out_strides[0] + (token_T[:, None] * out_strides[2] + head_H[None, :] * out_strides[1])

    # The channels are asked for before the angles, so that neither waits for the other.
    if INTERLEAVED:
        # Whole runs of channels, taken apart in registers: every other channel would be half of each access.
        channel_C = tl.arange(0, 2 * PAIRS)
        mask_THC = mask_TH[:, :, None] & (channel_C < 2 * P)[None, None, :]
        x_THC = tl.load(x_TH[:, :, None] + START + channel_C[None, None, :], mask_THC)
        a_THP, b_THP = tl.split(tl.reshape(x_THC, (x_THC.shape[0], HEADS, PAIRS, 2)))
    else:
        mask_THP = mask_TH[:, :, None] & (pair_P < P)[None, None, :]
        a_THP = tl.load(x_TH[:, :, None] + START + pair_P[None, None, :], mask_THP)
        b_THP = tl.load(x_TH[:, :, None] + (START + P) + pair_P[None, None, :], mask_THP)

    mask_TP = (token_T < tokens)[:, None] & (pair_P < P)[None, :]
    if FORMED:
        position_T = tl.load(first + row * first_strides[0] + token_T * first_strides[1], token_T < tokens, 0)
        # Loaded for every token, though all have the same turns: so the compiler hands cos and sin to the threads of
        # the other heads once a tile. What it could form anew from a few numbers, it hands on once a head.
        turns_P = second + (row * second_strides[0] + pair_P * second_strides[1])
        turns_TP = tl.load(turns_P[None, :] + 0 * token_T[:, None], mask_TP, 0)
        cos_TP, sin_TP = cos_sin(position_T[:, None] * turns_TP, real)
        factor = tl.load(factors + row * factor_strides[0]).to(real)
        cos_TP, sin_TP = cos_TP * factor, sin_TP * factor
    else:
        cos_T = first + row * first_strides[0] + token_T * first_strides[1]
        sin_T = second + row * second_strides[0] + token_T * second_strides[1]
        cos_TP = tl.load(cos_T[:, None] + pair_P[None, :] * first_strides[2], mask_TP)
        sin_TP = tl.load(sin_T[:, None] + pair_P[None, :] * second_strides[2], mask_TP)
    if INVERSE:
        sin_TP = -sin_TP

    cos_THP, sin_THP = cos_TP[:, None, :], sin_TP[:, None, :]
    a_THP, b_THP = a_THP.to(real), b_THP.to(real)
    turned_a_THP = (a_THP * cos_THP - b_THP * sin_THP).to(x.dtype.element_ty)
    turned_b_THP = (b_THP * cos_THP + a_THP * sin_THP).to(x.dtype.element_ty)
    if INTERLEAVED:
        turned_THC = tl.reshape(tl.join(turned_a_THP, turned_b_THP), x_THC.shape)
        tl.store(out_TH[:, :, None] + START + channel_C[None, None, :], turned_THC, mask_THC)
    else:
        tl.store(out_TH[:, :, None] + START + pair_P[None, None, :], turned_a_THP, mask_THP)
        tl.store(out_TH[:, :, None] + (START + P) + pair_P[None, None, :], turned_b_THP, mask_THP)

    if not IN_PLACE:
        _copy_channels(x_TH, out_TH, mask_TH, 0, START, 2 * PAIRS)
        _copy_channels(x_TH, out_TH, mask_TH, START + 2 * P, D, 2 * PAIRS)


@triton.jit
def _copy_channels(x_TH, out_TH, mask_TH, begin: tl.constexpr, end: tl.constexpr, width: tl.constexpr):
    for channel in range(begin, end, width):
        channel_C = channel + tl.arange(0, width)
        mask_THC = mask_TH[:, :, None] & (channel_C < end)[None, None, :]
        x_THC = tl.load(x_TH[:, :, None] + channel_C[None, None, :], mask_THC)
        tl.store(out_TH[:, :, None] + channel_C[None, None, :], x_THC, mask_THC)


@triton.jit(do_not_specialize=["tokens"])
def rotate(
    q, q_out, k, k_out, first, second, factors,
    q_strides, q_out_strides, k_strides, k_out_strides, first_strides, second_strides, factor_strides, tokens,
    Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr, D: tl.constexpr, P: tl.constexpr, START: tl.constexpr,
    INTERLEAVED: tl.constexpr, INVERSE: tl.constexpr, FORMED: tl.constexpr, IN_PLACE: tl.constexpr,
    TOKENS: tl.constexpr, HEADS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """One program for every tile: those of one token side by side, first of q and then of k (none if K_HEADS is 0)."""
    q_tiles: tl.constexpr = (Q_HEADS + HEADS - 1) // HEADS
    tiles: tl.constexpr = q_tiles + (K_HEADS + HEADS - 1) // HEADS
    # One dimension of programs: the others end at 65,535, which tokens and rows pass.
    blocks = (tokens + TOKENS - 1) // TOKENS
    tile, block = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    row = (block // blocks).to(tl.int64)
    token_T = (block % blocks).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    if tile < q_tiles:
        _turn_tile(
            q, q_out, q_strides, q_out_strides, first, second, factors, first_strides, second_strides, factor_strides,
            row, token_T, tokens, tile * HEADS,
            Q_HEADS, D, P, START, HEADS, PAIRS, INTERLEAVED, INVERSE, FORMED, IN_PLACE,
        )  # fmt: skip
    elif K_HEADS > 0:
        _turn_tile(
            k, k_out, k_strides, k_out_strides, first, second, factors, first_strides, second_strides, factor_strides,
            row, token_T, tokens, (tile - q_tiles) * HEADS,
            K_HEADS, D, P, START, HEADS, PAIRS, INTERLEAVED, INVERSE, FORMED, IN_PLACE,
        )  # fmt: skip
