"""Stores of invented outcomes."""

from __future__ import annotations

from ropewalk.evaluate.evaluation_store import EvaluationStore

MODEL = {"model": "smollm2", "digest": "sha256:0123", "dtype": "bfloat16"}


def description(task, scaling, length, samples, *, main="found", better="higher", **changed):
    """What a cell says of itself."""
    dynamic = scaling.startswith("dynamic")
    return {
        "task": task,
        "task_name": task.split(":")[0],
        "task_version": 1,
        "task_options": {},
        "fingerprint": {},
        "main": main,
        "better": better,
        "share": better == "higher",
        "scaling": scaling,
        "scaling_options": {},
        "policy": "stepped" if dynamic else None,
        "column": f"{scaling} (stepped)" if dynamic else scaling,
        "length": length,
        "samples": samples,
        "seed": 0,
        **changed,
    }


def outcome(index, score, *, main="found", answer="no", about=None, references=("12345",)):
    """A sample with its one score."""
    return {
        "index": index,
        "prompt": "ab" * 32,
        "tokens": 100,
        "answer": answer,
        "references": list(references),
        "scores": {main: score},
        "about": about or {},
        "seconds": 0.5,
    }


def store(folder, cells, model=MODEL, command="ropewalk eval smollm2"):
    """A folder of cells, each (described, scores or outcomes); one with fewer than asked is not finished."""
    with EvaluationStore(folder, model) as written:
        keyed = {str(at): cell for at, (cell, _) in enumerate(cells)}
        written.begin(command, {"python": "3.11"}, keyed)
        for (key, cell), (_, given) in zip(keyed.items(), cells, strict=True):
            for index, each in enumerate(given):
                known = isinstance(each, dict)
                written.add(key, each if known else outcome(index, each, main=cell["main"], about=depth(index, cell)))
            if len(given) == cell["samples"]:
                scores = [each["scores"][cell["main"]] for each in written.sample_results(key).values()]
                written.finish(key, {cell["main"]: sum(scores) / len(scores)})
    return EvaluationStore(folder)


def depth(index, cell):
    """What a sample of the retrieval tasks says of itself: its depth among those of its cell."""
    hidden = cell["task_name"] in ("passkey", "needle")
    return {"depth": round(index / max(cell["samples"] - 1, 1), 4)} if hidden else {}


def mixed(folder):
    """Three tasks at two lengths, a suite of two, and a cell that is not finished."""
    passkey = {"none": ([1, 1], [0, 0]), "yarn:factor=2": ([1, 0], [1, 1]), "dynamic-yarn": ([1, 1], [1])}
    ppl = {"none": (10.0, 80.0), "yarn:factor=2": (10.4, 9.876), "dynamic-yarn": (10.0, 9.5)}
    ruler = {"none": (0.5, 0.1), "yarn:factor=2": (0.4, 0.3), "dynamic-yarn": (0.5, 0.35)}
    cells = [
        (description("passkey", scaling, length, 2), scores)
        for scaling, both in passkey.items()
        for length, scores in zip((8192, 16384), both, strict=True)
    ]
    cells += [
        (description("perplexity", scaling, length, 1, main="ppl", better="lower"), [value])
        for scaling, both in ppl.items()
        for length, value in zip((8192, 16384), both, strict=True)
    ]
    cells += [
        (description(f"ruler:{member}", scaling, length, 1, main="score"), [outcome(0, value * half, main="score")])
        for member, half in (("vt", 1), ("cwe", 0.5))
        for scaling, both in ruler.items()
        for length, value in zip((8192, 16384), both, strict=True)
    ]
    return store(folder, cells)
