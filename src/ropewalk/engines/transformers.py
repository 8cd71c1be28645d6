from __future__ import annotations

import dataclasses
from typing import Any

from ropewalk import config as configs
from ropewalk.config import ModelConfig
from ropewalk.engines.base import Config
from ropewalk.engines.folder import FolderEngine
from ropewalk.errors import InputError
from ropewalk.scaling.yarn import YaRN

# Whose attention multiplies its softmax scale by m(s, mscale_all_dim)^2; all others leave it as it is.
_SOFTMAX_SCALED = (
    "axk1", "axk2", "bailing_hybrid", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa",
    "hy_v4", "kimi_k2", "longcat_flash", "minicpm3", "mistral4", "mistral_large4", "youtu",
)  # fmt: skip


class Transformers(FolderEngine):
    """transformers 5. Its reading is the one that the methods of this project are defined by."""

    name = "transformers"
    title = "transformers"
    version = "5.23.0"
    sources = ("src/transformers/modeling_rope_utils.py",)
    nested = True
    requirements = ("transformers==5.23.0", "torch==2.13.0", "accelerate")

    def read(self, config: Config, length: int) -> ModelConfig:
        described = configs.from_dict(config)
        if described.model_type in _SOFTMAX_SCALED:
            return described
        return dataclasses.replace(
            described, ropes={kind: _unsoftened(layer) for kind, layer in described.ropes.items()}
        )

    def command(self, model: str, length: int, changes: Config | None = None) -> str:
        if changes is not None:
            raise InputError("out", None, f"a folder: {self.title} takes its configuration from config.json")
        return f"transformers serve {model}"


def _unsoftened(layer: configs.LayerRope) -> configs.LayerRope:
    own: Any = layer.scaling
    if not isinstance(own, YaRN) or not own.mscale_all_dim:
        return layer
    factor = own.frequencies(layer.rope).attention_factor
    return dataclasses.replace(
        layer, scaling=dataclasses.replace(own, mscale=None, mscale_all_dim=None, attention_factor=factor)
    )
