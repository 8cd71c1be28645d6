"""Find a configuration that an engine interprets as a given scaling, or the nearest scaling that has one."""

from __future__ import annotations

import numpy as np

from ropewalk import config as configs
from ropewalk.config import LayerRope, ModelConfig
from ropewalk.config.scaled_fields import expected_scalings, frequencies_match
from ropewalk.errors import InputError, UnsupportedScalingError
from ropewalk.frequencies import Frequencies
from ropewalk.scaling import Scaling
from ropewalk.scaling.by_parts import NTKByParts
from ropewalk.scaling.linear import Linear
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.ntk import NTK
from ropewalk.scaling.yarn import YaRN
from ropewalk.serving.engines.base import Candidate, Config, Engine, EngineConfigError

_HINT = "`ropewalk tune` without --per-layer learns one set for all layers"


def encode(engine: Engine, config: Config, model_config: ModelConfig, scaling: Scaling, length: int) -> Candidate:
    """Return the first candidate configuration that the engine interprets as `scaling`.

    Args:
        engine: the engine that will serve the model.
        config: the model's configuration, in the engine's format.
        model_config: the same configuration as the model was trained: `interpret_as_trained(config)`, or
            llama.cpp's interpretation of a GGUF file.
        scaling: the scaling of the layers that attend to the whole text. Sliding-window layers keep theirs.
        length: tokens to serve.

    Raises UnsupportedScalingError, with the nearest scaling that the engine supports, if there is none, InputError for
    a scaling with a set of frequencies for each layer, and EngineConfigError for an architecture that the engine does
    not have.
    """
    _check_has_architecture(engine, config, length)
    title = f"{engine.title} {engine.version}"
    if scaling.is_per_layer:
        raise InputError(
            "scaling", str(scaling), f"one set of frequencies, which {title} shares among all layers", _HINT
        )
    candidate = _find_candidate(engine, config, model_config, scaling, length)
    if candidate is None:
        nearest = find_nearest_supported(engine, config, model_config, scaling, length)
        raise UnsupportedScalingError(str(scaling), title, None if nearest is None else str(nearest))
    return candidate


def find_nearest_supported(
    engine: Engine, config: Config, model_config: ModelConfig, scaling: Scaling, length: int
) -> Scaling | None:
    """Return the supported static scaling whose rotations up to `length` resemble those of `scaling` most.

    If `scaling` slows the slowest pair, as every extension does, no scaling at all is only the last resort.
    The arguments are those of `encode`. None if the engine supports none of the common methods.
    """
    layer = model_config.main_layer
    expected = configs.compute_layer_frequencies(scaling, layer, length)
    positions = np.linspace(1, length, 256).astype(np.int64)

    extends = 0 < expected.inv_freq[-1] < layer.rope.inv_freq[-1]

    def distance(other: Scaling) -> tuple[bool, float]:
        frequencies = configs.compute_layer_frequencies(other, layer, length)
        attention_difference = abs(frequencies.attention_factor - expected.attention_factor)
        difference = float(attention_difference - frequencies.cosine_similarity(expected, positions).mean())
        return extends and isinstance(other, NoScaling), difference

    supported = [
        other
        for other in _comparable_scalings(layer, expected, length)
        if _find_candidate(engine, config, model_config, other, length)
    ]
    return min(supported, key=distance, default=None)


def _check_has_architecture(engine: Engine, config: Config, length: int) -> None:
    """Raise EngineConfigError if the engine refuses the model for its architecture, whatever its scaling."""
    try:
        engine.interpret(config, length)
    except EngineConfigError as error:
        if error.key == "model_type":
            raise


def _find_candidate(
    engine: Engine, config: Config, model_config: ModelConfig, scaling: Scaling, length: int
) -> Candidate | None:
    """Return the first candidate that the engine interprets as the scaling, or None. Arguments as for `encode`."""
    expected = expected_scalings(model_config, scaling)
    for candidate in engine.candidates(config, model_config, scaling, length):
        # The changes on a command line must give the same frequencies as the configuration in a folder.
        configs_to_check = filter(None, (candidate.config, candidate.merged_config))
        if all(_is_interpreted_as(engine, each, model_config, expected, length) for each in configs_to_check):
            return candidate
    return None


def _is_interpreted_as(
    engine: Engine, config: Config, model_config: ModelConfig, expected: dict[str, Scaling], length: int
) -> bool:
    """Return whether the engine computes the expected frequencies from a configuration, for every layer type."""
    try:
        interpreted = engine.interpret(config, length)
    except InputError:
        return False
    return set(interpreted.ropes) == set(expected) and all(
        _layer_matches(interpreted.ropes[layer_type], model_config.ropes[layer_type], scaling, length)
        for layer_type, scaling in expected.items()
    )


def _layer_matches(interpreted: LayerRope, trained: LayerRope, expected: Scaling, length: int) -> bool:
    """Return whether a layer, as interpreted by the engine, has the frequencies of `expected` on the trained layer."""
    original = trained.rope.original_length or length
    # Most engines serve one of LongRoPE's two lists at every length, so only the list for `length` is compared.
    is_dynamic = interpreted.scaling.is_dynamic or (expected.is_dynamic and not isinstance(expected, LongRoPE))
    lengths = (1, original, length, 2 * length) if is_dynamic else (length,)
    return interpreted.rope.layout == trained.rope.layout and all(
        frequencies_match(
            configs.compute_layer_frequencies(interpreted.scaling, interpreted, n),
            configs.compute_layer_frequencies(expected, trained, n),
        )
        for n in lengths
    )


def _comparable_scalings(layer: LayerRope, expected: Frequencies, length: int) -> list[Scaling]:
    """Return the static methods that most engines support, each slowing the slowest pair as `expected` does."""
    slowest = float(expected.inv_freq[-1])
    length_ratio = length / (layer.rope.original_length or length)
    factor = max(1.0, float(layer.rope.inv_freq[-1]) / slowest if slowest else length_ratio)
    factor = float(f"{factor:.12g}")  # 4, not 3.9999999999999996
    original = None if layer.rope.original_length else length
    return [
        NoScaling(),
        YaRN(factor=factor, original_length=original),
        NTKByParts(factor=factor, original_length=original),
        NTK(factor=factor),
        Linear(factor=factor),
    ]
