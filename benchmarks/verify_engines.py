"""Does every engine apply every scaling correctly?

    python -m benchmarks.verify_engines [--length 12000] [--engines NAME ...] [--scalings NAME ...] [--again]

Runs `ropewalk verify` on smollm2 for each engine that `make engines` installs and each scaling. Each result is written
to results/verify/ENGINE_SCALING.json when it is known; another run continues with those that are missing. Prints the
table of docs/verify.md; benchmarks/engine_matrix.py makes docs/matrix.md from the same results.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS_FOLDER, save_result
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.serving.verify import verify

NUM_PAIRS = 32  # of smollm2
SHORT_FACTOR = tuple(round(1 + 0.1 * i / NUM_PAIRS, 4) for i in range(NUM_PAIRS))
LONG_FACTOR = tuple(round(min(2.0, 1 + max(0, i - 8) / 12), 4) for i in range(NUM_PAIRS))
SCALINGS = {
    "none": "none",
    "linear-2": "linear:factor=2",
    "ntk-2": "ntk:factor=2",
    "yarn-2": "yarn:factor=2",
    "yarn-4": "yarn:factor=4",
    "llama3-4": "llama3:factor=4",
    "longrope": LongRoPE(SHORT_FACTOR, LONG_FACTOR, factor=2.0),
    "by-parts-2": "ntk-by-parts:factor=2",
    # Engines have no name for it, so it is exported as longrope lists or a tensor.
    "by-parts-2-rotations": "ntk-by-parts:factor=2,ramp=rotations",
}
ENGINES = ("transformers", "vllm", "transformers4", "llama.cpp")
COLUMNS = (
    "scaling", "engine", "exported as", "tokens", "tables, roundings", "control", "log-probabilities, nats", "control",
    "ratio", "if ignored, nats",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--length", type=int, default=12_000)
    parser.add_argument("--engines", nargs="+", default=ENGINES)
    parser.add_argument("--scalings", nargs="+", default=SCALINGS)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ropewalk-verify")
    parser.add_argument("--again", action="store_true", help="repeat results that exist")
    args = parser.parse_args()
    (RESULTS_FOLDER / "verify").mkdir(parents=True, exist_ok=True)
    for engine in args.engines:
        for name in args.scalings:
            previous = _read_result(engine, name)
            if previous is None or previous["length"] < args.length or args.again:
                _run(engine, name, args.length, args.work)
    print(table())


def table() -> str:
    """Return the results as a table in Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", "| --- " * len(COLUMNS) + "|"]
    for name in SCALINGS:
        for engine in ENGINES:
            result = _read_result(engine, name)
            if result is not None:
                lines.append(f"| {' | '.join(_cells(engine, name, result))} |")
    return "\n".join(lines)


def _run(engine: str, name: str, length: int, work: Path) -> None:
    started = time.perf_counter()
    try:
        result = verify("smollm2", SCALINGS[name], engine, length=length, work=work)
    except RuntimeError as error:
        print(f"{engine:13} {name:22} {error}", flush=True)
        return
    seconds = round(time.perf_counter() - started, 1)
    save_result(f"verify/{engine}_{name}", {**result.to_dict(), "seconds": seconds})
    print(
        f"{engine:13} {name:22} {result.difference:.2e}, control {result.control:.2e} {result.unit}, "
        f"ratio {result.ratio:8.2f} {result.verdict:8} {seconds:,.0f} s",
        flush=True,
    )


def _read_result(engine: str, name: str) -> dict[str, Any] | None:
    path = RESULTS_FOLDER / "verify" / f"{engine}_{name}.json"
    if not path.exists():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def _cells(engine: str, name: str, result: dict[str, Any]) -> list[str]:
    tables, logprobs = result["tables"], result["behaviour"]
    return [
        name,
        f"{engine} {result['version']}",
        result["through"] or "-",
        f"{result['length']:,}",
        f"{tables['difference']:.1f}" if tables else "-",
        f"{tables['control']:.1f}" if tables else "-",
        f"{logprobs['difference']:.1e}",
        f"{logprobs['control']:.1e}",
        f"{logprobs['ratio']:.2f}",
        f"{logprobs['ignored']:.2f}" if logprobs["ignored"] else "-",
    ]


if __name__ == "__main__":
    main()
