"""The hook on model runner V2, tested with a stand-in for vLLM."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from ropewalk.serving.vllm_plugin.request_factors import RequestFactors
from ropewalk.serving.vllm_plugin.runners import FACTOR_ARGUMENT, hook_runner

torch = pytest.importorskip("torch")


class ModelState:
    """The methods of vLLM's class that the hook replaces, for a model without MRoPE."""

    def add_request(self, req_index, new_req_data): ...

    def remove_request(self, req_id): ...

    def prepare_inputs(self, input_batch, req_states):
        return {"inputs_embeds": None}

    def prepare_dummy_inputs(self, num_reqs, num_tokens):
        return {}


@pytest.fixture
def runner():
    buffers = SimpleNamespace(positions=torch.arange(8))
    vllm_config = SimpleNamespace(use_v2_model_runner=True)
    runner = SimpleNamespace(vllm_config=vllm_config, model_state=ModelState(), input_buffers=buffers)
    hook_runner(runner, RequestFactors(128, (1, 2, 4)))
    return runner


@pytest.fixture(autouse=True)
def host_to_device(monkeypatch):
    """Replace vLLM's function that copies an array to the device."""
    utilities = SimpleNamespace(async_tensor_h2d=lambda data, device: torch.from_numpy(data))
    for name, module in {"vllm": None, "vllm.utils": None, "vllm.utils.torch_utils": utilities}.items():
        monkeypatch.setitem(sys.modules, name, module or ModuleType(name))


def add(runner, request_id, index=None):
    extra_args = None if index is None else {FACTOR_ARGUMENT: index}
    data = SimpleNamespace(req_id=request_id, sampling_params=SimpleNamespace(extra_args=extra_args))
    runner.model_state.add_request(0, data)


def make_batch(request_ids, tokens):
    """A batch with one token of padding."""
    return SimpleNamespace(req_ids=request_ids, num_scheduled_tokens=tokens, positions=torch.arange(sum(tokens) + 1))


def read_positions(runner, request_ids, tokens):
    return runner.model_state.prepare_inputs(make_batch(request_ids, tokens), None)["positions"].tolist()


def test_positions_are_rows_of_the_factor_of_each_request(runner):
    add(runner, "a", 1)
    add(runner, "b", 2)
    assert read_positions(runner, ["b", "a"], [2, 3]) == [384, 385, 130, 131, 132, 5]


def test_the_positions_of_the_text_stay(runner):
    add(runner, "a", 1)
    batch = make_batch(["a"], [2])
    inputs = runner.model_state.prepare_inputs(batch, None)
    assert batch.positions.tolist() == [0, 1, 2]
    assert "inputs_embeds" in inputs


def test_graphs_are_captured_with_the_buffer_that_is_filled_later(runner):
    add(runner, "a", 2)
    captured_T = runner.model_state.prepare_dummy_inputs(1, 2)["positions"]
    read_positions(runner, ["a"], [2])
    assert captured_T.tolist() == [384, 385]


def test_requests_of_the_warm_up_have_no_factor(runner):
    add(runner, "_warmup_0_")
    assert read_positions(runner, ["_warmup_0_", "req_0_dummy"], [1, 1]) == [0, 1, 2]


def test_a_user_may_choose_an_id_that_looks_like_the_warm_up(runner):
    add(runner, "_warmup_0_", 1)
    assert read_positions(runner, ["_warmup_0_"], [1]) == [128, 1]


def test_other_requests_without_a_factor_are_refused(runner):
    with pytest.raises(RuntimeError, match="request a has no factor"):
        add(runner, "a")


def test_a_finished_request_leaves_nothing_behind(runner):
    add(runner, "a", 1)
    runner.model_state.remove_request("a")
    assert read_positions(runner, ["a"], [1]) == [0, 1]


def test_a_second_hook_changes_nothing(runner):
    hook_runner(runner, RequestFactors(128, (1, 2, 4)))
    add(runner, "a", 1)
    assert read_positions(runner, ["a"], [1]) == [128, 1]
