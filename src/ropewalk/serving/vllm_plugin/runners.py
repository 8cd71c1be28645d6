"""The positions of a batch become rows of the shared rotary table, in both model runners of vLLM.

V1 shifts its buffer of positions in place, after slot mappings and attention metadata have been formed from it. V2 lets
a `ModelState` replace the positions that the model reads, as it does for MRoPE; its sampler reads the plain ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ropewalk.serving.vllm_plugin.request_factors import RequestFactors

FACTOR_ARGUMENT = "ropewalk_factor_index"  # key of SamplingParams.extra_args
_V1 = "vllm.v1.worker.gpu_model_runner.GPUModelRunner"
_V2 = "vllm.v1.worker.gpu.model_runner.GPUModelRunner"
_MODEL_STATE = "vllm.v1.worker.gpu.model_states.interface.ModelState"
_SIGNATURES: dict[str, dict[str, tuple[str, ...]]] = {
    _V1: {
        f"{_V1}._preprocess": ("self", "scheduler_output", "num_input_tokens", "intermediate_tensors"),
    },
    _V2: {
        f"{_MODEL_STATE}.add_request": ("self", "req_index", "new_req_data"),
        f"{_MODEL_STATE}.remove_request": ("self", "req_id"),
        f"{_MODEL_STATE}.prepare_inputs": ("self", "input_batch", "req_states"),
        f"{_MODEL_STATE}.prepare_dummy_inputs": ("self", "num_reqs", "num_tokens"),
    },
}


def find_runner(vllm_config: Any) -> str:
    """Return the path of the class that runs the model."""
    return _V2 if vllm_config.use_v2_model_runner else _V1


def runner_signatures(vllm_config: Any) -> dict[str, tuple[str, ...]]:
    """Return the parameters of the methods that `hook_runner` replaces, by path."""
    return _SIGNATURES[find_runner(vllm_config)]


def hook_runner(runner: Any, factors: RequestFactors) -> None:
    """Let a runner read each request from the rows of its factor. A second call changes nothing."""
    if find_runner(runner.vllm_config) == _V2:
        if "prepare_inputs" not in vars(runner.model_state):
            _TablePositions(runner, factors).replace_methods(runner.model_state)
    elif "_preprocess" not in vars(runner):
        runner._preprocess = functools.partial(_preprocess, runner._preprocess, runner, factors)


def _preprocess(
    original: Callable[..., Any],
    runner: Any,
    factors: RequestFactors,
    scheduler_output: Any,
    num_input_tokens: int,
    intermediate_tensors: Any = None,
) -> Any:
    """Shift the positions of a batch in V1.

    The buffer is changed in place, because CUDA graphs read it at a fixed address; vLLM fills it again for every step.
    """
    result = original(scheduler_output, num_input_tokens, intermediate_tensors)
    states = [runner.requests[request_id] for request_id in runner.input_batch.req_ids]
    first_rows = [_find_first_row(state.req_id, state.sampling_params, factors) for state in states]
    tokens = [scheduler_output.num_scheduled_tokens[state.req_id] for state in states]
    _shift(runner.positions, first_rows, tokens)
    return result


class _TablePositions:
    """The positions that the model reads in V2, in place of those of the text.

    They have a buffer of their own, because CUDA graphs read them at a fixed address.
    """

    def __init__(self, runner: Any, factors: RequestFactors) -> None:
        import torch

        self.factors = factors
        self.first_rows: dict[str, int] = {}  # by request; warm-up and dummy requests have none
        self.positions_T = torch.zeros_like(runner.input_buffers.positions)

    def replace_methods(self, model_state: Any) -> None:
        """Wrap four methods of a model state."""
        for name in ("add_request", "remove_request", "prepare_inputs", "prepare_dummy_inputs"):
            setattr(model_state, name, functools.partial(getattr(self, name), getattr(model_state, name)))

    def add_request(self, original: Callable[..., Any], req_index: int, new_req_data: Any) -> None:
        original(req_index, new_req_data)
        request_id, sampling_params = new_req_data.req_id, new_req_data.sampling_params
        # The ids of vLLM's own warm-up requests begin with an underscore, and these requests have no factor. A user may
        # choose such an id, too, but requests of users have a factor.
        is_warm_up = request_id.startswith("_") and _find_factor_index(sampling_params) is None
        if not is_warm_up:
            self.first_rows[request_id] = _find_first_row(request_id, sampling_params, self.factors)

    def remove_request(self, original: Callable[..., Any], req_id: str) -> None:
        original(req_id)
        self.first_rows.pop(req_id, None)

    def prepare_inputs(self, original: Callable[..., Any], input_batch: Any, req_states: Any) -> dict[str, Any]:
        first_rows = [self.first_rows.get(request_id, 0) for request_id in input_batch.req_ids]
        positions_T = self.positions_T[: len(input_batch.positions)].copy_(input_batch.positions)
        _shift(positions_T, first_rows, input_batch.num_scheduled_tokens)
        return {**original(input_batch, req_states), "positions": positions_T}

    def prepare_dummy_inputs(self, original: Callable[..., Any], num_reqs: int, num_tokens: int) -> dict[str, Any]:
        return {**original(num_reqs, num_tokens), "positions": self.positions_T[:num_tokens]}


def _find_first_row(request_id: str, sampling_params: Any, factors: RequestFactors) -> int:
    """Return the row of the table with position 0 of a request."""
    index = _find_factor_index(sampling_params)
    if index is None:
        raise RuntimeError(f"ropewalk: request {request_id} has no factor, because it bypassed InputProcessor")
    return factors.first_rows[index]


def _find_factor_index(sampling_params: Any) -> int | None:
    return ((sampling_params and sampling_params.extra_args) or {}).get(FACTOR_ARGUMENT)


def _shift(positions_T: Any, first_rows: list[int], tokens: Sequence[int]) -> None:
    """Add the first row of each request of a batch, in place, to the positions of its tokens."""
    from vllm.utils.torch_utils import async_tensor_h2d

    if any(first_rows):
        shifts_T = async_tensor_h2d(np.repeat(np.array(first_rows, dtype=np.int64), tokens), device=positions_T.device)
        positions_T[: len(shifts_T)] += shifts_T
