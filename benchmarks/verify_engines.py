"""Does every engine do what was meant, under every scaling?

    python benchmarks/verify_engines.py [--length 12000] [--engines NAME ...] [--scalings NAME ...] [--again]

`ropewalk verify` of smollm2 on each engine that `make engines` installs. A row is kept as soon as it is known, in
results/verify/ENGINE_SCALING.json; run again, it goes on with those that are missing. docs/matrix.md is made of them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from common import RESULTS, keep

from ropewalk.scaling.longrope import LongRoPE
from ropewalk.serving.verify import verify

PAIRS = 32
SHORT = tuple(round(1 + 0.1 * i / PAIRS, 4) for i in range(PAIRS))
LONG = tuple(round(min(2.0, 1 + max(0, i - 8) / 12), 4) for i in range(PAIRS))
SCALINGS = {
    "none": "none",
    "linear-2": "linear:factor=2",
    "ntk-2": "ntk:factor=2",
    "yarn-2": "yarn:factor=2",
    "yarn-4": "yarn:factor=4",
    "llama3-4": "llama3:factor=4",
    "longrope": LongRoPE(SHORT, LONG, factor=2.0),
    "by-parts-2": "ntk-by-parts:factor=2",
    "by-parts-2-rotations": "ntk-by-parts:factor=2,ramp=rotations",  # which nobody has a name for: lists or a tensor
}
ENGINES = ("transformers", "vllm", "transformers4", "llama.cpp")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--length", type=int, default=12_000)
    parser.add_argument("--engines", nargs="+", default=ENGINES)
    parser.add_argument("--scalings", nargs="+", default=SCALINGS)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ropewalk-verify")
    parser.add_argument("--again", action="store_true", help="also those that are kept")
    args = parser.parse_args()
    (RESULTS / "verify").mkdir(parents=True, exist_ok=True)
    for engine in args.engines:
        for name in args.scalings:
            kept = f"verify/{engine}_{name}"
            path = RESULTS / f"{kept}.json"
            if path.exists() and not args.again and json.loads(path.read_text())["length"] >= args.length:
                continue
            started = time.perf_counter()
            try:
                found = verify("smollm2", SCALINGS[name], engine, length=args.length, work=args.work)
            except RuntimeError as error:
                print(f"{engine:13} {name:22} {error}", flush=True)
                continue
            seconds = round(time.perf_counter() - started, 1)
            keep(kept, {**found.to_dict(), "seconds": seconds})
            print(
                f"{engine:13} {name:22} {found.difference:.2e} for {found.control:.2e} {found.unit}, "
                f"ratio {found.ratio:8.2f} {found.verdict:8} {seconds:,.0f} s",
                flush=True,
            )
    print(table())


def table() -> str:
    """What is kept, for docs/verify.md."""
    titles = (
        "scaling",
        "engine",
        "through",
        "tokens",
        "tables, roundings",
        "control",
        "log-probabilities, nats",
        "control",
    )
    titles += ("ratio", "if ignored, nats")
    lines = [f"| {' | '.join(titles)} |", "| --- " * len(titles) + "|"]
    for name in SCALINGS:
        for engine in ENGINES:
            path = RESULTS / "verify" / f"{engine}_{name}.json"
            if not path.exists():
                continue
            row = json.loads(path.read_text())
            tables, read = row["tables"], row["behaviour"]
            turned = [f"{tables[key]:.1f}" for key in ("difference", "control")] if tables else ["-", "-"]
            said = [f"{read['difference']:.1e}", f"{read['control']:.1e}", f"{read['ratio']:.2f}"]
            ignored = f"{read['ignored']:.2f}" if read["ignored"] else "-"
            cells = [
                name,
                f"{engine} {row['version']}",
                row["through"] or "-",
                f"{row['length']:,}",
                *turned,
                *said,
                ignored,
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
