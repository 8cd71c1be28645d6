"""Engines that are given a folder: a config.json beside the weights."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from ropewalk import config as configs
from ropewalk.config import LayerRope, ModelConfig
from ropewalk.engines.base import MARK, Config, Engine, Way
from ropewalk.engines.express import intended, same
from ropewalk.errors import InputError
from ropewalk.files import writable_folder, write_whole
from ropewalk.frequencies import Frequencies
from ropewalk.scaling import Scaling
from ropewalk.scaling.abf import ABF
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.ntk import DynamicNTK
from ropewalk.scaling.yarn import YaRN

_ROPE_FIELDS = ("rope_parameters", "rope_scaling", "rope_theta", "rope_local_base_freq")
_OF_ENGINES = {  # what only some read
    "original_max_position_embeddings", "short_mscale", "long_mscale", "mixed_b", "max_trained_positions",
}  # fmt: skip
# Whose attention multiplies its softmax scale by m(s, mscale_all_dim)^2; all others leave it as it is.
SOFTMAX_SCALED = (
    "axk1", "axk2", "bailing_hybrid", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa",
    "hy_v4", "kimi_k2", "longcat_flash", "minicpm3", "mistral4", "mistral_large4", "youtu",
)  # fmt: skip
_SCALED_BY_CLASS = ("apertus", "gpt_oss")  # in transformers 4, where rope_scaling is not said
_NO_LIMIT = 10**30  # transformers writes about this where a tokenizer has none


class FolderEngine(Engine):
    """An engine that reads config.json.

    Class variables: `nested`, whether it reads the `rope_parameters` of transformers 5; otherwise it is given
    `rope_theta` and `rope_scaling`, as transformers 4 wrote them, the type under the keys of `spelling`.
    """

    takes = "folder"
    nested: ClassVar[bool]
    spelling: ClassVar[tuple[str, ...]] = ("rope_type", "type")

    def own(self, scaling: Scaling, layer: LayerRope, length: int) -> dict[str, Any] | None:
        """The rope dict in the engine's own words, without rope_theta; by default in those of transformers."""
        if isinstance(scaling, ABF):
            return {"rope_type": "default", "rope_theta": scaling.base}
        said = scaling.rope_parameters(layer.rope)
        return None if said is None or (said["rope_type"] == "longrope" and not isinstance(scaling, LongRoPE)) else said

    def lists(self, scaling: LongRoPE, layer: LayerRope, length: int) -> dict[str, Any] | None:
        """The rope dict of divisors, one for each pair; None where the engine reads none."""
        return scaling.rope_parameters(layer.rope)

    def open(self, model: str) -> tuple[Config, ModelConfig]:
        path = configs.locate(model)
        if path is not None and path.suffix == ".gguf":
            config = _unpacked_config(path)
        else:
            config = read_config(source_folder(model))
        return config, meaning(config)

    def ways(self, config: Config, scaling: Scaling, length: int) -> Iterator[Way]:
        described = configs.from_dict(config)
        meant = intended(described, scaling)
        for through, written in self._writings(described, meant, length):
            changes = self._changes(config, described, written, meant[described.main], length)
            yield Way(through, _patched(config, changes), _nested(config, changes))

    def _writings(
        self, described: ModelConfig, meant: Mapping[str, Scaling], length: int
    ) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
        """Rope dicts for each layer type, and what they are written through."""
        forms = (("", self.own), ("rope_theta", _as_base), ("yarn", _as_yarn), ("longrope lists", self._as_lists))
        for through, form in forms:
            written = {}
            for kind, scaling in meant.items():
                layer = described.ropes[kind]
                # A layer type that stays as it is is written in the engine's own words whatever the others need.
                stays = scaling == layer.scaling and kind != described.main
                said = (self.own if stays else form)(scaling, layer, length)
                if said is None:
                    break
                written[kind] = {**_models_own(layer.written), "rope_theta": layer.rope.base, **said}
            else:
                yield through, written

    def _as_lists(self, scaling: Scaling, layer: LayerRope, length: int) -> dict[str, Any] | None:
        frequencies = _static(scaling, layer, length)
        if frequencies is None or not frequencies.inv_freq.all() or frequencies.softmax_factor != 1:
            return None
        divisors = tuple((layer.rope.inv_freq / frequencies.inv_freq).tolist())
        lists = LongRoPE(
            divisors, divisors, scaling.reaches(layer.rope), frequencies.attention_factor,
            original_length=scaling.original_length,
        )  # fmt: skip
        return self.lists(lists, layer, length)

    def _changes(
        self, config: Config, described: ModelConfig, written: dict[str, dict[str, Any]], main: Scaling, length: int
    ) -> dict[str, Any]:
        """The fields of the text part that are new; None takes one away."""
        text = text_part(config)
        one = written[described.main]
        declared = self.declared(main, described.ropes[described.main], one, length)
        if described.model_type.startswith("gemma3") and one["rope_type"] == "linear":
            declared = max(declared, length)  # it declares the length that its linear scaling reaches
        changes: dict[str, Any] = dict.fromkeys(name for name in _ROPE_FIELDS if name in text)
        if self.nested:
            changes["rope_parameters"] = one if described.main == configs.ALL_LAYERS else written
        else:
            changes["rope_theta"] = one.pop("rope_theta")
            others = (kind for kind in written if kind != described.main and configs.is_local(kind))
            local = next((written[kind]["rope_theta"] for kind in others), None)
            if local is not None:
                changes["rope_local_base_freq"] = local
            rope_type = one.pop("rope_type", "default")
            if rope_type != "proportional" and "partial_rotary_factor" in one:
                changes["partial_rotary_factor"] = one.pop("partial_rotary_factor")
            if "mrope_section" in one and rope_type == "default":
                rope_type = "mrope"
            if rope_type != "default" or described.model_type in _SCALED_BY_CLASS:
                changes["rope_scaling"] = {**one, **dict.fromkeys(self.spelling, rope_type)}
        changes["max_position_embeddings"] = declared
        original = one.get("original_max_position_embeddings")
        if original and ("original_max_position_embeddings" in text or (not self.nested and "long_factor" in one)):
            changes["original_max_position_embeddings"] = original
        return {key: value for key, value in changes.items() if text.get(key) != value or key in _ROPE_FIELDS}

    def declared(self, scaling: Scaling, layer: LayerRope, said: Mapping[str, Any], length: int) -> int:
        """The max_position_embeddings that goes with a rope dict: `length`, unless readers scale by it."""
        if said.get("rope_type") in ("linear", "dynamic"):
            return configs.declared_length(scaling, layer.rope, said)
        return max(length, layer.rope.original_length or 0)

    def write(self, model: str, way: Way, out: Path, length: int) -> Path:
        folder = own_folder(out)
        path = configs.locate(model)
        if path is not None and path.suffix == ".gguf":
            _unpack(model, folder)
        else:
            for file in sorted(source_folder(model).iterdir()):
                if file.name not in ("config.json", MARK) and file.is_file():
                    _link(file, folder / file.name)
        tokenizer = folder / "tokenizer_config.json"
        if tokenizer.exists():
            write_whole(tokenizer, _with_room(tokenizer, length))  # in the place of the link
        write_whole(folder / "config.json", json.dumps(way.config, indent=2) + "\n")
        return folder


def meaning(config: Config) -> ModelConfig:
    """What a config.json means: what transformers makes of it. Raises InputError as `config.from_dict` does."""
    described = configs.from_dict(config)
    ropes = {kind: _as_read(layer, described.model_type) for kind, layer in described.ropes.items()}
    return dataclasses.replace(described, ropes=ropes)


def _as_read(layer: LayerRope, model_type: str) -> LayerRope:
    """Without what only other architectures read: an alpha of Hunyuan, a softmax factor of DeepSeek."""
    own: Any = layer.scaling
    if isinstance(own, DynamicNTK) and own.alpha is not None and not model_type.startswith("hunyuan"):
        own = dataclasses.replace(own, alpha=None)
    if isinstance(own, YaRN) and own.mscale_all_dim and model_type not in SOFTMAX_SCALED:
        factor = own.frequencies(layer.rope).attention_factor
        own = dataclasses.replace(own, mscale=None, mscale_all_dim=None, attention_factor=factor)
    return dataclasses.replace(layer, scaling=own)


def source_folder(model: str) -> Path:
    """The folder that holds the model's weights: itself, or what a hub id is on this machine, fetched if it must be.

    Raises InputError for a model that is no folder.
    """
    path = configs.locate(model)
    if path is None:
        try:
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(model))
        except Exception as error:
            raise InputError("model", model, f"a hub id that can be fetched ({error})") from None
    if path.suffix == ".gguf":
        raise InputError("model", model, "a folder with config.json and weights")
    return path.parent if path.name == "config.json" else path


def _unpacked_config(path: Path) -> dict[str, Any]:
    """The config.json that a .gguf file unpacks to."""
    from transformers import AutoConfig

    config: dict[str, Any] = AutoConfig.from_pretrained(path.parent, gguf_file=path.name).to_dict()
    return {key: value for key, value in config.items() if key != "quantization_config"}


def _unpack(model: str, folder: Path) -> None:
    """Write the weights and the tokenizer of a .gguf file as transformers keeps them, rounded to bfloat16."""
    from ropewalk.models.load import load

    loaded, tokenizer = load(model, dtype="bfloat16", device="cpu")
    loaded.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder, as it stands. Raises InputError where there is none."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("model", str(folder), f"a folder with a readable config.json ({error})") from None
    if not isinstance(config, dict):
        raise InputError("model", str(folder), "a config.json that holds an object")
    return config


def tokenizer_limit(model: str) -> int | None:
    """The `model_max_length` of the tokenizer in a folder; None where there is no folder or no limit."""
    path = configs.locate(model)
    try:
        config = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError, RecursionError):
        return None
    limit = config.get("model_max_length") if isinstance(config, dict) else None
    return int(limit) if isinstance(limit, int | float) and limit < _NO_LIMIT else None


def _static(scaling: Scaling, layer: LayerRope, length: int) -> Frequencies | None:
    return None if scaling.dynamic else configs.layer_frequencies(scaling, layer, length)


def _as_base(scaling: Scaling, layer: LayerRope, length: int) -> dict[str, Any] | None:
    """The same frequencies as another base, which every engine reads."""
    frequencies = _static(scaling, layer, length)
    if frequencies is None or layer.rope.dim < 4 or not frequencies.inv_freq.all():
        return None
    base = round(float(frequencies.inv_freq[-1] ** (-layer.rope.dim / (layer.rope.dim - 2))), 6)
    if base <= 1 or not same(ABF(base=base).frequencies(layer.rope), frequencies):
        return None
    return {"rope_type": "default", "rope_theta": base}


def _as_yarn(scaling: Scaling, layer: LayerRope, length: int) -> dict[str, Any] | None:
    """NTK-by-parts is yarn whose attention factor is 1; the slowest pair tells the factor."""
    frequencies = _static(scaling, layer, length)
    if frequencies is None or not frequencies.inv_freq.all():
        return None
    factor = float(layer.rope.inv_freq[-1] / frequencies.inv_freq[-1])
    if factor < 1 or not (layer.rope.original_length or scaling.original_length):
        return None
    options = {
        name: getattr(scaling, name) for name in ("beta_fast", "beta_slow", "truncate") if hasattr(scaling, name)
    }
    yarn = YaRN(
        factor=factor, attention_factor=frequencies.attention_factor, original_length=scaling.original_length, **options
    )
    return yarn.rope_parameters(layer.rope) if same(yarn.frequencies(layer.rope), frequencies) else None


def _models_own(written: Mapping[str, Any]) -> dict[str, Any]:
    """What a rope dict holds that is the model's and not its scaling's (mrope_section, partial_rotary_factor)."""
    return {key: value for key, value in written.items() if key not in configs.OF_A_SCALING and key not in _OF_ENGINES}


def text_part(config: Config) -> Config:
    """The part of a configuration that describes the text decoder; itself for a plain one."""
    part = next((part for part in configs.TEXT_PARTS if isinstance(config.get(part), Mapping)), None)
    return config if part is None else text_part(config[part])


def _nested(config: Config, changes: Config) -> Config:
    """Changes of the text part, as changes of the whole."""
    part = next((part for part in configs.TEXT_PARTS if isinstance(config.get(part), Mapping)), None)
    return changes if part is None else {part: _nested(config[part], changes)}


def rewritten(way: Way, fields: Config) -> Way:
    """The same way with other fields of the text part."""
    changes = _nested(way.config, {**text_part(way.changes), **fields})
    return Way(way.through, _patched(way.config, fields), changes)


def _patched(config: Config, changes: Config) -> dict[str, Any]:
    patched: dict[str, Any] = copy.deepcopy(dict(config))
    text: Any = text_part(patched)
    for key, value in changes.items():
        if value is None:
            text.pop(key, None)
        else:
            text[key] = value
    return patched


def own_folder(out: Path) -> Path:
    """The folder to write to. Raises InputError for one that holds what export did not write."""
    if out.exists() and any(out.iterdir()) and not (out / MARK).exists():
        raise InputError("out", str(out), "an empty folder, or one that an earlier export wrote")
    folder = writable_folder(out)
    (folder / MARK).touch()
    return folder


def _link(file: Path, link: Path) -> None:
    if link.is_symlink() or link.exists():
        link.unlink()
    os.symlink(file.resolve(), link)


def _with_room(tokenizer_config: Path, length: int) -> str:
    """The tokenizer's config with room for `length` tokens: some engines take the lesser of both limits."""
    text = tokenizer_config.read_text(encoding="utf-8")
    config = json.loads(text)
    limit = config.get("model_max_length")
    if not isinstance(limit, int | float) or limit >= min(length, _NO_LIMIT):
        return text
    return json.dumps({**config, "model_max_length": length}, indent=2, ensure_ascii=False) + "\n"
