"""How far do ten planted faults stand out from the noise of the engine?

    python benchmarks/planted_faults.py [--length 1024]

YaRN 4 is meant, smollm2 is read by transformers in float32 with one fault after the other, those of
tests/verify/planted.py. Printed: the ratio of what `ropewalk verify` measures to its control. Keys go stale only past
the trained length: for those 8,704 tokens are read.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from common import keep, kept
from tests.helpers.planted_faults import MEANT, OF_THE_CODE, of_the_configuration, transformers_here, written_into

from ropewalk.serving.export import export_model
from ropewalk.serving.verify import Verification, verify

NAME = "verify_faults"
PAST = 8704  # of 8,192 trained tokens


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ropewalk-verify")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = kept(NAME).get("rows", [])

    def found(
        name: str, scaling: str = MEANT, rope: dict[str, Any] | None = None, fault: Any = (), length: int = args.length
    ) -> None:
        if any(row["fault"] == name and row["length"] >= length for row in rows):
            return
        # Nothing that the fault is in may be kept: in the code, it is in the control too.
        with tempfile.TemporaryDirectory(dir=args.work if not fault else None) as folder, transformers_here(*fault):
            served = None if rope is None else written_into(_exported(args.work, folder, length), rope)
            work = folder if fault else args.work
            row = verify("smollm2", scaling, "transformers", length=length, served=served, work=work)
        rows.append({"fault": name, "length": length, **_numbers(row)})
        keep(NAME, {"meant": MEANT, "rows": rows})
        print(rows[-1], flush=True)

    args.work.mkdir(parents=True, exist_ok=True)
    found("nothing planted")
    for name, rope in of_the_configuration(8192, 100_000.0).items():
        found(name, rope=rope)
    for name, fault in OF_THE_CODE.items():
        found(name, fault=fault)
    found("stale keys", scaling="dynamic-ntk:factor=4", length=max(PAST, args.length))
    print("| fault | tables, times the control | log-probabilities, times the control | verdict |")
    print("| --- " * 4 + "|")
    for row in rows:
        ratios = (f"{row[part]['ratio']:,.1f}" for part in ("tables", "behaviour"))
        print(f"| {' | '.join([row['fault'], *ratios, row['verdict']])} |")


def _exported(work: Path, folder: str, length: int) -> str:
    import ropewalk as rw

    plain = work / "smollm2"
    if not (plain / "config.json").exists():
        model, tokenizer = rw.load("smollm2", dtype="float32")
        tokenizer.save_pretrained(plain)
        model.save_pretrained(plain)
    return str(export_model(str(plain), MEANT, "transformers", f"{folder}/served", length).path)


def _numbers(found: Verification) -> dict[str, Any]:
    tables = found.tables or {}
    behaviour = {key: value for key, value in found.behaviour.items() if not isinstance(value, list)}
    return {"verdict": found.verdict, "tables": tables, "behaviour": behaviour}


if __name__ == "__main__":
    main()
