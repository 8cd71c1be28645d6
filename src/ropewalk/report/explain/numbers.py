"""The numbers of the page: KV cache, the findings of the doctor, and the configuration of each serving engine."""

from __future__ import annotations

import json

from ropewalk.errors import InputError
from ropewalk.planning import compute_kv_cache_bytes
from ropewalk.report.explain.subject import Subject
from ropewalk.serving.doctor import ExaminedConfig, Report, examine
from ropewalk.serving.engines import ENGINES
from ropewalk.serving.engines.base import Engine
from ropewalk.serving.engines.encode import encode

_DOUBLES = 5  # L, 2 L, ... 16 L


def build_memory(subject: Subject) -> list[tuple[int, int]]:
    """Return (tokens, bytes of the KV cache of one text) at L, its doubles, and the target; empty if unknown."""
    shape = subject.model_config.attention
    if shape is None:
        return []
    doubles = {subject.original_length << power for power in range(_DOUBLES)}
    return [(length, compute_kv_cache_bytes(shape, length)) for length in sorted(doubles | {subject.target})]


def examine_model(subject: Subject) -> Report | None:
    """Return what the doctor finds in the configuration as it is, or None if it cannot be examined."""
    try:
        return examine(ExaminedConfig.from_model(str(subject.path), subject.target))
    except InputError:
        return None


def build_engine_configs(subject: Subject) -> list[dict[str, str]]:
    """Return, for each engine that loads the model, the fields that give it the planned scaling.

    The keys: `title`, `version`; `config`, the changed fields as JSON, null to remove one; `through`, the method or
    field that stands in for the scaling; `command`, which starts the engine, if it takes the fields as options. An
    engine that cannot express the scaling has `refused`, the reason, instead.
    """
    if subject.plan is None or not subject.plan.needed:
        return []
    checkpoint_format = "gguf" if subject.path.suffix == ".gguf" else "folder"
    engines = [engine for engine in ENGINES.values() if engine.checkpoint_format == checkpoint_format]
    described = [_describe_engine(subject, engine) for engine in engines]
    return sorted(described, key=lambda engine: ("refused" in engine, engine.get("through", "") != ""))


def _describe_engine(subject: Subject, engine: Engine) -> dict[str, str]:
    assert subject.plan is not None  # checked by the caller
    described = {"title": engine.title, "version": engine.version}
    try:
        config, model_config = engine.load_config(str(subject.path))
        candidate = encode(engine, config, model_config, subject.plan.scaling, subject.target)
    except InputError as error:
        return {**described, "refused": str(error)}
    try:
        command = engine.build_command(subject.name, subject.target, candidate.changes)
    except InputError:  # the engine takes no changes on its command line
        command = ""
    config_text = json.dumps(candidate.changes, indent=2, default=str)
    return {**described, "config": config_text, "through": candidate.encoded_as, "command": command}
