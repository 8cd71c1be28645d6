"""Mistakes of users: one clear line on standard error, exit status 2, and never a traceback."""

from __future__ import annotations

import json

import pytest

from ropewalk.config import locate

VALID_OPTIONS = {"--scaling": "none", "--lengths": "32", "--dtype": "float32"}


@pytest.fixture
def curve(run, tiny_folder, text_file, tmp_path):
    """Run `ropewalk curve` with valid options but for those that are given."""

    def run_curve(model=None, **changes):
        options = {**VALID_OPTIONS, "--text": text_file, "--out": tmp_path / "out"}
        options |= {f"--{name}": value for name, value in changes.items()}
        return run("curve", model or tiny_folder, *[part for pair in options.items() for part in pair])

    return run_curve


def assert_input_error(result, *parts):
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
        ("yran:factor=2", ("scaling", "'yran'", "did you mean yarn?")),
        ("yarn", ("yarn: factor", "None")),
        ("yarn:facto=2", ("yarn: option", "'facto'", "did you mean factor?")),
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
    assert_input_error(curve(scaling=scaling), *parts)


@pytest.mark.parametrize(
    ("lengths", "parts"),
    [
        ("many", ("lengths", "'many'", "8k")),
        (",", ("lengths", "at least one")),
        ("1", ("at least 2",)),
        ("-5", ("lengths",)),
        ("1k", ("lengths", "1024", "300 tokens")),
    ],
)
def test_lengths(curve, lengths, parts):
    assert_input_error(curve(lengths=lengths), *parts)


def test_a_trailing_comma_in_lengths_is_allowed(curve):
    assert curve(lengths="32,")[0] == 0


@pytest.mark.parametrize(
    ("content", "parts"),
    [(None, ("text", "text.txt", "exists")), (b"", ("text", "is empty")), (b"\xff\xfe\x00", ("text", "not UTF-8"))],
)
def test_texts(curve, tmp_path, content, parts):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    assert_input_error(curve(text=path), *parts)


@pytest.mark.parametrize(
    ("option", "value", "parts"),
    [
        ("chunk", "0", ("chunk", "'0'")),
        ("chunk", "many", ("chunk", "'many'")),
        ("policy", "steped", ("policy", "'steped'", "did you mean stepped")),
        ("policy", "stepped:factors=[4,2]", ("stepped: factors", "increasing order")),
        ("policy", "continuous:every=0", ("continuous: every", "0")),
        ("policy", "continuous:margin=0.5", ("continuous: margin", "0.5", "at least 1")),
        ("policy", "stepped:factor=2", ("stepped: option", "'factor'", "factors, margin")),
        ("dtype", "int3", ("dtype", "'int3'", "bfloat16")),
    ],
)
def test_chunks_policies_and_dtypes(curve, option, value, parts):
    assert_input_error(curve(**{option: value}), *parts)


def test_output_folders(curve, tmp_path):
    (tmp_path / "file").write_text("")
    assert_input_error(curve(out=tmp_path / "file" / "out"), "out", "can be written")
    assert curve()[0] == 0
    assert_input_error(curve(dtype="bfloat16"), "out", "another run", "dtype")
    (tmp_path / "out" / "curve.json").write_text("{")
    assert_input_error(curve(), "out", "cannot be read")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"head_dim": 15}, ("dim", "15", "even")),
        # An architecture whose class transformers does not have, so that no default applies.
        (
            {"model_type": "unknown", "max_position_embeddings": None},
            ("original_length", "None", "max_position_embeddings"),
        ),
        ({"model_type": "gpt2", "rope_theta": None}, ("gpt2", "rope fields")),
        ({"rope_theta": "big"}, ("base", "'big'")),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 0.1}}, ("yarn: factor", "0.1")),
        ({"rope_parameters": {"rope_type": "yorn"}}, ("scaling", "'yorn'")),
    ],
)
def test_fields_of_config_json(run, tmp_path, changes, parts):
    config = {"model_type": "llama", "rope_theta": 1e4, "head_dim": 16, "max_position_embeddings": 64, **changes}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    assert_input_error(run("frequencies", path, "--scaling", "yarn:factor=4"), *parts)


def test_files_that_are_not_models(run, curve, tmp_path):
    (tmp_path / "config.json").write_text("{ not json")
    assert_input_error(run("frequencies", tmp_path / "config.json"), "readable config.json")
    for path in (tmp_path, tmp_path / "config.json"):  # reported as given
        argv = ("export", path, "--scaling", "none", "--engine", "vllm")
        assert_input_error(run(*argv), f"model: got '{path}';", "readable config.json")
    assert_input_error(run("frequencies", tmp_path / "missing.gguf"), "missing.gguf", "exists")
    (tmp_path / "noise.gguf").write_bytes(b"GGUF" + bytes(range(256)))
    assert_input_error(run("frequencies", tmp_path / "noise.gguf"), "GGUF")
    assert_input_error(curve(model=tmp_path / "noise.gguf"), "GGUF")


@pytest.mark.parametrize("size", [20, 5_000, 3_000_000, 60_000_000])
def test_truncated_gguf_files(run, tmp_path, size):
    with open(locate("smollm2"), "rb") as file:
        (tmp_path / "part.gguf").write_bytes(file.read(size))
    assert_input_error(run("frequencies", tmp_path / "part.gguf", "--scaling", "none"), "part.gguf", "GGUF")


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (("nonsense",), ("nonsense",)),
        (("curve", "MODEL"), ("Missing option",)),
        (("plan", "MODEL", "--traget", "1k"), ("--traget", "--target")),
        (("plan", "MODEL", "--target", "0"), ("target", "'0'")),
        (("plan", "MODEL", "--target", "-5"), ("target", "'-5'")),
        (("plan", "MODEL", "--target", "far"), ("target", "'far'")),
        (("frequencies", "MODEL", "--scaling", "dynamic-ntk"), ("length", "dynamic-ntk needs")),
        (("export", "MODEL", "--scaling", "none", "--engine", "vlm"), ("engine: got 'vlm'", "did you mean vllm?")),
        (("doctor", "MODEL", "--engine", "nobody"), ("engine: got 'nobody'",)),
        (("doctor", "smollm2", "--engine", "vllm"), ("model: got 'smollm2'", "a folder with config.json")),
        (("doctor", "smollm2", "--target", "far"), ("target: got 'far'",)),
        (("doctor", "nowhere/config.json"), ("nowhere/config.json", "a file or folder that exists")),
        (("verify", "MODEL", "--scaling", "none", "--engine", "vllm", "--url", "nope"), ("url: got 'nope'",)),
        (("engines", "--verified", "nowhere"), ("verified: got 'nowhere'",)),
        (("tasks", "--markdown"), ("No such option: --markdown",)),
    ],
)
def test_arguments_and_options(run, tiny_folder, argv, parts):
    argv = [tiny_folder if argument == "MODEL" else argument for argument in argv]
    assert_input_error(run(*argv), *parts)


def test_a_file_that_is_not_a_result_of_verify(run, tmp_path):
    (tmp_path / "other.json").write_text('{"rows": []}')
    assert_input_error(run("engines", "--verified", tmp_path), "other.json")
