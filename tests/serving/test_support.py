from __future__ import annotations

import pytest

import ropewalk as rw
from ropewalk.scaling import REGISTRY
from ropewalk.serving.engines import ENGINES
from ropewalk.serving.support import list_support, read_verify_results

RESULT = {
    "engine": "vllm",
    "version": "0.32.0",
    "scaling": "yarn:factor=2",
    "length": 12_000,
    "ratio": 42.0,
    "date": "2026-01-02",
}


def test_every_method_is_listed_for_every_engine():
    support = list_support()
    assert [(entry.method, entry.engine) for entry in support] == [(m, e) for m in REGISTRY for e in ENGINES]


@pytest.mark.parametrize("verdict", ["pass", "fail", "unclear"])
def test_only_passed_results_prove_and_only_failed_ones_refute(verdict):
    support = list_support([{**RESULT, "verdict": verdict}])
    yarn_on_vllm = [("vllm", "yarn")]
    assert [(entry.engine, entry.method) for entry in support if entry.proven] == yarn_on_vllm * (verdict == "pass")
    assert [(entry.engine, entry.method) for entry in support if entry.refuted] == yarn_on_vllm * (verdict == "fail")


def test_every_unsupported_method_has_a_nearest_supported_scaling():
    unsupported = [entry for entry in list_support() if entry.how == "no"]
    assert unsupported
    assert [entry for entry in unsupported if not entry.detail] == []


def test_a_file_that_is_not_a_result_is_an_input_error(tmp_path):
    (tmp_path / "other.json").write_text('{"rows": []}')
    with pytest.raises(rw.InputError, match=r"other\.json"):
        read_verify_results(tmp_path)
    with pytest.raises(rw.InputError, match="missing"):
        read_verify_results(tmp_path / "missing")
