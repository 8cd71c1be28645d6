from __future__ import annotations

import sys

import pytest

from ropewalk import InputError
from ropewalk.cli import main
from ropewalk.serving.engines import find_engine
from ropewalk.serving.verify.environments import python_of
from ropewalk.serving.verify.run_engine import run, runner_of

JOB = {"path": "/nowhere", "length": 64, "prompts": [[1]], "top": 4, "positions": [0]}


def test_where_an_engine_is(monkeypatch, tmp_path):
    monkeypatch.setenv("ROPEWALK_ENGINES", str(tmp_path))
    assert python_of(find_engine("transformers")) == sys.executable
    with pytest.raises(InputError, match="make engines"):
        python_of(find_engine("vllm"))
    own = tmp_path / "vllm" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.symlink_to(sys.executable)
    assert python_of(find_engine("vllm")) == str(own)
    assert python_of(find_engine("vllm"), sys.executable) == sys.executable
    with pytest.raises(InputError, match="python"):
        python_of(find_engine("vllm"), str(tmp_path))


def test_an_engine_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"transformers did not get through: .*nowhere"):
        run(find_engine("transformers"), sys.executable, JOB, lambda _: None)


def test_a_python_without_the_engine_says_so():
    with pytest.raises(RuntimeError, match="xllamacpp"):
        run(find_engine("llama.cpp"), sys.executable, JOB, lambda _: None)


def test_engines_that_only_a_server_can_prove():
    with pytest.raises(InputError, match="--url"):
        runner_of(find_engine("ollama"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--engine", "vlm"], "engine"),
        (["--engine", "ollama"], "--url"),
        (["--engine", "transformers", "--length", "20"], "length"),
        (["--engine", "transformers", "--served", "/nowhere"], "served"),
        (["--engine", "transformers", "--control-url", "http://127.0.0.1:9/v1"], "control_url"),
        (["--engine", "transformers", "--url", "ftp://x", "--served", "x"], "url"),
        (["--engine", "transformers", "--python", "/nowhere"], "python"),
    ],
)
def test_wrong_calls(small, capsys, arguments, named):
    with pytest.raises(SystemExit) as exit_:
        main(["verify", small, "--scaling", "yarn:factor=4", *arguments])
    assert exit_.value.code == 2
    said = capsys.readouterr()
    assert named in said.err
    assert said.err.count("\n") == 1
    assert not said.out
