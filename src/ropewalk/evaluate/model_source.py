"""A model to evaluate: the name of one that is still to be loaded, or a loaded model with its tokenizer."""

from __future__ import annotations

from typing import Any

from ropewalk import config as configs
from ropewalk.config import ModelConfig

ModelSource = str | tuple[Any, Any]  # a name that `ropewalk.load` accepts, or (model, tokenizer)


def load_source(source: ModelSource, dtype: str | None = None) -> tuple[Any, Any]:
    """Return (model, tokenizer), loading them if only the name is given. `dtype`: see `ropewalk.load`.

    Raises UnsupportedModelError for a wrapper that adds virtual tokens.
    """
    if not isinstance(source, str):
        from ropewalk.models.wrappers import unwrap_measurable_model

        return unwrap_measurable_model(source[0]), source[1]
    from ropewalk.models.load import load

    return load(source, dtype=dtype)


def load_source_tokenizer(source: ModelSource) -> Any:
    """Return the tokenizer, loading it if only the name is given."""
    if not isinstance(source, str):
        return source[1]
    from ropewalk.models.load import load_tokenizer

    return load_tokenizer(source)


def read_source_config(source: ModelSource) -> ModelConfig:
    """Return the configuration, without loading the weights if only the name is given."""
    if not isinstance(source, str):
        return configs.read(source[0])
    from ropewalk.models.load import load_config

    return load_config(source)


def source_digest(source: ModelSource) -> str:
    """Return the digest of the weights and the tokenizer, as `ropewalk.models.digest.model_digest` does."""
    from ropewalk.models.digest import model_digest

    return model_digest(source) if isinstance(source, str) else model_digest(*source)


def describe_source(source: ModelSource, dtype: str | None = None) -> dict[str, str]:
    """Return `model` (its name) and `dtype` as results store them, without loading the model.

    Raises InputError for an unknown dtype.
    """
    from ropewalk.models.load import choose_dtype

    if isinstance(source, str):
        return {"model": source, "dtype": choose_dtype(dtype)}
    from ropewalk.models.wrappers import unwrap_model

    model = unwrap_model(source[0])
    return {"model": model.config.name_or_path or type(model).__name__, "dtype": str(model.dtype).split(".")[1]}
