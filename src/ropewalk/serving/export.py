"""Write the checkpoint, or the command line, with which a serving engine serves a model under a scaling."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ropewalk import config as configs
from ropewalk.config import ModelConfig
from ropewalk.config.scaled_fields import frequencies_match, has_scaling
from ropewalk.errors import InputError, check_length
from ropewalk.files import file_state, replace_folder_atomically, write_text_atomically
from ropewalk.positions import parse_scaling
from ropewalk.scaling import Scaling
from ropewalk.serving.doctor.examination import examine
from ropewalk.serving.doctor.examined_config import ExaminedConfig
from ropewalk.serving.doctor.findings import Finding
from ropewalk.serving.engines import Engine, find_engine
from ropewalk.serving.engines.base import Candidate, Config
from ropewalk.serving.engines.checkpoint_folder import MANIFEST_NAME
from ropewalk.serving.engines.encode import encode
from ropewalk.serving.engines.trained_config import interpret_as_trained

# Findings that follow from the scaling and the length that the user asked for.
_CHOSEN_BY_USER = {"beta-impossible", "factor-too-small"}


@dataclass(frozen=True)
class Export:
    """The result of `export_model`.

    Attributes:
        engine, version: name of the engine, and the version that the configuration was written for.
        scaling: spec of the scaling.
        length: tokens to serve.
        encoded_as: the method or field that stands in for the scaling; "" if the engine has the method itself.
        changes: the fields that differ from the model's configuration; None removes a field.
        path: what to start the engine with; None if nothing was written.
        command: the shell command that starts the engine.
        notes: sentences about what differs from the requested behavior.
    """

    engine: str
    version: str
    scaling: str
    length: int
    encoded_as: str
    changes: Config
    path: str | None
    command: str
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the document that `ropewalk export --json` prints."""
        document = {**vars(self), "through": self.encoded_as, "changes": dict(self.changes), "notes": list(self.notes)}
        del document["encoded_as"]
        return document


def export_model(
    model: str,
    scaling: str | Scaling,
    engine: str,
    out: str | Path | None = None,
    length: int | None = None,
) -> Export:
    """Write a checkpoint that an engine interprets as a model under a scaling.

    Args:
        model: a folder, a .gguf file, a built-in name, or a hub id.
        scaling: a scaling or its spec.
        engine: a name from `ropewalk engines`.
        out: the folder to write. Weights are linked; those of a GGUF file are copied. An earlier export in the folder
            is replaced once the new one is complete; other files are never replaced. None: write nothing, and return a
            command with the changes as options, if the engine has such options.
        length: tokens to serve; by default the original length times the scaling's factor. A dynamic scaling without
            a factor requires it.

    The new configuration is read again before it is returned or written: by the engine's interpretation on every layer
    type, by the doctor, and by the configuration class of transformers for that engine.

    Raises UnsupportedScalingError, with the nearest scaling that the engine supports, and InputError for a model that
    cannot be read, a folder that cannot be written, and a new configuration in which the doctor finds a fault.
    """
    if out == "":
        raise InputError("out", out, "the path of a folder")
    chosen_engine, expected = find_engine(engine), parse_scaling(scaling, "which a configuration can express")
    folder = None if out is None else _check_is_not_model(Path(out).expanduser(), model)
    config, model_config = chosen_engine.load_config(model)
    tokens = choose_length(length, expected, model_config)
    candidate = encode(chosen_engine, config, model_config, expected, tokens)
    _check_new_config(chosen_engine, config, candidate, expected, model_config, tokens)
    export = Export(
        engine=chosen_engine.name,
        version=chosen_engine.version,
        scaling=str(expected),
        length=tokens,
        encoded_as=candidate.encoded_as,
        changes=candidate.changes,
        path=None,
        command="" if folder else chosen_engine.build_command(model, tokens, candidate.changes),
        notes=_describe_deviations(chosen_engine, candidate, expected, model_config, tokens),
    )
    if folder is None:
        return export
    with replace_folder_atomically(folder, MANIFEST_NAME) as new_folder:
        written = chosen_engine.write_checkpoint(model, candidate, new_folder, tokens)
        path = str(folder / written.relative_to(new_folder))
        export = replace(export, path=path, command=chosen_engine.build_command(path, tokens))
        manifest = {**export.to_dict(), "written": file_state(new_folder)}
        write_text_atomically(new_folder / MANIFEST_NAME, json.dumps(manifest, indent=2) + "\n")
    return export


def choose_length(length: int | None, scaling: Scaling, model_config: ModelConfig) -> int:
    """Return the length to serve, in tokens: as requested, or the longest that the scaling or the model supports."""
    if length is not None:
        return check_length("length", length)
    if scaling.is_dynamic and not getattr(scaling, "factor", None):
        raise InputError("length", None, f"the number of tokens to serve, because {scaling} has no factor")
    return max(round(scaling.scaled_length(model_config.main_layer.rope)), model_config.max_length or 0)


def _describe_deviations(
    engine: Engine, candidate: Candidate, scaling: Scaling, model_config: ModelConfig, length: int
) -> tuple[str, ...]:
    """Return the notes of an export: what the engine does differently, or a length that the scaling is not made for."""
    if scaling.is_dynamic:
        if engine.interpret(candidate.config, length).main_layer.scaling.is_dynamic:
            replaced = describe_replaced_scaling(scaling, model_config)
            return tuple(filter(None, (engine.describe_dynamic(candidate.config), replaced)))
        return (f"{engine.title} fixes the scaling when it starts: short texts are scaled as if of {length:,} tokens",)
    scaled_length = scaling.scaled_length(model_config.main_layer.rope)
    if length > scaled_length:
        return (f"{length:,} tokens are more than the {scaled_length:,.0f} that {scaling} is designed for",)
    return ()


def describe_replaced_scaling(scaling: Scaling, model_config: ModelConfig) -> str:
    """Return a warning that a dynamic scaling reads short texts without the scaling that the model has, or ""."""
    layer = model_config.main_layer
    original = scaling.resolve_original_length(layer.rope)
    own, new = (configs.compute_layer_frequencies(each, layer, original) for each in (layer.scaling, scaling))
    if frequencies_match(own, new):
        return ""
    return (
        f"texts of up to {original:,} tokens are read without the {layer.scaling.name} of the configuration: wrong if "
        "the model was trained with it, as Llama 3.1 and gpt-oss were"
    )


def _check_new_config(
    engine: Engine, old: Config, candidate: Candidate, scaling: Scaling, model_config: ModelConfig, length: int
) -> None:
    """Raise InputError if a reader of the new configuration finds a fault that neither model nor user brought along.

    The doctor reads it as transformers does. It has nothing to say about a configuration that only this engine reads as
    the scaling; `encode` has checked that the engine does.
    """
    if engine.name == "transformers":
        _check_loads_in_installed_transformers(candidate.config)
    if not _is_read_as(candidate.config, engine, scaling, model_config, length):
        return
    known = {(finding.kind, finding.field) for finding in _find_faults(engine, old)}
    for finding in _find_faults(engine, candidate.config):
        if (finding.kind, finding.field) not in known and finding.kind not in _CHOSEN_BY_USER:
            expected = f"a scaling whose export is read without a fault; {finding.field}: {finding.means}"
            raise InputError("scaling", str(scaling), expected)


def _find_faults(engine: Engine, config: Config) -> list[Finding]:
    """Return what the doctor finds wrong in a configuration in the format of an engine."""
    if engine.checkpoint_format == "gguf":
        examined = ExaminedConfig(config["fields"], config["divisors"])
    else:
        examined = ExaminedConfig(config)
    try:
        return [finding for finding in examine(examined).findings if finding.severity == "wrong"]
    except InputError:  # a configuration that the doctor cannot examine, such as one without the size of a head
        return []


def _is_read_as(config: Config, engine: Engine, scaling: Scaling, model_config: ModelConfig, length: int) -> bool:
    """Return whether the format's own reader, transformers or llama.cpp, reads a configuration as the scaling."""
    if engine.checkpoint_format == "gguf":
        return True
    try:
        ropes = interpret_as_trained(config).ropes
    except InputError:
        return False
    return has_scaling(ropes, model_config, scaling, length)


def _check_loads_in_installed_transformers(config: Config) -> None:
    """Raise InputError if the configuration class of the architecture, if transformers 5 is installed, refuses it."""
    if importlib.util.find_spec("transformers") is None or not version("transformers").startswith("5."):
        return
    from transformers import CONFIG_MAPPING, AutoConfig

    if config.get("model_type") not in CONFIG_MAPPING:
        return  # an architecture of remote code
    try:
        AutoConfig.for_model(**copy.deepcopy(dict(config)))
    except Exception as error:  # the classes raise errors of any type
        raise InputError("config.json", f"{type(error).__name__}: {error}", "fields that transformers loads") from None


def _check_is_not_model(folder: Path, model: str) -> Path:
    """Return the folder. Raises InputError if it is the folder of the model itself."""
    path = configs.locate(model)
    model_folder = path.parent if path is not None and path.is_file() else path
    if model_folder is not None and os.path.exists(folder) and model_folder.samefile(folder):
        raise InputError("out", str(folder), "another folder than the model's own")
    return folder
