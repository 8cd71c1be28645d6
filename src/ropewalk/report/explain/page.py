"""Write the page: one HTML file with its data, styles and scripts, which needs no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ropewalk.errors import InputError
from ropewalk.files import ensure_writable_folder, write_text_atomically
from ropewalk.lengths import format_length
from ropewalk.registry import find_by_name
from ropewalk.report.explain.attention import build_scores, build_stale_keys, build_temperatures
from ropewalk.report.explain.captions import build_captions, format_quantity
from ropewalk.report.explain.numbers import build_engine_configs, build_memory, examine_model
from ropewalk.report.explain.pictures import write_pictures
from ropewalk.report.explain.rotations import build_rotations
from ropewalk.report.explain.subject import Subject, open_subject
from ropewalk.report.templates import escape_invisible, load_template

LANGUAGES = ("en", "zh")
_FILTERS = {"quantity": format_quantity, "length_name": format_length}
_SCRIPTS = ("draw.js", "chart.js", "circles.js", "strip.js", "page.js")


def write_explanation(
    model: str,
    target: int,
    out: Path,
    scalings: Sequence[str] = (),
    *,
    curve: str | None = None,
    evaluation: str | None = None,
    language: str = "en",
    pictures: Path | None = None,
) -> Subject:
    """Write the page of a model and return its subject. No weights are loaded, and torch is not imported.

    Args:
        model: a hub id, a folder, a config.json, a .gguf file or a built-in name.
        target: tokens to read.
        out: the HTML file to write.
        scalings: specs of the scalings to compare with no scaling; by default the common ones.
        curve: a folder that `ropewalk curve` wrote, to show beside the theory.
        evaluation: a folder that `ropewalk eval` wrote.
        language: en or zh.
        pictures: a folder for circles.svg and pairs.svg, the same pictures for documents that run no scripts.

    Raises InputError for a model, scaling, folder or language that is wrong, and MissingPackageError without jinja2.
    """
    texts = load_texts(language)
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError("out", str(out), "a file whose name ends in .html")
    template = load_template(__package__, "page.html.j2", "ropewalk explain", **_FILTERS)
    measured = _read_measured(curve, evaluation)
    with open_subject(model, target, scalings) as subject:
        captions = build_captions(subject)
        page = template.render(
            language=language,
            version=version("ropewalk"),
            text=lambda key, **values: texts["page"][key].format(**{**captions, **values}),
            values=captions,
            subject=subject,
            temperatures=build_temperatures(subject),
            memory=build_memory(subject),
            report=examine_model(subject),
            engines=build_engine_configs(subject),
            measured=measured,
            data=_embed_json(_build_data(subject, texts, measured)),
            style=_read_file("page.css"),
            scripts=[_read_file(f"scripts/{name}") for name in _SCRIPTS],
        )
        if pictures is not None:
            write_pictures(subject, pictures)
    ensure_writable_folder(out.parent)
    write_text_atomically(out, page)
    return subject


def load_texts(language: str) -> dict[str, Any]:
    """Return the texts of a language: those of the `page`, and the `live` ones that its scripts show."""
    find_by_name("language", language, dict.fromkeys(LANGUAGES))
    texts: dict[str, Any] = json.loads(_read_file(f"texts/{language}.json"))
    return texts


def _read_measured(curve: str | None, evaluation: str | None) -> dict[str, Any]:
    if curve is None and evaluation is None:
        return {"curve": None, "heatmaps": []}  # a page without results has no need of their readers
    from ropewalk.report.explain.measured import build_curve, build_heatmaps

    return {
        "curve": build_curve(Path(curve)) if curve else None,
        "heatmaps": build_heatmaps(Path(evaluation)) if evaluation else [],
    }


def _build_data(subject: Subject, texts: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """Return everything that the scripts draw."""
    return {
        "texts": texts["live"],
        "originalLength": subject.original_length,
        "target": subject.target,
        **build_rotations(subject),
        "scores": build_scores(subject),
        "stale": build_stale_keys(subject),
        **measured,
    }


def _embed_json(document: Any) -> Any:
    """Return a document as JSON that stays inside of its script element, whatever its strings contain."""
    from markupsafe import Markup

    text = json.dumps(_escape_strings(document), separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _escape_strings(value: Any) -> Any:
    if isinstance(value, dict):
        return {escape_invisible(key): _escape_strings(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_escape_strings(item) for item in value]
    return escape_invisible(value)


def _read_file(name: str) -> Any:
    """Return a file of this package. The template inserts it as it is."""
    from markupsafe import Markup

    return Markup(resources.files(__package__).joinpath(name).read_text("utf-8"))
