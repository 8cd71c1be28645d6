"""The configuration that the doctor examines, exactly as it is in the file.

Checks look at the raw fields, as engines do. `ropewalk.config` would repair some faults and refuse others.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from ropewalk import config as configs
from ropewalk.config import ModelConfig
from ropewalk.config.fields import FIELD_NAMES
from ropewalk.config.gguf import from_gguf_fields
from ropewalk.config.gguf_header import read_gguf_header
from ropewalk.config.published import PublishedModel, find_published_model, published_models
from ropewalk.errors import InputError
from ropewalk.serving.doctor.values import finite_number, token_count
from ropewalk.serving.engines.trained_config import interpret_as_trained

KeyPath: TypeAlias = tuple[str, ...]  # keys down to a field; TOKENIZER_CONFIG is the first key of a field of that file
Interpretation: TypeAlias = ModelConfig | InputError  # what a reader understands, or why it refuses the configuration

TOKENIZER_CONFIG = "tokenizer_config.json"
ORIGINAL_LENGTH = "original_max_position_embeddings"

_CANONICAL_METHODS = {"su": "longrope", "deepseek_yarn": "yarn", "mrope": "default"}
# Architectures that rotate by positions in an image without the rope type `axial`.
_IMAGE_MODEL_TYPES = {"efficientloftr"}
_LENGTH_FIELDS = ("max_position_embeddings", *FIELD_NAMES["max_position_embeddings"])


@dataclass(frozen=True)
class ExaminedRopeDict:
    """One dict of rotary parameters: that of all layers, or that of one layer type.

    Attributes:
        path: where it is in the configuration.
        layer_type: the layer type, or `configs.ALL_LAYERS`.
        values: its content.
    """

    path: KeyPath
    layer_type: str
    values: Mapping[str, Any]

    @property
    def rope_type(self) -> Any:
        """The method as it is written: `rope_type`, or the older key `type`."""
        return self.values.get("rope_type") or self.values.get("type") or "default"

    @property
    def rope_type_path(self) -> KeyPath:
        """Path of the key that holds the method."""
        return self.path_of("rope_type" if self.values.get("rope_type") else "type")

    @property
    def method(self) -> str:
        """The canonical name of the method, such as `longrope` for `su`."""
        return _CANONICAL_METHODS.get(str(self.rope_type), str(self.rope_type))

    @property
    def factor(self) -> float | None:
        """The factor if it is a number of at least 1, else None."""
        factor = finite_number(self.values.get("factor"))
        return factor if factor is not None and factor >= 1 else None

    @property
    def fix_without_scaling(self) -> dict[KeyPath, Any]:
        """The fix that removes the scaling and keeps the parameters of the model itself, such as `mrope_section`."""
        scaling_keys = configs.SCALING_KEYS - {"rope_theta"} | {ORIGINAL_LENGTH}
        remaining = {key: value for key, value in self.values.items() if key not in scaling_keys}
        if not remaining and self.layer_type == configs.ALL_LAYERS:
            return {self.path: None}
        return {self.path: {**remaining, "rope_type": "default"}}

    def path_of(self, key: str) -> KeyPath:
        """Return the path of one of its keys."""
        return (*self.path, key)


@dataclass(frozen=True)
class ExaminedConfig:
    """A configuration with everything that the checks need to know about it.

    Args:
        config: the content of config.json, or the metadata of a GGUF file.
        divisors: the tensors of a GGUF file that divide the inverse frequencies, by name; None for a config.json.
        tokenizer: the content of the tokenizer_config.json in the same folder, if there is one.
        name: name of the model, which may be that of a published model.
        target: tokens that the user wants to process; None if not given.
        engine: name of the engine that will serve the model; "" if not given.
    """

    config: Mapping[str, Any]
    divisors: Mapping[str, tuple[float, ...]] | None = None
    tokenizer: Mapping[str, Any] | None = None
    name: str = ""
    target: int | None = None
    engine: str = ""

    @classmethod
    def from_model(cls, model: str, target: int | None = None, engine: str = "") -> ExaminedConfig:
        """Read the files of MODEL: config.json and tokenizer_config.json of a folder, or the header of a GGUF file.

        Raises InputError for a file that is missing or damaged.
        """
        path = configs.locate(model)
        if path is None:
            return cls(configs.fetch_hub_config(model), name=model, target=target, engine=engine)
        if path.suffix == ".gguf":
            metadata, divisors = read_gguf_header(path)
            name = path.stem if model.endswith(".gguf") else model  # messages show a built-in model by its name
            return cls(metadata, divisors, name=name, target=target, engine=engine)
        config_file = path / "config.json" if path.is_dir() else path
        tokenizer_file = config_file.parent / TOKENIZER_CONFIG
        tokenizer = configs.read_json_object(tokenizer_file) if tokenizer_file.exists() else None
        name = config_file.resolve().parent.name
        return cls(configs.read_json_object(path), None, tokenizer, name, target, engine)

    @property
    def is_gguf(self) -> bool:
        """Whether this is the metadata of a GGUF file."""
        return self.divisors is not None

    @functools.cached_property
    def text_path(self) -> KeyPath:
        """Path of the part that configures the text decoder; empty for a plain configuration."""
        keys: list[str] = []
        part = self.config
        while (key := configs.find_text_config_key(part)) is not None:
            keys.append(key)
            part = part[key]
        return tuple(keys)

    @functools.cached_property
    def text(self) -> Mapping[str, Any]:
        """The part that configures the text decoder."""
        return configs.get_text_config_dict(self.config)

    def path_of(self, *keys: str) -> KeyPath:
        """Return the path of a field of the text part."""
        return (*self.text_path, *keys)

    @functools.cached_property
    def rope_dicts(self) -> tuple[ExaminedRopeDict, ...]:
        """The rope dicts in `rope_parameters`, or else in `rope_scaling`.

        A single empty one if there is neither; none if the field is not an object.
        """
        field = "rope_parameters" if self.text.get("rope_parameters") else "rope_scaling"
        content, path = self.text.get(field) or {}, self.path_of(field)
        if not isinstance(content, Mapping):
            return ()
        by_layer_type = tuple(
            ExaminedRopeDict((*path, layer_type), layer_type, values)
            for layer_type, values in content.items()
            if isinstance(values, Mapping)
        )
        return by_layer_type or (ExaminedRopeDict(path, configs.ALL_LAYERS, content),)

    @property
    def main_rope_dict(self) -> ExaminedRopeDict | None:
        """The rope dict of the layers that attend to the whole text; None if there is none."""
        is_main = (each for each in self.rope_dicts if not configs.is_local(each.layer_type))
        return next(is_main, next(iter(self.rope_dicts), None))

    @property
    def model_type(self) -> str:
        """The architecture of the text part."""
        return str(self.text.get("model_type", ""))

    @property
    def length_field(self) -> str:
        """The field that declares the maximum length."""
        return next((name for name in _LENGTH_FIELDS if self.text.get(name) not in (None, 0)), _LENGTH_FIELDS[0])

    @property
    def declared_length(self) -> int | None:
        """The maximum length that the configuration declares, tokens."""
        return token_count(self.text.get(self.length_field))

    @property
    def is_image_model(self) -> bool:
        """Whether the model rotates by positions in an image."""
        return self.model_type in _IMAGE_MODEL_TYPES or any(rope.method == "axial" for rope in self.rope_dicts)

    def find_values(self, *keys: str) -> list[tuple[KeyPath, Any]]:
        """Return path and value of each key, beside the rope dicts and in them. The value is None if it is missing."""
        beside = [(self.path_of(key), self.text.get(key)) for key in keys]
        return beside + [(rope.path_of(key), rope.values.get(key)) for rope in self.rope_dicts for key in keys]

    def original_length(self, rope_dict: ExaminedRopeDict) -> int | None:
        """Return the original length, tokens, if it is written. The field beside the rope dict has precedence."""
        return token_count(self.text.get(ORIGINAL_LENGTH)) or token_count(rope_dict.values.get(ORIGINAL_LENGTH))

    @functools.cached_property
    def engine_config(self) -> Mapping[str, Any]:
        """The configuration in the form that `Engine.interpret` takes.

        For a config.json, fields that it omits have the defaults of its architecture.
        """
        if self.is_gguf:
            return {"fields": self.config, "divisors": self.divisors}
        return configs.fill_defaults_if_incomplete(self.config)

    @functools.cached_property
    def interpretation(self) -> Interpretation:
        """What transformers (for a GGUF file: llama.cpp) understands, or why it refuses the configuration."""
        try:
            if self.divisors is None:
                return interpret_as_trained(self.engine_config)
            return from_gguf_fields(self.config, self.divisors)
        except InputError as error:
            return error

    @property
    def model_config(self) -> ModelConfig | None:
        """The interpretation; None for a configuration that is refused."""
        return None if isinstance(self.interpretation, InputError) else self.interpretation

    @functools.cached_property
    def published_model(self) -> PublishedModel | None:
        """The published model that has this name, or else this configuration."""
        return find_published_model(self.name) or self.model_published_like_this

    @functools.cached_property
    def model_published_like_this(self) -> PublishedModel | None:
        """The published model that has this configuration."""
        if self.is_gguf:
            return None
        try:
            return find_published_model(model_config=configs.from_dict(self.config))
        except InputError:
            return None

    @property
    def published_models_of_this_architecture(self) -> list[PublishedModel]:
        """The published models with the model type of this configuration."""
        return [model for model in published_models().values() if model.model_config.model_type == self.model_type]

    @property
    def published_original_length(self) -> int | None:
        """The original length of the published model with this name, tokens; that of its model card, if it has one."""
        published = self.published_model
        if published is None or self.is_gguf:
            return None
        rope_dict = (published.long or {}).get("rope_scaling") or {}
        return token_count(rope_dict.get(ORIGINAL_LENGTH)) or published.model_config.main_layer.rope.original_length

    def with_changes(self, changes: Mapping[KeyPath, Any]) -> ExaminedConfig:
        """Return a copy with some fields changed. None removes a field."""
        config: dict[str, Any] = copy.deepcopy(dict(self.config))
        tokenizer: dict[str, Any] = dict(self.tokenizer or {})
        for path, value in changes.items():
            is_tokenizer_field = path[0] == TOKENIZER_CONFIG
            target, keys = (tokenizer, path[1:]) if is_tokenizer_field else (config, path)
            for key in keys[:-1]:
                if not isinstance(target.get(key), dict):
                    target[key] = {}
                target = target[key]
            if value is None:
                target.pop(keys[-1], None)
            else:
                target[keys[-1]] = value
        return dataclasses.replace(self, config=config, tokenizer=None if self.tokenizer is None else tokenizer)
