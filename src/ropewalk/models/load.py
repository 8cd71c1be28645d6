"""Load models, tokenizers and configurations by the MODEL names that users give."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import transformers

from ropewalk.compat.torch import cpu_has_bfloat16_instructions
from ropewalk.compat.transformers import quiet_transformers
from ropewalk.config import ModelConfig, locate, read, unloadable_model_error
from ropewalk.errors import InputError, UnknownNameError

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# Besides OSError and ValueError, transformers' GGUF reader raises these for damaged files.
_GGUF_ERRORS = (OSError, ValueError, IndexError, KeyError, OverflowError)


def load(
    name: str, *, dtype: str | None = None, device: str | None = None, trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """Load a causal language model, in evaluation mode, and its tokenizer.

    Args:
        name: a hub id, a folder, a .gguf file (its weights are dequantized), or the built-in `smollm2`.
        dtype: "bfloat16", "float16" or "float32"; by default bfloat16 if the device computes in it, else float32.
        device: a torch device such as "cpu" or "cuda:0"; by default a GPU if there is one.
        trust_remote_code: whether code that comes with the model may run.

    Returns (model, tokenizer). Raises InputError if the model cannot be loaded.
    """
    try:
        torch_device = torch.device(device) if device else default_device()
    except RuntimeError:
        raise InputError("device", device, "a torch device, as in cpu or cuda:0") from None
    torch_dtype = _DTYPES[choose_dtype(dtype, torch_device)]
    path = locate(name)
    if path is not None and path.suffix == ".gguf":
        model, tokenizer = _load_gguf(path, torch_dtype)
    else:
        source = _transformers_source(name, path)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                source, dtype=torch_dtype, trust_remote_code=trust_remote_code
            )
        except (OSError, ValueError) as error:
            raise unloadable_model_error(name, error) from None
    return model.to(torch_device).eval(), tokenizer


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer of MODEL without its weights. Raises InputError if it cannot be loaded."""
    path = locate(name)
    try:
        if path is not None and path.suffix == ".gguf":
            return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        return transformers.AutoTokenizer.from_pretrained(_transformers_source(name, path))
    except _GGUF_ERRORS as error:
        raise unloadable_model_error(name, error) from None


def load_config(name: str) -> ModelConfig:
    """Read the configuration of MODEL, with transformers' defaults for fields that it leaves out.

    Raises InputError if it cannot be read.
    """
    path = locate(name)
    if path is not None and path.suffix == ".gguf":
        return read(path)
    try:
        config = transformers.AutoConfig.from_pretrained(_transformers_source(name, path))
    except (OSError, ValueError) as error:
        raise unloadable_model_error(name, error) from None
    return read(config)


def choose_dtype(requested: str | None, device: torch.device | None = None) -> str:
    """Return the name of the dtype that `load` uses.

    Args:
        requested: the dtype that the user asked for, if any.
        device: where the model will run; by default `default_device()`.

    Returns `requested`, or else "bfloat16" if the device computes in it and "float32" if not. Raises UnknownNameError
    for an unknown dtype.
    """
    if requested is not None:
        if requested not in _DTYPES:
            raise UnknownNameError("dtype", requested, _DTYPES)
        return requested
    device = device or default_device()
    if device.type == "cuda":
        is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_fast = device.type == "cpu" and cpu_has_bfloat16_instructions()
    return "bfloat16" if is_fast else "float32"


def default_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _transformers_source(name: str, path: Path | None) -> str:
    """Return what transformers loads from, a folder or a hub id; `path`: what `locate` returned for the name."""
    if path is None:
        return name
    return str(path.parent if path.name == "config.json" else path)


def _load_gguf(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        # transformers logs the advice to keep the weights quantized, but dequantized ones are faster.
        with quiet_transformers(logging.ERROR):
            tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                **source, dtype=dtype, quantization_config=transformers.GgufConfig(dequantize=True)
            )
    except _GGUF_ERRORS as error:
        raise InputError("model", str(path), f"a complete GGUF file that transformers can load ({error})") from None
    return model, tokenizer
