from __future__ import annotations

import pytest

from ropewalk.serving.verify.verdict import judge, most_severe


@pytest.mark.parametrize(
    ("difference", "control", "difference_if_ignored", "verdict"),
    [
        (1.0, 1.0, 50.0, "pass"),
        (3.0, 1.0, 50.0, "pass"),
        (3.1, 1.0, 50.0, "unclear"),
        (9.9, 1.0, 50.0, "unclear"),
        (10.0, 1.0, 50.0, "fail"),
        (10.0, 1.0, 5.0, "fail"),
        (1.0, 1.0, 5.0, "unclear"),  # a control that would hide an ignored scaling cannot give a pass
        (1.0, 1.0, None, "pass"),
        (0.0, 0.0, None, "pass"),
        (1e-9, 0.0, None, "fail"),
    ],
)
def test_verdict_depends_on_the_ratio_and_on_the_resolution(difference, control, difference_if_ignored, verdict):
    result = judge("nats", difference, control, difference_if_ignored)
    assert result.verdict == verdict
    assert "\n" not in result.why


def test_unclear_verdict_contains_the_hint():
    assert "float32 weights" in judge("nats", 5.0, 1.0, 50.0, "float32 weights give a clearer verdict").why


def test_most_severe_verdict_is_chosen():
    passed, unclear, failed = (judge("nats", difference, 1.0, 50.0) for difference in (1, 5, 20))
    assert most_severe([passed, failed, unclear]) is failed
    assert most_severe([passed, unclear]) is unclear
    assert most_severe([passed, judge("nats", 2.0, 1.0)]) is passed
