from __future__ import annotations

from ropewalk.config import ModelConfig
from ropewalk.engines.base import Config
from ropewalk.engines.folder import FolderEngine, meaning
from ropewalk.errors import InputError


class Transformers(FolderEngine):
    """transformers 5. Its reading is the one that the methods of this project are defined by."""

    name = "transformers"
    title = "transformers"
    version = "5.23.0"
    sources = ("src/transformers/modeling_rope_utils.py",)
    nested = True
    requirements = ("torch==2.13.0", "transformers==5.23.0", "accelerate")

    def reading(self, config: Config, length: int) -> ModelConfig:
        return meaning(config)

    def command(self, model: str, length: int, changes: Config | None = None) -> str:
        if changes is not None:
            raise InputError("out", None, f"a folder: {self.title} takes its configuration from config.json")
        return f"transformers serve {model}"
