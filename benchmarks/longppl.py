"""Does LongPPL rank scalings as retrieval does, and does plain perplexity?

    python -m benchmarks.longppl [--device cuda] [--length 12288] [--samples 6] [--texts pydoc book.txt] [--known FILE]

smollm2 reads texts of the given length under each scaling. LongPPL is over the key tokens of all texts, which the model
itself finds under one scaling at a time (each evaluator) or under all of them (jury: the long loss is their median, the
short one that of the unscaled model). Perplexity is over all tokens of the texts. Both also with the tokens past the
trained length only. `retrieval` is the mean of passkey and needle at the same length; scalings that a FILE of `ropewalk
eval --json` has are not asked again. The rank correlation (Spearman, ties share their mean rank) of each column with
retrieval is printed: -1 if lower is better in the same order. Writes results/longppl.json after each step, and
continues there if it has the same length.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ropewalk as rw
from benchmarks.common import load_result, save_result
from ropewalk.evaluate.key_tokens import KeyTokenRule, read_short_losses, select_key_tokens
from ropewalk.evaluate.perplexity import compute_nll, perplexity_of
from ropewalk.evaluate.tasks.needle import Needle
from ropewalk.evaluate.tasks.passkey import Passkey
from ropewalk.evaluate.text_generator import TextGenerator
from ropewalk.evaluate.texts import read_text
from ropewalk.scaling.policies import DEFAULT_POLICY, parse_policy

SCALINGS = ("none", "linear:factor=2", "ntk:factor=2", "yarn:factor=2", "yarn:factor=4", "dynamic-yarn")
JURY = "jury"
EVALUATORS = ("yarn:factor=2", JURY)


def ranks(values: Sequence[float]) -> np.ndarray[Any, Any]:
    """Return the rank of each value; equal values have the mean of their ranks."""
    array = np.array(values)
    return np.array([((array < value).sum() + (array <= value).sum() - 1) / 2 for value in array])


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, None if all values of one side are equal."""
    x, y = ranks(one), ranks(other)
    return float(np.corrcoef(x, y)[0, 1]) if x.std() and y.std() else None


def load_retrieval(path: str, length: int) -> dict[str, dict[str, float]]:
    """Return the found shares of the scalings that an evaluation has at this length."""
    found: dict[str, dict[str, float]] = {}
    for cell in json.loads(Path(path).read_text(encoding="utf-8"))["cells"]:
        if cell["length"] == length and cell["task"] in ("passkey", "needle"):
            found.setdefault(cell["scaling"], {})[cell["task"]] = cell["summary"]["found"]
    return found


def measure_retrieval(
    model: Any, tokenizer: Any, length: int, samples: int, found: dict[str, dict[str, float]]
) -> dict[str, dict[str, float]]:
    """Return the found share of passkey and needle under each scaling; those in `found` are known."""
    generator = TextGenerator(model, tokenizer)
    prompts = {task.name: task.make_samples(tokenizer, length, samples, 0) for task in (Passkey(), Needle()) if samples}
    for spec in SCALINGS if samples else ():
        if spec in found:
            continue
        found[spec] = {}
        for task in (Passkey(), Needle()):
            with generator.scaled(rw.parse(spec), parse_policy(DEFAULT_POLICY)):
                scores = [task.score(*each)["found"] for each in generator.generate(prompts[task.name])]
            found[spec][task.name] = sum(scores) / samples
    return found


def measure_text(model: Any, ids_T: torch.Tensor, rule: KeyTokenRule) -> dict[str, Any]:
    """Return for each selection of tokens how many it has, and the mean loss on them under each scaling."""
    nll = {}
    for spec in SCALINGS:
        with rw.extended(model, spec, length=len(ids_T)):
            nll[spec] = compute_nll(model, ids_T)
    long_nll = {spec: nll[spec] for spec in EVALUATORS if spec != JURY}
    long_nll[JURY] = np.median(list(nll.values()), axis=0)
    indices = {"ppl": np.arange(1, len(ids_T))}
    for spec in EVALUATORS:
        with rw.extended(model, "none" if spec == JURY else spec):
            short_nll_T = read_short_losses(model, ids_T, rule)
        key_tokens = select_key_tokens(long_nll[spec][rule.short_context - 1 :], short_nll_T, rule)
        indices[f"longppl, evaluator {spec}"] = key_tokens
    trained = model.config.max_position_embeddings
    indices |= {f"{name}, past {trained:,}": found[found >= trained] for name, found in indices.items()}
    losses = {
        name: {spec: float(nll_T[found - 1].mean()) for spec, nll_T in nll.items()}
        for name, found in indices.items()
        if len(found)
    }
    return {"tokens": {name: len(found) for name, found in indices.items()}, "losses": losses}


def summarize(texts: dict[str, Any], retrieval: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Return the columns over all texts, and the rank correlation of each with retrieval."""
    columns: dict[str, list[float]] = {}
    for name in dict.fromkeys(name for text in texts.values() for name in text["losses"]):
        having = [text for text in texts.values() if name in text["losses"]]
        count = sum(text["tokens"][name] for text in having)
        sums = [sum(text["tokens"][name] * text["losses"][name][spec] for text in having) for spec in SCALINGS]
        columns[name] = [perplexity_of(total / count) for total in sums]
    scores = [sum(retrieval[spec].values()) / 2 if spec in retrieval else None for spec in SCALINGS]
    known = [index for index, score in enumerate(scores) if score is not None]
    correlations = {
        name: rank_correlation([values[index] for index in known], [scores[index] or 0.0 for index in known])
        for name, values in columns.items()
    }
    return {"columns": {**columns, "retrieval": scores}, "rank_correlation_with_retrieval": correlations}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--device", default=None)
    parser.add_argument("--length", type=int, default=12_288, help="tokens of each text and of each prompt")
    parser.add_argument(
        "--samples", type=int, default=6, help="questions per task and scaling; 0: only those of --known"
    )
    parser.add_argument("--known", help="results of ropewalk eval --json with found shares")
    parser.add_argument("--texts", nargs="+", default=["pydoc"], help="files, or pydoc")
    args = parser.parse_args()
    model, tokenizer = rw.load(args.model, device=args.device)
    rule, started = KeyTokenRule.for_length(args.length), time.perf_counter()
    device = torch.cuda.get_device_name() if model.device.type == "cuda" else "cpu"
    document: dict[str, Any] = {"device": device, "dtype": str(model.dtype), "rule": vars(rule), "scalings": SCALINGS}
    document |= {"length": args.length, "samples": args.samples}
    document |= {"known": args.known, "texts": {}}
    earlier = load_result("longppl")
    found = earlier["retrieval"] if earlier.get("length") == args.length else {}
    if args.known:
        found |= load_retrieval(args.known, args.length)
    document["retrieval"] = measure_retrieval(model, tokenizer, args.length, args.samples, found)
    save_result("longppl", document)
    print(f"retrieval: {time.perf_counter() - started:.0f} s", flush=True)
    for name in args.texts:
        ids_T = torch.tensor(tokenizer(read_text(name).content, verbose=False)["input_ids"])[: args.length]
        document["texts"][name.split("/")[-1]] = measure_text(model, ids_T, rule)
        document |= summarize(document["texts"], document["retrieval"])
        document["seconds"] = round(time.perf_counter() - started, 1)
        save_result("longppl", document)
    width = max(map(len, document["columns"]))
    print(" " * width, *(f"{spec:>16}" for spec in SCALINGS), "  rank correlation")
    for name, values in document["columns"].items():
        correlation = document["rank_correlation_with_retrieval"].get(name)
        shown = "" if correlation is None else f"{correlation:+.2f}"
        print(f"{name:{width}}", *(f"{'' if value is None else f'{value:.3f}':>16}" for value in values), f"  {shown}")
    print(f"{document['seconds']:.0f} s on {device}")


if __name__ == "__main__":
    main()
