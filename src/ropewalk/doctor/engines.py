"""What the engines make of a configuration, against what it means to transformers."""

from __future__ import annotations

from collections.abc import Iterator

from ropewalk.config import ModelConfig, is_local
from ropewalk.doctor.base import POSITION, Fault, Path, Subject, compared, kind
from ropewalk.engines import ENGINES, Engine, find
from ropewalk.engines.express import express
from ropewalk.errors import InputError
from ropewalk.scaling.longrope import LongRoPE


@kind("engine-refuses", "wrong", of="any")
def engine_refuses(subject: Subject) -> Iterator[Fault]:
    """The named engine does not take the configuration at that length."""
    engine = _chosen(subject)
    if engine is None or isinstance(subject.described, InputError):
        return
    read = _read(engine, subject, subject.described)
    if isinstance(read, InputError):
        fix = _written(engine, subject, subject.described)
        yield Fault((read.field.split(": ")[-1],), None, f"{read} ({engine.title} {engine.version})", fix, read)


@kind("engine-reads-otherwise", "wrong", of="any")
def engine_reads_otherwise(subject: Subject) -> Iterator[Fault]:
    """The named engine turns by other frequencies than the configuration means."""
    engine, meant = _chosen(subject), subject.described
    if engine is None or isinstance(meant, InputError):
        return
    read = _read(engine, subject, meant)
    if isinstance(read, InputError) or _alike(read, meant, _length(subject, meant)):
        return
    path = subject.ropes[0].path if subject.divisors is None and subject.ropes else ("rope.scaling.type",)
    means = f"{engine.title} {engine.version} reads {_short(read, meant)}"
    yield Fault(path, _short(meant), means, _written(engine, subject, meant), read, meant)


def briefly(subject: Subject) -> dict[str, str]:
    """The engines that read it in another way than is meant, and how. Empty where it cannot be read at all."""
    meant = subject.described
    if isinstance(meant, InputError):
        return {}
    said = {}
    for name, engine in ENGINES.items():
        if (engine.takes == "gguf") != (subject.divisors is not None):
            continue
        read = _read(engine, subject, meant)
        if isinstance(read, InputError):
            said[name] = f"refuses it: {read}"
        elif not _alike(read, meant, _length(subject, meant)):
            position, cosine, scores = compared(read, meant, _length(subject, meant))
            differs = f": cosine {cosine:.4f} at {position:,}, scores times {scores:.4f}" if position else ""
            said[name] = f"reads {_short(read, meant)}{differs}"
    return said


def _chosen(subject: Subject) -> Engine | None:
    """The engine that was named. Raises InputError for one that is not given such a file."""
    if not subject.engine:
        return None
    engine = find(subject.engine)
    if (engine.takes == "gguf") != (subject.divisors is not None):
        given = "a .gguf file" if engine.takes == "gguf" else "a folder with config.json"
        raise InputError("model", subject.name, f"{given}, which {engine.title} is given")
    return engine


def _length(subject: Subject, meant: ModelConfig) -> int:
    """The target, as far as the scaling is made for it: that it is not is a finding of its own."""
    declared, layer = meant.max_length or POSITION, meant.ropes[meant.main]
    reached = (layer.scaling.original_length or layer.rope.original_length or 0) * layer.scaling.reaches(layer.rope)
    return min(subject.target, max(declared, round(reached))) if subject.target else declared


def _read(engine: Engine, subject: Subject, meant: ModelConfig) -> ModelConfig | InputError:
    config = subject.whole
    if subject.divisors is not None:
        config = {"fields": subject.config, "divisors": subject.divisors}
    try:
        return engine.read(config, _length(subject, meant))
    except InputError as error:
        return error


def _alike(read: ModelConfig, meant: ModelConfig, length: int) -> bool:
    if any(name not in read.ropes for name in meant.ropes):
        return False
    layouts = all(read.ropes[name].rope.layout == layer.rope.layout for name, layer in meant.ropes.items())
    its, own = read.ropes[meant.main].scaling, meant.ropes[meant.main].scaling
    follows = its.dynamic or (own.dynamic and not isinstance(own, LongRoPE))  # of two lists most engines take one
    original = meant.ropes[meant.main].rope.original_length or length
    lengths = (original, length) if follows else (length,)
    return layouts and all(_same(compared(read, meant, n)) for n in lengths)


def _same(comparison: tuple[int | None, float | None, float | None]) -> bool:
    _, cosine, scores = comparison
    return cosine is None or scores is None or (cosine > 1 - 1e-6 and abs(scores - 1) < 1e-6)


def _short(described: ModelConfig, against: ModelConfig | None = None) -> str:
    """Its scaling in one short line, and its base where that is not the other's."""
    layer = described.ropes[described.main]
    text = str(layer.scaling)
    base = "" if against is None or against.ropes[against.main].rope.base == layer.rope.base else layer.rope.base
    return (f"base {base:g}, " if base else "") + (text if len(text) < 60 else text[:57] + "...")


def _written(engine: Engine, subject: Subject, meant: ModelConfig) -> dict[Path, object]:
    """What to write so that the engine reads what is meant; empty where there is no way, or it writes a new file."""
    if subject.divisors is not None:
        return {}
    scaling = meant.ropes[next((name for name in meant.ropes if not is_local(name)), meant.main)].scaling
    try:
        way = express(engine, subject.whole, meant, scaling, _length(subject, meant))
    except InputError:
        return {}
    changes: dict[Path, object] = {}
    _flatten((), way.changes, subject.part, changes)
    return changes


def _flatten(path: Path, value: object, part: Path, into: dict[Path, object]) -> None:
    """Changes nested as the configuration is, as paths down to the fields of its text part."""
    if isinstance(value, dict) and len(path) <= len(part) and path == part[: len(path)]:
        for key, inner in value.items():
            _flatten((*path, key), inner, part, into)
    else:
        into[path] = value
