"""Load models, tokenizers and configurations by the MODEL names that users give."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
import transformers

from ropewalk.compat.gguf import fast_gguf_loading, read_gguf
from ropewalk.compat.torch import cpu_has_bfloat16_instructions
from ropewalk.compat.transformers import quiet_transformers
from ropewalk.config import ModelConfig, get_text_config, locate, read, unloadable_model_error
from ropewalk.errors import InputError, UnknownNameError
from ropewalk.models.checkpoint_files import check_weight_files
from ropewalk.models.config_update import pop_per_layer_scalings
from ropewalk.models.extend import extend

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_MAX_NAMES = 3  # of weights in a message


def load(
    name: str, *, dtype: str | None = None, device: str | None = None, trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """Load a causal language model, in evaluation mode, and its tokenizer.

    Args:
        name: a hub id, a folder, a .gguf file (its weights are dequantized), or the built-in `smollm2`.
        dtype: "bfloat16", "float16" or "float32"; by default bfloat16 if the device computes in it, else float32.
        device: a torch device such as "cpu" or "cuda:0"; by default a GPU if there is one.
        trust_remote_code: whether code that comes with the model may run.

    A model that was saved with a set of frequencies for each layer comes extended with it.

    Returns (model, tokenizer). Warns about weights that the model does not use. Raises InputError if the model cannot
    be loaded, if its weights are pickled, and if weights are missing or have another shape: transformers would fill
    those with random numbers.
    """
    try:
        torch_device = torch.device(device) if device else default_device()
    except RuntimeError:
        raise InputError("device", device, "a torch device, as in cpu or cuda:0") from None
    torch_dtype = _DTYPES[choose_dtype(dtype, torch_device)]
    source = _Source(name)
    tokenizer = source.load(transformers.AutoTokenizer, trust_remote_code=trust_remote_code)
    source.check_weight_files()
    # transformers logs a table of missing and unused weights, of which `_check_weights` makes one line.
    with quiet_transformers(logging.ERROR, "transformers.modeling_utils"):
        model, loading_info = source.load(
            transformers.AutoModelForCausalLM,
            dtype=torch_dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **source.weight_options(),
        )
    _check_weights(name, loading_info)
    model = model.to(torch_device).eval()
    per_layer_scalings = pop_per_layer_scalings(get_text_config(model.config))
    if per_layer_scalings is not None:
        extend(model, per_layer_scalings)
    return model, tokenizer


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer of MODEL without its weights. Raises InputError if it cannot be loaded."""
    return _Source(name).load(transformers.AutoTokenizer, trust_remote_code=False)


def load_config(name: str) -> ModelConfig:
    """Read the configuration of MODEL, with transformers' defaults for fields that it leaves out.

    Raises InputError if it cannot be read.
    """
    source = _Source(name)
    if source.is_gguf:
        return read(source.path)
    return read(source.load(transformers.AutoConfig, trust_remote_code=False))


class _Source:
    """What transformers loads a MODEL from: a folder, a hub id, or a GGUF file.

    Attributes:
        path: the file or folder; None for a hub id.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.path = locate(name)
        self.is_gguf = self.path is not None and self.path.suffix == ".gguf"
        self._read_gguf = functools.cache(read_gguf) if self.is_gguf else None

    def load(self, auto_class: Any, **options: Any) -> Any:
        """Return what an auto class of transformers loads. Raises InputError if that fails."""
        if self.path is None:
            location, file = self._name, {}
        elif self.is_gguf:
            location, file = str(self.path.parent), {"gguf_file": self.path.name}
        else:
            location, file = str(self.path.parent if self.path.name == "config.json" else self.path), {}
        try:
            # transformers advises to keep the weights of a GGUF file quantized, but dequantized ones are faster.
            with ExitStack() as stack:
                if self._read_gguf is not None:
                    stack.enter_context(quiet_transformers(logging.ERROR))
                    stack.enter_context(fast_gguf_loading(self._read_gguf))
                return auto_class.from_pretrained(location, **file, **options)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # parsers of damaged files, and the code of the architecture, may fail in any way
            raise self._unloadable(auto_class, error) from None

    def weight_options(self) -> dict[str, Any]:
        """Return the options for the weights that depend on the source."""
        return {"quantization_config": transformers.GgufConfig(dequantize=True)} if self.is_gguf else {}

    def check_weight_files(self) -> None:
        """Check the files of a folder; see `checkpoint_files.check_weight_files`."""
        if self.path is not None and not self.is_gguf:
            check_weight_files(self.path if self.path.is_dir() else self.path.parent)

    def _unloadable(self, auto_class: Any, error: Exception) -> InputError:
        reason = str(error) if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {error}"
        reason = f"{auto_class.__name__}: {reason}"
        if self.is_gguf:
            return InputError("model", str(self.path), f"a complete GGUF file that transformers can load ({reason})")
        return unloadable_model_error(self._name, ValueError(reason))


def _check_weights(name: str, loading_info: Mapping[str, Any]) -> None:
    """Refuse a model with missing weights or weights of another shape; warn about weights that it does not use."""
    if missing := sorted(loading_info["missing_keys"]):
        raise InputError("model", name, f"a checkpoint with all weights of the model; missing {_list(missing)}")
    if mismatched := sorted(key for key, *_ in loading_info["mismatched_keys"]):
        expected = f"weights with the shapes of its configuration; other shapes have {_list(mismatched)}"
        raise InputError("model", name, expected)
    if unused := sorted(loading_info["unexpected_keys"]):
        warnings.warn(f"{name}: the model does not use {_list(unused)} of the checkpoint", stacklevel=3)


def _list(names: Sequence[str]) -> str:
    """Return how many weights there are and the names of the first ones."""
    shown = ", ".join(names[:_MAX_NAMES])
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"{len(names)} ({shown}{more})"


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
