from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import Any

from ropewalk.errors import InputError
from ropewalk.evaluate import harness
from ropewalk.evaluate.tasks.harness_task import HarnessTask

_SHARES = {"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "f1", "em"}  # metrics from 0 to 1


@dataclass(frozen=True)
class LmEval(HarnessTask):
    """Any task, group or tag of lm-evaluation-harness, or the user's own in its YAML.

    The length is the most that the model sees: the beginning of a longer prompt is cut off, as the harness does.
    Samples are the first documents, or all where there are fewer. The harness's own functions sum them up, so that a
    corpus metric is one.

    Options: `task`, its name there; `include`, a folder with YAML of the user's; `fewshot`, examples before a question.
    """

    name = "lm-eval"

    include: str | None = None
    fewshot: int | None = None

    def __post_init__(self) -> None:
        if self.fewshot is not None and (not isinstance(self.fewshot, int) or self.fewshot < 0):
            raise InputError("lm_eval: fewshot", self.fewshot, "a whole number of examples")

    def expand(self) -> Sequence[LmEval]:
        return [replace(self, task=name) for name in harness.members(self.task, self._entry)]

    @property
    def main(self) -> str:
        """The first metric that the task names."""
        filters = self._entry(self.task).cfg.get("filter_list") or []
        first = f",{filters[0]['name']}" if len(filters) > 1 else ""
        return self._metric()[0] + first

    @property
    def better(self) -> str:  # type: ignore[override]
        return "higher" if self._metric()[1] else "lower"

    @property
    def share(self) -> bool:  # type: ignore[override]
        return self._metric()[0] in _SHARES

    def fingerprint(self) -> dict[str, str]:
        entry = self._entry(self.task)
        said = {"lm_eval": harness.version(), "task": str((entry.cfg.get("metadata") or {}).get("version"))}
        where = entry.cfg.get("dataset_kwargs") or {}
        files = _local_files([where.get("data_files"), where.get("data_dir"), entry.cfg.get("dataset_path")])
        if self.include is not None:
            files = [*sorted(file for file in self._folder().rglob("*") if file.is_file()), *files]
        return {**said, "files": harness.digest(files)} if files else said

    def built(self, tokenizer: Any, length: int, count: int, seed: int) -> tuple[Any, list[list[Any]]]:
        entry = self._entry(self.task)
        with harness.fetching(
            "task",
            f"{self.task}, whose data set {entry.cfg.get('dataset_path')} cannot be read",
            "one in the cache of Hugging Face, or to be fetched; or include=DIR with your own YAML for local files",
        ):
            try:
                task = harness.load(entry, {}, seed)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise _unbuilt(self.task, error) from None
        for unfit in ("UNSAFE_CODE", "MULTIMODAL"):
            if getattr(task, unfit, False):
                found = f"{self.task}, which the harness marks {unfit}"
                raise InputError("task", found, "a task of text alone that runs no code which a model wrote")
        from jinja2 import TemplateError

        try:
            return task, harness.requests(task, count, seed, self.fewshot)
        except (KeyError, TypeError, ValueError, AttributeError, TemplateError) as error:
            raise _unbuilt(self.task, error) from None

    def _entry(self, name: str) -> Any:
        """What the index says of a name: of the user's folder, or else of the harness."""
        own = harness.index(self._folder()) if self.include is not None else {}
        if name in own:
            return own[name]
        everything = harness.index()
        harness.known("lm_eval: task", name, [*everything, *own], "a task, group or tag of lm-evaluation-harness")
        return everything[name]

    def _folder(self) -> Path:
        folder = Path(str(self.include)).expanduser()
        if not folder.is_dir():
            raise InputError("lm_eval: include", str(self.include), "a folder with YAML files of tasks")
        return folder

    def _metric(self) -> tuple[str, bool]:
        """The first metric of the task, and whether more of it is better."""
        from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY, is_higher_better

        said = self._entry(self.task).cfg
        (first, *_) = said.get("metric_list") or [
            {"metric": name} for name in DEFAULT_METRIC_REGISTRY[said.get("output_type", "generate_until")]
        ]
        name = first["metric"].rpartition(".")[2] if "/" in first["metric"] else first["metric"]  # a Python function
        better = first.get("higher_is_better")
        return name, bool(is_higher_better(name) if better is None else better)


def _unbuilt(task: str, error: Exception) -> InputError:
    told = f"{type(error).__name__}: {error}"
    return InputError("task", task, f"a task whose YAML and data fit together ({told})")


def _local_files(said: Any) -> list[Path]:
    """The files of this machine that a task names as data: a path, a folder, a pattern, or a list or dict of them."""
    if isinstance(said, dict | list):
        return [file for each in (said.values() if isinstance(said, dict) else said) for file in _local_files(each)]
    if not isinstance(said, str) or not said:
        return []
    found = [Path(said), *Path(said).rglob("*")] if Path(said).is_dir() else [Path(each) for each in sorted(glob(said))]
    return sorted(file for file in found if file.is_file())
