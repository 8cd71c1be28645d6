"""Which rotary fields each architecture of an engine reads: one JSON file for each engine and version.

`python -m benchmarks.engine_tables` makes these files from the source code of the engines. The columns:

    scaling                which rope types change the frequencies: "any" that the engine has, "linear" only, those of
                           the architecture's "own" rotary code, or "none", whatever the configuration contains
    longrope               whether the lists short_factor and long_factor are read
    attention_factor       whether cos and sin (or q and k) are multiplied by the attention factor of a scaling
    softmax_factor         whether the softmax scale is multiplied by m(factor, mscale_all_dim)^2
    partial_rotary_factor  whether only a part of each head can be rotated
    mrope                  whether mrope_section is read
    temperature            (mlx-lm, transformers) whether the fields are read that scale the attention of long texts by
                           the position: attn_temperature_tuning (Llama 4), llama_4_scaling_beta (Ministral 3)
    layer_types            (transformers) whether layer types have rope parameters of their own
    legacy_fields          (vllm) whether rope_theta and rope_scaling are read, and rope_parameters is not
    text_part              the architecture that the nested text part is built as, instead of all columns above; null
                           if the text part names it itself

In the tables of transformers, partial_rotary_factor is about unscaled layers: all types of scaling read it.

Further columns of one engine are explained in its file in benchmarks/engine_tables/.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ropewalk.config import get_text_config_dict
from ropewalk.errors import InputError

TABLES_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class EngineTable:
    """The architectures of one engine.

    Attributes:
        package: the package that was read.
        version: its version.
        source: the files that were read.
        architectures: the row of each architecture, by the name under which the engine looks it up.
        aliases: other names of architectures.
        others: architectures without a rotary embedding of text.
    """

    package: str
    version: str
    source: str
    architectures: Mapping[str, Mapping[str, Any]]
    aliases: Mapping[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()

    def find_class(self, config: Mapping[str, Any]) -> str | None:
        """Return the entry for a config.json, in a table by class names such as "LlamaForCausalLM".

        A configuration without `architectures` is looked up by its model type. None if there is no such entry.
        """
        names = config.get("architectures") or self._classes_of(str(config.get("model_type", "")))
        name = next((name for name in names if name in self.architectures), None)
        if name is None or "text_part" not in self.architectures[name]:
            return name
        inner: str | None = self.architectures[name]["text_part"]
        text_config = get_text_config_dict(config)
        return inner if inner or text_config is config else self.find_class(text_config)

    def find_model_type(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the row for a config.json, in a table by model types such as "llama".

        Empty if the architecture has no rotary embedding, if the model comes with its own code (`auto_map`), and if
        only the nested text part is unknown. Raises InputError if the version has no such architecture.
        """
        model_type = config.get("model_type")
        name = self.aliases.get(str(model_type), str(model_type))
        row = self.architectures.get(name)
        if row is None:
            if model_type is not None and name not in self.others and not config.get("auto_map"):
                raise InputError("model_type", model_type, f"an architecture of {self.package} {self.version}")
            return {}
        while "text_part" in row:
            text_type = get_text_config_dict(config).get("model_type") or row["text_part"]
            inner = self.architectures.get(row["text_part"] if text_type == model_type else text_type, {})
            if inner is row:
                return {}
            row = inner
        return row

    def _classes_of(self, model_type: str) -> list[str]:
        """Return the entries whose name begins with a model type, as "Qwen2_5_VLFor..." does with qwen2_5_vl_text."""
        plain = model_type.removesuffix("_text").replace("_", "").lower()
        return [name for name in self.architectures if name.split("For")[0].replace("_", "").lower() == plain]


@functools.cache
def load_table(engine: str) -> EngineTable:
    """Return the table of an engine, by its name on the command line."""
    return EngineTable(**json.loads((TABLES_FOLDER / f"{engine}.json").read_text(encoding="utf-8")))
