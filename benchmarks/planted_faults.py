"""How clearly does `ropewalk verify` detect ten planted faults?

    python -m benchmarks.planted_faults [--length 1024]

Runs smollm2 in transformers, in float32 and with YaRN 4 expected, once per fault of tests/helpers/planted_faults.py.
Prints for each fault the difference over the control, and writes results/verify_faults.json. An interrupted run
continues. Stale cached keys only exist past the original length, so that fault runs on 8,704 tokens.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from tests.helpers.planted_faults import (
    CODE_FAULTS,
    EXPECTED,
    config_faults,
    transformers_in_process,
    write_config_fault,
)

import ropewalk as rw
from benchmarks.common import load_result, save_result
from ropewalk.serving.export import export_model
from ropewalk.serving.verify import Verification, verify

RESULT_NAME = "verify_faults"
PAST_ORIGINAL_LENGTH = 8704  # tokens; the original length is 8,192


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ropewalk-verify")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = load_result(RESULT_NAME).get("rows", [])

    def is_done(name: str, length: int) -> bool:
        return any(row["fault"] == name and row["length"] >= length for row in rows)

    def add_row(name: str, length: int, verification: Verification) -> None:
        rows.append({"fault": name, "length": length, **_summarize(verification)})
        save_result(RESULT_NAME, {"meant": EXPECTED, "rows": rows})
        print(rows[-1], flush=True)

    for name, fields in [("nothing planted", None), *config_faults(8192, 100_000.0).items()]:
        if not is_done(name, args.length):
            with tempfile.TemporaryDirectory(dir=args.work) as folder, transformers_in_process():
                served = None if fields is None else write_config_fault(_export(args.work, folder, args.length), fields)
                result = verify("smollm2", EXPECTED, "transformers", length=args.length, served=served, work=args.work)
            add_row(name, args.length, result)
    for name, fault in CODE_FAULTS.items():
        if not is_done(name, args.length):
            # The control has the fault, too, so it must not be kept for other rows.
            with tempfile.TemporaryDirectory() as folder, transformers_in_process(*fault):
                result = verify("smollm2", EXPECTED, "transformers", length=args.length, work=folder)
            add_row(name, args.length, result)
    length = max(PAST_ORIGINAL_LENGTH, args.length)
    if not is_done("stale keys", length):
        with transformers_in_process():
            result = verify("smollm2", "dynamic-ntk:factor=4", "transformers", length=length, work=args.work)
        add_row("stale keys", length, result)

    print("| fault | tables, times the control | log-probabilities, times the control | verdict |")
    print("| --- " * 4 + "|")
    for row in rows:
        ratios = [f"{row[part]['ratio']:,.1f}" for part in ("tables", "behaviour")]
        print(f"| {' | '.join([row['fault'], *ratios, row['verdict']])} |")


def _export(work: Path, folder: str, length: int) -> str:
    """Export the expected scaling of smollm2, unpacked to float32 weights, and return the folder."""
    unpacked = work / "smollm2"
    if not (unpacked / "config.json").exists():
        model, tokenizer = rw.load("smollm2", dtype="float32")
        tokenizer.save_pretrained(unpacked)
        model.save_pretrained(unpacked)
    return str(export_model(str(unpacked), EXPECTED, "transformers", f"{folder}/served", length).path)


def _summarize(verification: Verification) -> dict[str, Any]:
    tables = verification.tables or {}
    behaviour = {key: value for key, value in verification.behaviour.items() if not isinstance(value, list)}
    return {"verdict": verification.verdict, "tables": tables, "behaviour": behaviour}


if __name__ == "__main__":
    main()
