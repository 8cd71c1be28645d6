"""`ropewalk frequencies`: the inverse frequencies of a model under a scaling."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from ropewalk import config as configs
from ropewalk.cli.options import JsonOption, ModelArgument, parse_optional_length
from ropewalk.cli.output import console, print_json
from ropewalk.rope import Rope
from ropewalk.scaling import Scaling, parse


def command(
    model: ModelArgument,
    scaling: Annotated[str, typer.Option(help="name:option=value,... or JSON, by default the model's own.")] = "",
    length: Annotated[str, typer.Option(help="Length of the text, which a dynamic scaling needs: 8192, 8k.")] = "",
    json: JsonOption = False,
) -> None:
    """Show the inverse frequencies of a model under a scaling. Loads no weights."""
    requested = parse(scaling) if scaling else None
    tokens = parse_optional_length(length, "length")
    model_config = configs.read(model)
    rope = model_config.main_layer.rope
    chosen = requested or model_config.main_layer.scaling
    if not json:
        _print_table(rope, chosen, tokens)
        return
    document = {"length": tokens, **_layer_document(rope, chosen, tokens)}
    if len(model_config.ropes) > 1:
        document["layers"] = {}
        for layer_type, layer in model_config.ropes.items():
            # A requested scaling is not applied to layers with a sliding window, as in `ropewalk.extend`.
            layer_scaling = requested if requested and not configs.is_local(layer_type) else layer.scaling
            document["layers"][layer_type] = _layer_document(layer.rope, layer_scaling, tokens)
    print_json(document)


def _layer_document(rope: Rope, scaling: Scaling, length: int | None) -> dict[str, Any]:
    """Return the scaling, the unscaled rope and the frequencies of one layer type, ready for JSON."""
    frequencies = scaling.frequencies(rope, length)
    return {
        "scaling": scaling.to_dict(),
        "rope": {"dim": rope.dim, "base": rope.base, "original_length": rope.original_length},
        "inv_freq": frequencies.inv_freq.tolist(),
        "attention_factor": frequencies.attention_factor,
        "softmax_factor": frequencies.softmax_factor,
    }


def _print_table(rope: Rope, scaling: Scaling, length: int | None) -> None:
    from ropewalk.report.tables import make_table

    frequencies = scaling.frequencies(rope, length)
    no_rotations = [math.nan] * (rope.dim // 2)
    rotations = rope.rotations(rope.original_length) if rope.original_length else no_rotations
    rows = []
    for pair, (scaled, unscaled) in enumerate(zip(frequencies.inv_freq, rope.inv_freq, strict=True)):
        wavelength = f"{math.tau / scaled:,.1f}" if scaled else "does not rotate"
        rows.append([str(pair), f"{scaled:.6e}", wavelength, f"{rotations[pair]:.2f}", f"{scaled / unscaled:.4f}"])
    title = f"{scaling} on dim {rope.dim}, base {rope.base:g}, original length {rope.original_length}"
    headings = ["pair", "inv_freq, rad/token", "wavelength, tokens", "rotations over L", "scaled / unscaled"]
    console.print(make_table(title, headings, rows, text_columns=()))
    console.print(
        f"attention factor {frequencies.attention_factor:.6f}, softmax factor {frequencies.softmax_factor:.6f}"
    )
