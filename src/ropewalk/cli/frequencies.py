"""`ropewalk frequencies`: the inverse frequencies of a model under a scaling."""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
import typer

from ropewalk import config as configs
from ropewalk.cli.options import JsonOption, ModelArgument, parse_optional_length
from ropewalk.cli.output import console, print_json
from ropewalk.config import LayerRope
from ropewalk.config.scaled_fields import expected_scalings
from ropewalk.frequencies import Frequencies
from ropewalk.positions import parse_scaling
from ropewalk.scaling import Scaling


def command(
    model: ModelArgument,
    scaling: Annotated[str, typer.Option(help="name:option=value,... or JSON, by default the model's own.")] = "",
    length: Annotated[str, typer.Option(help="Length of the text, which a dynamic scaling needs: 8192, 8k.")] = "",
    json: JsonOption = False,
) -> None:
    """Show the inverse frequencies of a model under a scaling. Loads no weights."""
    requested = parse_scaling(scaling, "which this command shows") if scaling else None
    tokens = parse_optional_length(length, "length")
    model_config = configs.read(model)
    scalings = {layer_type: layer.scaling for layer_type, layer in model_config.ropes.items()}
    if requested:
        scalings = expected_scalings(model_config, requested)
    has_layer_types = len(model_config.ropes) > 1
    if not json:
        for layer_type, layer in model_config.ropes.items():
            print_table = _print_layers if scalings[layer_type].is_per_layer else _print_table
            print_table(layer, scalings[layer_type], tokens, f"{layer_type}: " if has_layer_types else "")
        return
    main = model_config.main_layer
    document = {"length": tokens, **_layer_document(main, requested or main.scaling, tokens)}
    if has_layer_types:
        document["layers"] = {
            layer_type: _layer_document(layer, scalings[layer_type], tokens)
            for layer_type, layer in model_config.ropes.items()
        }
    print_json(document)


def _layer_document(layer: LayerRope, scaling: Scaling, length: int | None) -> dict[str, Any]:
    """Return the scaling, the unscaled rope and the frequencies of one layer type, ready for JSON.

    If each layer has its own, they are under `decoder_layers`, one entry for each.
    """
    rope = layer.rope
    document = {
        "scaling": scaling.to_dict(),
        "rope": {"dim": rope.dim, "base": rope.base, "original_length": rope.original_length},
    }
    if scaling.is_per_layer:
        sets = configs.compute_per_layer_frequencies(scaling, layer)
        return document | {"decoder_layers": [_frequencies_document(frequencies) for frequencies in sets]}
    return document | _frequencies_document(_compute_frequencies(layer, scaling, length))


def _frequencies_document(frequencies: Frequencies) -> dict[str, Any]:
    return {
        "inv_freq": frequencies.inv_freq.tolist(),
        "attention_factor": frequencies.attention_factor,
        "softmax_factor": frequencies.softmax_factor,
    }


def _compute_frequencies(layer: LayerRope, scaling: Scaling, length: int | None) -> Frequencies:
    """Return the frequencies with which `ropewalk.extend` rotates. Raises InputError if a length is needed."""
    if scaling.is_dynamic and length is None:
        return scaling.frequencies(layer.rope)
    return configs.compute_layer_frequencies(scaling, layer, length)


def _print_layers(layer: LayerRope, scaling: Scaling, length: int | None, prefix: str) -> None:
    """Print, for each pair, the median and the range over the layers of scaled over unscaled frequency."""
    from ropewalk.report.tables import make_table

    sets, rope = configs.compute_per_layer_frequencies(scaling, layer), layer.rope
    scaled_LP = np.array([frequencies.inv_freq for frequencies in sets])
    factors = [frequencies.attention_factor for frequencies in sets]
    rows = []
    for pair, unscaled in enumerate(rope.inv_freq):
        ratios_L = scaled_LP[:, pair] / unscaled
        values = (np.median(ratios_L), ratios_L.min(), ratios_L.max())
        rows.append([str(pair), f"{unscaled:.6e}", *(f"{value:.4f}" for value in values)])
    title = f"{prefix}{scaling}, {len(sets)} layers, on dim {rope.dim}, base {rope.base:g}"
    headings = [
        "pair",
        "unscaled inv_freq, rad/token",
        "scaled / unscaled: median",
        "min over layers",
        "max over layers",
    ]
    console.print(make_table(title, headings, rows, text_columns=()))
    console.print(
        f"attention factor {min(factors):.6f} to {max(factors):.6f}; --json prints the frequencies of each layer"
    )


def _print_table(layer: LayerRope, scaling: Scaling, length: int | None, prefix: str) -> None:
    from ropewalk.report.tables import make_table

    frequencies, rope = _compute_frequencies(layer, scaling, length), layer.rope
    no_rotations = [math.nan] * (rope.dim // 2)
    rotations = rope.rotations(rope.original_length) if rope.original_length else no_rotations
    rows = []
    for pair, (scaled, unscaled) in enumerate(zip(frequencies.inv_freq, rope.inv_freq, strict=True)):
        wavelength = f"{math.tau / scaled:,.1f}" if scaled else "does not rotate"
        rows.append([str(pair), f"{scaled:.6e}", wavelength, f"{rotations[pair]:.2f}", f"{scaled / unscaled:.4f}"])
    title = f"{prefix}{scaling} on dim {rope.dim}, base {rope.base:g}, original length {rope.original_length}"
    headings = ["pair", "inv_freq, rad/token", "wavelength, tokens", "rotations over L", "scaled / unscaled"]
    console.print(make_table(title, headings, rows, text_columns=()))
    console.print(
        f"attention factor {frequencies.attention_factor:.6f}, softmax factor {frequencies.softmax_factor:.6f}"
    )
