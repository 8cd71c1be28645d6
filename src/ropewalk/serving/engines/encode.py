"""Find the writing that an engine reads as what was meant; where there is none, the nearest that there is."""

from __future__ import annotations

import numpy as np

from ropewalk import config as configs
from ropewalk.config import LayerRope, ModelConfig
from ropewalk.errors import InputError
from ropewalk.frequencies import Frequencies
from ropewalk.scaling import Scaling
from ropewalk.scaling.by_parts import NTKByParts
from ropewalk.scaling.linear import Linear
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.scaling.none import NoScaling
from ropewalk.scaling.ntk import NTK
from ropewalk.scaling.yarn import YaRN
from ropewalk.serving.engines.base import Candidate, Config, Engine

_ROUNDING = 2e-7  # engines hold their tables, and GGUF its tensors, in float32


def encode(engine: Engine, config: Config, model_config: ModelConfig, scaling: Scaling, length: int) -> Candidate:
    """The first way to write `scaling` that the engine reads as it is meant.

    Args:
        engine: that shall serve.
        config: the model's own configuration, as the engine is given it.
        described: what that configuration means (transformers' reading, or llama.cpp's of a GGUF file).
        scaling: what is meant, on the layers that see the whole text; the others stay as they are.
        length: tokens that it shall serve.

    Raises InputError when there is none, naming the nearest scaling that there is one for.
    """
    found = _first(engine, config, model_config, scaling, length)
    if found is not None:
        return found
    near = nearest(engine, config, model_config, scaling, length)
    allowed = f"one that {engine.title} {engine.version} can express" + (f"; the nearest is {near}" if near else "")
    raise InputError("scaling", str(scaling), allowed)


def nearest(engine: Engine, config: Config, model_config: ModelConfig, scaling: Scaling, length: int) -> Scaling | None:
    """Of the common static scalings that the engine can express, the one that turns most like it, up to `length`."""
    layer = model_config.ropes[model_config.main]
    expected = configs.layer_frequencies(scaling, layer, length)
    positions = np.linspace(1, length, 256).astype(np.int64)

    def unlike(other: Scaling) -> float:
        its = configs.layer_frequencies(other, layer, length)
        apart = abs(its.attention_factor - expected.attention_factor)
        return float(apart - its.cosine(expected, positions).mean())

    possible = [each for each in _common(layer, expected, length) if _first(engine, config, model_config, each, length)]
    return min(possible, key=unlike, default=None)


def expected_scalings(model_config: ModelConfig, scaling: Scaling) -> dict[str, Scaling]:
    """The scaling of each layer type when `scaling` is put on the model."""
    whole = [kind for kind in model_config.ropes if not configs.is_local(kind)] or list(model_config.ropes)
    return {kind: scaling if kind in whole else layer.scaling for kind, layer in model_config.ropes.items()}


def same(one: Frequencies, other: Frequencies) -> bool:
    """Whether they are equal but for the rounding of float32."""
    return (
        one.inv_freq.shape == other.inv_freq.shape
        and np.allclose(one.inv_freq, other.inv_freq, rtol=_ROUNDING, atol=0)
        and abs(one.attention_factor / other.attention_factor - 1) < _ROUNDING
        and abs(one.softmax_factor / other.softmax_factor - 1) < _ROUNDING
    )


def _first(
    engine: Engine, config: Config, model_config: ModelConfig, scaling: Scaling, length: int
) -> Candidate | None:
    return next(
        (
            candidate
            for candidate in engine.candidates(config, scaling, length)
            if _holds(engine, candidate, model_config, scaling, length)
        ),
        None,
    )


def _holds(engine: Engine, candidate: Candidate, model_config: ModelConfig, scaling: Scaling, length: int) -> bool:
    """Whether the engine, given this writing in a folder or on its command line, turns by what is meant."""
    expected = expected_scalings(model_config, scaling)
    for config in (candidate.config, candidate.merged):
        if config is None:
            continue
        try:
            read = engine.interpret(config, length)
        except InputError:
            return False
        if set(read.ropes) != set(expected):
            return False
        if not all(_alike(read.ropes[kind], model_config.ropes[kind], expected[kind], length) for kind in expected):
            return False
    return True


def _alike(read: LayerRope, own: LayerRope, expected: Scaling, length: int) -> bool:
    original = own.rope.original_length or length
    # A short and a long list are served as one of the two by most engines: what counts is the length that is served.
    follows = read.scaling.is_dynamic or (expected.is_dynamic and not isinstance(expected, LongRoPE))
    lengths = (1, original, length, 2 * length) if follows else (length,)
    return read.rope.layout == own.rope.layout and all(
        same(configs.layer_frequencies(read.scaling, read, n), configs.layer_frequencies(expected, own, n))
        for n in lengths
    )


def _common(layer: LayerRope, expected: Frequencies, length: int) -> list[Scaling]:
    """The static methods that every engine knows of, slowing the slowest pair as much as is meant."""
    slowest = float(expected.inv_freq[-1])
    reached = length / (layer.rope.original_length or length)
    factor = max(1.0, float(layer.rope.inv_freq[-1]) / slowest if slowest else reached)
    original = None if layer.rope.original_length else length
    return [
        NoScaling(),
        YaRN(factor=factor, original_length=original),
        NTKByParts(factor=factor, original_length=original),
        NTK(factor=factor),
        Linear(factor=factor),
    ]
