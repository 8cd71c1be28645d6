"""lm-evaluation-harness (EleutherAI, the package lm-eval): find its tasks, load them, build requests, score responses.

`simple_evaluate`, the public entry point of the harness, runs whole tasks on a model of its own. ropewalk needs the
steps in between, to store every answer and to continue after a crash, so it uses parts of the harness that are
importable but not documented. Checked with lm-eval 0.4.13; tests/compat/test_lm_eval.py fails if one of them changes.

Import this module anywhere; the harness itself is imported when a function is called.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import logging
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from operator import attrgetter, methodcaller
from pathlib import Path
from typing import Any

import numpy as np

from ropewalk.errors import InputError, MissingPackageError

_VERBOSE_LOGGERS = ("lm_eval", "datasets", "huggingface_hub", "transformers", "jieba")


def installed_version() -> str:
    """Return the version of lm-eval. Raises MissingPackageError if it is not installed."""
    try:
        return importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError:
        raise MissingPackageError("this task", "lm-eval", "pip install 'ropewalk[eval]'") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the prints, progress bars, warnings and log messages of the harness inside the block.

    Errors that lm_eval logs are still shown.
    """
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in _VERBOSE_LOGGERS}
    lm_eval_logger = logging.getLogger("lm_eval")
    has_handlers = lm_eval_logger.hasHandlers()
    error_handler = logging.StreamHandler(sys.stderr)
    error_handler.setLevel(logging.ERROR)
    try:
        for logger in levels:
            logger.setLevel(logging.ERROR)
        if not has_handlers:
            # Python's handler of last resort writes to the redirected sys.stderr; this one writes to the real one.
            lm_eval_logger.addHandler(error_handler)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        lm_eval_logger.removeHandler(error_handler)
        for logger, level in levels.items():
            logger.setLevel(level)


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Restore the states of `random` and `numpy.random` after the block."""
    state, numpy_state = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed `random` and `numpy.random` inside the block; seed 0 is how `simple_evaluate` seeds them by default."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    with preserved_random_state():
        random.seed(DEFAULT_RANDOM_SEED + seed)
        np.random.seed((DEFAULT_OTHER_SEED + seed) % 2**32)
        yield


def index_tasks(folder: Path | None = None) -> dict[str, Any]:
    """Return the entries of all tasks, groups and tags in the YAML files below a folder, by name.

    An entry has the attributes `name`, `kind`, `yaml_path`, `cfg` (the parsed YAML) and `tags` (the members of a tag).

    Args:
        folder: where to look; by default in the tasks of the harness, which takes seconds the first time.

    Raises MissingPackageError.
    """
    return dict(_task_manager(folder).task_index)


def index_suite(name: str) -> dict[str, Any]:
    """Return the entries of one folder of the harness's tasks, such as `ruler`; faster than indexing all of them."""
    installed_version()
    import lm_eval.tasks

    return index_tasks(Path(lm_eval.tasks.__file__).parent / name)


def expand_group(name: str, find_entry: Callable[[str], Any]) -> list[str]:
    """Return the names of the tasks in a group or tag, in the order of the harness; for a task, its own name.

    Args:
        name: of the task, group or tag.
        find_entry: returns the index entry of a name.

    Raises InputError for a group that overrides fields of its tasks: their names alone do not describe them.
    """
    entry = find_entry(name)
    if entry.kind.name == "TAG":
        return sorted(entry.tags)
    if entry.kind.name != "GROUP":
        return [name]
    from lm_eval.config.group import GroupConfig

    members = entry.cfg["task"]
    overrides = set(entry.cfg) - set(GroupConfig.__dataclass_fields__) - {"tag"}
    if overrides or not all(isinstance(member, str) for member in members):
        raise InputError(
            "task", name, "a group that does not override its tasks", "name one of its tasks, or write a YAML file"
        )
    return [task for member in members for task in expand_group(member, find_entry)]


def load_task(entry: Any, seed: int, dataset: Any = None) -> Any:
    """Load the task of an index entry with its data.

    Args:
        entry: as returned by `index_tasks`.
        seed: for tasks that draw their data at random.
        dataset: a `datasets.Dataset` to use as the test split, in place of the data that the task would download.
    """
    from lm_eval.tasks import TaskManager

    with quiet(), seeded(seed):
        if dataset is None:
            tasks = TaskManager(include_defaults=False).load(str(entry.yaml_path))["tasks"]
        else:
            # The harness overrides a field of a registered task only for the members of a group.
            member = {"task": entry.name, "custom_dataset": lambda **metadata: {"test": dataset}, "test_split": "test"}
            group = {"group": f"{entry.name}_group", "task": [member]}
            tasks = _task_manager(entry.yaml_path.parent).load(group)["tasks"]
    return tasks[entry.name]


def build_requests(
    task: Any,
    count: int,
    seed: int,
    num_fewshot: int | None = None,
    chat_template: Callable[..., str] | None = None,
) -> list[list[Any]]:
    """Build the requests of each of the first documents of a task, as `simple_evaluate` does.

    Args:
        task: a loaded task.
        count: number of documents; a task with fewer documents uses all of them.
        seed: for the choice of few-shot examples.
        num_fewshot: examples before each question; a task whose YAML sets 0 keeps 0.
        chat_template: renders the messages of a prompt, as `HFLM.apply_chat_template` does; None for plain text. The
            examples are then turns of the conversation, as with the default options of the harness.

    Returns one list of requests (`lm_eval.api.instance.Instance`) for each document.
    """
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    configured = task.get_config("num_fewshot")
    if num_fewshot is None or configured == 0:
        num_fewshot = configured or 0
    task.set_config("num_fewshot", num_fewshot)
    task.set_fewshot_seed(DEFAULT_OTHER_SEED + seed)
    with quiet(), seeded(seed):
        task.build_all_requests(
            limit=count,
            apply_chat_template=chat_template is not None,
            fewshot_as_multiturn=chat_template is not None,
            chat_template=chat_template,
        )
    requests_by_document: dict[int, list[Any]] = {}
    for request in task.instances:
        requests_by_document.setdefault(request.doc_id, []).append(request)
    return [sorted(requests, key=attrgetter("idx")) for requests in requests_by_document.values()]


def render_prompt(task: Any, document: Mapping[str, Any], chat_template: Callable[..., str] | None) -> str:
    """Return the prompt that `build_requests` makes of a document, without examples.

    Args:
        task: a loaded task.
        document: one of its documents.
        chat_template: see `build_requests`.
    """
    prompt: str = task.fewshot_context(
        document,
        0,
        apply_chat_template=chat_template is not None,
        fewshot_as_multiturn=chat_template is not None,
        chat_template=chat_template,
        gen_prefix=task.doc_to_prefix(document),
    )
    return prompt


def generation_settings(request: Any) -> tuple[int, tuple[str, ...], bool]:
    """Return the maximum number of new tokens, the stop strings, and whether answers are sampled, for one request."""
    from lm_eval.models.utils import normalize_gen_kwargs

    with quiet():
        settings = normalize_gen_kwargs(request.args[1])
    return settings["max_gen_toks"], tuple(filter(None, settings["until"])), settings["do_sample"]


def score_responses(task: Any, requests: Sequence[Any], responses: Sequence[Any]) -> dict[str, Any]:
    """Return the metrics of one document, converted to plain JSON values.

    Most metrics are numbers; some are lists that only the aggregation of the metric reduces to a number. If the task
    has several filters, the metrics are named `metric,filter`, as in the results of the harness.

    Args:
        task: the loaded task.
        requests: all requests of the document.
        responses: the model's response to each request.
    """
    with quiet():
        for request, response in zip(requests, responses, strict=True):
            request.resps = [response] * (request.repeats or 1)
            request.filtered_resps = {}
        for response_filter in task._filters:
            response_filter.apply(requests)
        filters = list(requests[0].filtered_resps)
        scores = {}
        for name in filters:
            filtered = [request.filtered_resps[name] for request in requests]
            for metric, value in task.process_results(requests[0].doc, filtered).items():
                scores[metric if len(filters) == 1 else f"{metric},{name}"] = value
    # Metrics may be numpy scalars.
    return dict(json.loads(json.dumps(scores, default=methodcaller("tolist"))))


def first_metric(config: Mapping[str, Any]) -> tuple[str, bool]:
    """Return the name of the first metric of a task, and whether higher values of it are better.

    Args:
        config: the parsed YAML of the task.
    """
    from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY, is_higher_better

    default_names = DEFAULT_METRIC_REGISTRY[config.get("output_type", "generate_until")]
    metric = (config.get("metric_list") or [{"metric": name} for name in default_names])[0]
    name = metric["metric"]
    if "/" in name:  # the path of a Python function; the harness uses the name of the function
        name = name.rpartition(".")[2]
    if metric.get("higher_is_better") is not None:
        return name, bool(metric["higher_is_better"])
    return name, bool(is_higher_better(name))


@cache
def _task_manager(folder: Path | None) -> Any:
    installed_version()
    from lm_eval.tasks import TaskManager

    with quiet():
        return TaskManager(include_path=folder, include_defaults=folder is None)
