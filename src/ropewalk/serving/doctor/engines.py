"""What the engines make of a configuration, against what it means to transformers."""

from __future__ import annotations

from collections.abc import Iterator

from ropewalk.config import ModelConfig, is_local
from ropewalk.errors import InputError
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.serving.doctor.base import POSITION, Fault, Path, Subject, compared, kind
from ropewalk.serving.engines import ENGINES, Engine, find_engine
from ropewalk.serving.engines.encode import encode


@kind("engine-refuses", "wrong", of="any")
def engine_refuses(subject: Subject) -> Iterator[Fault]:
    """The named engine does not take the configuration at that length."""
    engine = _chosen(subject)
    if engine is None or isinstance(subject.model_config, InputError):
        return
    read = _read(engine, subject, subject.model_config)
    if isinstance(read, InputError):
        fix = _written(engine, subject, subject.model_config)
        yield Fault((read.field.split(": ")[-1],), None, f"{read} ({engine.title} {engine.version})", fix, read)


@kind("engine-reads-otherwise", "wrong", of="any")
def engine_reads_otherwise(subject: Subject) -> Iterator[Fault]:
    """The named engine turns by other frequencies than the configuration means."""
    engine, expected = _chosen(subject), subject.model_config
    if engine is None or isinstance(expected, InputError):
        return
    read = _read(engine, subject, expected)
    if isinstance(read, InputError) or _alike(read, expected, _length(subject, expected)):
        return
    path = subject.ropes[0].path if subject.divisors is None and subject.ropes else ("rope.scaling.type",)
    means = f"{engine.title} {engine.version} reads {_short(read, expected)}"
    yield Fault(path, _short(expected), means, _written(engine, subject, expected), read, expected)


def briefly(subject: Subject) -> dict[str, str]:
    """The engines that read it in another way than is meant, and how. Empty where it cannot be read at all."""
    expected = subject.model_config
    if isinstance(expected, InputError):
        return {}
    said = {}
    for name, engine in ENGINES.items():
        if (engine.takes == "gguf") != (subject.divisors is not None):
            continue
        read = _read(engine, subject, expected)
        if isinstance(read, InputError):
            said[name] = f"refuses it: {read}"
        elif not _alike(read, expected, _length(subject, expected)):
            position, cosine, scores = compared(read, expected, _length(subject, expected))
            differs = f": cosine {cosine:.4f} at {position:,}, scores times {scores:.4f}" if position else ""
            said[name] = f"reads {_short(read, expected)}{differs}"
    return said


def _chosen(subject: Subject) -> Engine | None:
    """The engine that was named. Raises InputError for one that is not given such a file."""
    if not subject.engine:
        return None
    engine = find_engine(subject.engine)
    if (engine.takes == "gguf") != (subject.divisors is not None):
        given = "a .gguf file" if engine.takes == "gguf" else "a folder with config.json"
        raise InputError("model", subject.name, f"{given}, which {engine.title} is given")
    return engine


def _length(subject: Subject, expected: ModelConfig) -> int:
    """The target, as far as the scaling is made for it: that it is not is a finding of its own."""
    declared, layer = expected.max_length or POSITION, expected.ropes[expected.main]
    reached = (layer.scaling.original_length or layer.rope.original_length or 0) * layer.scaling.extension_factor(
        layer.rope
    )
    return min(subject.target, max(declared, round(reached))) if subject.target else declared


def _read(engine: Engine, subject: Subject, expected: ModelConfig) -> ModelConfig | InputError:
    config = subject.whole
    if subject.divisors is not None:
        config = {"fields": subject.config, "divisors": subject.divisors}
    try:
        return engine.interpret(config, _length(subject, expected))
    except InputError as error:
        return error


def _alike(read: ModelConfig, expected: ModelConfig, length: int) -> bool:
    if any(name not in read.ropes for name in expected.ropes):
        return False
    layouts = all(read.ropes[name].rope.layout == layer.rope.layout for name, layer in expected.ropes.items())
    its, own = read.ropes[expected.main].scaling, expected.ropes[expected.main].scaling
    follows = its.is_dynamic or (own.is_dynamic and not isinstance(own, LongRoPE))  # of two lists most engines take one
    original = expected.ropes[expected.main].rope.original_length or length
    lengths = (original, length) if follows else (length,)
    return layouts and all(_same(compared(read, expected, n)) for n in lengths)


def _same(comparison: tuple[int | None, float | None, float | None]) -> bool:
    _, cosine, scores = comparison
    return cosine is None or scores is None or (cosine > 1 - 1e-6 and abs(scores - 1) < 1e-6)


def _short(model_config: ModelConfig, against: ModelConfig | None = None) -> str:
    """Its scaling in one short line, and its base where that is not the other's."""
    layer = model_config.ropes[model_config.main]
    text = str(layer.scaling)
    base = "" if against is None or against.ropes[against.main].rope.base == layer.rope.base else layer.rope.base
    return (f"base {base:g}, " if base else "") + (text if len(text) < 60 else text[:57] + "...")


def _written(engine: Engine, subject: Subject, expected: ModelConfig) -> dict[Path, object]:
    """What to write so that the engine reads what is meant; empty where there is no way, or it writes a new file."""
    if subject.divisors is not None:
        return {}
    scaling = expected.ropes[next((name for name in expected.ropes if not is_local(name)), expected.main)].scaling
    try:
        way = encode(engine, subject.whole, expected, scaling, _length(subject, expected))
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
