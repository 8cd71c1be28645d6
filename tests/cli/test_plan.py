"""`ropewalk plan`: what it prints, as text and as JSON, and plans that are refused."""

import json

import pytest
from tests.helpers.real_configs import real_config_path

from ropewalk.evaluate.plan_measurements import Measurements


def printed_changes(out):
    """Return the JSON that is printed between the words for people."""
    return json.loads(out[out.index("{\n") : out.rindex("}") + 1])


def test_json_has_the_plan_and_the_changes(run):
    status, out, _ = run("plan", real_config_path("mimo"), "--target", "512k", "--json")
    document = json.loads(out)
    assert status == 0
    assert set(document) == {
        "target", "original_length", "scaling", "needed", "reasons", "rope_parameters", "max_position_embeddings",
        "kv_cache_bytes", "spec", "changes",
    }  # fmt: skip
    assert document["changes"]["rope_parameters"] == document["rope_parameters"]
    assert document["changes"]["max_position_embeddings"] == document["max_position_embeddings"]


def test_changes_of_a_multimodal_model_are_printed_under_text_config(run):
    status, out, _ = run("plan", real_config_path("gemma3_27b"), "--target", "512k")
    assert status == 0
    assert printed_changes(out)["text_config"]["rope_parameters"]["full_attention"]["factor"] == 40


def test_fields_of_a_gguf_file_are_printed(run):
    status, out, _ = run("plan", real_config_path("qwen35moe.gguf"), "--target", "1m")
    assert status == 0
    assert "fields of the GGUF file" in out
    assert printed_changes(out)["qwen35moe.rope.scaling.type"] == "yarn"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("granite4_h", "no rotary embedding (position_embedding_type is nope)"),
        ("command_a", "so no scaling extends it"),
        ("qwen35_lost", "base-too-small"),  # its base is lost, which no scaling mends
    ],
)
def test_a_plan_that_cannot_be_right_is_one_line(run, name, reason):
    status, out, err = run("plan", real_config_path(name), "--target", "2m")
    assert (status, out) == (2, "")
    assert reason in err
    assert err.count("\n") == 1


def test_measure_prints_the_choice_in_numbers_and_continues(run, tiny_folder, text_file, tmp_path):
    options = ("--target", "120", "--text", text_file, "--out", tmp_path / "plan", "--dtype", "float32")
    status, out, err = run("plan", tiny_folder, *options, "--measure", "0.03", "--json")
    assert status == 0, err
    document = json.loads(out)
    chosen = document["measured"][0]
    assert (chosen["scaling"], document["spec"]) == (document["method"], document["method"])
    assert document["changes"]["rope_parameters"] == document["rope_parameters"]
    assert "% of the time: " in err
    status, out, err = run("plan", tiny_folder, *options, "--measure", "0.03")
    assert status == 0, err
    for part in ("Measured, the chosen method first", chosen["scaling"], "config.json for transformers 5"):
        assert part in out


def test_an_interrupted_measurement_keeps_what_it_has(run, tiny_folder, text_file, tmp_path, monkeypatch):
    add = Measurements.add

    def interrupt_after_three(results, *step):
        add(results, *step)
        if len(results.values) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Measurements, "add", interrupt_after_three)
    folder = tmp_path / "plan"
    options = ("--text", text_file, "--measure", "1", "--out", folder, "--dtype", "float32")
    status, out, err = run("plan", tiny_folder, "--target", "120", *options)
    assert (status, out) == (130, "")
    assert f"the measurements are safe in {folder}; the same command continues from there" in err
    (file,) = folder.glob("plan-*.json")
    assert len(json.loads(file.read_text())["steps"]) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--measure", "1"), "text: got ''; expected a text, with --measure"),
        (("--text", "pydoc"), "text: got 'pydoc'; expected --measure MINUTES beside it"),
        (("--measure", "-1", "--text", "pydoc"), "measure: got -1.0; expected a finite number above 0"),
    ],
)
def test_wrong_options_of_a_measurement_are_one_line(run, tiny_folder, options, message):
    status, out, err = run("plan", tiny_folder, "--target", "120", *options)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
