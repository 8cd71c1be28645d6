"""What a config.json leaves to its architecture: the defaults of transformers' class, asked where they are needed."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping
from typing import Any

from ropewalk.config.architectures import DEFAULT_ROPE_THETA
from ropewalk.config.model import check_layer_count, is_local
from ropewalk.config.transformers import find_text_config_key, from_dict, get_rope_theta, get_text_config_dict
from ropewalk.errors import InputError


def fill_missing_defaults(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration, `fill_defaults` where it leaves out the size of a head, or a base that is not known here."""
    try:
        model_config = from_dict(config)
    except InputError as error:
        return fill_defaults(config) if error.field in ("head_dim", "model") else config
    if model_config.model_type in DEFAULT_ROPE_THETA or any(
        get_rope_theta(get_text_config_dict(config), each.rope_dict) for each in model_config.ropes.values()
    ):
        return config
    return fill_defaults(config)


def fill_defaults(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration with all that its architecture's class in transformers has for what is left out.

    Gemma 3 is published so: with neither heads nor base nor length. Rope fields keep the form that they are written in,
    for readers of transformers 4 and of 5. Itself where transformers is not installed, or knows no such architecture.
    """
    return _with_defaults(config, config) if importlib.util.find_spec("transformers") else config


def _with_defaults(part: Mapping[str, Any], whole: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = find_text_config_key(part)
    if inner is not None:
        return {**part, inner: _with_defaults(part[inner], whole)}
    made = _made(part if part.get("model_type") else whole)
    if made is None:
        return part
    ropes = made.pop("rope_parameters", None) or {}
    written = {key: value for key, value in part.items() if value is not None}
    if not part.get("rope_scaling"):
        return {**made, **written, "rope_parameters": ropes}
    # In the form of transformers 4 the bases stand beside it.
    by_layer = {kind: rope for kind, rope in ropes.items() if isinstance(rope, Mapping)} or {"": ropes}
    names = {kind: "rope_local_base_freq" if is_local(kind) else "rope_theta" for kind in by_layer}
    bases = {names[kind]: rope.get("rope_theta") for kind, rope in by_layer.items()}
    return {**made, **bases, **written}


def _made(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the class of that architecture makes of the text part of a configuration; None where it refuses it."""
    from transformers import AutoConfig

    labels = ("num_labels", "id2label", "label2id")  # of no concern, and as many as a damaged file says
    given = copy.deepcopy({key: value for key, value in config.items() if key not in labels})
    try:
        check_layer_count(given.get("num_hidden_layers") or 0)
        whole = AutoConfig.for_model(**given)
        text = whole.get_text_config(decoder=True)
        made: dict[str, Any] = text.to_dict()
    except Exception:  # a class stumbles over values of any kind in its own way
        return None
    return (
        made if text is whole or find_text_config_key(config) else None
    )  # or else it stands where nobody looks for it
