"""The values in the texts of the page, computed for its model and written with at most 4 significant digits."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ropewalk.config import compute_layer_frequencies
from ropewalk.report.explain.attention import attention_share, sharpness
from ropewalk.report.explain.rotations import BANDS, assign_bands, choose_fast_pair, choose_slow_pair, compute_divisors
from ropewalk.report.explain.subject import Subject

_EXAMPLE_PAIR, _EXAMPLE_FACTOR = 20, 4.0


def build_captions(subject: Subject) -> dict[str, Any]:
    """Return the values of every placeholder in the texts; `band` is the band of the example pair."""
    return {
        "model": subject.name,
        "original": f"{subject.original_length:,}",
        "target": f"{subject.target:,}",
        "pairs": subject.layer.rope.dim // 2,
        "dim": subject.layer.rope.dim,
        "base": format_quantity(subject.layer.rope.base),
        **_caption_circles(subject),
        **_caption_yarn(subject),
        **_caption_pair(subject),
        **_caption_temperature(subject),
    }


def format_quantity(value: float) -> str:
    """Return a number with at most 4 significant digits and thousands separators: 12,350 for 12345.6."""
    return f"{float(f'{value:.4g}'):,.12g}" if math.isfinite(value) else "∞"


def _caption_circles(subject: Subject) -> dict[str, Any]:
    rope = subject.layer.rope
    trained, target = rope.rotations(subject.original_length - 1), rope.rotations(subject.target - 1)
    rotations = rope.rotations(subject.original_length)
    fast, slow = choose_fast_pair(rotations), choose_slow_pair(rotations)
    return {
        "fast": fast,
        "slow": slow,
        "fast_rotations": format_quantity(trained[fast]),
        "slow_degrees": format_quantity(360 * trained[slow]),
        "slow_target_degrees": format_quantity(360 * target[slow]),
        "incomplete": int((rotations < 1).sum()),
        "critical": int((rotations >= 1).sum()),
    }


def _caption_yarn(subject: Subject) -> dict[str, Any]:
    scaled = subject.yarn.frequencies(subject.layer.rope)
    bands = assign_bands(compute_divisors(subject, scaled), subject.yarn.factor)
    counts = {f"yarn_{band}": bands.count(band) for band in BANDS}
    return {
        **counts,
        "yarn": str(subject.yarn),
        "yarn_factor": format_quantity(subject.yarn.factor),
        "beta_fast": format_quantity(subject.yarn.beta_fast),
        "beta_slow": format_quantity(subject.yarn.resolve_beta_slow(subject.layer.rope)),
    }


def _caption_pair(subject: Subject) -> dict[str, Any]:
    """Return the values for pair 20, or the slowest pair if there are fewer, under YaRN with factor 4."""
    rope = subject.layer.rope
    pair = min(_EXAMPLE_PAIR, rope.dim // 2 - 1)
    yarn = replace(subject.yarn, factor=_EXAMPLE_FACTOR)
    scaled = compute_layer_frequencies(yarn, subject.layer, None)
    divisor = float(compute_divisors(subject, scaled)[pair])
    rotations = float(rope.rotations(subject.original_length)[pair])
    return {
        "pair": pair,
        "band": assign_bands(compute_divisors(subject, scaled), _EXAMPLE_FACTOR)[pair],
        "pair_wavelength": format_quantity(rope.wavelengths[pair]),
        "pair_scaled_wavelength": format_quantity(rope.wavelengths[pair] * divisor),
        "pair_rotations": format_quantity(rotations),
        "pair_divisor": format_quantity(divisor),
        "pair_long_rotations": format_quantity(_EXAMPLE_FACTOR * rotations),
        "pair_scaled_rotations": format_quantity(_EXAMPLE_FACTOR * rotations / divisor),
        "pair_long": f"{round(_EXAMPLE_FACTOR * subject.original_length):,}",
    }


def _caption_temperature(subject: Subject) -> dict[str, Any]:
    scaled = subject.yarn.frequencies(subject.layer.rope)
    advantage = math.log(subject.original_length - 1 or 1)
    is_longer = subject.target > subject.original_length
    long = subject.target if is_longer else round(subject.yarn.factor * subject.original_length)
    return {
        "yarn_length": f"{long:,}",
        "yarn_attention_factor": format_quantity(scaled.attention_factor),
        "yarn_sharpness": format_quantity(sharpness(scaled)),
        "share_without": format_quantity(100 * attention_share(advantage, long)),
        "share_with": format_quantity(100 * attention_share(advantage, long, sharpness(scaled))),
    }
