from __future__ import annotations

import pytest

import ropewalk as rw
from ropewalk.scaling import REGISTRY
from ropewalk.serving.engines import ENGINES
from ropewalk.serving.support import list_support, read_verify_results


def make_result(scaling, verdict):
    return {
        "engine": "vllm", "version": "0.32.0", "scaling": scaling, "length": 12_000, "ratio": 42.0,
        "verdict": verdict, "date": "2026-01-02",
    }  # fmt: skip


@pytest.fixture(scope="module")
def support():
    results = [("yarn:factor=2", "pass"), ("linear:factor=2", "fail"), ("ntk:factor=2", "unclear")]
    return list_support([make_result(scaling, verdict) for scaling, verdict in results])


def test_every_method_is_listed_for_every_engine(support):
    assert [(entry.method, entry.engine) for entry in support] == [(m, e) for m in REGISTRY for e in ENGINES]


def test_only_passed_results_prove_and_only_failed_ones_refute(support):
    assert [(entry.engine, entry.method) for entry in support if entry.proven] == [("vllm", "yarn")]
    assert [(entry.engine, entry.method) for entry in support if entry.refuted] == [("vllm", "linear")]


def test_every_unsupported_method_has_a_nearest_supported_scaling(support):
    unsupported = [entry for entry in support if entry.how == "no"]
    assert unsupported
    assert [entry for entry in unsupported if not entry.detail] == []


def test_a_file_that_is_not_a_result_is_an_input_error(tmp_path):
    (tmp_path / "other.json").write_text('{"rows": []}')
    with pytest.raises(rw.InputError, match=r"other\.json"):
        read_verify_results(tmp_path)
    with pytest.raises(rw.InputError, match="missing"):
        read_verify_results(tmp_path / "missing")
