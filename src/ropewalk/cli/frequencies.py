from __future__ import annotations

import math
from typing import Annotated, Any

import typer
from rich.table import Table

from ropewalk import config as configs
from ropewalk.cli.output import Json, Model, print_json, results
from ropewalk.frequencies import Frequencies
from ropewalk.lengths import parse_length
from ropewalk.scaling import parse


def command(
    model: Model,
    scaling: Annotated[str, typer.Option(help="name:option=value,... or JSON; the model's own if not given.")] = "",
    length: Annotated[str, typer.Option(help="Length of the text, for a dynamic scaling: 8192, 8k, 1m.")] = "",
    json: Json = False,
) -> None:
    """Show the inverse frequencies of a model under a scaling. Needs no weights."""
    asked = parse(scaling) if scaling else None
    tokens = parse_length(length) if length else None
    model_config = configs.read(model)
    main = model_config.ropes[model_config.main]
    chosen = asked or main.scaling
    frequencies = chosen.frequencies(main.rope, tokens)
    if json:
        document: dict[str, Any] = {
            "scaling": chosen.to_dict(),
            "rope": _rope(main),
            "length": tokens,
            **_numbers(frequencies),
        }
        if len(model_config.ropes) > 1:
            document["layers"] = {
                kind: _layer(layer, chosen if asked and not configs.is_local(kind) else layer.scaling, tokens)
                for kind, layer in model_config.ropes.items()
            }
        print_json(document)
        return
    rope = main.rope
    table = Table(title=f"{chosen} on dim {rope.dim}, base {rope.base:g}, original length {rope.original_length}")
    for column in ("pair", "inv_freq rad/token", "wavelength tokens", "turns over L", "of the unscaled"):
        table.add_column(column, justify="right")
    turns = rope.rotations(rope.original_length) if rope.original_length else [float("nan")] * (rope.dim // 2)
    for i, (scaled, unscaled) in enumerate(zip(frequencies.inv_freq, rope.inv_freq, strict=True)):
        wavelength = f"{math.tau / scaled:,.1f}" if scaled else "never turns"
        table.add_row(str(i), f"{scaled:.6e}", wavelength, f"{turns[i]:.2f}", f"{scaled / unscaled:.4f}")
    results.print(table)
    results.print(
        f"attention factor {frequencies.attention_factor:.6f}, softmax factor {frequencies.softmax_factor:.6f}"
    )


def _rope(layer: configs.LayerRope) -> dict[str, Any]:
    return {"dim": layer.rope.dim, "base": layer.rope.base, "original_length": layer.rope.original_length}


def _layer(layer: configs.LayerRope, scaling: Any, length: int | None) -> dict[str, Any]:
    return {"scaling": scaling.to_dict(), "rope": _rope(layer), **_numbers(scaling.frequencies(layer.rope, length))}


def _numbers(frequencies: Frequencies) -> dict[str, Any]:
    return {
        "inv_freq": frequencies.inv_freq.tolist(),
        "attention_factor": frequencies.attention_factor,
        "softmax_factor": frequencies.softmax_factor,
    }
