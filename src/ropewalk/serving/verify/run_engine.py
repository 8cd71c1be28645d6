"""Run a real engine, in its own python.

A runner is a script that imports its engine and nothing of ours. It is asked by a JSON file,

    {"path": what the engine is given, "length": tokens to serve, "prompts": [[token ids] ...], "top": tokens to name,
     "positions": [positions of the tables]}

and answers in another:

    {"version": of the engine, "tables": [{"cos": [[x ...] ...], "sin": ...} ...] or null where they cannot be read,
     "answers": for each prompt [[token id, log-probability of it as the next one] ...]}
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ropewalk.errors import InputError
from ropewalk.serving.engines.base import Engine

RUNNERS = {
    "transformers": "in_transformers.py",
    "transformers4": "in_transformers.py",
    "vllm": "in_vllm.py",
    "llama.cpp": "in_llama_cpp.py",
}
_PROGRESS = re.compile(r"\d+ of \d+ prompts, (?!1 tokens)\d+ tokens")
_LINES = 400  # of what the engine said last


def runner_of(engine: Engine) -> Path:
    """The script that runs it. Raises InputError for an engine that cannot be run from here."""
    if engine.name not in RUNNERS:
        raise InputError("engine", engine.name, f"{', '.join(RUNNERS)}; any other by --url, from its server")
    return Path(__file__).parent / "runners" / RUNNERS[engine.name]


def run(engine: Engine, python: str, job: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Ask the engine; `say` hears its progress. Raises RuntimeError with its last words when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "job.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(job), encoding="utf-8")
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}  # its packages, not ours
        command = [python, str(runner_of(engine)), str(asked), str(answered)]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", env=environment
        ) as process:
            assert process.stderr is not None
            said: list[str] = []
            try:
                for line in process.stderr:
                    said = [*said[-_LINES:], line.rstrip()]
                    if told := _PROGRESS.search(line):
                        say(f"{engine.title}: {told[0]}")
            except BaseException:  # Ctrl-C: an engine that nobody waits for goes too
                process.kill()
                raise
        if process.returncode or not answered.exists():
            raise RuntimeError(f"{engine.title} did not get through: {_last_words(said)}")
        answer: dict[str, Any] = json.loads(answered.read_text(encoding="utf-8"))
        return answer


def _last_words(said: list[str]) -> str:
    """The line that names the error; engines say more after it."""
    errors = [line.strip() for line in said if "error" in line.lower() and "For further information" not in line]
    return (errors or [line for line in said if line.strip()] or ["it said nothing"])[-1][:600]
