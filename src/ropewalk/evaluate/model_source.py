"""A model to evaluate: the name of one that is still to be loaded, or a loaded model with its tokenizer."""

from __future__ import annotations

from typing import Any

ModelSource = str | tuple[Any, Any]  # a name that `ropewalk.load` accepts, or (model, tokenizer)


def load_source(source: ModelSource, dtype: str | None = None) -> tuple[Any, Any]:
    """Return (model, tokenizer), loading them if only the name is given. `dtype`: see `ropewalk.load`."""
    if not isinstance(source, str):
        return source
    from ropewalk.models.load import load

    return load(source, dtype=dtype)


def describe_source(source: ModelSource, dtype: str | None = None) -> dict[str, str]:
    """Return `model` (its name) and `dtype` as results store them, without loading the model.

    Raises InputError for an unknown dtype.
    """
    from ropewalk.models.load import choose_dtype

    if isinstance(source, str):
        return {"model": source, "dtype": choose_dtype(dtype)}
    model = source[0]
    return {"model": model.config.name_or_path or type(model).__name__, "dtype": str(model.dtype).split(".")[1]}
