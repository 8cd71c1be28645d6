"""How many samples a minute: the reader of `ropewalk eval` against a plain loop over transformers' pipeline.

    python benchmarks/eval_throughput.py

smollm2, the same prompts and number of new tokens, both greedy, in one process and in turn. `questions`: 16 questions
over two texts of 4,096 tokens (needle:keys=8,questions=8). `depths`: a needle at 8 depths of one text of 4,096 tokens.
`own`: 32 prompts of 200 to 230 tokens that share nothing. An answer is the same when its text is.
"""

from __future__ import annotations

import time
from typing import Any

import transformers
from common import keep

import ropewalk as rw
from ropewalk.evaluate.sample import Sample
from ropewalk.evaluate.tasks import parse_task
from ropewalk.evaluate.text_generator import Reader
from ropewalk.evaluate.texts import read_text


def workloads(tokenizer: Any) -> dict[str, list[Sample]]:
    ids = tokenizer(read_text("pydoc").content, verbose=False)["input_ids"]
    own = [ids[at * 1000 : at * 1000 + 200 + at] for at in range(32)]
    return {
        "questions": parse_task("needle:keys=8,questions=8").samples(tokenizer, 4096, 16, seed=0),
        "depths": parse_task("needle").samples(tokenizer, 4096, 8, seed=0),
        "own": [Sample(index, prompt, (), max_new_tokens=12) for index, prompt in enumerate(own)],
    }


def by_reader(reader: Reader, samples: list[Sample]) -> dict[int, str]:
    return {sample.index: answer for sample, answer in reader.generate(samples)}


def by_pipeline(pipeline: Any, tokenizer: Any, samples: list[Sample]) -> dict[int, str]:
    answers = {}
    for sample in samples:
        (said,) = pipeline(
            tokenizer.decode(sample.prompt),
            max_new_tokens=sample.max_new_tokens,
            do_sample=False,
            return_full_text=False,
        )
        answers[sample.index] = said["generated_text"]
    return answers


def main() -> None:
    transformers.utils.logging.set_verbosity_error()
    rows = []
    for dtype in ("bfloat16", "float32"):
        model, tokenizer = rw.load("smollm2", dtype=dtype)
        reader = Reader(model, tokenizer)
        pipeline = transformers.pipeline("text-generation", model, tokenizer=tokenizer)
        for name, samples in workloads(tokenizer).items():
            by_pipeline(pipeline, tokenizer, samples[:1])  # warm
            started = time.perf_counter()
            ours = by_reader(reader, samples)
            between = time.perf_counter()
            theirs = by_pipeline(pipeline, tokenizer, samples)
            ended = time.perf_counter()
            row = {
                "workload": name,
                "dtype": dtype,
                "samples": len(samples),
                "ours_per_minute": round(60 * len(samples) / (between - started), 1),
                "pipeline_per_minute": round(60 * len(samples) / (ended - between), 1),
                "ratio": round((ended - between) / (between - started), 2),
                "same_answers": sum(ours[index] == theirs[index] for index in ours),
            }
            rows.append(row)
            print(
                f"{name:10s} {dtype:8s} {row['ours_per_minute']:7.1f} samples a minute, pipeline "
                f"{row['pipeline_per_minute']:6.1f}: {row['ratio']:.2f} times; same answers "
                f"{row['same_answers']} of {len(samples)}"
            )
    keep("eval_throughput", {"rows": rows})


if __name__ == "__main__":
    main()
