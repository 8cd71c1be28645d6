"""Every text architecture of transformers: a raw config.json is read as its rotary module computes it.

The modules are built from transformers' own configuration classes, on some ten configurations of each architecture.
"""

import numpy as np
import pytest
from tests.helpers.rotary_tables import all_model_types, iterate_cases

from ropewalk import config as configs
from ropewalk.config.normalize import normalize
from ropewalk.rope import RotaryDimError

# Where the reading follows the code or the configurations that a model is published with, not the class.
KNOWN_DIFFERENCES = {
    ("diffusion_gemma_text", "a partial factor beside"): "only its sliding-window layers take the fraction over",
    ("dots3_note_text", "version"): "a flat rope dict also replaces the base of sliding-window layers",
    ("mistral4", "version 4"): "a rope dict without the fraction makes the module rotate more than the model's keys",
    ("mistral4", "a partial factor inside"): "an unscaled module ignores the fraction",
}
# Architectures whose default sizes give an odd number of rotary dimensions.
ODD_SIZES = {"glm4_moe", "glm4v_moe_text", "qwen3_omni_moe_text"}


def is_known_difference(model_type, variant):
    return any(model_type == known and variant.startswith(start) for known, start in KNOWN_DIFFERENCES)


@pytest.mark.parametrize("model_type", all_model_types())
def test_raw_configuration_is_read_as_the_rotary_module_computes(model_type):
    compared = 0
    for variant, raw, config, tables in iterate_cases(model_type):
        if is_known_difference(model_type, variant):
            continue
        stated = {"attention_head_dim": config.attention_head_dim} if model_type == "zamba2" else {}
        try:
            model_config = configs.from_dict({**raw, **stated})
        except RotaryDimError:
            assert model_type in ODD_SIZES, variant
            continue
        compared += 1
        for layer_type, (inv_freq, attention_factor) in tables.items():
            layer = model_config.ropes[layer_type if layer_type in model_config.ropes else configs.ALL_LAYERS]
            ours = layer.scaling.frequencies(layer.rope, 1)
            # Ernie 4.5 VL does not keep the frequencies in order.
            expected = np.sort(inv_freq)[::-1] if model_type == "ernie4_5_vl_moe_text" else inv_freq
            name = f"{variant}, {layer_type}"
            np.testing.assert_allclose(ours.inv_freq, expected, rtol=1e-4, atol=1e-12, err_msg=name)
            assert ours.attention_factor == pytest.approx(attention_factor, abs=1e-5), name
        layer_types = getattr(config, "layer_types", None)
        if layer_types:
            assert normalize({**raw, **stated})["layer_types"] == list(layer_types), variant
    assert compared or model_type in ODD_SIZES | {"cohere_compass_text"}


@pytest.mark.parametrize("model_type", all_model_types())
def test_normalizing_twice_changes_nothing(model_type):
    switch = {"granitemoehybrid": {"position_embedding_type": "rope"}, "zamba2": {"use_mem_rope": True}}
    once = normalize({"model_type": model_type, **switch.get(model_type, {})})
    assert normalize(once) == once
