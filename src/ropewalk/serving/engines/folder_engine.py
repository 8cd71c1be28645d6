"""Engines that are given a folder: a config.json beside the weights."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shlex
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from ropewalk import config as configs
from ropewalk.config import LayerRope, ModelConfig, text_part
from ropewalk.errors import InputError
from ropewalk.files import write_whole
from ropewalk.frequencies import Frequencies
from ropewalk.scaling import Scaling
from ropewalk.scaling.abf import ABF
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.ntk import DynamicNTK
from ropewalk.scaling.yarn import YaRN
from ropewalk.serving.engines.attention_factors import by_lengths, stretched
from ropewalk.serving.engines.base import MARK, Candidate, Config, Engine
from ropewalk.serving.engines.encode import expected_scalings, same
from ropewalk.serving.engines.load_checks import OF_LISTS, OF_MSCALES, WITHOUT_HEAD_DIM, check_loads

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
_CONFIGS = ["config.json", "tokenizer_config.json"]  # what is read of a folder
_NO_LIMIT = 10**30  # transformers writes about this where a tokenizer has none


class FolderEngine(Engine):
    """An engine that reads config.json.

    Class variables: `nested`, whether it reads the `rope_parameters` of transformers 5; otherwise it is given
    `rope_theta` and `rope_scaling`, as transformers 4 wrote them, the type under the keys of `spelling`; `overrides`,
    the option of its command that takes changes as JSON, "" where it has none; `tokenizer_class`, what its transformers
    calls a tokenizer that is all in tokenizer.json; `loads`, the version of transformers through whose classes it loads
    a configuration, None where it reads the file by itself; `lists_by_lengths`, whether the attention factor of lists
    follows from two lengths (attention.py); `merges`, whether the changes of a command go into the rope dict that is
    there, and leave what else it holds.
    """

    takes = "folder"
    nested: ClassVar[bool]
    spelling: ClassVar[tuple[str, ...]] = ("rope_type", "type")
    overrides: ClassVar[str] = ""
    tokenizer_class: ClassVar[str] = "TokenizersBackend"
    loads: ClassVar[int | None] = None
    lists_by_lengths: ClassVar[bool] = False
    merges: ClassVar[bool] = False

    @abstractmethod
    def argv(self, model: str, length: int) -> list[str]:
        """The command that starts it on a folder or hub id, for texts of `length` tokens, word by word."""

    def to_rope_dict(self, scaling: Scaling, layer: LayerRope, length: int) -> dict[str, Any] | None:
        """The rope dict in the engine's own words, without rope_theta; by default in those of transformers."""
        if isinstance(scaling, ABF):
            return {"rope_type": "default", "rope_theta": scaling.base}
        said = scaling.rope_parameters(layer.rope)
        return None if said is None or (said["rope_type"] == "longrope" and not isinstance(scaling, LongRoPE)) else said

    def lists(self, scaling: LongRoPE, layer: LayerRope, length: int) -> dict[str, Any] | None:
        """The rope dict of divisors, one for each pair; None where the engine reads none."""
        return by_lengths(scaling, layer, length) if self.lists_by_lengths else scaling.rope_parameters(layer.rope)

    def interpret(self, config: Config, length: int) -> ModelConfig:
        if self.loads:
            check_loads(self.title, self.loads, text_part(config))
        return super().interpret(config, length)

    def open(self, model: str) -> tuple[Config, ModelConfig]:
        path = configs.locate(model)
        if path is not None and path.suffix == ".gguf":
            config = _unpacked_config(path)
        else:
            config = read_config(source_folder(model, _CONFIGS))
        return config, meaning(config)

    def candidates(self, config: Config, scaling: Scaling, length: int) -> Iterator[Candidate]:
        model_config = configs.from_dict(config)
        expected = expected_scalings(model_config, scaling)
        for through, written in self._writings(model_config, expected, length):
            changes = self._changes(config, model_config, written, expected[model_config.main], length)
            merged = _merged(config, changes) if self.merges else None
            candidate = Candidate(through, _patched(config, changes), _nested(config, changes), merged)
            of_three = self.loads == 4 and model_config.model_type in OF_LISTS
            yield _of_three(candidate, model_config.ropes[model_config.main], length) if of_three else candidate

    def _writings(
        self, model_config: ModelConfig, expected: Mapping[str, Scaling], length: int
    ) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
        """Rope dicts for each layer type, and what they are written through."""
        forms = (
            ("", self.to_rope_dict),
            ("rope_theta", _as_base),
            ("yarn", _as_yarn),
            ("longrope lists", self._as_lists),
        )
        for through, form in forms:
            written = {}
            for kind, scaling in expected.items():
                layer = model_config.ropes[kind]
                # A layer type that stays as it is is written in the engine's own words whatever the others need.
                stays = scaling == layer.scaling and kind != model_config.main
                said = (self.to_rope_dict if stays else form)(scaling, layer, length)
                if said is None:
                    break
                if model_config.model_type in OF_MSCALES and said["rope_type"] == "longrope":
                    said = {**said, **dict.fromkeys(("short_mscale", "long_mscale"), said["attention_factor"])}
                written[kind] = {**_models_own(layer.written), "rope_theta": layer.rope.base, **said}
            else:
                yield through, written

    def _as_lists(self, scaling: Scaling, layer: LayerRope, length: int) -> dict[str, Any] | None:
        frequencies = _static(scaling, layer, length)
        if frequencies is None or not frequencies.inv_freq.all() or frequencies.softmax_factor != 1:
            return None
        divisors = tuple((layer.rope.inv_freq / frequencies.inv_freq).tolist())
        lists = LongRoPE(
            divisors, divisors, scaling.extension_factor(layer.rope), frequencies.attention_factor,
            original_length=scaling.original_length,
        )  # fmt: skip
        return self.lists(lists, layer, length)

    def _changes(
        self, config: Config, model_config: ModelConfig, written: dict[str, dict[str, Any]], main: Scaling, length: int
    ) -> dict[str, Any]:
        """The fields of the text part that are new; None takes one away."""
        text = text_part(config)
        one = written[model_config.main]
        declared = self.declared(main, model_config.ropes[model_config.main], one, length)
        if model_config.model_type.startswith("gemma3") and one["rope_type"] == "linear":
            declared = max(declared, length)  # it declares the length that its linear scaling reaches
        changes: dict[str, Any] = dict.fromkeys(name for name in _ROPE_FIELDS if name in text)
        if self.nested:
            changes["rope_parameters"] = one if model_config.main == configs.ALL_LAYERS else written
        else:
            changes["rope_theta"] = one.pop("rope_theta")
            others = (kind for kind in written if kind != model_config.main and configs.is_local(kind))
            local = next((written[kind]["rope_theta"] for kind in others), None)
            if local is not None:
                changes["rope_local_base_freq"] = local
            rope_type = one.pop("rope_type", "default")
            if rope_type != "proportional" and "partial_rotary_factor" in one:
                changes["partial_rotary_factor"] = one.pop("partial_rotary_factor")
            if "mrope_section" in one and rope_type == "default":
                rope_type = "mrope"
            if rope_type != "default" or model_config.model_type in _SCALED_BY_CLASS:
                changes["rope_scaling"] = {**one, **dict.fromkeys(self.spelling, rope_type)}
        changes["max_position_embeddings"] = declared
        original = one.get("original_max_position_embeddings")
        beside = "original_max_position_embeddings" in text or model_config.model_type in OF_LISTS
        if original and (beside or (not self.nested and "long_factor" in one)):
            changes["original_max_position_embeddings"] = original
        if model_config.model_type in WITHOUT_HEAD_DIM and text.get("head_dim") is None:
            changes["head_dim"] = text["hidden_size"] // text["num_attention_heads"]
        return {key: value for key, value in changes.items() if text.get(key) != value or key in _ROPE_FIELDS}

    def declared(self, scaling: Scaling, layer: LayerRope, said: Mapping[str, Any], length: int) -> int:
        """The max_position_embeddings that goes with a rope dict: `length`, unless readers scale by it."""
        if said.get("rope_type") == "longrope" and self.lists_by_lengths:
            return stretched(said)
        if said.get("rope_type") in ("linear", "dynamic"):
            return configs.declared_length(scaling, layer.rope, said)
        return max(length, layer.rope.original_length or 0)

    def write(self, model: str, candidate: Candidate, out: Path, length: int) -> Path:
        path = configs.locate(model)
        if path is not None and path.suffix == ".gguf":
            _unpack(model, out)
        else:
            for file in sorted(source_folder(model).iterdir()):
                own = file.name in ("config.json", MARK) or file.name.startswith(".")  # what is hidden is no model
                if not own and file.exists() and not out.resolve().is_relative_to(file.resolve()):
                    os.symlink(file.resolve(), out / file.name)
        self._write_tokenizer(out, length)
        write_whole(out / "config.json", json.dumps(candidate.config, indent=2) + "\n")
        return out

    def _write_tokenizer(self, out: Path, length: int) -> None:
        """Have the tokenizer's config, in the place of a link, say what the engine needs."""
        path = out / "tokenizer_config.json"
        config = _json(path)
        new, limit = dict(config), _limit(config)
        if limit is not None and limit < length:  # some engines take the lesser of both limits
            new["model_max_length"] = length
        if config.get("tokenizer_class") == FolderEngine.tokenizer_class:
            new["tokenizer_class"] = self.tokenizer_class
        if new != config:
            write_whole(path, json.dumps(new, indent=2, ensure_ascii=False) + "\n")

    def command(self, model: str, length: int, changes: Config | None = None) -> str:
        if changes is None:
            return shlex.join(self.argv(model, length))
        if not self.overrides:
            raise InputError("out", None, f"a folder: {self.title} takes its configuration from config.json")
        path = configs.locate(model)
        if path is not None and path.suffix == ".gguf":
            raise InputError("out", None, f"a folder: {path.name} is unpacked to one for {self.title}")
        given = {key: value for key, value in changes.items() if value is not None}
        served = model if path is None else str(source_folder(model))
        return shlex.join([*self.argv(served, length), self.overrides, json.dumps(given)])


def meaning(config: Config) -> ModelConfig:
    """What a config.json means: what transformers 5 makes of it, but for its slips, which its engine's file names.

    Raises InputError as `config.from_dict` does.
    """
    model_config = configs.from_dict(config)
    ropes = {kind: _as_read(layer, model_config.model_type) for kind, layer in model_config.ropes.items()}
    return dataclasses.replace(model_config, ropes=ropes)


def _as_read(layer: LayerRope, model_type: str) -> LayerRope:
    """Without what only other architectures read: an alpha of Hunyuan, a softmax factor of DeepSeek."""
    own: Any = layer.scaling
    if model_type in OF_MSCALES and isinstance(own, LongRoPE) and layer.written.get("long_mscale"):
        own = dataclasses.replace(own, attention_factor=float(layer.written["long_mscale"]))
    if isinstance(own, DynamicNTK) and own.alpha is not None and not model_type.startswith("hunyuan"):
        own = dataclasses.replace(own, alpha=None)
    if isinstance(own, YaRN) and own.mscale_all_dim and model_type not in SOFTMAX_SCALED:
        factor = own.frequencies(layer.rope).attention_factor
        own = dataclasses.replace(own, mscale=None, mscale_all_dim=None, attention_factor=factor)
    return dataclasses.replace(layer, scaling=own)


def source_folder(model: str, only: list[str] | None = None) -> Path:
    """The folder that holds the model's weights: itself, or what a hub id is on this machine, fetched if it must be.

    `only`: the files of a hub id that are needed; None: all of them. Raises InputError for a model that is no folder.
    """
    path = configs.locate(model)
    if path is None:
        try:
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(model, allow_patterns=only))
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
    """The config.json of a folder, with what it leaves to its architecture. Raises InputError where there is none."""
    return dict(configs.completed(configs.read_json(folder / "config.json")))


def tokenizer_limit(model: str) -> int | None:
    """The `model_max_length` of the tokenizer in a folder, or of a hub id that was opened; None where there is none."""
    path = configs.locate(model)
    if path is None:
        from huggingface_hub import try_to_load_from_cache

        kept = try_to_load_from_cache(model, "tokenizer_config.json")
        return _limit(_json(Path(kept))) if isinstance(kept, str) else None
    return _limit(_json((path.parent if path.is_file() else path) / "tokenizer_config.json"))


def _limit(tokenizer: Mapping[str, Any]) -> int | None:
    limit = tokenizer.get("model_max_length")
    return int(limit) if isinstance(limit, int | float) and 0 < limit < _NO_LIMIT else None


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _static(scaling: Scaling, layer: LayerRope, length: int) -> Frequencies | None:
    return None if scaling.is_dynamic else configs.layer_frequencies(scaling, layer, length)


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


def _nested(config: Config, changes: Config) -> Config:
    """Changes of the text part, as changes of the whole."""
    part = configs.inner_part(config)
    return changes if part is None else {part: _nested(config[part], changes)}


def rewritten(candidate: Candidate, fields: Config) -> Candidate:
    """The same way with other fields of the text part."""
    changes = _nested(candidate.config, {**text_part(candidate.changes), **fields})
    merged = None if candidate.merged is None else _merged(candidate.merged, fields)
    return Candidate(candidate.through, _patched(candidate.config, fields), changes, merged)


def _merged(config: Config, changes: Config) -> dict[str, Any]:
    """The configuration as transformers 5 has it in hand when changes are merged into it: what they leave out stays."""
    text = text_part(config)
    held = dict(text.get("rope_scaling") or text.get("rope_parameters") or {})
    if held.get("rope_type", held.get("type")) in ("llama3", "longrope", "yarn"):  # whose dicts its classes complete
        original = text.get("original_max_position_embeddings") or text.get("max_position_embeddings")
        held.setdefault("original_max_position_embeddings", original)
    both = {**held, **(changes.get("rope_parameters") or {})}
    for kind, said in both.items():
        if isinstance(said, Mapping) and isinstance(held.get(kind), Mapping):
            both[kind] = {**held[kind], **said}
    return _patched(config, {**changes, "rope_parameters": both})


def _of_three(candidate: Candidate, layer: LayerRope, length: int) -> Candidate:
    """Lists as Phi-3's class of transformers 4 takes them: their attention factor follows from the two lengths."""
    said = text_part(candidate.changes).get("rope_scaling") or {}
    if "long_factor" not in said:
        return candidate
    lists = LongRoPE(
        said["short_factor"], said["long_factor"], attention_factor=said["attention_factor"],
        original_length=said["original_max_position_embeddings"],
    )  # fmt: skip
    chosen = by_lengths(lists, layer, length) or said
    fields = {
        "rope_scaling": {"type": "longrope", **{key: said[key] for key in ("short_factor", "long_factor")}},
        "original_max_position_embeddings": chosen["original_max_position_embeddings"],
        "max_position_embeddings": stretched(chosen),
    }
    return rewritten(candidate, fields)


def _patched(config: Config, changes: Config) -> dict[str, Any]:
    patched: dict[str, Any] = copy.deepcopy(dict(config))
    text: Any = text_part(patched)
    for key, value in changes.items():
        if value is None:
            text.pop(key, None)
        else:
            text[key] = value
    return patched
