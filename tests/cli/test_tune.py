from __future__ import annotations

import json

import numpy as np
import pytest


@pytest.fixture
def book(tmp_path):
    """A text of 700 words that the tokenizer of the tiny model knows."""
    path = tmp_path / "book.txt"
    path.write_text(" ".join(f"w{number}" for number in np.random.default_rng(0).integers(0, 97, size=700)))
    return path


def test_the_command_tunes_and_proves(run, tiny_folder, book, tmp_path):
    arguments = ["--target", "192", "--text", book, "--out", tmp_path / "out", "--method", "gradient:facts=2"]
    arguments += ["--steps", "2", "--per-layer", "--samples", "1", "--device", "cpu"]
    status, out, err = run("tune", tiny_folder, *arguments)
    assert status == 0, err
    assert "scaling.json" in err
    assert "tuning with gradient:per_layer=true,steps=2,facts=2: 100%" in err
    assert "the formula with the lowest perplexity" in out.replace("\n", " ")
    assert {"scaling.json", "log.jsonl", "checkpoint.safetensors", "proof"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }
    status, out, err = run("tune", tiny_folder, *arguments, "--json")
    document = json.loads(out)
    assert document["scaling"]["divisors"] == json.loads((tmp_path / "out" / "scaling.json").read_text())["divisors"]
    assert document["proof"] == json.loads((tmp_path / "out" / "proof" / "proof.json").read_text())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--target": "64"}, "target: got 64; expected more than the 64 tokens that the model was trained on"),
        ({"--target": "1k"}, "700 tokens'; expected at least 3,200 tokens"),
        ({"MODEL": "gpt2"}, "model: got 'gpt2'; expected one with rope fields"),
    ],
)
def test_bad_input_is_one_line(run, tiny_folder, book, tmp_path, changes, message):
    if "MODEL" in changes:  # a model without rotary embeddings
        (tmp_path / "gpt2").mkdir()
        (tmp_path / "gpt2" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
        changes = {"MODEL": tmp_path / "gpt2"}
    options = {"MODEL": tiny_folder, "--target": "192", "--text": book, "--out": tmp_path / "out"} | changes
    status, out, err = run("tune", options.pop("MODEL"), *(part for option in options.items() for part in option))
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
