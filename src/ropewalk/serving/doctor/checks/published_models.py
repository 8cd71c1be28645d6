"""Differences from the published configuration of the model with the same name."""

from __future__ import annotations

from ropewalk.config import get_text_config_dict
from ropewalk.serving.doctor.examined_config import ExaminedConfig
from ropewalk.serving.doctor.fault_kinds import Fault, Faults, fault_kind

_BASE_AND_DIM_FIELDS = (
    "rope_theta", "head_dim", "hidden_size", "num_attention_heads", "partial_rotary_factor", "rotary_dim",
)  # fmt: skip
_MAX_SCALING_CHARACTERS = 60


@fault_kind("differs-from-published", "suspicious")
def differs_from_published(config: ExaminedConfig) -> Faults:
    """The model has the name of a published one, but another base, number of rotary dimensions or scaling."""
    published, model_config = config.published_model, config.model_config
    if published is None or model_config is None or config.model_published_like_this:
        return
    published_config = published.model_config
    actual, expected = model_config.main_layer, published_config.main_layer
    text = get_text_config_dict(published.config)
    if (actual.rope.base, actual.rope.dim) != (expected.rope.base, expected.rope.dim):
        found, published_rope = (
            f"base {layer.rope.base:g}, {layer.rope.dim} rotary dimensions" for layer in (actual, expected)
        )
        means = f"{published.model} is published with {published_rope}"
        fix = {
            config.path_of(name): text[name]
            for name in _BASE_AND_DIM_FIELDS
            if text.get(name) not in (None, config.text.get(name))
        }
        yield Fault(config.path_of("rope_theta"), found, means, fix, expected=published_config)
    elif str(expected.scaling) != "none" and actual.scaling != expected.scaling:
        path = config.rope_dicts[0].path[: len(config.text_path) + 1]  # rope_parameters or rope_scaling
        found, published_scaling = (str(layer.scaling)[:_MAX_SCALING_CHARACTERS] for layer in (actual, expected))
        means = f"{published.model} is published with {published_scaling}: {published.source}"
        fix = {path: text.get("rope_parameters") or text.get("rope_scaling")}
        yield Fault(path, found, means, fix, expected=published_config)
