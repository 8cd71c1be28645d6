"""Decide whether a measured difference is a fault of the engine or numerical noise."""

from __future__ import annotations

from dataclasses import dataclass

PASS, UNCLEAR, FAIL = "pass", "unclear", "fail"
_MAX_NOISE_RATIO = 3.0  # a difference of at most 3 times the control is noise
_MIN_FAULT_RATIO = 10.0  # a difference of at least 10 times the control is a fault


@dataclass(frozen=True)
class Verdict:
    """A difference, the control that it is compared with, and the conclusion. The fields are keys of the JSON result.

    Attributes:
        unit: unit of difference and control.
        difference: between the engine and the reference under the scaling.
        control: difference that numerical noise explains.
        ratio: difference / control.
        verdict: "pass", "unclear" or "fail".
        why: the reason, as one clause.
    """

    unit: str
    difference: float
    control: float
    ratio: float
    verdict: str
    why: str


def judge(
    unit: str, difference: float, control: float, difference_if_ignored: float | None = None, hint: str = ""
) -> Verdict:
    """Compare a difference with its control and return the verdict.

    Args:
        unit: unit of the other arguments.
        difference: between the engine and the reference under the scaling.
        control: difference that numerical noise explains.
        difference_if_ignored: difference of an engine that ignores the scaling, if known and not 0. A control that
            would hide even that cannot give a pass.
        hint: what would tell a fault from noise; part of the reason if the verdict is unclear.
    """
    ratio = difference / control if control else (float("inf") if difference else 1.0)
    if ratio >= _MIN_FAULT_RATIO:
        verdict, why = FAIL, f"{ratio:,.0f} times what noise explains"
    elif difference_if_ignored is not None and difference_if_ignored < _MIN_FAULT_RATIO * control:
        resolution = difference_if_ignored / control
        verdict, why = UNCLEAR, f"an engine that ignored the scaling would differ by only {resolution:.1f} times noise"
    elif ratio <= _MAX_NOISE_RATIO:
        verdict, why = PASS, "no more than noise"
    else:
        verdict, why = UNCLEAR, "more than noise, but less than a certain fault" + (f"; {hint}" if hint else "")
    return Verdict(unit, difference, control, ratio, verdict, why)


def most_severe(verdicts: list[Verdict]) -> Verdict:
    """Return the most severe verdict; the first one among equals."""
    return max(verdicts, key=lambda verdict: (PASS, UNCLEAR, FAIL).index(verdict.verdict))
