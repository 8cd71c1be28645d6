"""The circles and the strips as SVG files, for documents that run no scripts."""

from __future__ import annotations

import math
import re
from importlib import resources
from pathlib import Path
from typing import Any

from ropewalk.files import ensure_writable_folder, write_text_atomically
from ropewalk.report.explain.captions import format_quantity
from ropewalk.report.explain.rotations import BANDS, build_rotations
from ropewalk.report.explain.subject import Subject
from ropewalk.report.templates import load_template

_FIRST_RING, _RING_GAP = 124, 18  # radius of the outermost inner ring, and distance of the rings
_ROTATIONS_HEIGHT, _STRIP_HEIGHT, _WIDTH, _MIN_BAR = 130, 48, 860, 3  # px; as in scripts/strip.js

_SMALLEST_ARC = 1e-4  # rotations past the trained arc that count; as in scripts/circles.js


def write_pictures(subject: Subject, folder: Path) -> list[Path]:
    """Write circles.svg and pairs.svg, at the target length of the subject, and return their paths.

    Raises InputError for a folder that cannot be written, and MissingPackageError without jinja2.
    """
    ensure_writable_folder(folder)
    rotations = build_rotations(subject)
    contexts = {
        "circles.svg": {"circles": [_describe_circle(subject, rotations, which) for which in ("fast", "slow")]},
        "pairs.svg": _describe_strips(subject, rotations),
    }
    for name, context in contexts.items():
        template = load_template(__package__, f"{name}.j2", "ropewalk explain", quantity=format_quantity)
        labels = [method["label"] for method in rotations["methods"]]
        picture = template.render(style=_read_colors(), subject=subject, labels=labels, **context)
        write_text_atomically(folder / name, picture)
    return [folder / name for name in contexts]


def _describe_circle(subject: Subject, rotations: dict[str, Any], which: str) -> dict[str, Any]:
    """Return the arcs of a pair, in rotations, and the last token of each scaling as a point."""
    pair, last = rotations[which], subject.target - 1
    covered = min((subject.original_length - 1) * rotations["methods"][0]["turns"][0][pair], 1.0)
    rings = []
    for index, method in enumerate(rotations["methods"]):
        turns, radius = last * _at_target(subject, rotations, method["turns"])[pair], _FIRST_RING - _RING_GAP * index
        angle, beyond = 2 * math.pi * turns, min(turns, 1.0) - covered
        rings.append(
            {
                "radius": radius,
                "turns": turns,
                "inside": min(turns, covered),
                "beyond": beyond if beyond > _SMALLEST_ARC else 0.0,
                "x": radius * math.cos(angle),
                "y": radius * math.sin(angle),
            }
        )
    return {
        "which": which,
        "pair": pair,
        "covered": covered,
        "wavelength": rotations["wavelengths"][pair],
        "rings": rings,
    }


def _describe_strips(subject: Subject, rotations: dict[str, Any]) -> dict[str, Any]:
    """Return the bars of the rotations over L and of each scaling's divisors, as (height, color) for each pair."""
    logs = [math.log10(count) for count in rotations["rotations"]]
    low, high = min(*logs, 0.0) - 0.3, max(*logs, 0.0)
    heights = [_ROTATIONS_HEIGHT * (log - low) / (high - low) for log in logs]
    colors = ["never" if count < 1 else "trained" for count in rotations["rotations"]]
    by_method = [
        (_at_target(subject, rotations, method["divisors"]), _at_target(subject, rotations, method["bands"]))
        for method in rotations["methods"]
    ]
    largest = max(1.01, *(divisor for divisors, _ in by_method for divisor in divisors if divisor is not None))
    names = {band[0]: band for band in BANDS}
    strips = [
        [
            (_bar_height(divisor, largest), names[band])
            for divisor, band in zip(divisors, bands, strict=True)
        ]
        for divisors, bands in by_method
    ]  # fmt: skip
    return {
        "rotations": list(zip(heights, colors, strict=True)),
        "one": _ROTATIONS_HEIGHT * -low / (high - low),
        "strips": strips,
        "step": _WIDTH / len(logs),
        "critical": rotations["critical"],
    }


def _bar_height(divisor: float | None, largest: float) -> float:
    if divisor is None:  # a pair that stands still
        return _STRIP_HEIGHT
    return max(_STRIP_HEIGHT * math.log(divisor) / math.log(largest), _MIN_BAR)


def _at_target(subject: Subject, rotations: dict[str, Any], lists: list[Any]) -> Any:
    """Return the entry for the target length: of a dynamic scaling, the first stop that covers it."""
    if len(lists) == 1:
        return lists[0]
    return next(each for stop, each in zip(rotations["stops"], lists, strict=True) if stop >= subject.target)


def _read_colors() -> Any:
    """Return the colors of the page as CSS that browsers also apply to an SVG file in an img element."""
    from markupsafe import Markup

    css = resources.files(__package__).joinpath("page.css").read_text("utf-8")
    pairs = re.findall(r"(--[\w-]+): light-dark\(([^,]+), ([^)]+)\);", css)
    light, dark = ("; ".join(f"{name}: {pair[index]}" for name, *pair in pairs) for index in (0, 1))
    return Markup(f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}")
