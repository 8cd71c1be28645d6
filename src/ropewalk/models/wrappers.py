"""The transformers model inside a wrapper: of PEFT, `torch.compile`, `DataParallel`, or any module that holds one."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ropewalk.errors import UnsupportedModelError


def unwrap_model(model: Any) -> Any:
    """Return the transformers model that a module is or holds; the module itself if it holds none.

    Raises UnsupportedModelError if it holds several that are not parts of each other.
    """
    if not isinstance(model, nn.Module):
        return model
    held = _outermost_models(model)
    if len(held) > 1:
        names = ", ".join(held.values())
        raise UnsupportedModelError(type(model).__name__, f"it holds {len(held)} models of transformers: {names}")
    return next(iter(held), model)


def unwrap_measurable_model(model: Any) -> Any:
    """Return the transformers model inside a wrapper, whose own forward gives the results of the wrapper.

    Raises UnsupportedModelError as `unwrap_model` does, and for prompt learning of PEFT (prefix and prompt tuning),
    which puts virtual tokens before the text.
    """
    peft_config = getattr(model, "active_peft_config", None)
    if getattr(peft_config, "is_prompt_learning", False):
        reason = "its virtual tokens come before the text; adapters inside the layers, such as LoRA, are supported"
        raise UnsupportedModelError(type(model).__name__, reason)
    return unwrap_model(model)


def _outermost_models(module: nn.Module) -> dict[Any, str]:
    """Return the transformers models in a module that are in no other one, each with its path."""
    held: dict[Any, str] = {}
    parts: set[nn.Module] = set()
    for path, part in module.named_modules():  # a module comes before its parts
        if part not in parts and isinstance(part, PreTrainedModel):
            held[part] = path
            parts.update(part.modules())
    return held
