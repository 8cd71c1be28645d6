"""Methods that transformers has no name for, on a model: saved as longrope lists or as yarn, and loaded again."""

import json

import pytest
import torch
from tests.helpers.architectures import LENGTH, LONG_IDS, TOLERANCE, build, compute_logits, relative_difference

import ropewalk as rw

pytestmark = pytest.mark.usefixtures("one_thread")
# The tiny model has 8 pairs, of which the last 6 complete no rotation over its 32 tokens.
METHODS = {
    "mrrope-uni:factor=4": "longrope",
    "mrrope-pro:factor=4": "longrope",
    "cope": "longrope",
    "cope:factor=4": "longrope",
    "yarn:factor=4,critical=3": "yarn",
    "ntk-by-parts:factor=4,critical=3": "longrope",
}


@pytest.mark.parametrize("spec", METHODS)
def test_saved_model_computes_the_same_in_plain_transformers(spec, tmp_path):
    model = build("llama")
    plain, plain_parameters = compute_logits(model, ids=LONG_IDS), dict(model.config.rope_parameters)
    rw.extend(model, spec)
    scaled = compute_logits(model, ids=LONG_IDS)
    assert relative_difference(scaled, plain) > 10 * TOLERANCE
    assert model.config.max_position_embeddings == LENGTH * (4 if "factor" in spec else 1)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["rope_parameters"]["rope_type"] == METHODS[spec]
    loaded = type(model).from_pretrained(tmp_path)
    assert relative_difference(compute_logits(loaded, ids=LONG_IDS), scaled) < TOLERANCE
    rw.restore(model)
    assert torch.equal(compute_logits(model, ids=LONG_IDS), plain)
    assert dict(model.config.rope_parameters) == plain_parameters
    assert model.config.max_position_embeddings == LENGTH


@pytest.mark.parametrize("spec", ["none", "linear:factor=4", "mrrope-pro:factor=4", "yarn:factor=4", "cope"])
def test_the_temperature_of_ministral3_is_kept_and_applied(spec, tmp_path):
    model = build("ministral3")
    original = dict(model.config.rope_parameters)
    plain = compute_logits(model, ids=LONG_IDS)
    rw.extend(model, spec)
    kept = {"llama_4_scaling_beta": 0.1, "original_max_position_embeddings": LENGTH}
    assert kept.items() <= model.config.rope_parameters.items()
    scaled = compute_logits(model, ids=LONG_IDS)
    model.save_pretrained(tmp_path)
    assert kept.items() <= json.loads((tmp_path / "config.json").read_text())["rope_parameters"].items()
    loaded = type(model).from_pretrained(tmp_path)
    assert relative_difference(compute_logits(loaded, ids=LONG_IDS), scaled) < TOLERANCE
    model.config.rope_parameters["llama_4_scaling_beta"] = 0.0
    assert relative_difference(compute_logits(model, ids=LONG_IDS), scaled) > 10 * TOLERANCE  # its attention reads it
    model.config.rope_parameters["llama_4_scaling_beta"] = 0.1
    rw.restore(model)
    assert dict(model.config.rope_parameters) == original
    assert torch.equal(compute_logits(model, ids=LONG_IDS), plain)
