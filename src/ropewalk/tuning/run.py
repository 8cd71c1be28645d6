"""Tune a model: read the text, run a method, store its scaling, and prove it on text that it never saw.

run = TuneRun("smollm2", target=32_768, text=["book.txt"], out="runs/tuned")
scaling = run.tune()
print(run.open_proof(scaling).run().sentence)
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ropewalk
from ropewalk.errors import InputError, check_length
from ropewalk.evaluate.folder_lock import lock_folder
from ropewalk.evaluate.model_source import ModelSource, describe_source, read_source_config
from ropewalk.evaluate.texts import read_text
from ropewalk.files import ensure_writable_folder, parse_json, write_text_atomically
from ropewalk.models.extend import ScalingLike, extension_of
from ropewalk.models.load import load
from ropewalk.models.wrappers import unwrap_measurable_model
from ropewalk.scaling import Scaling
from ropewalk.scaling.learned import Learned
from ropewalk.tuning import Tuner, parse_tuner
from ropewalk.tuning.base import OnProgress, TuneJob
from ropewalk.tuning.proof import OnTokens, Proof, ProofRun


@dataclass(frozen=True)
class TuneResult:
    """What `tune` found.

    Attributes:
        scaling: the scaling; for `extend`, and as `scaling.json` in the folder.
        proof: how it compares with formulas on text that it never saw; None in all but the first of several processes.
    """

    scaling: Scaling
    proof: Proof | None


class TuneRun:
    """A run in a folder; the same run continues there after an interruption.

    Attributes:
        method: the tuning method.
        job: the model and the text to learn from.
        scaling_path: the file that will hold the scaling.
    """

    def __init__(
        self,
        model: ModelSource,
        target: int,
        text: str | Sequence[str],
        out: str | Path,
        *,
        method: str | Tuner = "gradient",
        per_layer: bool = False,
        steps: int | None = None,
        dtype: str | None = None,
        device: str | None = None,
        samples: int = 8,
        seed: int = 0,
    ) -> None:
        """Check the arguments, load the model and divide the text. The arguments are those of `tune`."""
        if seed < 0:
            raise InputError("seed", seed, "0 or more")
        self.method = _set_options(parse_tuner(method), per_layer=per_layer or None, steps=steps)
        folder = ensure_writable_folder(out)
        self.scaling_path = folder / "scaling.json"
        if not isinstance(model, str) and extension_of(model[0]) is not None:
            raise InputError("model", "one that is extended", "one without a scaling: call ropewalk.restore(model)")
        rope = read_source_config(model).main_layer.rope
        if rope.original_length is None:
            raise InputError("original_length", None, "a model whose configuration has one")
        if check_length("target", target) <= rope.original_length:
            expected = f"more than the {rope.original_length:,} tokens that the model was trained on"
            raise InputError("target", target, expected)
        texts = [read_text(name) for name in ([text] if isinstance(text, str) else text)]
        self._model_name = describe_source(model, dtype)["model"]
        if isinstance(model, str):
            model = load(model, dtype=dtype, device=device or _device_of_process())
        inner, tokenizer = unwrap_measurable_model(model[0]), model[1]
        # The held-out text is decoded and tokenized again, which can give fewer tokens.
        held_out_tokens = target + target // 8
        documents, validation, held_out = [], [], []
        for each in texts:
            ids = tokenizer(each.content, add_special_tokens=False, verbose=False)["input_ids"]
            minimum = 2 * target + held_out_tokens
            if len(ids) < minimum:
                expected = f"at least {minimum:,} tokens, to learn from, to stop and to prove the result"
                raise InputError("text", f"{each.name}, {len(ids):,} tokens", expected)
            documents.append(np.array(ids[: -held_out_tokens - target]))
            validation.append(np.array(ids[-held_out_tokens - target : -held_out_tokens]))
            held_out.append(tokenizer.decode(ids[-held_out_tokens:]))
        self.job = TuneJob(inner, tokenizer, rope, target, tuple(documents), tuple(validation), folder, seed)
        self._samples = samples
        self._held_out_names = [str(folder / f"held_out-{number}.txt") for number in range(1, len(texts) + 1)]
        if is_main_process():
            self._prepare_folder([each.digest for each in texts], held_out)
            self.open_proof(self.job.formula)  # checks its arguments before the long work
        elif not self.method.is_parallel:
            raise InputError("method", self.method.name, "gradient in several processes; a search runs in one")

    def tune(self, on_progress: OnProgress = lambda share, detail: None) -> Scaling:
        """Run the method, store its scaling and return it.

        Args:
            on_progress: called with the share of the work done, from 0 to 1, and a detail to show.

        Raises InputError if another process tunes in the same folder, and what the method raises.
        """
        if not is_main_process():
            return self.method.run(self.job, on_progress)
        lock = lock_folder(self.job.folder, self.scaling_path.name)
        try:
            return self._store(self.method.run(self.job, on_progress))
        finally:
            lock.release()

    def open_proof(self, scaling: ScalingLike) -> ProofRun:
        """Return the comparison of a scaling with formulas on the end of each text, which no method reads."""
        source = self.job.model, self.job.tokenizer
        out = self.job.folder / "proof"
        return ProofRun(source, scaling, self.job.target, self._held_out_names, out, samples=self._samples)

    def _prepare_folder(self, digests: Sequence[str], held_out: Sequence[str]) -> None:
        """Write what the run is and its held-out texts. Raises InputError if the folder holds another run."""
        path, job = self.job.folder / "run.json", self.job
        identity = {"model": self._model_name, "text": list(digests), "target": job.target, "seed": job.seed}
        identity["method"] = self.method.name  # its options are checked with what it stores
        lock = lock_folder(job.folder, path.name)
        try:
            try:
                stored = parse_json(path.read_bytes()) if path.exists() else identity
            except ValueError as error:
                raise InputError("out", f"{path}, which cannot be read ({error})", "another folder") from None
            for name, value in identity.items():
                if not isinstance(stored, dict) or stored.get(name) != value:
                    raise InputError("out", f"{job.folder}, which has a run with another {name}", "another folder")
            write_text_atomically(path, json.dumps(identity, indent=1) + "\n")
            for name, content in zip(self._held_out_names, held_out, strict=True):
                write_text_atomically(Path(name), content)
        finally:
            lock.release()

    def _store(self, scaling: Scaling) -> Scaling:
        """Write the scaling to its file and return it as it is read from there."""
        if not isinstance(scaling, Learned):
            write_text_atomically(self.scaling_path, json.dumps(scaling.to_dict(), indent=1) + "\n")
            return scaling
        date = time.strftime("%Y-%m-%d")
        described = replace(scaling, model=self._model_name, date=date, version=ropewalk.__version__)
        return described.write(self.scaling_path)


def tune(
    model: ModelSource,
    *,
    target: int,
    text: str | Sequence[str],
    out: str | Path,
    method: str | Tuner = "gradient",
    per_layer: bool = False,
    steps: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    samples: int = 8,
    seed: int = 0,
    on_progress: OnProgress = lambda share, detail: None,
    on_tokens: OnTokens = lambda tokens, label: None,
) -> TuneResult:
    """Find a scaling for a model whose weights stay as they are, and compare it with formulas on text it never saw.

    Args:
        model: a name that `ropewalk.load` accepts, or a loaded (model, tokenizer).
        target: tokens of the longest text that the model must read, more than it was trained on.
        text: one or more names that `read_text` accepts. The last `target` tokens of each are for the proof and those
            before them for early stopping, so each needs a little more than three times the target.
        out: folder for the state, the scaling and the proof; the same call continues there.
        method: a tuning method, such as "gradient:answer_weight=0.1" or "search".
        per_layer: whether each layer gets a set of frequencies of its own; an option of `gradient`.
        steps: number of steps; an option of `gradient`.
        dtype, device: see `ropewalk.load`; of a model that is given by its name.
        samples: prompts of each retrieval task and length in the proof.
        seed: for everything that is drawn at random.
        on_progress: called with the share of the tuning that is done, from 0 to 1, and a detail to show.
        on_tokens: called with the tokens that the proof has read since its last call, and what it measures.

    Raises InputError for a wrong argument, a text that is too short, a model whose tables cannot be replaced, and a
    folder that holds another run.
    """
    run = TuneRun(
        model,
        target,
        text,
        out,
        method=method,
        per_layer=per_layer,
        steps=steps,
        dtype=dtype,
        device=device,
        samples=samples,
        seed=seed,
    )
    scaling = run.tune(on_progress)
    return TuneResult(scaling, run.open_proof(scaling).run(on_tokens) if is_main_process() else None)


def is_main_process() -> bool:
    """Return whether this process is the first of those that `accelerate launch` started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def _set_options(tuner: Tuner, **options: Any) -> Tuner:
    """Return the tuner with these options, except those that are None. Raises InputError for one that it lacks."""
    given = {name: value for name, value in options.items() if value is not None}
    known = [f.name for f in fields(tuner)]  # type: ignore[arg-type]
    for name, value in given.items():
        if name not in known:
            raise InputError(name, value, f"a method that has it; {tuner.name} has {', '.join(known)}")
    return replace(tuner, **given)  # type: ignore[type-var]


def _device_of_process() -> str | None:
    """Return the GPU of this process under `accelerate launch`; None without it, or without GPUs."""
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if rank is not None and torch.cuda.is_available() else None
