from __future__ import annotations

import pytest

from ropewalk.serving.verify.verdict import judge, worst


@pytest.mark.parametrize(
    ("difference", "control", "ignored", "verdict"),
    [
        (1.0, 1.0, 50.0, "pass"),
        (3.0, 1.0, 50.0, "pass"),
        (3.1, 1.0, 50.0, "unclear"),
        (9.9, 1.0, 50.0, "unclear"),
        (10.0, 1.0, 50.0, "fail"),
        (10.0, 1.0, 5.0, "fail"),
        (1.0, 1.0, 5.0, "unclear"),  # a control that would hide an ignored scaling passes nobody
        (1.0, 1.0, None, "pass"),
        (0.0, 0.0, None, "pass"),
        (1e-9, 0.0, None, "fail"),
    ],
)
def test_verdict(difference, control, ignored, verdict):
    found = judge("nats", difference, control, ignored)
    assert found.verdict == verdict
    assert "\n" not in found.why


def test_what_is_unclear_says_what_would_tell():
    assert "float32 weights" in judge("nats", 5.0, 1.0, 50.0, "float32 weights would tell").why


def test_the_gravest_decides():
    passed, unclear, failed = (judge("nats", difference, 1.0, 50.0) for difference in (1, 5, 20))
    assert worst([passed, failed, unclear]) is failed
    assert worst([passed, unclear]) is unclear
    assert worst([passed, judge("nats", 2.0, 1.0)]) is passed
