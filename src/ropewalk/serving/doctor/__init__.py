"""What is wrong or suspicious about a configuration: a small check for each kind, in files by theme."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any

from ropewalk import config as configs
from ropewalk.config.gguf import contents
from ropewalk.errors import InputError
from ropewalk.serving.doctor.base import KINDS, TOKENIZER, Fault, Finding, Kind, Subject, finding
from ropewalk.serving.doctor.engines import briefly

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["KINDS", "Finding", "Report", "Subject", "catalogue", "examine", "load"]


@dataclasses.dataclass(frozen=True)
class Report:
    """What `examine` found.

    Attributes:
        model: the name it was found under.
        engine: the engine it was examined for, "" if none was named.
        findings: what is wrong first.
        engines: without an engine named, the engines that read it in another way than is meant, and how.
    """

    model: str
    engine: str
    findings: tuple[Finding, ...]
    engines: Mapping[str, str]

    @property
    def wrong(self) -> bool:
        return any(each.severity == "wrong" for each in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "model": self.model,
            "engine": self.engine or None,
            "findings": [each.to_dict() for each in self.findings],
            "engines": dict(self.engines),
        }


def load(model: str, target: int | None = None, engine: str = "") -> Subject:
    """Read what MODEL names, as it stands: config.json with the tokenizer's beside it, or a GGUF file.

    Raises InputError for one that is missing or damaged.
    """
    path = configs.locate(model)
    if path is None:
        return Subject(configs.from_hub(model), name=model, target=target, engine=engine)
    if path.suffix == ".gguf":
        fields, divisors = contents(path)
        return Subject(fields, divisors, name=path.stem, target=target, engine=engine)
    file = path / "config.json" if path.is_dir() else path
    beside = file.parent / TOKENIZER
    tokenizer = configs.read_json(beside) if beside.exists() else None
    return Subject(configs.read_json(file), None, tokenizer, file.resolve().parent.name, target, engine)


def examine(subject: Subject) -> Report:
    """All findings about a configuration.

    Raises InputError for an unknown engine, and for a configuration that is none of text: without rope fields, of an
    image, of which no part says how large a head is, or nested too deep to look at.
    """
    try:
        if subject.of_images:
            raise InputError("model", subject.model_type, "a model of text; its pairs turn by the place in an image")
        faults = [(kind, fault) for kind in KINDS.values() for fault in kind.faults(subject)]
        faults = faults or [(UNREADABLE, fault) for fault in UNREADABLE.check(subject)]
        findings = sorted(
            (finding(subject, kind, fault) for kind, fault in faults), key=lambda each: each.severity == "suspicious"
        )
        engines = {} if subject.engine else briefly(subject)
    except RecursionError:
        raise InputError("model", subject.name or "a configuration", "one that is not nested so deep") from None
    return Report(subject.name, subject.engine, tuple(findings), engines)


def _unreadable(subject: Subject) -> Iterator[Fault]:
    """Whatever else keeps it from being read."""
    model_config = subject.model_config
    if isinstance(model_config, InputError):
        if model_config.field in ("model", "head_dim"):
            raise model_config  # nothing turns, or nobody says how much of it
        yield Fault((model_config.field,), None, str(model_config))


UNREADABLE = Kind("unreadable", "wrong", "any", _unreadable)  # asked last, when no other check explains it


def catalogue() -> str:
    """The kinds of fault as a table in Markdown, a row for each."""
    rows = [
        f"| `{kind.name}` | {kind.severity} | {kind.about} |"
        for kind in (*sorted(KINDS.values(), key=_order), UNREADABLE)
    ]
    return "\n".join(["| kind | severity | what it finds |", "| --- | --- | --- |", *rows]) + "\n"


def _order(kind: Kind) -> tuple[str, str]:
    return kind.check.__module__.rsplit(".", 1)[-1], kind.name
