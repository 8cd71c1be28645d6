"""Load a model and its tokenizer by the name that a user gives."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import transformers

from ropewalk.compat.transformers import quiet_transformers
from ropewalk.config import ModelConfig, locate, read
from ropewalk.errors import InputError

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def load(
    name: str, *, dtype: str | None = None, device: str | None = None, trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer.

    Args:
        name: a hub id, a folder, a .gguf file (its weights are dequantized), or the built-in `smollm2`.
        dtype: "bfloat16", "float16" or "float32"; by default bfloat16 where the device computes in it.
        device: as torch names it; by default a GPU where there is one.
        trust_remote_code: whether code that comes with the model may run.

    Returns (model, tokenizer), the model in evaluation mode. Raises InputError for a name that cannot be loaded.
    """
    try:
        place = torch.device(device) if device else default_device()
    except RuntimeError:
        raise InputError("device", device, "a device of torch, as cpu or cuda:0") from None
    kind = _DTYPES[choose_dtype(dtype, place)]
    path = locate(name)
    if path is not None and path.suffix == ".gguf":
        return _load_gguf(path, kind, place)
    source = _folder(name, path)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source, dtype=kind, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise _not_loaded(name, error) from None
    return model.to(place).eval(), tokenizer


def load_tokenizer(name: str) -> Any:
    """The tokenizer of MODEL alone. Raises InputError for a name that cannot be loaded."""
    path = locate(name)
    try:
        if path is not None and path.suffix == ".gguf":
            return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        return transformers.AutoTokenizer.from_pretrained(_folder(name, path))
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise _not_loaded(name, error) from None


def load_config(name: str) -> ModelConfig:
    """What the configuration of MODEL says about positions, with transformers' defaults for what it leaves out.

    Raises InputError for a name that cannot be read.
    """
    path = locate(name)
    if path is not None and path.suffix == ".gguf":
        return read(path)
    try:
        return read(transformers.AutoConfig.from_pretrained(_folder(name, path)))
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise _not_loaded(name, error) from None


def _folder(name: str, path: Path | None) -> str:
    """What transformers loads from: a folder, or a hub id."""
    return name if path is None else str(path.parent if path.name == "config.json" else path)


def _not_loaded(name: str, error: Exception) -> InputError:
    return InputError("model", name, f"a hub id or folder that transformers can load ({error})")


def _load_gguf(path: Path, dtype: torch.dtype, place: torch.device) -> tuple[Any, Any]:
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    unpacked = transformers.GgufConfig(dequantize=True)
    try:
        with quiet_transformers(logging.ERROR):  # its advice to keep the weights packed: unpacked is what is fast
            tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                **where, dtype=dtype, quantization_config=unpacked
            )
    except (OSError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise InputError("model", str(path), f"a whole GGUF file that transformers can load ({error})") from None
    return model.to(place).eval(), tokenizer


def choose_dtype(asked: str | None, device: torch.device | None = None) -> str:
    """The dtype that `load` takes: the one asked for, or bfloat16 where the device computes in it, or float32.

    Raises InputError for a dtype that is not known.
    """
    if asked is not None:
        if asked not in _DTYPES:
            raise InputError("dtype", asked, ", ".join(_DTYPES))
        return asked
    place = device or default_device()
    if place.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = place.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return "bfloat16" if fast else "float32"


def default_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
