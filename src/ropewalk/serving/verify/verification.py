"""One engine, one scaling, one verdict."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ropewalk import config as configs
from ropewalk.errors import InputError, check_length
from ropewalk.evaluate.texts import BUILT_IN, read_text
from ropewalk.files import writable_folder, write_whole
from ropewalk.scaling import Scaling, parse
from ropewalk.scaling.none import NoScaling
from ropewalk.serving.engines import find_engine
from ropewalk.serving.engines.base import Engine
from ropewalk.serving.engines.encode import encode, expected_scalings
from ropewalk.serving.export import export_model
from ropewalk.serving.verify.checkpoints import beside_weights, float32_copy, given_to
from ropewalk.serving.verify.environments import python_of
from ropewalk.serving.verify.logprob_client import LogprobClient
from ropewalk.serving.verify.logprobs import TOP, Answer, differences, likeliest
from ropewalk.serving.verify.prompts import Prompts, prompts_of
from ropewalk.serving.verify.reference import Reference
from ropewalk.serving.verify.run_engine import run, runner_of
from ropewalk.serving.verify.tables import TableError, positions_to, table_error
from ropewalk.serving.verify.verdict import PASS, Verdict, judge, worst

_CHARACTERS = 32  # of a text that are enough for a token
_PAST = 1.5  # times the original length that is read by default
_TABLE_ROUNDING = 4.0  # units that float32 may explain at most; a table of float16 is off by 4,000
# What float32 explains of a log-probability, nats: of its sums, and of angles formed in it, which grow with the
# position. A control may be so many times that, or what the engine differs by where positions play no part.
_ROUNDING, _PER_TOKENS, _AT_MOST, _LEAST = 2.0**-17, 1024, 10.0, 2.0**-24

Say = Callable[[str], None]


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        engine, version: which one was run; date: when.
        model, scaling, length: what was asked for, in tokens.
        through: what the scaling is written as for this engine; "" for its own words.
        given: what the engine was given: "export", or the path or the address that was named.
        compared: "tables and log-probabilities", or the latter alone.
        unit, difference, control, ratio, verdict, why: of that comparison which decides.
        tables: cos and sin, in roundings of float32; None where the engine's cannot be read.
        behaviour: log-probabilities, in nats; `ignored` is what an engine that ignored the scaling would differ by,
            `alone` what this one differs by where positions play no part.
    """

    engine: str
    version: str
    date: str
    model: str
    scaling: str
    length: int
    through: str
    given: str
    compared: str
    unit: str
    difference: float
    control: float
    ratio: float
    verdict: str
    why: str
    tables: dict[str, Any] | None
    behaviour: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Whether the engine does what was meant."""
        return self.verdict == PASS

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def verify(
    model: str,
    scaling: str | Scaling,
    engine: str,
    *,
    length: int | None = None,
    served: str | None = None,
    url: str | None = None,
    control_url: str | None = None,
    python: str | None = None,
    work: str | Path | None = None,
    say: Say = lambda _: None,
) -> Verification:
    """Run an engine and compare it with the reference.

    Args:
        model: a folder, a .gguf file, a built-in name, or a hub id; its weights are the reference's.
        scaling: what is meant.
        engine: a name of the registry.
        length: tokens to read up to; by default half as much again as the model was trained on, or as the scaling
            reaches.
        served: what the engine is given (a folder, a config.json, a .gguf file) instead of an export made now.
        url: of a server of that engine, with the scaling; nothing is started then.
        control_url: of the same server without the scaling.
        python: the one that has the engine.
        work: a folder that keeps references and controls for the next call.
        say: hears the progress.

    Raises InputError for a call that cannot be, RuntimeError when the engine fails.
    """
    if url is not None and (served or python):
        raise InputError("url", url, "without served and python: a server is given what it runs on already")
    if control_url is not None and url is None:
        raise InputError("control_url", control_url, "a url beside it")
    expected, chosen = parse(scaling), find_engine(engine)
    if url is None:
        runner_of(chosen)
    with _folder(work) as folder, tempfile.TemporaryDirectory() as temporary:
        reference = Reference(model, folder)
        tokens = _length(reference, expected, length)
        subject: EngineUnderTest
        if url is not None:
            subject = RemoteEngine(chosen, reference, tokens, url, control_url, say)
        else:
            subject = LocalEngine(chosen, reference, tokens, Path(temporary), served, python_of(chosen, python), say)
        return _verification(subject, expected)


@dataclass(frozen=True)
class EngineOutput:
    """What an engine answered."""

    version: str
    tables: list[dict[str, Any]] | None
    answers: list[Answer]


class EngineUnderTest:
    """An engine and what it is to be held against."""

    given = "export"
    through = ""

    def __init__(self, engine: Engine, reference: Reference, length: int, say: Say) -> None:
        self.engine, self.reference, self.length, self.say = engine, reference, length, say
        self.model_config = reference.model_config
        self.original = self.model_config.ropes[self.model_config.main].rope.original_length

    def scaled(self, scaling: Scaling, prompts: Prompts, positions: list[int]) -> EngineOutput:
        """What it answers under the scaling."""
        raise NotImplementedError

    def unscaled(self, prompts: Prompts, positions: list[int]) -> EngineOutput | None:
        """What it answers without; None where it cannot be asked."""
        raise NotImplementedError

    def fixed_at(self, scaling: Scaling) -> int | None:
        """The length at which the engine fixes a dynamic scaling; None where its frequencies follow the text."""
        if not scaling.is_dynamic:
            return None
        config, model_config = self.engine.open(given_to(self.engine, self.reference))
        candidate = encode(self.engine, config, model_config, scaling, self.length)
        read = self.engine.interpret(candidate.config, self.length)
        return None if read.ropes[model_config.main].scaling.is_dynamic else self.length


class LocalEngine(EngineUnderTest):
    """An engine that runs here, on an export made now or on what is served."""

    def __init__(
        self,
        engine: Engine,
        reference: Reference,
        length: int,
        folder: Path,
        served: str | None,
        python: str,
        say: Say,
    ) -> None:
        super().__init__(engine, reference, length, say)
        self.folder, self.served, self.python = folder, served, python
        self.given = served or "export"

    def scaled(self, scaling: Scaling, prompts: Prompts, positions: list[int]) -> EngineOutput:
        path = self._own(Path(self.served)) if self.served else self._export(scaling, "scaled")
        return self._asked(path, prompts, positions)

    def unscaled(self, prompts: Prompts, positions: list[int]) -> EngineOutput:
        """Kept for the next verification of this engine."""
        what = [self.engine.name, self.python, self.reference.digest, self.length, prompts.all, positions]
        key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]
        kept = self.reference.work / f"control-{key}.json"
        if not kept.exists():
            output = self._asked(self._export(NoScaling(), "unscaled"), prompts, positions)
            write_whole(kept, json.dumps(asdict(output)))
        return EngineOutput(**json.loads(kept.read_text(encoding="utf-8")))

    def _export(self, scaling: Scaling, name: str) -> Path:
        model = given_to(self.engine, self.reference)
        made = export_model(model, scaling, self.engine.name, self.folder / name, self.length)
        assert made.path is not None  # a folder was named
        if name == "scaled":
            self.through = made.through
        return Path(made.path)

    def _own(self, path: Path) -> Path:
        if not path.exists():
            raise InputError("served", str(path), "a folder, a config.json or a .gguf file that exists")
        if path.suffix == ".json":
            return beside_weights(path, Path(given_to(self.engine, self.reference)), self.folder / "served")
        return path

    def _asked(self, path: Path, prompts: Prompts, positions: list[int]) -> EngineOutput:
        if path.suffix == ".gguf":
            path = float32_copy(path, self.folder / "float32.gguf")
        job = {
            "path": str(path),
            "length": self.length,
            "prompts": prompts.all,
            "top": TOP,
            "positions": positions,
        }
        return EngineOutput(**run(self.engine, self.python, job, self.say))


class RemoteEngine(EngineUnderTest):
    """An engine that runs elsewhere."""

    def __init__(
        self, engine: Engine, reference: Reference, length: int, url: str, control_url: str | None, say: Say
    ) -> None:
        super().__init__(engine, reference, length, say)
        self.given = url
        self.servers = [
            None if each is None else LogprobClient(each, reference.tokenizer) for each in (url, control_url)
        ]

    def scaled(self, scaling: Scaling, prompts: Prompts, positions: list[int]) -> EngineOutput:
        output = self._asked(self.servers[0], prompts)
        assert output is not None
        return output

    def unscaled(self, prompts: Prompts, positions: list[int]) -> EngineOutput | None:
        return self._asked(self.servers[1], prompts)

    def _asked(self, server: LogprobClient | None, prompts: Prompts) -> EngineOutput | None:
        return None if server is None else EngineOutput(server.version(), None, server.answers(prompts.all, self.say))


def _verification(subject: EngineUnderTest, expected: Scaling) -> Verification:
    fixed = subject.fixed_at(expected)
    text = read_text(BUILT_IN).content[: _CHARACTERS * subject.length]
    ids = subject.reference.tokenizer(text, verbose=False)["input_ids"]
    # One token less, so that there is room for the one that is predicted.
    prompts = prompts_of(ids, subject.length - 1, subject.original, anew=expected.is_dynamic and fixed is None)
    positions = positions_to(subject.length, subject.original)
    unscaled: EngineOutput | None
    if isinstance(subject, LocalEngine) and subject.served is None and expected == NoScaling():
        scaled = unscaled = subject.unscaled(prompts, positions)
    else:  # what is served may be wrong in whatever way: an unscaled model, too, is asked beside its control
        scaled, unscaled = subject.scaled(expected, prompts, positions), subject.unscaled(prompts, positions)
    subject.say("the reference reads the same text")
    behaviour, of_behaviour = _behaviour(subject, expected, fixed, prompts, scaled, unscaled)
    tables, of_tables = _tables(subject, expected, positions, scaled, unscaled)
    decides = worst([of_behaviour] if of_tables is None else [of_behaviour, of_tables])
    return Verification(
        engine=subject.engine.name,
        version=scaled.version,
        date=time.strftime("%Y-%m-%d"),
        model=subject.reference.name,
        scaling=str(expected),
        length=subject.length,
        through=subject.through,
        given=subject.given,
        compared="log-probabilities" if of_tables is None else "tables and log-probabilities",
        **asdict(decides),
        tables=tables,
        behaviour=behaviour,
    )


def _behaviour(
    subject: EngineUnderTest,
    expected: Scaling,
    fixed: int | None,
    prompts: Prompts,
    scaled: EngineOutput,
    unscaled: EngineOutput | None,
) -> tuple[dict[str, Any], Verdict]:
    reference = subject.reference
    at_depth, single = prompts.split(scaled.answers)
    exact = reference.log_probs(expected, prompts, fixed)
    without = reference.log_probs(NoScaling(), prompts, None)
    found = differences(exact, at_depth)
    alone = float(np.mean(differences(reference.alone(prompts), single)))
    control = None if unscaled is None else differences(without, prompts.split(unscaled.answers)[0])
    ignored = float(np.mean(differences(without, likeliest(exact)))) or None
    explained = max(alone, _ROUNDING * max(1.0, subject.length / _PER_TOKENS))
    # A greater control is none: the engine is then wrong without any scaling.
    noise = explained if control is None else max(min(float(np.mean(control)), _AT_MOST * explained), _LEAST)
    resolve = "an engine that computes in float32" + ("" if control else ", or control_url, tells which")
    verdict = judge("nats", float(np.mean(found)), noise, ignored, resolve)
    return {
        **asdict(verdict),
        "ignored": ignored,
        "alone": alone,
        "depths": list(prompts.depths),
        "differences": found,
        "controls": control,
    }, verdict


def _tables(
    subject: EngineUnderTest,
    expected: Scaling,
    positions: list[int],
    scaled: EngineOutput,
    unscaled: EngineOutput | None,
) -> tuple[dict[str, Any] | None, Verdict | None]:
    if not scaled.tables or unscaled is None or not unscaled.tables:
        return None, None

    def error(scaling: Scaling, tables: list[dict[str, Any]]) -> TableError:
        scalings = expected_scalings(subject.model_config, scaling)
        frequencies = [
            configs.layer_frequencies(scalings[kind], layer, subject.length)
            for kind, layer in subject.model_config.ropes.items()
        ]
        return table_error(tables, frequencies, positions)

    off, control = error(expected, scaled.tables), error(NoScaling(), unscaled.tables)
    verdict = judge("roundings of float32", off.units, min(control.units, _TABLE_ROUNDING))
    return {
        **asdict(verdict),
        "positions": len(positions),
        "position": off.position,
        "pair": off.pair,
        "off_by": off.off_by,
    }, verdict


def _length(reference: Reference, expected: Scaling, asked: int | None) -> int:
    if asked is not None:
        return check_length("length", asked)
    rope = reference.model_config.ropes[reference.model_config.main].rope
    if rope.original_length is None:
        raise InputError("length", None, "a length in tokens, since the model does not say what it was trained on")
    reached = expected.extension_factor(rope) if expected.extension_factor(rope) > 1 else _PAST
    return round(rope.original_length * min(reached, _PAST))


@contextmanager
def _folder(work: str | Path | None) -> Iterator[Path]:
    if work is not None:
        yield writable_folder(work)
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)
