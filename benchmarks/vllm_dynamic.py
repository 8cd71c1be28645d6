"""Does vLLM with the plugin read every request of smollm2 under the factor of its own length, and what does it cost?

    python -m benchmarks.vllm_dynamic agreement [--lengths 200 4000 8000 9000 12000 15000]
    python -m benchmarks.vllm_dynamic throughput [--pairs 3]

Both start servers in the Python of `make engines`, with float32 weights and one CPU.

agreement: requests of several lengths are sent at once to a server with the factors 1 and 2, and to the two servers
    that are static at factor 1 (the untouched model) and 2. `difference` is the largest difference of the
    log-probabilities from those of the static server at the request's factor, in nats; `control` that between the same
    static server reading the request alone and with the others; `other factor` that from the other static server.
throughput: 32 prompts of 100 tokens, 16 new tokens each, on the untouched model and with the plugin in turn.

Each part is written to results/vllm_dynamic.json when it is known.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import ropewalk as rw
from benchmarks.common import load_result, save_result
from ropewalk.evaluate.texts import read_text
from ropewalk.serving.engines import find_engine
from ropewalk.serving.export import export_model
from ropewalk.serving.verify.environments import find_python

ORIGINAL_LENGTH, SERVED_LENGTH, NEW_TOKENS = 8192, 16_384, 8
SPECS = {"dynamic": "dynamic-yarn", "1": "none", "2": "yarn:factor=2"}
SERVERS_SCRIPT = Path(__file__).with_name("vllm_servers.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["agreement", "throughput"])
    parser.add_argument("--lengths", type=int, nargs="+", default=[200, 4000, 8000, 9000, 12_000, 15_000])
    parser.add_argument("--pairs", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoints, tokens = prepare_checkpoints(Path(folder))
        if args.part == "agreement":
            rows = measure_agreement(checkpoints, tokens, args.lengths)
        else:
            rows = measure_throughput(checkpoints, tokens, args.pairs)
    save_result("vllm_dynamic", {**load_result("vllm_dynamic"), args.part: rows})
    print(json.dumps(rows, indent=1))


def prepare_checkpoints(folder: Path) -> tuple[dict[str, str], list[int]]:
    """Return a folder for each server, and the token ids of the built-in text."""
    model, tokenizer = rw.load("smollm2", dtype="float32", device="cpu")
    source = folder / "smollm2"
    model.save_pretrained(source)
    tokenizer.save_pretrained(source)
    checkpoints = {}
    for name, spec in SPECS.items():
        length = ORIGINAL_LENGTH if name == "1" else SERVED_LENGTH
        checkpoints[name] = export_model(str(source), spec, "vllm", out=folder / name, length=length).path
    return checkpoints, tokenizer(read_text("pydoc").content)["input_ids"]


def run_servers(job: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run a job of vllm_servers.py and return its results. Raises RuntimeError if a server failed."""
    with tempfile.TemporaryDirectory() as folder:
        job_file, result_file = Path(folder) / "job.json", Path(folder) / "result.json"
        job_file.write_text(json.dumps(job))
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        python = find_python(find_engine("vllm"))
        subprocess.run([python, SERVERS_SCRIPT, job_file, result_file], check=True, env=environment)
        results = json.loads(result_file.read_text())
    for result in results:
        if "error" in result:
            raise RuntimeError(result["error"])
    return results


def largest_difference(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """Return the largest difference between log-probabilities of the same tokens, in nats."""
    worst = 0.0
    for found_step, expected_step in zip(found["logprobs"], expected["logprobs"], strict=True):
        found_top, expected_top = dict(map(tuple, found_step)), dict(map(tuple, expected_step))
        shared = found_top.keys() & expected_top.keys()
        worst = max([worst, *(abs(found_top[token] - expected_top[token]) for token in shared)])
        if max(found_top, key=found_top.__getitem__) != max(expected_top, key=expected_top.__getitem__):
            break  # the texts part here
    return worst


def measure_agreement(checkpoints: dict[str, str], tokens: list[int], lengths: list[int]) -> list[dict[str, Any]]:
    requests = {n: {"prompt": tokens[1000 : 1000 + n], "max_tokens": NEW_TOKENS} for n in lengths}
    factors = {n: "1" if n + NEW_TOKENS <= ORIGINAL_LENGTH else "2" for n in lengths}
    by_factor = {factor: [n for n in lengths if factors[n] == factor] for factor in ("1", "2")}
    batches = {
        "dynamic": [lengths],
        # Each static server reads its own requests at once, and one of them alone.
        "1": [by_factor["1"], by_factor["1"][-1:]],
        "2": [by_factor["2"], by_factor["2"][:1], by_factor["1"][:2]],
    }
    job = [
        {
            "path": checkpoints[name],
            "options": {
                "max_model_len": ORIGINAL_LENGTH if name == "1" else SERVED_LENGTH,
                "enable_prefix_caching": False,
            },
            "batches": [[requests[n] for n in batch] for batch in batches[name]],
            "fault": None,
        }
        for name in SPECS
    ]
    results: dict[str, list[dict[int, Any]]] = {}
    for name, result in zip(SPECS, run_servers(job), strict=True):
        pairs = zip(batches[name], result["batches"], strict=True)
        results[name] = [dict(zip(batch, found, strict=True)) for batch, found in pairs]
    rows = []
    for n in lengths:
        own = [batch[n] for batch in results[factors[n]] if n in batch]
        other = [batch[n] for batch in results["2" if factors[n] == "1" else "1"] if n in batch]
        rows.append(
            {
                "tokens": n,
                "factor": int(factors[n]),
                "difference": largest_difference(results["dynamic"][0][n], own[0]),
                "control": largest_difference(own[1], own[0]) if len(own) > 1 else None,
                "other factor": largest_difference(other[0], own[0]) if other else None,
            }
        )
    return rows


def measure_throughput(checkpoints: dict[str, str], tokens: list[int], pairs: int) -> dict[str, Any]:
    batch = [{"prompt": tokens[100 * i : 100 * i + 100], "max_tokens": 16} for i in range(32)]
    names = ["1", "dynamic"] * pairs
    job = [
        {
            "path": checkpoints[name],
            "options": {"max_model_len": ORIGINAL_LENGTH, "enable_prefix_caching": False},
            "batches": [batch] * 3,  # the first one warms up
            "fault": None,
        }
        for name in names
    ]
    seconds = [min(result["seconds"][1:]) for result in run_servers(job)]
    ratios = [plain / dynamic for plain, dynamic in zip(seconds[::2], seconds[1::2], strict=True)]
    ratio = statistics.median(ratios)
    return {"seconds plain": seconds[::2], "seconds plugin": seconds[1::2], "throughput ratio": ratio}


if __name__ == "__main__":
    main()
