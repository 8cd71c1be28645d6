"""The matrix: which engine can express which method, and which of it was proven on the real engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from ropewalk.config import from_dict
from ropewalk.errors import InputError
from ropewalk.scaling import REGISTRY, Scaling, parse
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.serving.engines import ENGINES
from ropewalk.serving.engines.base import Engine
from ropewalk.serving.engines.encode import encode

# A plain decoder: what is said of it holds for Llama, Mistral and Qwen. GGUF engines are given its metadata.
_LENGTH = 32_768
_LONG = 40  # characters of a spec that are shown
_CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "rope_theta": 500_000.0,
}
_FIELDS = {
    "general.architecture": "llama",
    "llama.embedding_length": 4096,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
    "llama.block_count": 32,
    "llama.rope.dimension_count": 128,
    "llama.context_length": 8192,
    "llama.rope.freq_base": 500_000.0,
}
_ROW = {"engine", "version", "scaling", "length", "verdict", "date"}


@dataclass(frozen=True)
class Cell:
    """One method on one engine.

    Attributes:
        engine, method: names.
        how: "own", "through" or "no".
        detail: through what; of "no" the nearest that there is.
        proven, refuted: rows of verify on the real engine, those that passed and those that failed.
    """

    engine: str
    method: str
    how: str
    detail: str
    proven: tuple[dict[str, Any], ...] = ()
    refuted: tuple[dict[str, Any], ...] = ()


def matrix(verified: Sequence[dict[str, Any]] = ()) -> list[Cell]:
    """Every method of the registry on every engine, at 32k tokens of a model that was trained on 8k.

    `verified`: rows of `ropewalk verify --json`.
    """
    examples = {name: _example(cls) for name, cls in REGISTRY.items()}
    return [_cell(engine, name, scaling, verified) for name, scaling in examples.items() for engine in ENGINES.values()]


def matrix_page(verified: Sequence[dict[str, Any]]) -> str:
    """The page of the docs, in Markdown."""
    cells = matrix(verified)
    engines = list(ENGINES.values())
    by_place = {(cell.method, cell.engine): cell for cell in cells}
    lines = [
        "# Methods and engines",
        "",
        "<!-- Written by `ropewalk engines --markdown`, from the engines' files and the last run of verify. -->",
        "",
        "What each engine makes of its configuration, by its source of the version named. **own**: it has words for "
        "the method. Otherwise what the method is written through, with the same frequencies, or **no**. ✓ is "
        "proven on the real engine and ✗ refuted by it (stale keys); the table further down says when and how far. "
        f"For a model like Llama 3 8B, trained on 8,192 tokens and served at {_LENGTH:,}.",
        "",
        "| | " + " | ".join(f"{engine.title} {engine.version}" for engine in engines) + " |",
        "| --- |" + " --- |" * len(engines),
    ]
    for method in REGISTRY:
        shown = [_shown(by_place[method, engine.name]) for engine in engines]
        lines.append(f"| `{method}` | " + " | ".join(shown) + " |")
    lines += ["", "Not expressible, and the nearest that is:", ""]
    for engine in engines:
        missing = [cell for cell in cells if cell.engine == engine.name and cell.how == "no"]
        if missing:
            listed = "; ".join(f"`{cell.method}`" + (f" ({cell.detail})" if cell.detail else "") for cell in missing)
            lines.append(f"- {engine.title}: {listed}")
    columns = ("engine", "version", "scaling", "written", "tokens", "difference over noise", "verdict", "date")
    lines += ["", "Run on the real engine:", "", "| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for row in verified:
        spec = row["scaling"] if len(row["scaling"]) < _LONG else row["scaling"][: _LONG - 3] + "..."
        through = row.get("through") or "own words"
        times = f"{row['ratio']:.2g}" if "ratio" in row else ""
        length = f"{row['length']:,}"
        said = (row["engine"], row["version"], f"`{spec}`", through, length, times, row["verdict"], row["date"])
        lines.append("| " + " | ".join(str(each) for each in said) + " |")
    lines += ["", "Where the readings come from:", ""]
    lines += [
        f"- {engine.title} {engine.version}: " + ", ".join(f"`{s}`" for s in engine.sources) for engine in engines
    ]
    return "\n".join(lines) + "\n"


def read_verified(folder: Path) -> list[dict[str, Any]]:
    """The results of verify that a folder holds, one JSON file each.

    Raises InputError for a folder that is not there, and for a file that is something else.
    """
    if not folder.is_dir():
        raise InputError("verified", str(folder), "a folder with results of `ropewalk verify --json`")
    rows = []
    for file in sorted(folder.glob("*.json")):
        try:
            row = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not set(row) >= _ROW:
            raise InputError("verified", str(file), "a result of `ropewalk verify --json`")
        rows.append(row)
    return rows


def _cell(engine: Engine, method: str, scaling: Scaling, verified: Sequence[dict[str, Any]]) -> Cell:
    if engine.checkpoint_format == "folder":
        config: dict[str, Any] = dict(_CONFIG)
        model_config = from_dict(config)
    else:
        config = {"fields": dict(_FIELDS), "divisors": {}}
        model_config = engine.interpret(config, _LENGTH)
    try:
        candidate = encode(engine, config, model_config, scaling, _LENGTH)
    except InputError as error:
        return Cell(engine.name, method, "no", str(error).partition("the nearest is ")[2])
    run = [row for row in verified if row["engine"] == engine.name and parse(row["scaling"]).name == method]
    passed, failed = (tuple(row for row in run if row["verdict"] == verdict) for verdict in ("pass", "fail"))
    return Cell(engine.name, method, "through" if candidate.encoded_as else "own", candidate.encoded_as, passed, failed)


def _shown(cell: Cell) -> str:
    text = {"own": "own", "through": cell.detail, "no": "no"}[cell.how]
    return text + (" ✗" if cell.refuted else " ✓" if cell.proven else "")


def _example(cls: type[Scaling]) -> Scaling:
    """The method with a factor of 4, or what it has in place of one."""
    if cls is LongRoPE:
        pairs = range(_CONFIG["head_dim"] // 2)
        return LongRoPE(tuple(1 + i / 100 for i in pairs), tuple(1 + i / 20 for i in pairs), factor=4.0)
    needed = [f.name for f in fields(cls) if f.default is MISSING or (f.name == "factor" and f.default is None)]
    values: dict[str, Any] = {"factor": 4.0, "base": 4_000_000.0, "p": 0.5}
    return cls(**{name: values[name] for name in needed})
