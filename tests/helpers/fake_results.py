"""Folders of evaluations with made-up results."""

from __future__ import annotations

from ropewalk.evaluate.evaluation_store import EvaluationStore

MODEL = {"model": "smollm2", "digest": "sha256:0123", "dtype": "bfloat16"}


def describe_cell(task, scaling, length, samples, *, main="found", better="higher", **changes):
    """Return the description of a cell, as the store keeps it."""
    is_dynamic = scaling.startswith("dynamic")
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
        "policy": "stepped" if is_dynamic else None,
        "column": f"{scaling} (stepped)" if is_dynamic else scaling,
        "length": length,
        "samples": samples,
        "seed": 0,
        "chat": False,
        **changes,
    }


def make_sample(index, score, *, main="found", answer="no", about=None, references=("12345",)):
    """Return a finished sample with one score."""
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


def write_store(folder, cells, model=MODEL, command="ropewalk eval smollm2"):
    """Write an evaluation and return its store, open for reading.

    `cells`: pairs of a description and its samples, or their scores. A cell with fewer samples than its description
    asks for is unfinished.
    """
    with EvaluationStore(folder, model) as store:
        store.begin(command, {"python": "3.11"}, {str(key): cell for key, (cell, _) in enumerate(cells)})
        for key, (cell, samples) in enumerate(cells):
            for index, sample in enumerate(samples):
                if not isinstance(sample, dict):
                    sample = make_sample(index, sample, main=cell["main"], about=_depth(index, cell))  # noqa: PLW2901
                store.add(str(key), sample)
            if len(samples) == cell["samples"]:
                scores = [sample["scores"][cell["main"]] for sample in store.sample_results(str(key)).values()]
                store.finish(str(key), {cell["main"]: sum(scores) / len(scores)})
    return EvaluationStore(folder)


def write_mixed_store(folder):
    """Write three tasks and a suite of two tasks, at two lengths, under three scalings; one cell is unfinished."""
    passkey = {"none": ([1, 1], [0, 0]), "yarn:factor=2": ([1, 0], [1, 1]), "dynamic-yarn": ([1, 1], [1])}
    ppl = {"none": (10.0, 80.0), "yarn:factor=2": (10.4, 9.876), "dynamic-yarn": (10.0, 9.5)}
    ruler = {"none": (0.5, 0.1), "yarn:factor=2": (0.4, 0.3), "dynamic-yarn": (0.5, 0.35)}
    lengths = (8192, 16384)
    cells = []
    for scaling, samples in passkey.items():
        for length, scores in zip(lengths, samples, strict=True):
            cells.append((describe_cell("passkey", scaling, length, 2), scores))
    for scaling, values in ppl.items():
        for length, value in zip(lengths, values, strict=True):
            cells.append((describe_cell("perplexity", scaling, length, 1, main="ppl", better="lower"), [value]))
    for task, weight in (("vt", 1), ("cwe", 0.5)):
        for scaling, values in ruler.items():
            for length, value in zip(lengths, values, strict=True):
                cell = describe_cell(f"ruler:{task}", scaling, length, 1, main="score")
                cells.append((cell, [make_sample(0, value * weight, main="score")]))
    return write_store(folder, cells)


def _depth(index, cell):
    """Return what a sample of a retrieval task has about its depth: evenly spaced over the cell."""
    is_retrieval = cell["task_name"] in ("passkey", "needle")
    return {"depth": round(index / max(cell["samples"] - 1, 1), 4)} if is_retrieval else {}
