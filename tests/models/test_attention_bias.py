"""A bias on the attention scores of the layers that attend to the whole text."""

import pytest
import torch
from tests.helpers.architectures import LONG_IDS, TOLERANCE, build, compute_logits, relative_difference
from tests.models.test_layer_tables import ARCHITECTURES, WITH_LAYER_TYPES

from ropewalk.errors import UnsupportedModelError
from ropewalk.models.attention_bias import attention_bias, find_global_layers

pytestmark = pytest.mark.usefixtures("one_thread")
TOKENS = LONG_IDS.shape[1]
CAUSAL_TT = torch.full((TOKENS, TOKENS), -torch.inf).triu(1)
BIAS_TT = CAUSAL_TT.clone()
BIAS_TT[TOKENS // 2 :, : TOKENS // 4] = torch.linspace(1, 3, TOKENS // 4)
# Rotary layers with a sliding window of the same or another table, linear attention, and chunked attention.
GLOBAL_LAYERS = {
    "llama": [0, 1], "gemma2": [1], "gemma3_text": [1], "gpt_oss": [1], "mistral": [], "olmo3": [1], "qwen3_next": [1],
    "llama4_text": [],
}  # fmt: skip


@pytest.mark.parametrize("name", GLOBAL_LAYERS)
def test_the_layers_that_attend_to_the_whole_text_are_found(name):
    model = build(name)
    decoder_layers = list(model.model.layers)
    assert [decoder_layers.index(layer) for layer in find_global_layers(model)] == GLOBAL_LAYERS[name]


@pytest.mark.parametrize("name", [*ARCHITECTURES, *WITH_LAYER_TYPES])
def test_a_bias_of_zero_changes_nothing(name):
    model = build(name)
    plain, layers = compute_logits(model, ids=LONG_IDS), find_global_layers(model)
    with attention_bias(layers, CAUSAL_TT):
        assert relative_difference(compute_logits(model, ids=LONG_IDS), plain) < TOLERANCE


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_bias_is_added_to_the_scores(implementation):
    model = build("llama")
    model.set_attn_implementation(implementation)
    plain = compute_logits(model, ids=LONG_IDS)
    with torch.no_grad():
        expected = model(LONG_IDS, attention_mask=BIAS_TT[None, None], use_cache=False).logits
    with attention_bias(find_global_layers(model), BIAS_TT):
        biased = compute_logits(model, ids=LONG_IDS)
    assert relative_difference(biased, expected) < TOLERANCE
    assert relative_difference(biased, plain) > 100 * TOLERANCE
    assert torch.equal(compute_logits(model, ids=LONG_IDS), plain)  # nothing remains after the block


def test_layers_with_a_sliding_window_keep_their_mask():
    model = build("gemma3_text")
    local, last = model.model.layers
    inputs = {}

    def note(layer, args, kwargs):
        inputs[layer] = kwargs["attention_mask"]

    with attention_bias(find_global_layers(model), BIAS_TT):
        for layer in (local, last):
            layer.register_forward_pre_hook(note, with_kwargs=True)
        compute_logits(model, ids=LONG_IDS)
    assert torch.equal(inputs[last][0, 0], BIAS_TT)
    assert inputs[local] is None or inputs[local].dtype == torch.bool


@pytest.mark.parametrize("name", ["zamba2", "zaya"])
def test_layers_without_a_mask_of_scores_are_refused_by_name(name):
    with pytest.raises(UnsupportedModelError, match="Layer is not supported: it takes no mask that is added to"):
        find_global_layers(build(name))


def test_flash_attention_is_refused_by_name():
    model = build("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UnsupportedModelError, match="its attention, flash_attention_2, takes no bias"):
        find_global_layers(model)
