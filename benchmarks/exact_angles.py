"""How large is the error of cos and sin if angles are computed in float32, as in transformers models?

    python -m benchmarks.exact_angles

Compares tables from float32 angles and ropewalk's float32 tables with mpmath's cos and sin of the float64 frequency
times the position. Writes results/exact_angles.json.
"""

from __future__ import annotations

import mpmath
import numpy as np

from benchmarks.common import save_result
from ropewalk import Frequencies, Rope

BASES = [1e4, 1e6, 1e8]
POSITIONS = [1_000, 8_192, 131_072, 1_000_000, 2**31 - 1]


def main() -> None:
    mpmath.mp.prec = 200
    rows = []
    print("largest error of cos and sin")
    print(f"{'base':>12} {'position':>12} {'float32 angle':>14} {'ropewalk':>10}")
    for base in BASES:
        inv_freq = Rope(dim=128, base=base).inv_freq
        frequencies = Frequencies(inv_freq)
        for position in POSITIONS:
            exact_angles = [mpmath.mpf(float(value)) * position for value in inv_freq]
            float32_angles = np.float32(position) * inv_freq.astype(np.float32)
            cos, sin = frequencies.cos_sin([position])
            row = {
                "base": base,
                "position": position,
                "float32_angle": largest_error(exact_angles, np.cos(float32_angles), np.sin(float32_angles)),
                "ropewalk": largest_error(exact_angles, cos[0], sin[0]),
            }
            rows.append(row)
            print(f"{base:12g} {position:12,} {row['float32_angle']:14.1e} {row['ropewalk']:10.1e}")
    save_result("exact_angles", {"rows": rows})


def largest_error(exact_angles: list[mpmath.mpf], cos: np.ndarray, sin: np.ndarray) -> float:
    errors = []
    for angle, cos_value, sin_value in zip(exact_angles, cos.tolist(), sin.tolist(), strict=True):
        errors += [abs(mpmath.cos(angle) - cos_value), abs(mpmath.sin(angle) - sin_value)]
    return float(max(errors))


if __name__ == "__main__":
    main()
