"""The rotation written with complex numbers in numpy float64, to compare backends with, and the C++ builds to test.

Shapes: B batch rows, H heads, T tokens, D channels of a head, P pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ropewalk.ops.backends.cpu import NATIVE_FOLDER, Cpu

# Error of computing in float64 or float32, relative to the length of a pair.
COMPUTE_ERROR = {torch.float64: 2e-15, torch.float32: 3e-7, torch.bfloat16: 3e-7, torch.float16: 3e-7}
# Error of rounding the result, relative to the result: half of the last bit of the dtype.
ROUNDING_ERROR = {torch.float64: 0, torch.float32: 0, torch.bfloat16: 2**-8, torch.float16: 2**-11}


# rotate.cpp, compiled for each instruction set that this CPU has.
USABLE_LIBRARIES = [path for path in sorted(NATIVE_FOLDER.glob("*.so")) if Cpu([path]).unavailable_reason() is None]


def random_normal(*shape: int, seed: int = 0) -> Tensor:
    """Return float64 numbers that depend on the seed alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a copy in another dtype with the same strides."""
    return torch.empty_strided(x.shape, x.stride(), dtype=dtype).copy_(x)


def split_pairs(channels: Any, interleaved: bool) -> Any:
    """Return the first and the second channel of every pair, [2, ..., P]."""
    if interleaved:
        return np.stack((channels[..., ::2], channels[..., 1::2]))
    return np.stack(np.split(channels, 2, axis=-1))


def expected_rotation(x_BHTD: Tensor, cis_BTP: Any, start: int, interleaved: bool) -> Any:
    """Multiply every pair, as a complex number, by cos + i sin; float64."""
    rotated, pairs = x_BHTD.double().cpu().numpy().copy(), cis_BTP.shape[-1]
    for pair in range(pairs):
        first, second = (
            (start + 2 * pair, start + 2 * pair + 1) if interleaved else (start + pair, start + pairs + pair)
        )
        product = (rotated[..., first] + 1j * rotated[..., second]) * cis_BTP[:, None, :, pair]
        rotated[..., first], rotated[..., second] = product.real, product.imag
    return rotated


def assert_rotated(rotated: Tensor, x: Tensor, expected: Any, start: int, pairs: int, interleaved: bool) -> None:
    """Assert that every pair is correct to its rounding and that all other channels are unchanged."""
    assert (rotated.dtype, rotated.shape) == (x.dtype, x.shape)
    end = start + 2 * pairs
    expected_pairs = split_pairs(expected[..., start:end], interleaved)
    errors = np.abs(split_pairs(rotated.double().numpy()[..., start:end], interleaved) - expected_pairs)
    smallest = torch.finfo(x.dtype).smallest_normal
    rounding = ROUNDING_ERROR[x.dtype] * np.maximum(np.abs(expected_pairs), smallest)
    assert (errors <= COMPUTE_ERROR[x.dtype] * np.hypot(*expected_pairs) + 1.001 * rounding).all()
    assert torch.equal(rotated[..., :start], x[..., :start])
    assert torch.equal(rotated[..., end:], x[..., end:])
