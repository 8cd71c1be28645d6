"""Does vLLM with the plugin read every request of smollm2 under the factor of its own length, and what does it cost?

    python -m benchmarks.vllm_dynamic agreement    # log-probabilities against static servers
    python -m benchmarks.vllm_dynamic quality      # perplexity of short text, passkey in long text
    python -m benchmarks.vllm_dynamic throughput   # against the untouched model, in turn

Servers run one after the other in the Python of `make engines`, with float32 weights on a CPU. The server with the
plugin has the factors 1 and 2. The answers of each server are kept in --work, and a run goes on where it stopped.
Each part is written to results/vllm_dynamic.json.

agreement: `difference` is the largest difference of the log-probabilities of the generated tokens from those of the
    server that is static at the request's factor, which reads the requests of its factor at once. `control` is that
    of the same static server when it reads one request alone, `other factor` that of the static server at factor 2 for
    a short request. All prompts of 6,000 tokens and more begin with the same 6,000 tokens. In nats.
quality: perplexity of 8,000 tokens of the built-in text, and passkey at 12,000 tokens in 8 depths, in requests to the
    server with the plugin; the perplexity of the untouched model in transformers for comparison.
throughput: batches of 16 prompts of 20 to 170 tokens, 16 new tokens each, sent in turn to the server with the plugin
    and to the untouched model, in one process; the generated tokens per CPU second of the first as a fraction of those
    of the second, for each pair of batches. CPU time is compared because other programs may be running.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ropewalk as rw
from benchmarks.common import load_result, save_result
from ropewalk.evaluate.tasks.passkey import Passkey
from ropewalk.evaluate.texts import read_text
from ropewalk.serving.engines import find_engine
from ropewalk.serving.export import export_model
from ropewalk.serving.verify.environments import find_python

ORIGINAL_LENGTH, SERVED_LENGTH, NEW_TOKENS = 8192, 16_384, 8
SHORT, LONG, SHARED_PREFIX = (200, 4000, 8000), (9000, 12_000, 15_000), 6000
PASSKEY_LENGTH, PASSKEY_SAMPLES = 12_000, 8
# The scaling and the served length of each server. Those of "1k" have the original length 1,024, so that requests of a
# few tokens get factor 2; factor 1 is the untouched model there, too.
SERVERS = {
    "dynamic": ("dynamic-yarn", SERVED_LENGTH),
    "1": ("none", ORIGINAL_LENGTH),
    "2": ("yarn:factor=2", SERVED_LENGTH),
    "dynamic 1k": ("dynamic-yarn:original_length=1024", 2048),
    "2 1k": ("yarn:factor=2,original_length=1024", 2048),
}
SERVERS_SCRIPT = Path(__file__).with_name("vllm_servers.py")


@dataclass(frozen=True)
class Scenario:
    """A server, and the lengths of the prompts that it gets at once, batch by batch."""

    server: str
    batches: tuple[tuple[int, ...], ...]
    options: dict[str, Any] = field(default_factory=dict)


def shuffled(lengths: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(random.Random(seed).sample(lengths, len(lengths))) for seed in range(5))


ALL = SHORT + LONG
# The first batch of a static server is the reference of its requests, the second the control, the third has the wrong
# factor.
REFERENCES = {
    "static factor 1": Scenario("1", (SHORT, (4000,))),
    "static factor 2": Scenario("2", (LONG, (9000,), (4000,))),
    "static factor 2, original length 1k": Scenario("2 1k", ((1100, 1500), (1100,), (200,))),
}
SCENARIOS = {
    "at once": Scenario("dynamic", ((200, 4000, 8000, 9000),)),
    "at once, chunks of 512 tokens": Scenario("dynamic", (ALL,), {"max_num_batched_tokens": 512}),
    # Read one by one, so that each finds the cached keys of the earlier ones; then at once in five orders.
    "prefix caching": Scenario(
        "dynamic",
        ((8000,), (9000,), (12_000,), *shuffled((200, 4000, 8000, 9000, 12_000))),
        {"enable_prefix_caching": True},
    ),
    "at once in five orders, original length 1k": Scenario("dynamic 1k", shuffled((200, 1100, 1500))),
    # One block is missing for both at once: the second is preempted and read again.
    "preemption": Scenario(
        "dynamic",
        ((4000, 9000),),
        {"block_size": 32, "num_gpu_blocks_override": 125 + 282 + 1, "max_model_len": 9216},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["agreement", "quality", "throughput"])
    parser.add_argument("--scenario", choices=list(SCENARIOS), nargs="+", default=list(SCENARIOS))
    parser.add_argument("--rounds", type=int, default=20, help="pairs of batches of the throughput")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ropewalk-vllm-dynamic")
    args = parser.parse_args()
    benchmark = Benchmark(args.work)
    if args.part == "agreement":
        rows: Any = benchmark.measure_agreement(args.scenario)
    elif args.part == "quality":
        rows = benchmark.measure_quality()
    else:
        rows = benchmark.measure_throughput(args.rounds)
    save_result("vllm_dynamic", {**load_result("vllm_dynamic"), args.part: rows})
    print(json.dumps(rows, indent=1))


class Benchmark:
    """The checkpoints of the servers, and the answers of those that have run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model, self.tokenizer = rw.load("smollm2", dtype="float32", device="cpu")
        self.tokens = self.tokenizer(read_text("pydoc").content)["input_ids"]
        source = folder / "smollm2"
        if not source.exists():
            self.model.save_pretrained(source)
            self.tokenizer.save_pretrained(source)
        for name, (spec, length) in SERVERS.items():
            if not (folder / name).exists():
                export_model(str(source), spec, "vllm", out=folder / name, length=length)

    def run_server(self, key: str, server: str, batches: list[Any], options: dict[str, Any]) -> dict[str, Any]:
        """Return the result of a server, from an earlier run if there was one."""
        options = {"max_model_len": SERVERS[server][1], "enable_prefix_caching": False, **options}
        return self.run_job(
            key, {"path": str(self.folder / server), "options": options, "batches": batches, "fault": None}
        )

    def run_job(self, key: str, job: dict[str, Any]) -> dict[str, Any]:
        """Return the result of a job of vllm_servers.py, from an earlier run if there was one."""
        result_file = self.folder / f"{key.replace(' ', '-')}.json"
        if not result_file.exists():
            job_file, partial = self.folder / "job.json", self.folder / "partial.json"
            job_file.write_text(json.dumps([job]))
            environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            environment["VLLM_CPU_KVCACHE_SPACE"] = "4"  # GiB, room for all requests at once
            python = find_python(find_engine("vllm"))
            subprocess.run([python, SERVERS_SCRIPT, job_file, partial], check=True, env=environment)
            (result,) = json.loads(partial.read_text())
            if "error" in result:
                raise RuntimeError(result["error"])
            partial.rename(result_file)
        (result,) = json.loads(result_file.read_text())
        return result

    def prompt(self, length: int) -> list[int]:
        """Return the prompt of a length; those that are longer than the shared prefix differ after it."""
        prefix = self.tokens[1000 : 1000 + min(length, SHARED_PREFIX)]
        return prefix + self.tokens[10_000 + length :][: length - len(prefix)]

    def measure_agreement(self, scenarios: list[str]) -> list[dict[str, Any]]:
        references: dict[int, Any] = {}
        rows = []
        for name in [*REFERENCES, *scenarios]:
            scenario = {**REFERENCES, **SCENARIOS}[name]
            requests = [
                [{"prompt": self.prompt(n), "max_tokens": NEW_TOKENS} for n in batch] for batch in scenario.batches
            ]
            result = self.run_server(name, scenario.server, requests, scenario.options)
            answers = [
                (kind, n, answer)
                for kind, (batch, found) in enumerate(zip(scenario.batches, result["batches"], strict=True))
                for n, answer in zip(batch, found, strict=True)
            ]
            if name in REFERENCES:
                references |= {n: answer for kind, n, answer in answers if kind == 0}
                answers = [(kind, n, answer) for kind, n, answer in answers if kind > 0]
            for kind, n, answer in answers:
                what = ("control", "other factor")[kind - 1] if name in REFERENCES else name
                row = {
                    "scenario": what,
                    "batch": kind,
                    "tokens": n,
                    "factor": 1 if n in SHORT else 2,
                    "difference": largest_difference(answer, references[n]),
                    "cached tokens": answer["cached_tokens"],
                    "preemptions": result["preemptions"],
                }
                rows.append(row)
                print(row, flush=True)
        return rows

    def measure_quality(self) -> dict[str, Any]:
        from ropewalk.evaluate.curve import perplexity_curve

        scored = self.tokens[:8000]
        (row,) = perplexity_curve(self.model, scored, [len(scored)])
        task = Passkey()
        samples = list(task.make_samples(self.tokenizer, PASSKEY_LENGTH, PASSKEY_SAMPLES, 0))
        ordered = sorted(samples, key=lambda sample: sample.prompt)  # so that the prefix cache of the server hits
        batches = [
            [{"prompt": scored, "max_tokens": 1, "score_prompt": True}],
            *([{"prompt": sample.prompt, "max_tokens": sample.max_new_tokens}] for sample in ordered),
        ]
        result = self.run_server("quality", "dynamic", batches, {"enable_prefix_caching": True})
        (score,), *answers = result["batches"]
        texts = [self.tokenizer.decode(answer["tokens"]) for (answer,) in answers]
        scores = [task.score(sample, text)[task.main_score] for sample, text in zip(ordered, texts, strict=True)]
        return {
            "perplexity of 8,000 tokens": math.exp(-statistics.fmean(score["prompt_logprobs"])),
            "the same, untouched model in transformers": row["ppl"],
            "passkey tokens": PASSKEY_LENGTH,
            "passkey found": round(sum(scores)),
            "passkey samples": len(scores),
        }

    def measure_throughput(self, rounds: int) -> dict[str, Any]:
        batch = [{"prompt": self.tokens[200 * i :][: 20 + 10 * i], "max_tokens": 16} for i in range(16)]
        options = {"max_model_len": ORIGINAL_LENGTH, "enable_prefix_caching": False}
        paths = [str(self.folder / server) for server in ("1", "dynamic")]
        job = {"paths": paths, "options": options, "batch": batch, "rounds": rounds}
        plain, dynamic = self.run_job(f"throughput {rounds}", job)["seconds"]
        ratios = sorted(without / with_factors for without, with_factors in zip(plain, dynamic, strict=True))
        first, median, third = statistics.quantiles(ratios, method="inclusive")
        return {
            "CPU seconds without": plain,
            "CPU seconds with": dynamic,
            "median ratio": median,
            "quartiles of the ratio": [first, third],
        }


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


if __name__ == "__main__":
    main()
