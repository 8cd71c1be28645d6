"""When a difference is a fault, and when it is noise."""

from __future__ import annotations

from dataclasses import dataclass

PASS, UNCLEAR, FAIL = "pass", "unclear", "fail"
_NOISE = 3.0  # up to so many times the control a difference is noise
_FAULT = 10.0  # from so many times on it is a fault


@dataclass(frozen=True)
class Verdict:
    """A difference against its control.

    Attributes:
        unit: of difference and control.
        difference: of the engine from the reference, under the scaling.
        control: what the engine differs by where nothing can be wrong.
        ratio: of the two.
        verdict: pass, unclear or fail.
        why: one sentence.
    """

    unit: str
    difference: float
    control: float
    ratio: float
    verdict: str
    why: str


def judge(unit: str, difference: float, control: float, ignored: float | None = None, resolve: str = "") -> Verdict:
    """The verdict on a difference.

    Args:
        unit: that all are in.
        difference: of the engine from the reference, under the scaling.
        control: what noise explains of it.
        ignored: the difference of an engine that ignores the scaling, where that is known and not 0.
        resolve: what would tell fault from noise.
    """
    ratio = difference / control if control else (float("inf") if difference else 1.0)
    if ratio >= _FAULT:
        return Verdict(unit, difference, control, ratio, FAIL, f"{ratio:,.0f} times what noise explains")
    if ignored is not None and ignored < _FAULT * control:
        why = f"even an engine that ignored the scaling would differ by {ignored / control:.1f} times the control alone"
        return Verdict(unit, difference, control, ratio, UNCLEAR, why)
    if ratio <= _NOISE:
        return Verdict(unit, difference, control, ratio, PASS, "no more than noise")
    why = "more than noise and less than a sure fault" + (f"; {resolve}" if resolve else "")
    return Verdict(unit, difference, control, ratio, UNCLEAR, why)


def worst(verdicts: list[Verdict]) -> Verdict:
    """The one that decides: the gravest, of equally grave ones the first."""
    return max(verdicts, key=lambda each: (PASS, UNCLEAR, FAIL).index(each.verdict))
