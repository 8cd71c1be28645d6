"""Compare how serving engines interpret a configuration with what it means to transformers."""

from __future__ import annotations

from ropewalk.config import ModelConfig, get_text_config_dict, is_local
from ropewalk.errors import InputError
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.serving.doctor.examined_config import ExaminedConfig, Path
from ropewalk.serving.doctor.findings import MAX_COMPARED_POSITION, compare_rotations
from ropewalk.serving.engines import ENGINES, Engine
from ropewalk.serving.engines.base import EngineConfigError
from ropewalk.serving.engines.encode import encode

_TOLERANCE = 1e-6  # of cosine and score ratio, for interpretations that are equal but for rounding
_MAX_SCALING_CHARACTERS = 60


def interpret_with_engine(
    engine: Engine, config: ExaminedConfig, expected: ModelConfig
) -> ModelConfig | EngineConfigError:
    """Return how an engine interprets the configuration, or why it refuses it.

    `expected` is what the configuration means; it determines the length that the engine serves.
    """
    raw = {"fields": config.config, "divisors": config.divisors} if config.is_gguf else config.with_defaults
    try:
        return engine.interpret(raw, served_length(config, expected))
    except EngineConfigError as error:
        return error


def served_length(config: ExaminedConfig, expected: ModelConfig) -> int:
    """Return the length to start an engine with, tokens: the target, but at most what the configuration allows.

    A target beyond that has a finding of its own, `target-not-reached`.
    """
    declared = expected.max_length or MAX_COMPARED_POSITION
    if not config.target:
        return declared
    layer = expected.main_layer
    original = layer.scaling.original_length or layer.rope.original_length or 0
    scaled = round(original * layer.scaling.extension_factor(layer.rope))
    return min(config.target, max(declared, scaled))


def interpretations_agree(actual: ModelConfig, expected: ModelConfig, length: int) -> bool:
    """Return whether both have the same layout and the same rotation, up to rounding.

    Static scalings are compared at `length`, dynamic ones also at the original length.
    """
    for layer_type, layer in expected.ropes.items():
        if layer_type not in actual.ropes or actual.ropes[layer_type].rope.layout != layer.rope.layout:
            return False
    scaling = expected.main_layer.scaling
    # Most engines serve one of LongRoPE's two lists at every length, so only the list for `length` is compared.
    is_dynamic = actual.main_layer.scaling.is_dynamic or (scaling.is_dynamic and not isinstance(scaling, LongRoPE))
    lengths = [length]
    if is_dynamic:
        lengths.insert(0, expected.main_layer.rope.original_length or length)
    for compared_length in lengths:
        difference = compare_rotations(actual, expected, compared_length)
        if difference is not None and (
            difference.cosine <= 1 - _TOLERANCE or abs(difference.score_ratio - 1) >= _TOLERANCE
        ):
            return False
    return True


def summarize_engines(config: ExaminedConfig) -> dict[str, str]:
    """Return one line for each engine that refuses the configuration or interprets it differently.

    Empty for a configuration that cannot be read at all.
    """
    expected = config.model_config
    if expected is None:
        return {}
    length = served_length(config, expected)
    lines = {}
    for name, engine in ENGINES.items():
        if (engine.checkpoint_format == "gguf") != config.is_gguf:
            continue
        actual = interpret_with_engine(engine, config, expected)
        if isinstance(actual, InputError):
            lines[name] = f"refuses it: {actual}"
        elif not interpretations_agree(actual, expected, length):
            lines[name] = f"reads {describe_scaling(actual, expected)}"
            difference = compare_rotations(actual, expected, length)
            if difference is not None:
                cosine, position = difference.cosine, difference.position
                lines[name] += f": cosine {cosine:.4f} at {position:,}, scores times {difference.score_ratio:.4f}"
    return lines


def describe_scaling(model_config: ModelConfig, reference: ModelConfig | None = None) -> str:
    """Return the spec of the main scaling, shortened, after the base if it differs from that of the reference."""
    layer = model_config.main_layer
    spec = str(layer.scaling)
    if len(spec) >= _MAX_SCALING_CHARACTERS:
        spec = spec[: _MAX_SCALING_CHARACTERS - 3] + "..."
    if reference is None or reference.main_layer.rope.base == layer.rope.base:
        return spec
    return f"base {layer.rope.base:g}, {spec}"


def find_fix(engine: Engine, config: ExaminedConfig, expected: ModelConfig) -> dict[Path, object]:
    """Return the fields to write so that the engine interprets the configuration as expected.

    Empty if there is no such configuration, and for a GGUF file, which only `ropewalk export` can write.
    """
    if config.is_gguf:
        return {}
    main = next((name for name in expected.ropes if not is_local(name)), expected.main_layer_type)
    scaling = expected.ropes[main].scaling
    try:
        candidate = encode(engine, config.with_defaults, expected, scaling, served_length(config, expected))
    except InputError:
        return {}
    # The changes are nested as the configuration is.
    changes = get_text_config_dict(candidate.changes)
    return {config.path_of(key): value for key, value in changes.items()}
