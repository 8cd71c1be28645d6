"""Faults of a configuration for the engine that the user named."""

from __future__ import annotations

from ropewalk.errors import InputError
from ropewalk.serving.doctor.engine_interpretation import (
    describe_scaling,
    find_fix,
    interpret_with_engine,
    interpretations_agree,
    served_length,
)
from ropewalk.serving.doctor.examined_config import ExaminedConfig
from ropewalk.serving.doctor.fault_kinds import Fault, Faults, fault_kind
from ropewalk.serving.engines import Engine, find_engine
from ropewalk.serving.engines.base import EngineConfigError


@fault_kind("engine-refuses", "wrong", applies_to="any")
def engine_refuses(config: ExaminedConfig) -> Faults:
    """The named engine refuses the configuration at the requested length."""
    engine, expected = _named_engine(config), config.model_config
    if engine is None or expected is None:
        return
    actual = interpret_with_engine(engine, config, expected)
    if isinstance(actual, EngineConfigError):
        means = f"{actual} ({engine.title} {engine.version})"
        yield Fault((actual.key,), None, means, find_fix(engine, config, expected), actual)


@fault_kind("engine-reads-otherwise", "wrong", applies_to="any")
def engine_reads_otherwise(config: ExaminedConfig) -> Faults:
    """The named engine computes other frequencies than the configuration means."""
    engine, expected = _named_engine(config), config.model_config
    if engine is None or expected is None:
        return
    actual = interpret_with_engine(engine, config, expected)
    if isinstance(actual, EngineConfigError):
        return
    if interpretations_agree(actual, expected, served_length(config, expected)):
        return
    has_rope_dict = not config.is_gguf and config.rope_dicts
    path = config.rope_dicts[0].path if has_rope_dict else ("rope.scaling.type",)
    means = f"{engine.title} {engine.version} reads {describe_scaling(actual, expected)}"
    yield Fault(path, describe_scaling(expected), means, find_fix(engine, config, expected), actual, expected)


def _named_engine(config: ExaminedConfig) -> Engine | None:
    """Return the engine that the user named. Raises InputError if it cannot load this file format."""
    if not config.engine:
        return None
    engine = find_engine(config.engine)
    if (engine.checkpoint_format == "gguf") != config.is_gguf:
        loaded = "a .gguf file" if engine.checkpoint_format == "gguf" else "a folder with config.json"
        raise InputError("model", config.name, f"{loaded}, which {engine.title} loads")
    return engine
