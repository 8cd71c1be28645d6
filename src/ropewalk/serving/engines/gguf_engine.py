"""Engines that are given a GGUF file: its metadata, and tensors that divide the frequencies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ropewalk import config as configs
from ropewalk.config import LayerRope, ModelConfig
from ropewalk.config.gguf import (
    LONG,
    OWN_LOCAL_BASE,
    READS_BETAS,
    READS_LOG_MULTIPLIER,
    ROPE_FREQS,
    SHORT,
    SOFTMAX_SCALED,
    STILL,
    contents,
    from_fields,
)
from ropewalk.errors import InputError
from ropewalk.frequencies import Frequencies
from ropewalk.scaling import Scaling
from ropewalk.scaling.abf import ABF
from ropewalk.scaling.linear import Linear
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.yarn import YaRN, yarn_mscale
from ropewalk.serving.engines.base import Candidate, Config, Engine
from ropewalk.serving.engines.encode import expected_scalings

# The fields, without the architecture's name before them, and the tensors that a scaling is written in.
_FIELDS = (
    "rope.freq_base", "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.attn_factor",
    "rope.scaling.alpha", "rope.scaling.yarn_log_multiplier", "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
)  # fmt: skip
_TENSORS = (ROPE_FREQS, SHORT, LONG)
_TRAINED_ON = "rope.scaling.original_context_length"
_LARGE = 2**30  # bytes from which on copying shows its progress


class GgufEngine(Engine):
    """An engine that reads GGUF. Its configuration is the `fields` and `divisors` of `config.gguf.contents`."""

    takes = "gguf"

    def open(self, model: str) -> tuple[Config, ModelConfig]:
        fields, divisors = contents(source_file(model))
        return {"fields": fields, "divisors": divisors}, from_fields(fields, divisors, model)

    def candidates(self, config: Config, scaling: Scaling, length: int) -> Iterator[Candidate]:
        model_config = from_fields(config["fields"], config["divisors"])
        layer = model_config.ropes[model_config.main]
        expected = expected_scalings(model_config, scaling)[model_config.main]
        if expected.is_dynamic and not isinstance(expected, LongRoPE):
            return
        frequencies = configs.layer_frequencies(expected, layer, length)
        original = expected.original_length or layer.rope.original_length
        own = {key.removeprefix(f"{model_config.model_type}.") for key in config["fields"]}
        for through, written, divisors in _writings(model_config.model_type, expected, frequencies, layer):
            local = _local_base(model_config, config) if "rope.freq_base" in written else {}
            extension_factor = {"context_length": max(length, model_config.max_length or 0)}
            base = {} if "rope.freq_base" not in own else {"rope.freq_base": layer.rope.base}
            fields = {**base, **written, **local, **extension_factor}
            if original and (original != extension_factor["context_length"] or _TRAINED_ON in own):
                fields[_TRAINED_ON] = original
            yield _way(through, model_config.model_type, config, fields, divisors)

    def write(self, model: str, candidate: Candidate, out: Path, length: int) -> Path:
        source = source_file(model)
        _copy(source, out / source.name, candidate.changes)
        return out / source.name


def source_file(model: str) -> Path:
    """The GGUF file that MODEL names. Raises InputError for another model, with the way to make one of it."""
    path = configs.locate(model)
    if path is None or path.suffix != ".gguf":
        made = "python convert_hf_to_gguf.py FOLDER --outfile MODEL.gguf"
        raise InputError("model", model, f"a .gguf file; llama.cpp makes it of a folder: {made}")
    return path


def _writings(
    architecture: str, scaling: Scaling, frequencies: Frequencies, layer: LayerRope
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(through, fields, divisors) that might say these frequencies, best first."""
    rope = layer.rope
    divisors = np.full(rope.dim // 2, STILL)
    np.divide(rope.inv_freq, frequencies.inv_freq, out=divisors, where=frequencies.inv_freq > 0)
    slowed = float(divisors[-1])
    attention = _attention(frequencies.attention_factor)
    plain = {"rope.scaling.type": "linear", "rope.scaling.factor": slowed} if abs(slowed - 1) > 1e-9 else {}
    yield "" if isinstance(scaling, NoScaling | Linear) else "linear", {**plain, **attention}, {}
    if rope.dim >= 4 and slowed < STILL:
        base = {"rope.freq_base": float(frequencies.inv_freq[-1]) ** (-rope.dim / (rope.dim - 2))}
        yield "" if isinstance(scaling, ABF) else "rope.freq_base", {**base, **attention}, {}
        if slowed > 1:
            yield "" if isinstance(scaling, YaRN) else "yarn", _yarn(architecture, scaling, slowed, frequencies), {}
    if isinstance(scaling, LongRoPE):
        lists = {SHORT: scaling.short_factor, LONG: scaling.long_factor}
        yield "", {"rope.scaling.type": "longrope", **attention}, lists
    yield "rope_freqs tensor", attention, {ROPE_FREQS: divisors.tolist()}
    both = dict.fromkeys((SHORT, LONG), divisors.tolist())
    yield "rope_factors tensors", {"rope.scaling.type": "longrope", **attention}, both


def _yarn(architecture: str, scaling: Scaling, factor: float, frequencies: Frequencies) -> dict[str, Any]:
    fields: dict[str, Any] = {"rope.scaling.type": "yarn", "rope.scaling.factor": factor}
    if architecture in READS_BETAS:
        fast, slow = READS_BETAS[architecture]
        fields["rope.scaling.yarn_beta_fast"] = float(getattr(scaling, "beta_fast", fast))
        fields["rope.scaling.yarn_beta_slow"] = float(getattr(scaling, "beta_slow", slow))
    attention, softened = frequencies.attention_factor, math.sqrt(frequencies.softmax_factor)
    if architecture in SOFTMAX_SCALED and abs(softened / attention - 1) > 1e-9:
        # Of such an architecture the root of the softmax factor is the attention factor times m(s, c).
        multiplier = (softened / attention - 1) / (0.1 * math.log(factor))
        fields["rope.scaling.yarn_log_multiplier"] = multiplier / READS_LOG_MULTIPLIER.get(architecture, 1.0)
        own = 1.0 if architecture == "deepseek2" else yarn_mscale(factor) / yarn_mscale(factor, multiplier)
    else:
        own = yarn_mscale(factor)
    return {**fields, **_attention(attention / own)}


def _attention(factor: float) -> dict[str, float]:
    return {"rope.scaling.attn_factor": factor} if abs(factor - 1) > 1e-9 else {}


def _local_base(model_config: ModelConfig, config: Config) -> dict[str, float]:
    """The base of the sliding layers, where it would follow that of the others if it were not written."""
    if model_config.model_type not in OWN_LOCAL_BASE or len(model_config.ropes) == 1:
        return {}
    return {"rope.freq_base_swa": model_config.ropes["sliding_attention"].rope.base}


def _way(
    through: str, architecture: str, config: Config, fields: Mapping[str, Any], divisors: Mapping[str, Any]
) -> Candidate:
    """The way that writes these, in float32 as GGUF holds them, and nothing else that is of a scaling."""
    new = {f"{architecture}.{key}": _rounded(value) for key, value in fields.items()}
    changes: dict[str, Any] = {}
    for key in (*(f"{architecture}.{name}" for name in _FIELDS), *new):
        if config["fields"].get(key) != new.get(key):
            changes[key] = new.get(key)
    for name in _TENSORS:
        values = tuple(_rounded(value) for value in divisors[name]) if name in divisors else None
        if config["divisors"].get(name) != values:
            changes[name] = values
    return Candidate(through, _patched(config, changes), changes)


def _rounded(value: Any) -> Any:
    return float(np.float32(value)) if isinstance(value, float) else value


def _patched(config: Config, changes: Config) -> dict[str, Any]:
    patched = {"fields": dict(config["fields"]), "divisors": dict(config["divisors"])}
    for key, value in changes.items():
        part = patched["divisors" if key in _TENSORS else "fields"]
        part.pop(key, None)
        if value is not None:
            part[key] = value
    return patched


def _copy(source: Path, target: Path, changes: Config) -> None:
    """Write a GGUF file that differs in these fields and tensors alone; tensors are copied one by one, byte for byte.

    Raises InputError for a damaged file, one of the other byte order, and one part of a model in several files.
    """
    try:
        import gguf
        from tqdm import tqdm
    except ImportError:
        raise InputError("model", str(source), "the package gguf installed (pip install 'ropewalk[hf]')") from None
    try:
        reader = gguf.GGUFReader(source)
    except (ValueError, KeyError, IndexError) as error:
        raise InputError("model", str(source), f"a whole GGUF file (reading it failed: {error})") from None
    parts = reader.get_field("split.count")
    if reader.byte_order != "I" or (parts and parts.contents() > 1):
        raise InputError("model", str(source), "a model in one file, in this machine's order of bytes")
    kinds = gguf.GGUFValueType
    writer = gguf.GGUFWriter(target, "")
    writer.data_alignment = int(reader.alignment)
    copy_fields(reader, writer, kinds, changes)
    for name, value in changes.items():
        if value is not None and name not in _TENSORS:
            kind = {str: kinds.STRING, int: kinds.UINT32, float: kinds.FLOAT32}[type(value)]
            writer.add_key_value(name, value, kind)
    tensors = [(each.name, each.data, each.tensor_type) for each in reader.tensors if each.name not in changes]
    for name in _TENSORS:
        if changes.get(name) is not None:
            tensors.append((name, np.array(changes[name], dtype=np.float32), gguf.GGMLQuantizationType.F32))
    for name, data, kind in tensors:
        writer.add_tensor_info(name, data.shape, data.dtype, data.nbytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, data, _ in tqdm(tensors, desc=source.name, unit="tensor", disable=source.stat().st_size < _LARGE):
        writer.write_tensor_data(data)
    writer.close()


def copy_fields(reader: Any, writer: Any, kinds: Any, changes: Config) -> None:
    """Every field that does not change, as it stands; only empty lists, which gguf does not write, are left out."""
    for name, field in reader.fields.items():
        kind, of = field.types[0], field.types[-1]
        if name.startswith("GGUF.") or name in changes or (kind == kinds.ARRAY and not field.data):
            continue
        if of == kinds.STRING:  # as bytes, since no one promises that they are UTF-8
            values = [field.parts[place].tobytes() for place in field.data]
            writer.add_key_value(name, values if kind == kinds.ARRAY else values[0], kind, of)
        else:
            writer.add_key_value(name, field.contents(), kind, of)
