"""Ten planted faults on transformers' own code: what is right passes, and all of these fail, none of them narrowly.

A fault in the code is as wrong without the scaling as with it: a control that is no control does not hide it.
"""

from __future__ import annotations

import pytest
from tests.helpers.planted_faults import MEANT, OF_THE_CODE, of_the_configuration, transformers_here, written_into

from ropewalk.serving.export import export_model
from ropewalk.serving.verify import verify

LENGTH = 256
IN_THE_CONFIGURATION = of_the_configuration(64, 10_000.0)


@pytest.fixture
def check(small, tmp_path):
    def check(scaling=MEANT, served=None, fault=()):
        with transformers_here(*fault):
            return verify(small, scaling, "transformers", length=LENGTH, served=served, work=tmp_path / "work")

    return check


@pytest.mark.parametrize("scaling", ["none", "linear:factor=4", MEANT, "llama3:factor=4", "ntk-by-parts:factor=4"])
def test_nothing_planted_passes(check, scaling):
    found = check(scaling)
    assert found.verdict == "pass", found.why
    assert found.tables["ratio"] < 3
    assert found.behaviour["ratio"] < 3
    assert scaling == "none" or found.behaviour["ignored"] > 100 * found.behaviour["control"]


@pytest.mark.parametrize("name", IN_THE_CONFIGURATION)
def test_fault_of_the_configuration(check, small, tmp_path, name):
    made = export_model(small, MEANT, "transformers", tmp_path / "served", LENGTH)
    found = check(served=written_into(made.path, IN_THE_CONFIGURATION[name]))
    fails(found, "tables")
    fails(found, "behaviour")


def test_stale_keys(check):
    # transformers' own: the frequencies follow the text, the keys in the cache do not.
    found = check("dynamic-ntk:factor=4")
    fails(found, "behaviour")
    assert found.tables["verdict"] == "pass"  # those of the whole length are right


@pytest.mark.parametrize(
    ("name", "seen_in", "not_in"),
    [
        ("half and interleaved layout confused", "behaviour", "tables"),  # which do not say what channels they turn
        ("tables in float16", "tables", None),
        ("all positions off by one", "tables", "behaviour"),  # attention sees distances alone
        ("new positions off by one against the cache", "behaviour", None),
    ],
)
def test_fault_of_the_code(check, name, seen_in, not_in):
    found = check(fault=OF_THE_CODE[name])
    fails(found, seen_in)
    assert not_in is None or getattr(found, not_in)["verdict"] == "pass"


def fails(found, part):
    assert found.verdict == "fail"
    assert not found.passed
    assert getattr(found, part)["verdict"] == "fail"
    assert getattr(found, part)["ratio"] >= 100
