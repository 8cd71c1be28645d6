"""The rotation as one Triton kernel: q and k in a single launch, with any strides.

backends/triton.py launches it. This file imports triton, so import it only where triton is installed.

One program rotates a tile: a few tokens, some heads of q or of k, and all pairs. It loads or computes cos and sin of
its tokens once for all of its heads. The kernel is limited by memory, so the tile is chosen to keep enough bytes in
flight, in accesses of 16 bytes; see `_TILE_BYTES` in backends/triton.py.

Shapes: B batch rows, H heads, T tokens, D channels of a head, P pairs, C channels of all pairs (2 P). The constants
TOKENS, HEADS and PAIRS are the sizes of a tile, powers of two.
"""

# Triton's compiler assigns the types in a kernel.
# mypy: ignore-errors

from __future__ import annotations

import math

import triton
import triton.language as tl


@triton.jit
def _taylor_series(square, first: tl.constexpr, terms: tl.constexpr):
    """Return the Taylor series of cos(x) (first = 0) or sin(x) / x (first = 1), given x^2, up to x^(2 terms)."""
    value = square * 0 + 1
    for n in tl.static_range(terms, 0, -1):
        value = 1 - value * square * (1.0 / ((2 * n - 1 + first) * (2 * n + first)))
    return value


@triton.jit
def cos_sin_of_fixed_point(fixed_point_angle, real: tl.constexpr):
    """Return cos and sin of int64 angles in units of 2^-64 of a full rotation; relative error 3e-7, in float64 5e-16.

    Integer arithmetic subtracts the nearest quarter of a rotation exactly. The remainder is within pi / 4, where short
    series are correct to the rounding of `real`. The device's own sin and cos would reduce the angle a second time, on
    a slow path for large angles that costs registers and local memory, and their results differ between devices.
    """
    quadrant = ((fixed_point_angle + 2**61) >> 62).to(tl.int32)
    angle = (fixed_point_angle << 2).to(real) * (2 * math.pi / 2**66)
    square = angle * angle
    # The first omitted term is below 3e-9 of the sum, in float64 below 2e-19.
    terms: tl.constexpr = 8 if real == tl.float64 else 4
    near_sin = angle * _taylor_series(square, 1, terms)
    near_cos = _taylor_series(square, 0, terms + 1)
    is_odd = quadrant & 1 != 0
    cos = tl.where(is_odd, near_sin, near_cos)
    sin = tl.where(is_odd, near_cos, near_sin)
    return tl.where((quadrant + 1) & 2 != 0, -cos, cos), tl.where(quadrant & 2 != 0, -sin, sin)


@triton.jit
def _rotate_tile(
    x, out, x_strides, out_strides, first, second, factors, first_strides, second_strides, factor_strides,
    row, token_T, tokens, head,
    H: tl.constexpr, D: tl.constexpr, P: tl.constexpr, START: tl.constexpr, HEADS: tl.constexpr, PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr, INVERSE: tl.constexpr, FIXED_POINT: tl.constexpr, IN_PLACE: tl.constexpr,
):  # fmt: skip
    """Rotate the HEADS heads of x from `head` on.

    If FIXED_POINT, `first` and `second` are positions and fixed-point frequencies, otherwise cos and sin.
    """
    real: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    head_H = head + tl.arange(0, HEADS).to(tl.int64)
    pair_P = tl.arange(0, PAIRS)
    mask_TH = (token_T < tokens)[:, None] & (head_H < H)[None, :]
    # Offsets along tokens and heads are int64: they exceed 2^31 elements in long texts. Channel offsets stay small.
    x_TH = x + row * x_strides[0] + (token_T[:, None] * x_strides[2] + head_H[None, :] * x_strides[1])
    out_TH = out + row * out_strides[0] + (token_T[:, None] * out_strides[2] + head_H[None, :] * out_strides[1])

    # Issue the loads of the channels before those of the angles, so that their latencies overlap.
    if INTERLEAVED:
        # Load contiguous channels and split them in registers: loading every other channel wastes half of each access.
        channel_C = tl.arange(0, 2 * PAIRS)
        mask_THC = mask_TH[:, :, None] & (channel_C < 2 * P)[None, None, :]
        x_THC = tl.load(x_TH[:, :, None] + START + channel_C[None, None, :], mask_THC)
        a_THP, b_THP = tl.split(tl.reshape(x_THC, (x_THC.shape[0], HEADS, PAIRS, 2)))
    else:
        mask_THP = mask_TH[:, :, None] & (pair_P < P)[None, None, :]
        a_THP = tl.load(x_TH[:, :, None] + START + pair_P[None, None, :], mask_THP)
        b_THP = tl.load(x_TH[:, :, None] + (START + P) + pair_P[None, None, :], mask_THP)

    mask_TP = (token_T < tokens)[:, None] & (pair_P < P)[None, :]
    if FIXED_POINT:
        position_T = tl.load(first + row * first_strides[0] + token_T * first_strides[1], token_T < tokens, 0)
        # All tokens have the same frequencies, yet they are loaded for each token: the compiler then shares cos and sin
        # between the threads of all heads once per tile, instead of once per head.
        frequency_P = second + (row * second_strides[0] + pair_P * second_strides[1])
        frequency_TP = tl.load(frequency_P[None, :] + 0 * token_T[:, None], mask_TP, 0)
        cos_TP, sin_TP = cos_sin_of_fixed_point(position_T[:, None] * frequency_TP, real)
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
    rotated_a_THP = (a_THP * cos_THP - b_THP * sin_THP).to(x.dtype.element_ty)
    rotated_b_THP = (b_THP * cos_THP + a_THP * sin_THP).to(x.dtype.element_ty)
    if INTERLEAVED:
        rotated_THC = tl.reshape(tl.join(rotated_a_THP, rotated_b_THP), x_THC.shape)
        tl.store(out_TH[:, :, None] + START + channel_C[None, None, :], rotated_THC, mask_THC)
    else:
        tl.store(out_TH[:, :, None] + START + pair_P[None, None, :], rotated_a_THP, mask_THP)
        tl.store(out_TH[:, :, None] + (START + P) + pair_P[None, None, :], rotated_b_THP, mask_THP)

    if not IN_PLACE:
        _copy_channels(x_TH, out_TH, mask_TH, 0, START, 2 * PAIRS)
        _copy_channels(x_TH, out_TH, mask_TH, START + 2 * P, D, 2 * PAIRS)


@triton.jit
def _copy_channels(x_TH, out_TH, mask_TH, begin: tl.constexpr, end: tl.constexpr, width: tl.constexpr):
    """Copy channels begin .. end - 1, `width` at a time."""
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
    INTERLEAVED: tl.constexpr, INVERSE: tl.constexpr, FIXED_POINT: tl.constexpr, IN_PLACE: tl.constexpr,
    TOKENS: tl.constexpr, HEADS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Rotate one tile. Programs of the same tokens are neighbors: first the tiles of q, then those of k.

    K_HEADS is 0 if there is no k.
    """
    q_tiles: tl.constexpr = (Q_HEADS + HEADS - 1) // HEADS
    tiles: tl.constexpr = q_tiles + (K_HEADS + HEADS - 1) // HEADS
    # The launch grid has one dimension: the others are limited to 65,535, too few for tokens or rows.
    blocks = (tokens + TOKENS - 1) // TOKENS
    tile, block = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    row = (block // blocks).to(tl.int64)
    token_T = (block % blocks).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    if tile < q_tiles:
        _rotate_tile(
            q, q_out, q_strides, q_out_strides, first, second, factors, first_strides, second_strides, factor_strides,
            row, token_T, tokens, tile * HEADS,
            Q_HEADS, D, P, START, HEADS, PAIRS, INTERLEAVED, INVERSE, FIXED_POINT, IN_PLACE,
        )  # fmt: skip
    elif K_HEADS > 0:
        _rotate_tile(
            k, k_out, k_strides, k_out_strides, first, second, factors, first_strides, second_strides, factor_strides,
            row, token_T, tokens, (tile - q_tiles) * HEADS,
            K_HEADS, D, P, START, HEADS, PAIRS, INTERLEAVED, INVERSE, FIXED_POINT, IN_PLACE,
        )  # fmt: skip
