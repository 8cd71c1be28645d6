"""The functions of vLLM that the plugin wraps.

They stay as they are unless the model asks for request factors: `get_rope`, which builds the rotary modules; two
methods of `InputProcessor`, which admits requests; and the method of `WorkerWrapperBase` that runs after the model has
been loaded, where the model is checked and its runner is changed (runners.py). The version and the signatures are
checked before the server starts, and a feature that would be wrong is refused there.
"""

from __future__ import annotations

import copy
import functools
import inspect
import pkgutil
import sys
from collections.abc import Callable
from typing import Any

from ropewalk.serving.vllm_plugin.request_factors import (
    ROPE_TYPE,
    TESTED_VERSIONS,
    RequestFactors,
    find_request_factors,
)
from ropewalk.serving.vllm_plugin.runners import FACTOR_ARGUMENT, find_runner, hook_runner, runner_signatures

_SIGNATURES = {
    "vllm.model_executor.layers.rotary_embedding.get_rope": (
        "head_size", "max_position", "is_neox_style", "rope_parameters", "dtype", "dual_chunk_attention_config",
        "mrope_positions_factor",
    ),
    "vllm.v1.engine.input_processor.InputProcessor.process_inputs": (
        "self", "request_id", "prompt", "params", "supported_tasks", "arrival_time", "lora_request",
        "tokenization_kwargs", "trace_headers", "priority", "data_parallel_rank", "resumable", "session_id",
        "kv_hints",
    ),
    "vllm.v1.worker.worker_base.WorkerWrapperBase.initialize_from_config": ("self", "kv_cache_configs"),
}  # fmt: skip
# Rotary modules that read nothing but `cos_sin_cache`, by row.
_TABLE_CLASSES = (
    "RotaryEmbedding", "YaRNScalingRotaryEmbedding", "LinearScalingRotaryEmbedding", "Llama3RotaryEmbedding",
    "NTKScalingRotaryEmbedding", "Gemma4RotaryEmbedding",
)  # fmt: skip
# Models of the tested versions that cannot be served, by the beginning of the architecture's name: those that use
# positions for more than the rotation (every use of `positions` in vllm/models and vllm/model_executor was read), and
# those that write a rope dict of their own. Multi-head latent attention and MRoPE are refused by vLLM's own properties.
_REFUSED_MODELS = {
    "Moondream3": "attention scaled by position",
    "HfMoondream": "attention scaled by position",
    "Beam": "attention scaled by position",
    "MuseSpark": "attention scaled by position",
    "Step5": "sparse attention by position",
    "VoxtralRealtime": "an audio encoder that reads the positions of the text",
    "Qwen4Exp": "n-gram embeddings and sparse attention by position",
    "DeepseekV": "sparse attention by position, or a rope dict of its own",
    "AXK1": "a rope dict of its own",
    "GptOss": "a rope dict of its own",
}

_modules: dict[str, Any] = {}  # rotary modules by the arguments of `get_rope`; layers with equal arguments share one


class UnsupportedServerError(ValueError):
    """Raised before the server starts, for a version or a feature of vLLM that request factors do not work with."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"ropewalk: rope_type {ROPE_TYPE} cannot be served: {reason}")


def install() -> None:
    """Wrap the functions in this process, once. Raises ImportError or AttributeError if this vLLM has others."""
    from vllm.model_executor.layers import rotary_embedding
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    if hasattr(rotary_embedding.get_rope, "__wrapped__"):
        return
    original = rotary_embedding.get_rope
    wrapped = _with_request_factors(original)
    for name, module in list(sys.modules.items()):  # models import the function by name
        if name.startswith("vllm.") and vars(module).get("get_rope") is original:
            module.get_rope = wrapped  # type: ignore[attr-defined]
    _wrap_method(InputProcessor, "__init__", _init_input_processor)
    _wrap_method(InputProcessor, "process_inputs", _process_inputs)
    _wrap_method(WorkerWrapperBase, "initialize_from_config", _initialize_from_config)


def _wrap_method(cls: Any, name: str, replacement: Callable[..., Any]) -> None:
    """Replace a method by a function that is called with the original method before all other arguments."""
    original = getattr(cls, name)

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return replacement(original, self, *args, **kwargs)

    setattr(cls, name, method)


# --- The model: rotary tables -------------------------------------------------------------------------------------


def _with_request_factors(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def get_rope(*args: Any, **kwargs: Any) -> Any:
        from vllm.config import get_current_vllm_config_or_none

        vllm_config = get_current_vllm_config_or_none()
        factors = _find_factors(vllm_config)
        if factors is None:
            return original(*args, **kwargs)
        check_server(vllm_config)
        arguments = inspect.signature(original).bind(*args, **kwargs)
        arguments.apply_defaults()
        key = repr((sorted(arguments.arguments.items()), factors))
        if key not in _modules:
            _modules[key] = _build_module(original, arguments.arguments, factors)
        return _modules[key]

    return get_rope


def _build_module(original: Callable[..., Any], arguments: dict[str, Any], factors: RequestFactors) -> Any:
    """Return a rotary module whose table holds the rows of all factors.

    The rows are those of vLLM's own modules: unscaled for factor 1, YaRN for the others. Layers that are not scaled,
    such as sliding-window layers, have the same rows for every factor.
    """
    import torch

    rope_dict = arguments["rope_parameters"] or {}
    if rope_dict.get("rope_type") == ROPE_TYPE:
        changes = [_arguments_of_factor(rope_dict, factor, factors) for factor in factors.factors]
        modules = [original(**{**arguments, **change}) for change in changes]
    else:
        modules = [original(**{**arguments, "max_position": factors.lengths[-1]})] * len(factors.factors)
    parts = []
    for module, length in zip(modules, factors.lengths, strict=True):
        if type(module).__name__ not in _TABLE_CLASSES or module.use_aiter:
            raise UnsupportedServerError(f"a rotary module of the class {type(module).__name__} has no plain table")
        if len(module.cos_sin_cache) < length:
            rows = f"{len(module.cos_sin_cache):,} rows"
            raise UnsupportedServerError(f"the table of a {type(module).__name__} has {rows}, less than {length:,}")
        parts.append(module.cos_sin_cache[:length])
    combined = copy.deepcopy(modules[0])
    combined.register_buffer("cos_sin_cache", torch.cat(parts), persistent=False)
    combined.max_position_embeddings = len(combined.cos_sin_cache)
    combined.has_request_factors = rope_dict.get("rope_type") == ROPE_TYPE
    return combined


def _arguments_of_factor(rope_dict: dict[str, Any], factor: float, factors: RequestFactors) -> dict[str, Any]:
    """Return the arguments of `get_rope` for one factor."""
    options = {key: value for key, value in rope_dict.items() if key != "factors"}
    if factor == 1:
        kept = ("rope_theta", "partial_rotary_factor", "rope_dim")
        options = {key: options[key] for key in kept if key in options} | {"rope_type": "default"}
    else:
        options |= {"rope_type": "yarn", "factor": factor}
    return {"rope_parameters": options, "max_position": factors.original_length}


# --- The loaded model ----------------------------------------------------------------------------------------------


def _initialize_from_config(original: Callable[..., Any], self: Any, kv_cache_configs: Any) -> Any:
    """Check a loaded model, and let its runner shift positions."""
    factors = _find_factors(self.vllm_config)
    if factors is not None:
        check_model(self.worker.model_runner)
        hook_runner(self.worker.model_runner, factors)
    return original(self, kv_cache_configs)


def check_model(runner: Any) -> None:
    """Raise UnsupportedServerError if another class runs the model, or if it was built without the shared tables."""
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase

    expected = find_runner(runner.vllm_config)
    if not isinstance(runner, pkgutil.resolve_name(expected)):
        raise UnsupportedServerError(f"models are run by {type(runner).__qualname__}, not by {expected}")
    model = runner.get_model()
    rotary = [module for module in model.modules() if isinstance(module, RotaryEmbeddingBase)]
    separate = next((module for module in rotary if not hasattr(module, "has_request_factors")), None)
    if separate is not None:
        raise UnsupportedServerError(f"{type(model).__name__} builds a {type(separate).__name__} without get_rope")
    if not any(module.has_request_factors for module in rotary):
        raise UnsupportedServerError(f"{type(model).__name__} does not read the rope dict of its configuration")


# --- The requests -------------------------------------------------------------------------------------------------


def _init_input_processor(original: Callable[..., Any], self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
    if _find_factors(vllm_config) is not None:
        check_server(vllm_config)
    original(self, vllm_config, *args, **kwargs)


def _process_inputs(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Give a request its factor, and make that a part of its cache salt."""
    request = original(self, *args, **kwargs)
    factors = _find_factors(self.vllm_config)
    if factors is None:
        return request
    if request.sampling_params is None or request.resumable:
        raise ValueError(f"ropewalk: rope_type {ROPE_TYPE} serves requests that generate from one complete prompt")
    prompt = request.prompt_token_ids if request.prompt_token_ids is not None else request.prompt_embeds
    tokens = min(len(prompt) + request.sampling_params.max_tokens, self.model_config.max_model_len)
    index = factors.choose(tokens)
    extra_args = request.sampling_params.extra_args or {}
    request.sampling_params.extra_args = {**extra_args, FACTOR_ARGUMENT: index}
    request.cache_salt = _add_to_salt(factors.factors[index], request.cache_salt)
    return request


def _add_to_salt(factor: float, salt: str | None) -> str:
    """Return a cache salt that is the same only for the same factor and the same salt of the user."""
    return f"ropewalk factor {factor:g}: {salt or ''}"


# --- What can be served -------------------------------------------------------------------------------------------


def _find_factors(vllm_config: Any) -> RequestFactors | None:
    """Return the factors that the configuration of the served model asks for, or None."""
    if vllm_config is None or vllm_config.model_config is None:
        return None
    return find_request_factors(vars(vllm_config.model_config.hf_text_config))


def check_server(vllm_config: Any) -> None:
    """Raise UnsupportedServerError if this version of vLLM, the model or one of the enabled features does not work."""
    import vllm
    from vllm import envs

    if vllm.__version__.split("+")[0] not in TESTED_VERSIONS:
        tested = " or ".join(TESTED_VERSIONS)
        raise UnsupportedServerError(f"this is vLLM {vllm.__version__}, and it was tested with {tested}")
    for path, expected in {**_SIGNATURES, **runner_signatures(vllm_config)}.items():
        try:
            found = tuple(inspect.signature(pkgutil.resolve_name(path)).parameters)
        except (ImportError, AttributeError):
            raise UnsupportedServerError(f"{path} does not exist") from None
        if found != expected:
            raise UnsupportedServerError(f"the signature of {path} has changed to {', '.join(found)}")
    model, parallel, speculative = vllm_config.model_config, vllm_config.parallel_config, vllm_config.speculative_config
    architecture, configs = model.architecture, (model.hf_config, model.hf_text_config)
    factors = _find_factors(vllm_config)
    longest = factors.lengths[-1] if factors else 0
    # The first one found is reported.
    problems = {
        "multimodal rotary positions (MRoPE)": model.uses_mrope,
        "multi-head latent attention (MLA)": model.use_mla,
        "attention scaled by position (Llama 4, Ministral 3)": any(map(_scales_attention_by_position, configs)),
        "dual chunk attention": any(getattr(config, "dual_chunk_attention_config", None) for config in configs),
        **{f"{architecture} ({reason})": architecture.startswith(name) for name, reason in _REFUSED_MODELS.items()},
        "transformers' own model code (--model-impl transformers)": model.using_transformers_backend(),
        "encoder-decoder models": model.is_encoder_decoder,
        "diffusion": model.is_diffusion,
        "pooling": model.runner_type != "generate",
        f"--max-model-len {model.max_model_len} (at most {longest})": factors and model.max_model_len > longest,
        "a KV connector": vllm_config.kv_transfer_config is not None,
        "context parallelism": parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1,
        "the Rust frontend (unset VLLM_USE_RUST_FRONTEND)": envs.VLLM_USE_RUST_FRONTEND,
        "microbatching (--enable-dbo)": parallel.use_ubatching,
        "speculative decoding other than by n-grams": speculative is not None and speculative.method != "ngram",
    }
    for feature, is_used in problems.items():
        if is_used:
            raise UnsupportedServerError(f"{feature} does not work with it")


def _scales_attention_by_position(config: Any) -> bool:
    """Whether a configuration enables one of the two ways to do it (vllm/model_executor/models/llama4.py, mistral.py).

    transformers stores Ministral 3's in the rope dict.
    """
    rope_dict = getattr(config, "rope_parameters", None) or {}
    names = ("attn_temperature_tuning", "llama_4_scaling")
    return "llama_4_scaling_beta" in rope_dict or any(getattr(config, name, None) for name in names)
