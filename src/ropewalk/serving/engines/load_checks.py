"""What the configuration classes of transformers refuse: engines that load through them never see such a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ropewalk.errors import InputError
from ropewalk.serving.engines.base import Config

# Whose classes take two lists and no other scaling; those of version 4 take no fourth field beside them.
OF_LISTS = ("phi3", "phi4_multimodal")
_THREE_FIELDS = {"type", "short_factor", "long_factor"}
# Whose classes demand short_mscale and long_mscale of any scaling.
OF_MSCALES = ("phimoe",)
# Whose classes leave head_dim empty where the file does, and then compute with it.
WITHOUT_HEAD_DIM = (
    "hunyuan_v1_dense", "hunyuan_v1_moe", "hunyuan_vl", "hunyuan_vl_text", "minimax", "ministral", "mixtral",
)  # fmt: skip
_UNSCALED = ("cosmos3_edge_text",)


def check_loads(title: str, version: int, text: Config) -> None:
    """Raise InputError, in the engine's name, for a text part that its class of transformers 4 or 5 refuses."""
    model_type = text.get("model_type")
    for said in _rope_dicts(text, version):
        rope_type = said.get("rope_type") or said.get("type") or "default"
        refused, so = f"{title}: rope_{'scaling' if version == 4 else 'parameters'}", f"so the class of {model_type}"
        if model_type in OF_LISTS and version == 4:
            if set(said) != _THREE_FIELDS or rope_type not in ("longrope", "su", "yarn"):
                found = ", ".join(map(str, said))
                raise InputError(refused, found, f"type (longrope), short_factor and long_factor, no more: {so}")
        elif model_type in OF_LISTS and rope_type not in ("default", "longrope", "su"):
            raise InputError(refused, rope_type, f"longrope or default: {so}")
        if model_type in OF_MSCALES and (version == 4 or rope_type != "default"):
            for key in ("short_mscale", "long_mscale"):
                if not isinstance(said.get(key), int | float):
                    raise InputError(f"{refused}: {key}", said.get(key), f"a number: {so}")
        if model_type in _UNSCALED and rope_type != "default":
            raise InputError(refused, rope_type, f"default: {so}")
        if version == 5 and rope_type == "longrope":
            if model_type in WITHOUT_HEAD_DIM and text.get("head_dim") is None:
                raise InputError(f"{title}: head_dim", None, f"a number, beside longrope: {so}")
            if text.get("per_layer_config"):
                raise InputError(refused, rope_type, f"another type, where layers have heads of their own: {so}")


def _rope_dicts(text: Config, version: int) -> list[Mapping[str, Any]]:
    """The rope dicts that such a class looks at; empty ones and what is none it passes over."""
    said = text.get("rope_scaling") or (None if version == 4 else text.get("rope_parameters"))
    if not said or not isinstance(said, Mapping):
        return []
    return [each for each in said.values() if isinstance(each, Mapping)] or [said]
