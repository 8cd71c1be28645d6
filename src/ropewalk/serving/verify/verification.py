"""Verify that a serving engine applies a scaling.

verification = verify("smollm2", "yarn:factor=2", "vllm", length=12_000)
verification.verdict, verification.why  # "pass", "no more than noise"
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ropewalk.errors import InputError, check_length
from ropewalk.files import ensure_writable_folder
from ropewalk.positions import parse_scaling
from ropewalk.scaling import Scaling
from ropewalk.server_address import check_server_url, read_api_key
from ropewalk.serving.engines import find_engine
from ropewalk.serving.verify.comparison import compare_logprobs, compare_tables, run_with_and_without_scaling
from ropewalk.serving.verify.engine_under_test import EngineUnderTest, LocalEngine, OnProgress, RemoteEngine
from ropewalk.serving.verify.environments import find_python
from ropewalk.serving.verify.logprob_client import LogprobClient
from ropewalk.serving.verify.reference import ReferenceModel
from ropewalk.serving.verify.run_engine import find_runner
from ropewalk.serving.verify.verdict import PASS, most_severe

_MAX_DEFAULT_LENGTH_RATIO = 1.5  # default length over original length: verifying longer texts takes minutes


@dataclass(frozen=True)
class Verification:
    """Result of `verify`. The fields are keys of the JSON result.

    Attributes:
        engine: name of the engine.
        version: version of the engine that ran.
        date: day of the verification, YYYY-MM-DD.
        model: the model.
        scaling: spec of the scaling.
        length: tokens.
        through: form in which the scaling was exported if the engine has no name for it; "" otherwise.
        given: what the engine ran on: "export", or the path or URL that was passed.
        compared: "tables and log-probabilities" or "log-probabilities".
        unit, difference, control, ratio, verdict, why: of the comparison with the more severe verdict (see `Verdict`).
        tables: comparison of cos and sin, in roundings of float32; None if the tables cannot be read.
        behaviour: comparison of log-probabilities, in nats. `ignored` is the difference of an engine that ignores the
            scaling, `alone` the noise of this engine on single tokens, `factors` the factor of each request if an
            engine gives each its own.
        batch: the same for requests that were sent at once; None unless each request has its own factor.
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
    batch: dict[str, Any] | None

    @property
    def passed(self) -> bool:
        """Whether the engine applies the scaling."""
        return self.verdict == PASS

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that can be written as JSON."""
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
    api_key_env: str | None = None,
    python: str | None = None,
    work: str | Path | None = None,
    on_progress: OnProgress = lambda _: None,
) -> Verification:
    """Run an engine with a scaling and compare it with the reference.

    Args:
        model: a folder, a .gguf file, a built-in name or a hub id; the reference uses its weights.
        scaling: scaling that the engine should apply.
        engine: name of the engine, as `ropewalk engines` lists it.
        length: tokens to verify up to; by default 1.5 times the original length, or the length that the scaling is
            made for if that is less.
        served: folder, config.json or .gguf file for the engine to run, instead of an export of the scaling.
        url: base URL of a running server of that engine with the scaling; no engine is started then.
        control_url: base URL of the same server without the scaling.
        api_key_env: name of an environment variable with the key that both servers expect; by default none is sent.
        python: path of the Python that has the engine installed.
        work: folder that keeps reference outputs and controls for later calls; by default a temporary one.
        on_progress: called with one line of text now and then.

    Raises InputError for arguments that are wrong or exclude each other, RuntimeError if the engine fails.
    """
    for field, server_url in (("url", url), ("control_url", control_url)):
        if server_url is not None:
            check_server_url(field, server_url)
    if url is not None and (served or python):
        raise InputError("url", url, "no served and no python beside it", "the server already runs on its own files")
    for field, value in (("control_url", control_url), ("api_key_env", api_key_env and "a name")):
        if value is not None and url is None:
            raise InputError(field, value, "url beside it")
    expected, chosen_engine = parse_scaling(scaling, "which engines apply"), find_engine(engine)
    if url is None:
        find_runner(chosen_engine)  # raises for an engine that can only be verified by URL
    with tempfile.TemporaryDirectory() as temporary:
        reference = ReferenceModel(model, ensure_writable_folder(work or Path(temporary) / "work"))
        tokens = _choose_length(reference, expected) if length is None else check_length("length", length)
        common = (chosen_engine, reference, tokens, on_progress)
        under_test: EngineUnderTest
        if url is not None:
            api_key = read_api_key(api_key_env or "")
            client = LogprobClient(url, reference, api_key)
            control_client = LogprobClient(control_url, reference, api_key) if control_url else None
            under_test = RemoteEngine(*common, client=client, control_client=control_client)
        else:
            python = find_python(chosen_engine, python)
            under_test = LocalEngine(*common, folder=Path(temporary), served=served, python=python)
        return _verify_engine(under_test, expected, url or served or "export")


def _verify_engine(under_test: EngineUnderTest, expected: Scaling, given: str) -> Verification:
    """Run the engine and return the result; `given` is its field of that name."""
    run = run_with_and_without_scaling(under_test, expected)
    under_test.on_progress("computing the reference")
    logprobs, tables = compare_logprobs(run), compare_tables(run)
    batch = compare_logprobs(run, in_batch=True) if run.prompts.has_batch else None
    verdicts = [comparison.verdict for comparison in (logprobs, tables, batch) if comparison is not None]
    return Verification(
        engine=under_test.engine.name,
        version=run.scaled.version,
        date=time.strftime("%Y-%m-%d"),
        model=under_test.reference.model_name,
        scaling=str(expected),
        length=under_test.length,
        through=under_test.encoded_as,
        given=given,
        compared="log-probabilities" if tables is None else "tables and log-probabilities",
        **asdict(most_severe(verdicts)),
        tables=None if tables is None else tables.details,
        behaviour=logprobs.details,
        batch=None if batch is None else batch.details,
    )


def _choose_length(reference: ReferenceModel, scaling: Scaling) -> int:
    """Return the default of `length`. Raises InputError if the original length is unknown."""
    rope = reference.model_config.main_layer.rope
    if rope.original_length is None:
        hint = "the configuration does not say how long the texts of the training were"
        raise InputError("length", None, "a length in tokens", hint)
    factor = scaling.extension_factor(rope)
    ratio = min(factor, _MAX_DEFAULT_LENGTH_RATIO) if factor > 1 else _MAX_DEFAULT_LENGTH_RATIO
    return round(rope.original_length * ratio)
