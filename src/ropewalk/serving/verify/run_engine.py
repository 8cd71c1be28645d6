"""Run an engine in its own Python and return its tables and log-probabilities.

The engine runs in a subprocess, `runners/main.py RUNNER JOB_FILE`, which imports the engine and nothing of ropewalk.
The job file is JSON:

    {"path": checkpoint to load, "length": tokens to serve, "prompts": [[token ids] ...], "top": tokens to report per
     prompt, "positions": [rows of the tables], "batch": [[token ids] ...]}

The prompts are processed one after the other, and those of the batch, if there are any, at once after them. The engine
is made to generate the last token of each prompt of the batch.

The runner writes one JSON object per line to standard output, and everything else to standard error:

    {"event": "progress", "done": prompts done, "total": prompts, "tokens": tokens of the last prompt}
    {"event": "result", "version": version of the engine, "tables": [{"cos": [[x ...] ...], "sin": ...} ...] or null if
     they cannot be read, "top_logprobs": for each prompt [[token id, log-probability] ...], "batch_top_logprobs": the
     same for the batch, or missing}
    {"event": "error", "message": exception of the engine}
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeAlias

from ropewalk.errors import InputError
from ropewalk.serving.engines.base import Engine

RUNNERS = {
    "transformers": "run_transformers",
    "transformers4": "run_transformers",
    "vllm": "run_vllm",
    "llama.cpp": "run_llama_cpp",
}
TOP_K = 64  # tokens to report per prompt
TopLogprobs: TypeAlias = Sequence[tuple[int, float]]  # (token id, log-probability) of the likeliest next tokens
_MAX_ERROR_LENGTH = 600  # characters


@dataclass(frozen=True)
class EngineOutput:
    """Output of an engine for the prompts of a verification.

    Attributes:
        version: version of the engine.
        tables: `cos` and `sin` of each kind of rotary module, [positions, dim/2] or [positions, dim]; None if they
            cannot be read.
        top_logprobs: the likeliest next tokens after each prompt.
        batch_top_logprobs: those after each prompt of the batch.
    """

    version: str
    tables: list[dict[str, Any]] | None
    top_logprobs: list[TopLogprobs]
    batch_top_logprobs: list[TopLogprobs] = field(default_factory=list)


def find_runner(engine: Engine) -> str:
    """Return the name of the script that runs an engine. Raises InputError if there is none."""
    if engine.name not in RUNNERS:
        hint = "verify a running server of any other engine with --url"
        raise InputError("engine", engine.name, ", ".join(RUNNERS), hint)
    return RUNNERS[engine.name]


def run_engine(engine: Engine, python: str, job: dict[str, Any], on_progress: Callable[[str], None]) -> EngineOutput:
    """Run a job on an engine.

    Args:
        engine: the engine; `find_runner` must know it.
        python: path of a Python that has the engine.
        job: see the module docstring.
        on_progress: called with one line of text after each prompt.

    Raises RuntimeError with the error of the engine if it fails.
    """
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w+b") as log:
        job_file = Path(folder) / "job.json"
        job_file.write_text(json.dumps(job), encoding="utf-8")
        main = Path(__file__).parent / "runners" / "main.py"
        command = [python, str(main), find_runner(engine), str(job_file)]
        # The engine must import the packages of its own environment.
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8", env=environment
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    message = json.loads(line)
                    event = message.pop("event")
                    if event == "result":
                        return EngineOutput(**message)
                    if event == "error":
                        raise RuntimeError(f"{engine.title} failed: {message['message'][:_MAX_ERROR_LENGTH]}")
                    if message["tokens"] > 1:  # single tokens take no time
                        prompts = f"{message['done']} of {message['total']} prompts"
                        on_progress(f"{engine.title}: {prompts}, {message['tokens']} tokens")
            except BaseException:  # Ctrl-C included: do not leave the engine running
                process.kill()
                raise
        raise RuntimeError(f"{engine.title} failed: {_last_error_line(log)[:_MAX_ERROR_LENGTH]}")


def _last_error_line(log: IO[bytes]) -> str:
    """Return the last line of the log that mentions an error, or else the last line, of an engine that crashed."""
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["it printed nothing"])[-1]
