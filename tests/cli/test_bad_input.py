"""Every mistake a user can make: one clear line, exit status 2, never a traceback."""

from __future__ import annotations

import json

import pytest

from ropewalk.config import locate
from ropewalk.errors import InputError

GOOD = {"--scaling": "none", "--lengths": "32", "--dtype": "float32"}


@pytest.fixture
def curve(run, tiny_folder, words, tmp_path):
    def _call(model=None, **changed):
        options = {**GOOD, "--text": words, "--out": tmp_path / "out"} | {f"--{k}": v for k, v in changed.items()}
        return run("curve", model or tiny_folder, *[part for pair in options.items() for part in pair])

    return _call


def assert_one_line(result, *parts):
    status, out, err = result
    lines = [line for line in err.splitlines() if not line.startswith("loading ")]
    assert status == 2, err
    assert out == ""
    assert len(lines) == 1, err
    assert lines[0].startswith("ropewalk: error: ")
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize(
    ("scaling", "parts"),
    [
        ("yran:factor=2", ("scaling", "'yran'", "yarn")),
        ("yarn", ("yarn: factor", "None")),
        ("yarn:facto=2", ("yarn: option", "'facto'", "factor")),
        ("yarn:factor=two", ("yarn: factor", "'two'", "at least 1")),
        ("yarn:factor=0.5", ("yarn: factor", "0.5", "at least 1")),
        ("linear:factor=nan", ("linear: factor", "at least 1")),
        ("linear:factor=1e999", ("linear: factor", "at least 1")),
        ("linear:factor", ("option=value",)),
        ("linear:factor=true", ("linear: factor", "True")),
        ("yarn:factor=2,beta_fast=1,beta_slow=2", ("yarn: beta_fast", "beta_slow")),
        ("longrope:short_factor=[1],long_factor=[1],factor=2", ("longrope: short_factor", "8")),
        ('{"rope_type": "yarn"', ("scaling", "JSON")),
        ('{"rope_type": "yarn", "factor": 2, "beta_fst": 3}', ("yarn: key", "'beta_fst'")),
    ],
)
def test_scalings(curve, scaling, parts):
    assert_one_line(curve(scaling=scaling), *parts)


@pytest.mark.parametrize(
    ("lengths", "parts"),
    [("many", ("lengths", "'many'", "8k")), ("32,", None), (",", ("lengths", "at least one")), ("1", ("at least 2",)),
     ("-5", ("lengths",)), ("1k", ("lengths", "1024", "300 tokens"))],
)  # fmt: skip
def test_lengths(curve, lengths, parts):
    result = curve(lengths=lengths)
    if parts is None:
        assert result[0] == 0
    else:
        assert_one_line(result, *parts)


def test_texts(curve, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    assert_one_line(curve(text=tmp_path / "missing.txt"), "text", "missing.txt", "exists")
    assert_one_line(curve(text=tmp_path / "empty.txt"), "text", "is empty")
    assert_one_line(curve(text=tmp_path / "binary.txt"), "text", "not UTF-8")


def test_chunks_and_policies(curve):
    for options, parts in (
        ({"chunk": "0"}, ("chunk", "'0'")),
        ({"chunk": "many"}, ("chunk", "'many'")),
        ({"policy": "steped"}, ("policy", "'steped'", "did you mean stepped")),
        ({"policy": "stepped:factors=[4,2]"}, ("stepped: factors", "rising order")),
        ({"policy": "continuous:every=0"}, ("continuous: every", "0")),
        ({"policy": "continuous:margin=0.5"}, ("continuous: margin", "0.5", "at least 1")),
        ({"policy": "stepped:factor=2"}, ("stepped: option", "'factor'", "factors, margin")),
    ):
        assert_one_line(curve(**options), *parts)


def test_folders_to_write(curve, tmp_path):
    (tmp_path / "file").write_text("")
    assert_one_line(curve(out=tmp_path / "file" / "out"), "out", "can be written")
    assert curve()[0] == 0
    assert_one_line(curve(dtype="bfloat16"), "out", "another run", "dtype")
    (tmp_path / "out" / "curve.json").write_text("{")
    assert_one_line(curve(), "out", "cannot be read")


def test_dtypes(curve):
    assert_one_line(curve(dtype="int3"), "dtype", "'int3'", "bfloat16")


def config_file(folder, **fields):
    good = {"model_type": "llama", "rope_theta": 1e4, "head_dim": 16, "max_position_embeddings": 64}
    path = folder / "config.json"
    path.write_text(json.dumps({key: value for key, value in {**good, **fields}.items() if value is not None}))
    return path


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"head_dim": 15}, ("dim", "15", "even")),
        ({"max_position_embeddings": None}, ("original_length", "None", "yarn needs")),
        ({"model_type": "gpt2", "rope_theta": None}, ("gpt2", "rope fields")),
        ({"rope_theta": "big"}, ("base", "'big'")),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 0.1}}, ("yarn: factor", "0.1")),
        ({"rope_parameters": {"rope_type": "yorn"}}, ("scaling", "'yorn'")),
    ],
)
def test_configurations(run, tmp_path, fields, parts):
    assert_one_line(run("frequencies", config_file(tmp_path, **fields), "--scaling", "yarn:factor=4"), *parts)


def test_files_that_are_no_model(run, curve, tmp_path):
    (tmp_path / "config.json").write_text("{ not json")
    assert_one_line(run("frequencies", tmp_path / "config.json"), "readable config.json")
    assert_one_line(run("frequencies", tmp_path / "missing.gguf"), "missing.gguf", "exists")
    (tmp_path / "noise.gguf").write_bytes(b"GGUF" + bytes(range(256)))
    assert_one_line(run("frequencies", tmp_path / "noise.gguf"), "GGUF")
    assert_one_line(curve(model=tmp_path / "noise.gguf"), "GGUF")


@pytest.mark.parametrize("size", [20, 5_000, 3_000_000, 60_000_000])
def test_a_truncated_gguf(run, tmp_path, size):
    with open(locate("smollm2"), "rb") as whole:
        (tmp_path / "part.gguf").write_bytes(whole.read(size))
    assert_one_line(run("frequencies", tmp_path / "part.gguf", "--scaling", "none"), "part.gguf", "GGUF")


def test_calls(run, tiny_folder):
    assert_one_line(run("nonsense"), "nonsense")
    assert_one_line(run("curve", tiny_folder), "Missing option")
    assert_one_line(run("plan", tiny_folder, "--target", "0"), "target", "'0'")
    assert_one_line(run("plan", tiny_folder, "--target", "far"), "target", "'far'")
    assert_one_line(run("frequencies", tiny_folder, "--scaling", "dynamic-ntk"), "length", "dynamic-ntk needs")


def test_an_input_error_travels_between_processes():
    import copy
    import pickle

    error = InputError("lengths", "9k", "at most 8k")
    for again in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert (type(again), str(again), again.field) == (InputError, str(error), "lengths")
