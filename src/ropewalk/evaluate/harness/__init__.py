"""lm-evaluation-harness (L. Gao et al., EleutherAI) as the tasks use it: found by name, built, an answer scored.

Prompts, generators and scores are its own, imported where they are run.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import logging
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from difflib import get_close_matches
from functools import cache
from operator import attrgetter, methodcaller
from pathlib import Path
from typing import Any

import numpy as np

from ropewalk.errors import InputError

_TALKATIVE = ("lm_eval", "datasets", "huggingface_hub", "transformers", "jieba")


def version() -> str:
    """The harness's version. Raises InputError when it is not installed."""
    try:
        return importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError:
        raise InputError("task", "no lm-evaluation-harness", "pip install 'ropewalk[eval]'") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, the harness and what it uses print nothing and show no bars; errors that it logs are still seen."""
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in _TALKATIVE}
    harness = logging.getLogger("lm_eval")
    errors = logging.StreamHandler(sys.stderr)
    errors.setLevel(logging.ERROR)
    shown = harness.hasHandlers()
    try:
        for logger in levels:
            logger.setLevel(logging.ERROR)
        if not shown:
            harness.addHandler(errors)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        harness.removeHandler(errors)
        for logger, level in levels.items():
            logger.setLevel(level)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, chance begins where the harness lets it begin, at seed 0; afterwards it goes on as before."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    before, before_numpy = random.getstate(), np.random.get_state()
    random.seed(DEFAULT_RANDOM_SEED + seed)
    np.random.seed((DEFAULT_OTHER_SEED + seed) % 2**32)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(before_numpy)


@contextmanager
def replaced(namespace: MutableMapping[str, Any], others: Mapping[str, Any]) -> Iterator[None]:
    """Inside, these names of a module stand for other things; `namespace` is the module's `__dict__`."""
    before = {name: namespace[name] for name in others if name in namespace}
    namespace.update(others)
    try:
        yield
    finally:
        for name in others:
            del namespace[name]
        namespace.update(before)


@contextmanager
def served(dataset: str, ours: Callable[[str | None], Any]) -> Iterator[None]:
    """Inside, `datasets.load_dataset` answers for one data set with `ours`, a function of the configuration's name."""
    import datasets

    hub = datasets.load_dataset

    def load_dataset(path: str, name: str | None = None, **options: Any) -> Any:
        return ours(name) if path == dataset else hub(path, name, **options)

    with replaced(vars(datasets), {"load_dataset": load_dataset}):
        yield


@contextmanager
def fetching(field: str, found: str, allowed: str) -> Iterator[None]:
    """Inside, a data set that cannot be fetched is an InputError with these words."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (OSError, DatasetsError) as error:
        raise InputError(field, found, f"{allowed} ({error})") from None


@cache
def index(folder: Path | None = None) -> dict[str, Any]:
    """The tasks, groups and tags that the YAML of a folder describes, by name; by default all of the harness's own."""
    version()
    from lm_eval.tasks import TaskManager

    with quiet():
        manager = TaskManager(include_path=folder, include_defaults=folder is None)
    return dict(manager.task_index)


@cache
def suite(name: str) -> dict[str, Any]:
    """The index of one folder of the harness, which is read at once; of all of them it takes seconds."""
    version()
    import lm_eval.tasks

    return index(Path(lm_eval.tasks.__file__).parent / name)


def known(kind: str, name: object, names: Iterable[str], allowed: str) -> None:
    """Raise InputError, with `allowed` and the nearest names, when `name` is none of them."""
    if name not in (names := list(names)):
        near = get_close_matches(str(name), names, n=3)
        raise InputError(kind, name, allowed + (f" (nearest: {', '.join(near)})" if near else ""))


def members(name: str, find: Callable[[str], Any]) -> list[str]:
    """The tasks of a group or a tag, in the harness's order; of a task, itself. `find` looks an entry up by its name.

    Raises InputError for a group that changes its members: they are not then what their names say.
    """
    entry = find(name)
    if entry.kind.name == "TAG":
        return sorted(entry.tags)
    if entry.kind.name != "GROUP":
        return [name]
    from lm_eval.config.group import GroupConfig

    inside = entry.cfg["task"]
    changed = set(entry.cfg) - set(GroupConfig.__dataclass_fields__) - {"tag"}
    if changed or not all(isinstance(member, str) for member in inside):
        raise InputError(
            "task", name, "a group that takes its tasks as they are; or one of them, or your own YAML of it"
        )
    return [task for member in inside for task in members(member, find)]


def load(entry: Any, metadata: Mapping[str, Any], seed: int) -> Any:
    """The task of an entry of an index, with its data."""
    from lm_eval.tasks import TaskManager

    with quiet(), seeded(seed):
        tasks = TaskManager(include_defaults=False, metadata=dict(metadata)).load(str(entry.yaml_path))["tasks"]
    return next(iter(tasks.values()))


def function(entry: Any, field: str) -> Any:
    """The Python function that a field of a task names, from the very module that the harness will take it from."""
    from lm_eval.tasks._yaml_loader import load_yaml

    with quiet():
        return load_yaml(entry.yaml_path, resolve_func=True)[field]


def requests(task: Any, count: int, seed: int, fewshot: int | None = None) -> list[list[Any]]:
    """The requests for each of the first `count` documents, or for all where there are fewer.

    `fewshot`: examples before each; a task that says 0 itself keeps 0, as in the harness's `simple_evaluate`.
    """
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    own = task.get_config("num_fewshot")
    task.set_config("num_fewshot", own or 0 if fewshot is None or own == 0 else fewshot)
    task.set_fewshot_seed(DEFAULT_OTHER_SEED + seed)
    with quiet(), seeded(seed):
        task.build_all_requests(limit=count)
    documents: dict[int, list[Any]] = {}
    for request in task.instances:
        documents.setdefault(request.doc_id, []).append(request)
    return [sorted(each, key=attrgetter("idx")) for each in documents.values()]


def scores(task: Any, requests: Sequence[Any], responses: Sequence[Any]) -> dict[str, Any]:
    """The metrics of one document, ready for JSON: numbers, or what the aggregation of a metric takes.

    With several filters each stands as `metric,filter`, as in the harness's own results.
    """
    with quiet():
        for request, response in zip(requests, responses, strict=True):
            request.resps = [response] * (request.repeats or 1)
            request.filtered_resps = {}
        for each in task._filters:
            each.apply(requests)
        filters = list(requests[0].filtered_resps)
        found = {
            metric if len(filters) == 1 else f"{metric},{name}": value
            for name in filters
            for metric, value in task.process_results(
                requests[0].doc, [request.filtered_resps[name] for request in requests]
            ).items()
        }
    return dict(json.loads(json.dumps(found, default=methodcaller("tolist"))))


def digest(files: Iterable[Path]) -> str:
    """SHA-256 of the contents of files, in hexadecimal."""
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()
