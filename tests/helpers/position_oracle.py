"""Dense float64 references of the position methods, each written from its publication, not from the package.

Each function returns the relative position of every pair of a query at m and a key at n, [T, T] float64; entries with
n > m have no meaning. W is the window and L the original length.
"""

from __future__ import annotations

import numpy as np


def self_extend(length: int, original_length: int, group: int, window: int) -> np.ndarray:
    """arXiv 2401.01325: neighbor attention inside the window, grouped attention behind it."""
    m, n = _grid(length)
    grouped = np.floor(m / group) + window - np.floor(window / group) - np.floor(n / group)
    return _select(m, n, m - n >= window, grouped, original_length)


def leaky_rerope(length: int, original_length: int, factor: float, window: int) -> np.ndarray:
    """kexue.fm 9708: the distance grows by 1 per token up to W, and by 1/k after it."""
    m, n = _grid(length)
    return _select(m, n, m - n >= window, window + (m - n - window) / factor, original_length)


def rerope(length: int, original_length: int, window: int) -> np.ndarray:
    """kexue.fm 9708: the distance is cut off at W."""
    m, n = _grid(length)
    return _select(m, n, m - n >= window, np.full_like(m, window), original_length)


def jet_long(length: int, original_length: int, window: int, group: int | None = None) -> np.ndarray:
    """arXiv 2607.07740, token by token: at query m the text has m + 1 tokens, G = ceil((m + 1) / L)."""
    m, n = _grid(length)
    groups = np.ceil((m + 1) / original_length) if group is None else group
    grouped = np.floor(m / groups) - np.floor(n / groups)
    return _select(m, n, m - n > window, grouped, original_length)


def dual_chunk(length: int, original_length: int, chunk_size: int, local_size: int) -> np.ndarray:
    """arXiv 2402.17463, with the cap of the published code (c where the paper has c - 1), one pair at a time."""
    stride = chunk_size - local_size
    relative = np.zeros((length, length))
    for m in range(length):
        for n in range(m + 1):
            chunks_back = m // stride - n // stride
            if m < original_length or chunks_back == 0:
                relative[m, n] = m - n
            elif chunks_back == 1:
                relative[m, n] = min(m % stride + stride, chunk_size) - n % stride
            else:
                relative[m, n] = min(2 * stride - 1, chunk_size) - n % stride
    return relative


def _grid(length: int) -> tuple[np.ndarray, np.ndarray]:
    positions = np.arange(length, dtype=np.float64)
    return np.meshgrid(positions, positions, indexing="ij")


def _select(m: np.ndarray, n: np.ndarray, is_far: np.ndarray, far: np.ndarray, original_length: int) -> np.ndarray:
    return np.where(is_far & (m >= original_length), far, m - n)
