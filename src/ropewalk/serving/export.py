"""Write what a serving engine needs to read a model under a scaling."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ropewalk import config as configs
from ropewalk.errors import InputError, check_length
from ropewalk.files import state, whole_folder, write_whole
from ropewalk.scaling import Scaling, parse
from ropewalk.serving.engines import find_engine
from ropewalk.serving.engines.base import MARK, Config
from ropewalk.serving.engines.encode import encode


@dataclass(frozen=True)
class Export:
    """What `export_model` made.

    Attributes:
        engine, version: whose reading it was made for.
        scaling: its spec.
        length: tokens that it shall serve.
        through: what the scaling is written as, where the engine has no name for it; "" for the engine's own.
        changes: what is new in the configuration.
        path: what the engine is given; None where nothing was written.
        command: the command that starts it.
        notes: what people should know.
    """

    engine: str
    version: str
    scaling: str
    length: int
    through: str
    changes: Config
    path: str | None
    command: str
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**asdict(self), "changes": dict(self.changes), "notes": list(self.notes)}


def export_model(
    model: str,
    scaling: str | Scaling,
    engine: str,
    out: str | Path | None = None,
    length: int | None = None,
) -> Export:
    """Write the configuration with which an engine reads a model under a scaling.

    Args:
        model: a folder, a .gguf file, a built-in name, or a hub id.
        scaling: what is meant.
        engine: a name of the registry.
        out: folder to write to; weights are linked, or of a GGUF file copied without change. An earlier export there
            gives way to this one when it is whole; nothing else is replaced. None: nothing is written, and the
            command passes the changes, where the engine takes them so.
        length: tokens to serve; by default what the scaling reaches, for a dynamic one it is needed.

    Raises InputError for a scaling that the engine cannot express, naming the nearest that it can, and for a folder
    that cannot be written to, or not without a loss.
    """
    chosen, expected = find_engine(engine), parse(scaling)
    folder = None if out is None else _another(Path(out).expanduser(), model)
    config, model_config = chosen.open(model)
    layer = model_config.ropes[model_config.main]
    if length is None and expected.is_dynamic and not getattr(expected, "factor", None):
        raise InputError("length", None, f"the tokens to serve, which {expected} does not say")
    reached = expected.resolve_original_length(layer.rope) * expected.extension_factor(layer.rope)
    tokens = check_length("length", length) if length is not None else max(round(reached), model_config.max_length or 0)
    candidate = encode(chosen, config, model_config, expected, tokens)
    notes = []
    if tokens > reached and not expected.is_dynamic:
        notes.append(f"{tokens:,} tokens are more than the {reached:,.0f} that {expected} is made for")
    if (
        expected.is_dynamic
        and not chosen.interpret(candidate.config, tokens).ropes[model_config.main].scaling.is_dynamic
    ):
        notes.append(
            f"{chosen.title} fixes the scaling when it starts: short texts, too, are read as {tokens:,} tokens are"
        )
    elif expected.is_dynamic:
        notes.append("frequencies follow the text, but keys that are already in the KV cache keep the old ones")
    export = Export(
        engine=chosen.name,
        version=chosen.version,
        scaling=str(expected),
        length=tokens,
        through=candidate.through,
        changes=candidate.changes,
        path=None,
        command="" if folder else chosen.command(model, tokens, candidate.changes),
        notes=tuple(notes),
    )
    if folder is None:
        return export
    with whole_folder(folder, MARK) as written:
        path = str(folder / chosen.write(model, candidate, written, tokens).relative_to(written))
        export = replace(export, path=path, command=chosen.command(path, tokens))
        write_whole(written / MARK, json.dumps({**export.to_dict(), "written": state(written)}, indent=2) + "\n")
    return export


def _another(folder: Path, model: str) -> Path:
    """That folder. Raises InputError when it is the model's own."""
    path = configs.locate(model)
    own = path.parent if path is not None and path.is_file() else path
    if own is not None and os.path.exists(folder) and own.samefile(folder):
        raise InputError("out", str(folder), "another folder than the model's own")
    return folder
