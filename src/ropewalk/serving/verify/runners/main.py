"""Entry point of the subprocess that runs an engine: `python main.py RUNNER JOB_FILE`.

A runner is a module of this folder with a function `run(job, report_progress)`. It gets the job, calls
`report_progress(done, tokens)` after each prompt, and returns the fields of the result. run_engine.py describes the job
and the messages. Runners import nothing of ropewalk, which is not installed in the environments of the engines.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


def main(runner: str, job_file: str) -> int:
    """Run the job, send its messages to standard output, and return the exit status."""
    # Engines print to standard output, too. Keep the original for the messages and redirect it to standard error.
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(event: str, **fields: Any) -> None:
        print(json.dumps({"event": event, **fields}), file=messages, flush=True)

    job = json.loads(Path(job_file).read_text(encoding="utf-8"))

    def report_progress(done: int, tokens: int) -> None:
        send("progress", done=done, total=len(job["prompts"]), tokens=tokens)

    try:
        # Python puts the folder of this script on sys.path.
        result = importlib.import_module(runner).run(job, report_progress)
    except Exception as error:
        traceback.print_exc()
        send("error", message=" ".join(f"{type(error).__name__}: {error}".split()))
        return 1
    send("result", **result)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
