"""How serving engines interpret a configuration, compared with what it means to transformers (GGUF: llama.cpp)."""

from __future__ import annotations

from collections.abc import Mapping

from ropewalk.config import ModelConfig, get_text_config_dict
from ropewalk.errors import InputError
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.serving.doctor.examined_config import ExaminedConfig, KeyPath
from ropewalk.serving.doctor.fault_kinds import Answer, Fault, Faults, fault_kind
from ropewalk.serving.doctor.rotations import MAX_COMPARED_POSITION, compare_rotations, compute_scaled_length
from ropewalk.serving.engines import ENGINES, Engine, find_engine
from ropewalk.serving.engines.base import EngineConfigError
from ropewalk.serving.engines.encode import encode

_MAX_SCALING_CHARACTERS = 60


@fault_kind("engine-refuses", "wrong", applies_to="any", depends_on_engine=True)
def engine_refuses(config: ExaminedConfig) -> Faults:
    """The named engine refuses the configuration at the requested length."""
    engine, expected = _find_named_engine(config), config.model_config
    if engine is None or expected is None:
        return
    actual = _interpret(engine, config, expected)
    if isinstance(actual, EngineConfigError):
        means = f"{actual} ({engine.title} {engine.version})"
        fix = _fix_for_engine(engine, config, expected)
        question, answers = _ask_for_engine(engine, fix)
        yield Fault((actual.key,), None, means, fix, question, answers, actual)


@fault_kind("engine-reads-otherwise", "wrong", applies_to="any", depends_on_engine=True)
def engine_reads_otherwise(config: ExaminedConfig) -> Faults:
    """The named engine computes other frequencies than the configuration means."""
    engine, expected = _find_named_engine(config), config.model_config
    if engine is None or expected is None:
        return
    actual = _interpret(engine, config, expected)
    if isinstance(actual, EngineConfigError) or _interpretations_agree(
        actual, expected, _served_length(config, expected)
    ):
        return
    has_rope_dict = not config.is_gguf and config.rope_dicts
    path = config.rope_dicts[0].path if has_rope_dict else ("rope.scaling.type",)
    explanation = engine.explain(config.engine_config)
    means = f"{engine.title} {engine.version} reads {_describe_scaling(actual, expected)}"
    means += f": {explanation}" if explanation else ""
    fix = _fix_for_engine(engine, config, expected)
    question, answers = _ask_for_engine(engine, fix)
    yield Fault(path, _describe_scaling(expected, expected), means, fix, question, answers, actual, expected)


def summarize_engines(config: ExaminedConfig) -> dict[str, str]:
    """Return one line for each engine that refuses the configuration or interprets it differently.

    Empty for a configuration that cannot be read at all.
    """
    expected = config.model_config
    if expected is None:
        return {}
    length = _served_length(config, expected)
    lines = {}
    for name, engine in ENGINES.items():
        if (engine.checkpoint_format == "gguf") != config.is_gguf:
            continue
        actual = _interpret(engine, config, expected)
        if isinstance(actual, EngineConfigError):
            lines[name] = f"refuses it: {InputError(actual.key, actual.value, actual.expected)}"
        elif not _interpretations_agree(actual, expected, length):
            lines[name] = f"reads {_describe_scaling(actual, expected)}"
            explanation = engine.explain(config.engine_config)
            lines[name] += f" ({explanation})" if explanation else ""
            difference = compare_rotations(actual, expected, length)
            if difference is not None:
                position, cosine, score_ratio = difference
                lines[name] += f": cosine {cosine:.4f} at {position:,}, scores times {score_ratio:.4f}"
    return lines


def _find_named_engine(config: ExaminedConfig) -> Engine | None:
    """Return the engine that the user named. Raises InputError if it cannot load this file format."""
    if not config.engine:
        return None
    engine = find_engine(config.engine)
    if (engine.checkpoint_format == "gguf") != config.is_gguf:
        loaded = "a .gguf file" if engine.checkpoint_format == "gguf" else "a folder with config.json"
        raise InputError("model", config.name, f"{loaded}, which {engine.title} loads")
    return engine


def _interpret(engine: Engine, config: ExaminedConfig, expected: ModelConfig) -> ModelConfig | EngineConfigError:
    """Return how an engine interprets the configuration, or why it refuses it.

    `expected` is what the configuration means; it determines the length that the engine serves.
    """
    try:
        return engine.interpret(config.engine_config, _served_length(config, expected))
    except EngineConfigError as error:
        return error


def _served_length(config: ExaminedConfig, expected: ModelConfig) -> int:
    """Return the length to start an engine with, tokens: the target, but at most what the configuration allows.

    A target beyond that has a finding of its own, `target-not-reached`.
    """
    declared, scaled = expected.max_length or MAX_COMPARED_POSITION, compute_scaled_length(expected.main_layer) or 0
    if scaled and expected.main_layer.rope_dict.get("mrope_section"):
        declared = min(declared, scaled)  # positions, which grow more slowly than the tokens that are declared
    return min(config.target, max(declared, scaled)) if config.target else declared


def _interpretations_agree(actual: ModelConfig, expected: ModelConfig, length: int) -> bool:
    """Return whether both have the same layout and the same rotation, up to rounding.

    Static scalings are compared at `length`, dynamic ones also at the original length and at the length after scaling.
    """
    for layer_type, layer in expected.ropes.items():
        if layer_type not in actual.ropes or actual.ropes[layer_type].rope.layout != layer.rope.layout:
            return False
    layer = expected.main_layer
    # Most engines serve one of LongRoPE's two lists at every length, so only the list for `length` is compared.
    is_dynamic = layer.scaling.is_dynamic and not isinstance(layer.scaling, LongRoPE)
    is_dynamic = is_dynamic or actual.main_layer.scaling.is_dynamic
    dynamic_lengths = (layer.rope.original_length or length, length, compute_scaled_length(layer) or length)
    for compared_length in dynamic_lengths if is_dynamic else (length,):
        difference = compare_rotations(actual, expected, compared_length)
        if difference is not None and not difference.is_rounding:
            return False
    return True


def _describe_scaling(model_config: ModelConfig, expected: ModelConfig) -> str:
    """Return the spec of the main scaling, shortened, after the base if it differs from the expected one."""
    layer = model_config.main_layer
    spec = str(layer.scaling)
    if len(spec) >= _MAX_SCALING_CHARACTERS:
        spec = spec[: _MAX_SCALING_CHARACTERS - 3] + "..."
    return spec if layer.rope.base == expected.main_layer.rope.base else f"base {layer.rope.base:g}, {spec}"


def _ask_for_engine(engine: Engine, fix: Mapping[KeyPath, object]) -> tuple[str, tuple[Answer, ...]]:
    """Return the question if a fix is not sound for all readers, and the answers."""
    question = f"Serve it with another engine, or with a scaling that {engine.title} reads"
    if not fix:
        return f"{question}? ropewalk export --engine {engine.name} names the nearest one", ()
    only = f"only {engine.title} will read this file: it then computes the expected rotation, other readers may not"
    question += f", in a copy of the model (ropewalk export --engine {engine.name})?"
    return question, (Answer(only, fix, is_for_one_engine=True),)


def _fix_for_engine(engine: Engine, config: ExaminedConfig, expected: ModelConfig) -> dict[KeyPath, object]:
    """Return the fields to write so that the engine interprets the configuration as expected.

    Empty if there is no such configuration, and for a GGUF file, which only `ropewalk export` can write.
    """
    if config.is_gguf:
        return {}
    scaling, length = expected.main_layer.scaling, _served_length(config, expected)
    try:
        candidate = encode(engine, config.engine_config, expected, scaling, length)
    except InputError:
        return {}
    # The changes are nested as the configuration is.
    changes = get_text_config_dict(candidate.changes)
    return {config.path_of(key): value for key, value in changes.items()}
