"""Engines that load a folder with config.json: candidates for a scaling, the exported folder, the command.

A subclass defines `_interpret` and `argv`, and sets the class variables that differ from the defaults.
"""

from __future__ import annotations

import json
import shlex
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from ropewalk import config as configs
from ropewalk.config import LayerRope, ModelConfig, find_text_config_key, get_text_config_dict
from ropewalk.config.architectures import (
    DEFAULT_SCALING_MODEL_TYPES,
    LONGROPE_ONLY_MODEL_TYPES,
    SHORT_LONG_MSCALE_MODEL_TYPES,
    UNSET_HEAD_DIM_MODEL_TYPES,
)
from ropewalk.config.scaled_fields import expected_scalings
from ropewalk.errors import InputError
from ropewalk.files import write_text_atomically
from ropewalk.scaling import Scaling
from ropewalk.scaling.abf import ABF
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.yarn import YaRN
from ropewalk.serving.engines import checkpoint_folder
from ropewalk.serving.engines.attention_factor import (
    derive_declared_length,
    encode_attention_factor_as_lengths,
    encode_attention_factor_as_mscale,
)
from ropewalk.serving.engines.base import Candidate, Config, Engine
from ropewalk.serving.engines.config_edit import apply_changes, drop_fields, drop_removals, merge_changes, nest_changes
from ropewalk.serving.engines.equivalents import encode_as_base, encode_as_longrope, encode_as_yarn
from ropewalk.serving.engines.load_checks import check_loads_in_transformers
from ropewalk.serving.engines.trained_config import interpret_as_trained

RopeDict = dict[str, Any]
# Encodes the scaling of one layer type, for a length in tokens to serve, as a rope dict; None if it cannot.
RopeEncoder = Callable[[Scaling, LayerRope, int], RopeDict | None]

# The fields of a config.json that hold a scaling or a base. An export replaces all of them.
_ROPE_FIELDS = ("rope_parameters", "rope_scaling", "rope_theta", "rope_local_base_freq")
# Fields with the base of the local layers, which an export leaves as they are.
_LOCAL_BASE_FIELDS = ("local_rope_theta", "swa_rope_theta")
# Keys of a rope dict that belong to its scaling, besides those that transformers knows: only some engines read them.
_ENGINE_SCALING_KEYS = {
    "original_max_position_embeddings", "short_mscale", "long_mscale", "mixed_b", "max_trained_positions",
}  # fmt: skip


class FolderEngine(Engine):
    """An engine that loads config.json.

    Class variables:
        reads_rope_parameters: whether exports contain the `rope_parameters` of transformers 5; otherwise they contain
            `rope_theta` and `rope_scaling` as transformers 4 does.
        rope_type_keys: the keys of `rope_scaling` under which the type is written.
        override_option: the command-line option that takes changes as JSON; "" if there is none.
        tokenizer_class: the engine's name for the generic class of tokenizers stored in tokenizer.json.
        transformers_version: the major version of transformers whose configuration classes the engine loads a
            config.json through; None if it reads the file itself.
        unscaled_length_types: the rope types with which `max_position_embeddings` must stay the original length,
            because the engine multiplies it by the factor.
        reads_attention_factor: whether `attention_factor` of a YaRN dict is read; otherwise exports express it by
            DeepSeek's mscale (attention_factor.py).
        reads_longrope_mscales: whether the attention factor of LongRoPE is read from short_mscale and long_mscale.
        derives_longrope_attention_factor: whether the attention factor of LongRoPE follows from the declared and the
            original length (attention_factor.py).
    """

    checkpoint_format = "folder"
    reads_rope_parameters: ClassVar[bool]
    rope_type_keys: ClassVar[tuple[str, ...]] = ("rope_type", "type")
    override_option: ClassVar[str] = ""
    tokenizer_class: ClassVar[str] = "TokenizersBackend"
    transformers_version: ClassVar[int | None] = None
    unscaled_length_types: ClassVar[tuple[str, ...]] = ("linear", "dynamic", "proportional")
    reads_attention_factor: ClassVar[bool] = True
    reads_longrope_mscales: ClassVar[bool] = False
    derives_longrope_attention_factor: ClassVar[bool] = False

    @abstractmethod
    def argv(self, model: str, length: int) -> list[str]:
        """Return the command that serves a folder or hub id for texts of `length` tokens, as a list of arguments."""

    def to_rope_dict(self, scaling: Scaling, layer: LayerRope, length: int) -> RopeDict | None:
        """Return the rope dict of a scaling that the engine has itself, or None; by default that of transformers.

        The result may omit rope_theta, which is then the model's.
        """
        if isinstance(scaling, YaRN) and not self.reads_attention_factor:
            return encode_attention_factor_as_mscale(scaling, layer)
        if isinstance(scaling, ABF):
            return {"rope_type": "default", "rope_theta": scaling.base}
        rope_dict = scaling.to_rope_parameters(layer.rope)
        if rope_dict is None or (rope_dict["rope_type"] == "longrope" and not isinstance(scaling, LongRoPE)):
            return None  # transformers has no such method, only lists with the same frequencies
        return rope_dict

    def choose_declared_length(self, scaling: Scaling, layer: LayerRope, rope_dict: RopeDict, length: int) -> int:
        """Return the `max_position_embeddings` to write with a rope dict: `length`, unless the engine scales by it."""
        if rope_dict.get("rope_type") == "longrope" and self.derives_longrope_attention_factor:
            return derive_declared_length(rope_dict)
        if rope_dict.get("rope_type") in self.unscaled_length_types:
            return configs.compute_max_position_embeddings(scaling, layer.rope, rope_dict)
        return max(length, layer.rope.original_length or 0)

    def writes_rope_parameters(self, config: Config) -> bool:
        """Return whether an export for this architecture contains `rope_parameters`; see `reads_rope_parameters`."""
        return self.reads_rope_parameters

    def needs_rope_scaling(self, model_type: str) -> bool:
        """Return whether an unscaled configuration must contain `rope_scaling`, too."""
        return model_type in DEFAULT_SCALING_MODEL_TYPES

    def merges_overrides(self, config: Config) -> bool:
        """Return whether changes on the command line are merged into this model's rope dict, key by key."""
        return False

    def alternative_changes(self, changes: Config) -> list[Config]:
        """Return other changes of the text part that may encode the same scaling; by default none."""
        return []

    def load_config(self, model: str) -> tuple[Config, ModelConfig]:
        config = checkpoint_folder.read_config(model)
        return config, interpret_as_trained(config)

    def candidates(
        self, config: Config, model_config: ModelConfig, scaling: Scaling, length: int
    ) -> Iterator[Candidate]:
        expected = expected_scalings(model_config, scaling)
        encoders: dict[str, RopeEncoder] = {
            "": self.to_rope_dict,
            "rope_theta": encode_as_base,
            "yarn": encode_as_yarn,
            "longrope lists": self._as_longrope_dict,
        }
        for encoded_as, encoder in encoders.items():
            rope_dicts = self._encode_layers(model_config, expected, encoder, length)
            if rope_dicts is None:
                continue
            first_changes = self._config_changes(config, model_config, rope_dicts, scaling, length)
            for changes in (first_changes, *self.alternative_changes(first_changes)):
                merged_config = merge_changes(config, changes) if self.merges_overrides(config) else None
                misplaced = _rope_fields_beside_text_part(config)
                new_config = drop_fields(apply_changes(config, changes), misplaced)
                nested_changes = {**nest_changes(config, changes), **dict.fromkeys(misplaced)}
                yield Candidate(encoded_as, new_config, nested_changes, merged_config)

    def write_checkpoint(self, model: str, candidate: Candidate, out: Path, length: int) -> Path:
        checkpoint_folder.link_or_unpack(model, out)
        checkpoint_folder.adapt_tokenizer_config(out, length, self.tokenizer_class)
        write_text_atomically(out / "config.json", json.dumps(candidate.config, indent=2) + "\n")
        return out

    def build_command(self, model: str, length: int, changes: Config | None = None) -> str:
        if changes is None:
            return shlex.join(self.argv(model, length))
        gguf_path = checkpoint_folder.locate_gguf(model)
        if gguf_path is not None:
            raise InputError("out", None, f"a folder, because {self.title} needs {gguf_path.name} unpacked")
        served = model if configs.locate(model) is None else str(checkpoint_folder.locate_or_download(model))
        if not changes:
            return shlex.join(self.argv(served, length))
        if not self.override_option:
            raise InputError("out", None, f"a folder, because {self.title} has no option for changes of config.json")
        misplaced = [] if find_text_config_key(changes) is None else [key for key in changes if changes[key] is None]
        if misplaced:
            raise InputError("out", None, f"a folder, because no option removes {', '.join(misplaced)} of config.json")
        overrides = json.dumps(drop_removals(changes))
        return shlex.join([*self.argv(served, length), self.override_option, overrides])

    def _check_loads(self, config: Config) -> None:
        if self.transformers_version:
            check_loads_in_transformers(self.transformers_version, get_text_config_dict(config))

    def _as_longrope_dict(self, scaling: Scaling, layer: LayerRope, length: int) -> RopeDict | None:
        rope_dict = encode_as_longrope(scaling, layer, length)
        if rope_dict is None or not self.derives_longrope_attention_factor:
            return rope_dict
        return encode_attention_factor_as_lengths(rope_dict, length)

    def _encode_layers(
        self, model_config: ModelConfig, expected: Mapping[str, Scaling], encoder: RopeEncoder, length: int
    ) -> dict[str, RopeDict] | None:
        """Return the complete rope dict of each layer type; None if the encoder has none for one of them."""
        rope_dicts = {}
        for layer_type, scaling in expected.items():
            layer = model_config.ropes[layer_type]
            keeps_scaling = scaling == layer.scaling and layer_type != model_config.main_layer_type
            encode_layer = self.to_rope_dict if keeps_scaling else encoder
            rope_dict = encode_layer(scaling, layer, length)
            if rope_dict is None:
                return None
            reads_mscales = self.reads_longrope_mscales or model_config.model_type in SHORT_LONG_MSCALE_MODEL_TYPES
            if reads_mscales and rope_dict["rope_type"] == "longrope":
                rope_dict |= dict.fromkeys(("short_mscale", "long_mscale"), rope_dict["attention_factor"])
            # Keep keys of the model that are not its scaling's, such as mrope_section and partial_rotary_factor.
            scaling_keys = configs.SCALING_KEYS | _ENGINE_SCALING_KEYS
            kept = {key: value for key, value in layer.rope_dict.items() if key not in scaling_keys}
            rope_dicts[layer_type] = {**kept, "rope_theta": layer.rope.base, **rope_dict}
        return rope_dicts

    def _config_changes(
        self, config: Config, model_config: ModelConfig, rope_dicts: dict[str, RopeDict], scaling: Scaling, length: int
    ) -> dict[str, Any]:
        """Return the fields of the text part that change; None removes a field."""
        text, model_type = get_text_config_dict(config), model_config.model_type
        main = rope_dicts[model_config.main_layer_type]
        changes: dict[str, Any] = dict.fromkeys(name for name in _ROPE_FIELDS if name in text)
        if self.writes_rope_parameters(config):
            changes["rope_parameters"] = main if model_config.main_layer_type == configs.ALL_LAYERS else rope_dicts
        else:
            changes |= self._transformers4_fields(text, model_config, rope_dicts)
        declared = self.choose_declared_length(scaling, model_config.main_layer, main, length)
        if model_type.startswith("gemma3") and main["rope_type"] == "linear":
            declared = max(declared, length)  # Gemma 3 declares the scaled length, all others the original one
        changes["max_position_embeddings"] = declared
        original = main.get("original_max_position_embeddings")
        is_field_of_model = "original_max_position_embeddings" in text or model_type in LONGROPE_ONLY_MODEL_TYPES
        is_field_of_lists = not self.reads_rope_parameters and "long_factor" in main
        if original and (is_field_of_model or is_field_of_lists):
            changes["original_max_position_embeddings"] = original
        if model_type in UNSET_HEAD_DIM_MODEL_TYPES and text.get("head_dim") is None:
            changes["head_dim"] = text["hidden_size"] // text["num_attention_heads"]
        changes = {key: value for key, value in changes.items() if text.get(key) != value or key in _ROPE_FIELDS}
        if self.transformers_version == 4 and model_type in LONGROPE_ONLY_MODEL_TYPES and "long_factor" in main:
            changes |= _transformers4_phi3_fields(main, length)
        return changes

    def _transformers4_fields(
        self, text: Config, model_config: ModelConfig, rope_dicts: Mapping[str, RopeDict]
    ) -> dict[str, Any]:
        """Return the rope dicts as rope_theta, rope_local_base_freq, partial_rotary_factor and rope_scaling.

        A `rope_theta` with one base for each layer stays a list.
        """
        main_type = model_config.main_layer_type
        rope_scaling = dict(rope_dicts[main_type])
        base, bases = rope_scaling.pop("rope_theta"), text.get("rope_theta")
        if isinstance(bases, list):
            layer_types = text.get("layer_types") or []
            is_main = [layer_type == main_type for layer_type in layer_types] + [False] * len(bases)
            bases = [base if main else old for old, main in zip(bases, is_main, strict=False)]
        fields = {"rope_theta": bases if isinstance(bases, list) else base}
        if not any(name in text for name in _LOCAL_BASE_FIELDS):
            for layer_type, rope_dict in rope_dicts.items():
                if layer_type != main_type and configs.is_local(layer_type):
                    fields.setdefault("rope_local_base_freq", rope_dict["rope_theta"])
        rope_type = rope_scaling.pop("rope_type", "default")
        if rope_type != "proportional" and "partial_rotary_factor" in rope_scaling:
            partial = rope_scaling.pop("partial_rotary_factor")
            if "partial_rotary_factors" not in text:
                fields["partial_rotary_factor"] = partial
        if "mrope_section" in rope_scaling and rope_type == "default":
            rope_type = "mrope"
        if rope_type != "default" or self.needs_rope_scaling(model_config.model_type):
            fields["rope_scaling"] = {**rope_scaling, **dict.fromkeys(self.rope_type_keys, rope_type)}
        return fields


def _rope_fields_beside_text_part(config: Config) -> list[str]:
    """Return the rope fields of a multimodal configuration that are not in its text part, where no model reads them."""
    return [] if find_text_config_key(config) is None else [name for name in _ROPE_FIELDS if config.get(name)]


def _transformers4_phi3_fields(rope_dict: RopeDict, length: int) -> dict[str, Any]:
    """Return the fields of LongRoPE lists in the only form that Phi-3's class of transformers 4 accepts.

    Its rope_scaling has a type and the two lists, so the attention factor must follow from the two lengths.
    """
    with_lengths = encode_attention_factor_as_lengths(rope_dict, length) or rope_dict
    lists = {key: rope_dict[key] for key in ("short_factor", "long_factor")}
    return {
        "rope_scaling": {"type": "longrope", **lists},
        "original_max_position_embeddings": with_lengths["original_max_position_embeddings"],
        "max_position_embeddings": derive_declared_length(with_lengths),
    }
