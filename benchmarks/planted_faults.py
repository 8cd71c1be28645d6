"""How far do ten planted faults stand out from the noise of the engine?

    python benchmarks/planted_faults.py [--length 8704]

YaRN 4 is meant, smollm2 is read by transformers in float32 with one fault after the other, those of
tests/verify/planted.py. Printed: the ratio of what `ropewalk verify` measures to its control.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import keep, kept

from ropewalk.export import export_model
from ropewalk.verify import Verification, verify

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "verify"))
from planted import MEANT, OF_THE_CODE, of_the_configuration, transformers_here, written_into

NAME = "verify_faults"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--length", type=int, default=8704)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ropewalk-verify")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = kept(NAME).get("rows", [])

    def found(name: str, scaling: str = MEANT, rope: dict[str, Any] | None = None, fault: Any = ()) -> None:
        if any(row["fault"] == name and row["length"] >= args.length for row in rows):
            return
        # Nothing that the fault is in may be kept: in the code, it is in the control too.
        with tempfile.TemporaryDirectory(dir=args.work if not fault else None) as folder, transformers_here(*fault):
            served = None if rope is None else written_into(_exported(args, folder), rope)
            work = folder if fault else args.work
            row = verify("smollm2", scaling, "transformers", length=args.length, served=served, work=work)
        rows.append({"fault": name, "length": args.length, **_numbers(row)})
        keep(NAME, {"meant": MEANT, "rows": rows})
        print(rows[-1], flush=True)

    args.work.mkdir(parents=True, exist_ok=True)
    found("nothing planted")
    for name, rope in of_the_configuration(8192, 100_000.0).items():
        found(name, rope=rope)
    for name, fault in OF_THE_CODE.items():
        found(name, fault=fault)
    found("stale keys", scaling="dynamic-ntk:factor=4")
    print("| fault | tables, times the control | log-probabilities, times the control | verdict |")
    print("| --- " * 4 + "|")
    for row in rows:
        ratios = (f"{row[part]['ratio']:,.1f}" for part in ("tables", "behaviour"))
        print(f"| {' | '.join([row['fault'], *ratios, row['verdict']])} |")


def _exported(args: argparse.Namespace, folder: str) -> str:
    import ropewalk as rw

    plain = args.work / "smollm2"
    if not (plain / "config.json").exists():
        model, tokenizer = rw.load("smollm2", dtype="float32")
        tokenizer.save_pretrained(plain)
        model.save_pretrained(plain)
    return str(export_model(str(plain), MEANT, "transformers", f"{folder}/served", args.length).path)


def _numbers(found: Verification) -> dict[str, Any]:
    tables = found.tables or {}
    behaviour = {key: value for key, value in found.behaviour.items() if not isinstance(value, list)}
    return {"verdict": found.verdict, "tables": tables, "behaviour": behaviour}


if __name__ == "__main__":
    main()
