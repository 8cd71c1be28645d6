"""Ten faults planted in transformers on a small model: all fail by a wide margin, and without a fault it passes.

A fault of the code also acts without scaling, where the control is measured. The control is limited, so that it cannot
hide the fault.
"""

from __future__ import annotations

import pytest
from tests.helpers.planted_faults import (
    CODE_FAULTS,
    EXPECTED,
    config_faults,
    transformers_in_process,
    write_config_fault,
)

from ropewalk.serving.export import export_model
from ropewalk.serving.verify import verify

LENGTH = 256
CONFIG_FAULTS = config_faults(original_length=64, base=10_000.0)


@pytest.fixture
def run_verify(small_model, work, tmp_path):
    def run_verify(scaling=EXPECTED, served=None, fault=()):
        # A fault of the code is in the control, too, so that control must not be kept for other tests.
        cache_folder = tmp_path / "work" if fault else work
        with transformers_in_process(*fault):
            return verify(small_model, scaling, "transformers", length=LENGTH, served=served, work=cache_folder)

    return run_verify


@pytest.mark.parametrize("scaling", ["none", "linear:factor=4", EXPECTED, "llama3:factor=4", "ntk-by-parts:factor=4"])
def test_passes_without_a_fault(run_verify, scaling):
    result = run_verify(scaling)
    assert result.verdict == "pass", result.why
    assert result.tables["ratio"] < 3
    assert result.behaviour["ratio"] < 3
    assert scaling == "none" or result.behaviour["ignored"] > 100 * result.behaviour["control"]


@pytest.mark.parametrize("name", CONFIG_FAULTS)
def test_config_fault_fails_in_tables_and_logprobs(run_verify, small_model, tmp_path, name):
    export = export_model(small_model, EXPECTED, "transformers", tmp_path / "served", LENGTH)
    result = run_verify(served=write_config_fault(export.path, CONFIG_FAULTS[name]))
    assert_fails(result, "tables")
    assert_fails(result, "behaviour")


def test_stale_cached_keys_fail_in_logprobs(run_verify):
    # In transformers, dynamic frequencies follow the text but the cached keys keep the old ones.
    result = run_verify("dynamic-ntk:factor=4")
    assert_fails(result, "behaviour")
    assert result.tables["verdict"] == "pass"  # the tables of the whole length are right


@pytest.mark.parametrize(
    ("name", "fails_in", "passes_in"),
    [
        ("half and interleaved layout confused", "behaviour", "tables"),  # tables do not show which channels are paired
        ("tables in float16", "tables", None),
        ("all positions off by one", "tables", "behaviour"),  # attention depends on distances only
        ("new positions off by one against the cache", "behaviour", None),
    ],
)
def test_code_fault_fails(run_verify, name, fails_in, passes_in):
    result = run_verify(fault=CODE_FAULTS[name])
    assert_fails(result, fails_in)
    assert passes_in is None or getattr(result, passes_in)["verdict"] == "pass"


def assert_fails(result, part):
    assert result.verdict == "fail"
    assert not result.passed
    assert getattr(result, part)["verdict"] == "fail"
    assert getattr(result, part)["ratio"] >= 100
