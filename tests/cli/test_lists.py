"""The commands that recommend or list: plan, methods, tasks, engines."""

from __future__ import annotations

import json

import ropewalk as rw
from ropewalk.scaling import REGISTRY
from ropewalk.serving.engines import ENGINES


def test_plan_recommends_a_scaling_that_reaches_the_target(run, tiny_folder):
    status, out, _ = run("plan", tiny_folder, "--target", "1k", "--json")
    document = json.loads(out)
    assert status == 0
    assert document["scaling"]["name"] == "yarn"
    assert document["scaling"]["factor"] >= 1024 / 64
    assert document["rope_parameters"]["factor"] == document["scaling"]["factor"]


def test_plan_recommends_nothing_within_the_original_length(run, tiny_folder):
    _, out, _ = run("plan", tiny_folder, "--target", "64")
    assert "nothing to do" in out


def test_methods_lists_both_registries(run):
    _, out, _ = run("methods", "--json")
    changes = {method["name"]: method["changes"] for method in json.loads(out)}
    frequencies, positions = dict.fromkeys(REGISTRY, "frequencies"), dict.fromkeys(rw.positions.REGISTRY, "positions")
    assert changes == frequencies | positions
    _, out, _ = run("methods")
    assert all(name in out for name in changes)


def test_tasks_lists_tasks_and_metrics(run):
    status, out, _ = run("tasks", "--json")
    assert status == 0
    document = json.loads(out)
    tasks = {task["name"]: task for task in document["tasks"]}
    assert {"passkey", "needle", "perplexity", "ruler", "longbench", "generate", "lm-eval"} <= set(tasks)
    assert {"nolima", "longbench-v2", "rag", "mrcr"} <= set(tasks)
    assert tasks["needle"]["positional"] == "text"
    assert tasks["generate"]["options"] == {"file": None, "metric": "f1", "max_new_tokens": 64}
    assert {"bleu", "rouge-l", "f1"} <= {metric["name"] for metric in document["metrics"]}
    assert run("tasks")[1].count("\n") > len(tasks)


def test_engines_lists_the_support_of_every_method(run):
    status, out, _ = run("engines", "--json")
    support = {(entry["engine"], entry["method"]): entry for entry in json.loads(out)["engines"]}
    assert status == 0
    assert set(support) == {(engine, method) for engine in ENGINES for method in REGISTRY}
    assert support["vllm", "dynamic-yarn"]["detail"] == "request factors"
    assert support["sglang", "dynamic-yarn"] == {
        "engine": "sglang",
        "method": "dynamic-yarn",
        "how": "no",
        "detail": "yarn:factor=4",
        "proven": [],
        "refuted": [],
    }
    status, out, _ = run("engines")
    assert status == 0
    assert all(engine in out for engine in ENGINES)
