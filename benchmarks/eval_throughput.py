"""How many samples per minute does `ropewalk eval` answer, compared with a loop over transformers' pipeline?

    python -m benchmarks.eval_throughput

smollm2 answers the same prompts greedily with the same number of new tokens, both ways in one process. The workloads:
    questions   16 questions about two texts of 4,096 tokens (needle:keys=8,questions=8)
    depths      a needle at 8 depths of one text of 4,096 tokens
    own         32 prompts of 200 to 231 tokens without a common prefix
Two answers are the same if their texts are. Writes results/eval_throughput.json.
"""

from __future__ import annotations

import time
from typing import Any

import transformers

import ropewalk as rw
from benchmarks.common import save_result
from ropewalk.evaluate.sample import Sample
from ropewalk.evaluate.tasks import parse_task
from ropewalk.evaluate.text_generator import TextGenerator
from ropewalk.evaluate.texts import read_text


def make_workloads(tokenizer: Any) -> dict[str, list[Sample]]:
    ids = tokenizer(read_text("pydoc").content, verbose=False)["input_ids"]
    prompts = [ids[index * 1000 : index * 1000 + 200 + index] for index in range(32)]
    return {
        "questions": parse_task("needle:keys=8,questions=8").make_samples(tokenizer, 4096, 16, seed=0),
        "depths": parse_task("needle").make_samples(tokenizer, 4096, 8, seed=0),
        "own": [Sample(index, prompt, (), max_new_tokens=12) for index, prompt in enumerate(prompts)],
    }


def answer_with_ropewalk(generator: TextGenerator, samples: list[Sample]) -> dict[int, str]:
    return {sample.index: answer for sample, answer in generator.generate(samples)}


def answer_with_pipeline(pipeline: Any, tokenizer: Any, samples: list[Sample]) -> dict[int, str]:
    answers = {}
    for sample in samples:
        (output,) = pipeline(
            tokenizer.decode(sample.prompt),
            max_new_tokens=sample.max_new_tokens,
            do_sample=False,
            return_full_text=False,
        )
        answers[sample.index] = output["generated_text"]
    return answers


def main() -> None:
    transformers.utils.logging.set_verbosity_error()
    rows = []
    for dtype in ("bfloat16", "float32"):
        model, tokenizer = rw.load("smollm2", dtype=dtype)
        generator = TextGenerator(model, tokenizer)
        pipeline = transformers.pipeline("text-generation", model, tokenizer=tokenizer)
        for name, samples in make_workloads(tokenizer).items():
            answer_with_pipeline(pipeline, tokenizer, samples[:1])  # warm up
            started = time.perf_counter()
            ropewalk_answers = answer_with_ropewalk(generator, samples)
            between = time.perf_counter()
            pipeline_answers = answer_with_pipeline(pipeline, tokenizer, samples)
            ended = time.perf_counter()
            row = {
                "workload": name,
                "dtype": dtype,
                "samples": len(samples),
                "ours_per_minute": round(60 * len(samples) / (between - started), 1),
                "pipeline_per_minute": round(60 * len(samples) / (ended - between), 1),
                "ratio": round((ended - between) / (between - started), 2),
                "same_answers": sum(answer == pipeline_answers[index] for index, answer in ropewalk_answers.items()),
            }
            rows.append(row)
            print(
                f"{name:10s} {dtype:8s} ropewalk {row['ours_per_minute']:7.1f} samples/min, pipeline "
                f"{row['pipeline_per_minute']:6.1f}: {row['ratio']:.2f} times as fast; same answers "
                f"{row['same_answers']} of {len(samples)}"
            )
    save_result("eval_throughput", {"rows": rows})


if __name__ == "__main__":
    main()
