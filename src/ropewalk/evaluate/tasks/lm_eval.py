from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import Any

from ropewalk.compat import lm_eval
from ropewalk.errors import InputError, UnknownNameError
from ropewalk.evaluate.tasks.harness_task import (
    HarnessTask,
    chat_template,
    dataset_errors_as_input_error,
    digest_files,
)

_FRACTION_METRICS = {"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "f1", "em"}  # from 0 to 1
_INVALID_TASK_ERRORS = (KeyError, TypeError, ValueError, AttributeError)  # from a YAML that does not fit its data


@dataclass(frozen=True)
class LmEval(HarnessTask):
    """Any task, group or tag of lm-evaluation-harness, or the user's own in its YAML format.

    A prompt that is longer than `length` loses its beginning, as in the harness. Samples are the first documents, or
    all of a smaller task. Scores are aggregated by the harness's own functions.

    Options: `task`, its name in the harness; `include`, a folder with the user's YAML files; `fewshot`, the number of
    examples before each question.
    """

    name = "lm-eval"
    chat_choices = ("on",)  # the harness itself applies a template only on request

    task: str
    include: str | None = None
    fewshot: int | None = None

    def __post_init__(self) -> None:
        if self.fewshot is not None and (not isinstance(self.fewshot, int) or self.fewshot < 0):
            raise InputError("lm_eval: fewshot", self.fewshot, "a whole number of examples")

    def expand(self) -> Sequence[LmEval]:
        return [replace(self, task=name) for name in lm_eval.expand_group(self.task, self._find_entry)]

    @property
    def main_score(self) -> str:
        """The first metric of the task, with its first filter if it has several."""
        config = self._find_entry(self.task).cfg
        metric, _ = lm_eval.first_metric(config)
        filters = config.get("filter_list") or []
        return f"{metric},{filters[0]['name']}" if len(filters) > 1 else metric

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        return lm_eval.first_metric(self._find_entry(self.task).cfg)[1]

    @property
    def is_fraction(self) -> bool:  # type: ignore[override]
        return lm_eval.first_metric(self._find_entry(self.task).cfg)[0] in _FRACTION_METRICS

    def fingerprint(self) -> dict[str, str]:
        config = self._find_entry(self.task).cfg
        version = str((config.get("metadata") or {}).get("version"))
        fingerprint = {"lm_eval": lm_eval.installed_version(), "task": version}
        options = config.get("dataset_kwargs") or {}
        files = _local_files([options.get("data_files"), options.get("data_dir"), config.get("dataset_path")])
        if self.include is not None:
            files = [*sorted(file for file in self._include_folder().rglob("*") if file.is_file()), *files]
        return {**fingerprint, "files": digest_files(files)} if files else fingerprint

    def load(self, tokenizer: Any, length: int, count: int, seed: int, chat: bool) -> tuple[Any, list[list[Any]]]:
        from jinja2 import TemplateError

        entry = self._find_entry(self.task)
        with dataset_errors_as_input_error(
            "task",
            f"{self.task}, whose data set {entry.cfg.get('dataset_path')} cannot be read",
            "a data set that is cached or can be downloaded, or include=DIR with a YAML file for local data",
        ):
            try:
                task = lm_eval.load_task(entry, seed)
            except _INVALID_TASK_ERRORS as error:
                raise self._invalid(error) from None
        for marker in ("UNSAFE_CODE", "MULTIMODAL"):
            if getattr(task, marker, False):
                value = f"{self.task}, which the harness marks {marker}"
                raise InputError("task", value, "a task of text alone that runs no code which a model wrote")
        try:
            template = chat_template(tokenizer, chat)
            return task, lm_eval.build_requests(task, count, seed, self.fewshot, template)
        except (*_INVALID_TASK_ERRORS, TemplateError) as error:
            raise self._invalid(error) from None

    def _find_entry(self, name: str) -> Any:
        """Return the index entry of a task, group or tag: the user's, else the harness's."""
        included = lm_eval.index_tasks(self._include_folder()) if self.include is not None else {}
        if name in included:
            return included[name]
        built_in = lm_eval.index_tasks()
        if name not in built_in:
            names = [*built_in, *included]
            raise UnknownNameError("lm_eval: task", name, names, "a task, group or tag of lm-evaluation-harness")
        return built_in[name]

    def _include_folder(self) -> Path:
        folder = Path(str(self.include)).expanduser()
        if not folder.is_dir():
            raise InputError("lm_eval: include", str(self.include), "a folder with YAML files of tasks")
        return folder

    def _invalid(self, error: Exception) -> InputError:
        reason = f"{type(error).__name__}: {error}"
        return InputError("task", self.task, "a task whose YAML and data fit together", reason)


def _local_files(source: Any) -> list[Path]:
    """Return the local files that a data source names: a path, a folder, a glob, or a list or dict of such sources.

    Anything else, such as the name of a data set on the hub, gives no files.
    """
    if isinstance(source, dict):
        source = list(source.values())
    if isinstance(source, list):
        return [file for part in source for file in _local_files(part)]
    if not isinstance(source, str) or not source:
        return []
    paths = Path(source).rglob("*") if Path(source).is_dir() else map(Path, glob(source))
    return sorted(path for path in paths if path.is_file())
