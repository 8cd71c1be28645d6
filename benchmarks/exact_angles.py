"""How far off is a table whose angles are formed in float32, as every transformers model forms them?

    python benchmarks/exact_angles.py

The truth is mpmath's cosine of the float64 frequency times the position. Beside it ropewalk's float32 table.
"""

from __future__ import annotations

import mpmath
import numpy as np
from common import keep

from ropewalk import Frequencies, Rope

POSITIONS = [1_000, 8_192, 131_072, 1_000_000, 2**31 - 1]


def main() -> None:
    mpmath.mp.prec = 200
    rows = []
    print(f"{'base':>12} {'position':>12} {'float32 angle':>14} {'ropewalk':>10}   largest error of cos and sin")
    for base in (1e4, 1e6, 1e8):
        frequencies = Rope(dim=128, base=base).inv_freq
        exact = Frequencies(frequencies)
        for position in POSITIONS:
            truth = [mpmath.mpf(float(f)) * position for f in frequencies]
            naive = np.float32(position) * frequencies.astype(np.float32)
            cos, sin = exact.cos_sin([position])
            rows.append(
                {
                    "base": base,
                    "position": position,
                    "float32_angle": worst(truth, np.cos(naive), np.sin(naive)),
                    "ropewalk": worst(truth, cos[0], sin[0]),
                }
            )
            last = rows[-1]
            print(f"{base:12g} {position:12,} {last['float32_angle']:14.1e} {last['ropewalk']:10.1e}")
    keep("exact_angles", {"rows": rows})


def worst(angles: list[mpmath.mpf], cos: np.ndarray, sin: np.ndarray) -> float:
    pairs = zip(angles, cos.tolist(), sin.tolist(), strict=True)
    return max(float(max(abs(mpmath.cos(a) - c), abs(mpmath.sin(a) - s))) for a, c, s in pairs)


if __name__ == "__main__":
    main()
