from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import ropewalk as rw
from ropewalk.errors import InputError
from ropewalk.tuning import run as runs


@pytest.fixture
def text_file(tmp_path):
    """A text of 700 words that the tokenizer of the tiny model knows."""
    path = tmp_path / "words.txt"
    path.write_text(" ".join(f"w{number}" for number in np.random.default_rng(0).integers(0, 97, size=700)))
    return str(path)


def tune(folder, text_file, out, **options):
    options = {"target": 192, "method": "gradient:facts=2", "steps": 3, "samples": 1} | options
    return rw.tune(str(folder), text=text_file, out=out, **options)


def test_the_result_is_stored_with_its_origin_and_proved_on_text_that_no_step_reads(tiny_folder, text_file, tmp_path):
    result = tune(tiny_folder, text_file, tmp_path / "out", per_layer=True)
    assert result.scaling == rw.parse(str(tmp_path / "out" / "scaling.json"))
    assert (result.scaling.model, result.scaling.target, result.scaling.num_layers) == (str(tiny_folder), 192, 2)
    assert result.proof.tuned == str(result.scaling)
    [held_out] = result.proof.perplexities
    words = Path(text_file).read_text().split()
    proved = Path(held_out).read_text().split()
    assert proved == words[-216:]
    again = tune(tiny_folder, text_file, tmp_path / "out", per_layer=True)
    assert again == result


def test_no_method_gets_the_held_out_text(tiny_folder, text_file, tmp_path):
    run = runs.TuneRun(str(tiny_folder), 192, text_file, tmp_path / "out")
    words = [int(word[1:]) for word in Path(text_file).read_text().split()]
    [document], [validation] = run.job.documents, run.job.validation
    assert [*document, *validation] == words[:-216]
    assert len(validation) == 192


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 64}, "target: got 64; expected more than the 64 tokens that the model was trained on"),
        ({"target": 256}, "700 tokens'; expected at least 800 tokens"),
        ({"method": "gradients"}, "did you mean gradient"),
        ({"method": "search", "per_layer": True}, "per_layer: got True; expected a method that has it; search has"),
        ({"samples": 0}, "samples: got 0; expected a whole number of samples"),
        ({"seed": -1}, "seed: got -1; expected 0 or more"),
        ({"method": "gradient:window=500"}, "window: got 500; expected at most the target, 192 tokens"),
        ({"method": "gradient:facts=19"}, "facts: got 19; expected from 0 to 18"),
    ],
)
def test_bad_input_is_one_line(tiny_folder, text_file, tmp_path, options, message):
    options = {"steps": None} | options
    with pytest.raises(InputError) as error:
        tune(tiny_folder, text_file, tmp_path / "out", **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_folder_of_another_run_is_refused_and_its_text_stays(tiny_folder, text_file, tmp_path):
    out = tmp_path / "out"
    runs.TuneRun(str(tiny_folder), 192, text_file, out)
    held_out = (out / "held_out-1.txt").read_text()
    other_text = tmp_path / "other.txt"
    other_text.write_text(" ".join(f"w{i % 7}" for i in range(700)))
    for text, options in ((other_text, {}), (text_file, {"seed": 1}), (text_file, {"method": "evolution"})):
        with pytest.raises(InputError, match=r"out: got .*, which has a run with another (text|seed|method)"):
            runs.TuneRun(str(tiny_folder), 192, str(text), out, **options)
    assert (out / "held_out-1.txt").read_text() == held_out


def test_an_extended_model_is_refused(tiny_folder, text_file, tmp_path):
    model, tokenizer = rw.load(str(tiny_folder))
    rw.extend(model, "yarn:factor=2")
    with pytest.raises(InputError, match=r"model: got 'one that is extended'; expected .* ropewalk.restore"):
        runs.TuneRun((model, tokenizer), 192, text_file, tmp_path / "out")


def test_another_run_in_the_folder_is_refused_while_one_is_there(tiny_folder, text_file, tmp_path):
    run = runs.TuneRun(str(tiny_folder), 192, text_file, tmp_path / "out", method="gradient:facts=2", steps=1)

    def on_progress(share, detail):
        other = runs.TuneRun(str(tiny_folder), 192, text_file, tmp_path / "out", method="gradient:facts=2", steps=1)
        with pytest.raises(InputError, match="to which another process writes"):
            other.tune()

    run.tune(on_progress)


def test_a_scaling_of_a_search_is_stored_as_what_it_is(tiny_folder, text_file, tmp_path, monkeypatch):
    run = runs.TuneRun(str(tiny_folder), 192, text_file, tmp_path / "out")
    monkeypatch.setattr(type(run.method), "run", lambda self, job, on_progress: rw.YaRN(factor=3, beta_fast=8))
    assert run.tune() == rw.YaRN(factor=3, beta_fast=8)
    assert rw.parse(json.loads(run.scaling_path.read_text())) == rw.YaRN(factor=3, beta_fast=8)
