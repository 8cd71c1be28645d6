"""A bias on the attention scores of each layer."""

import pytest
import torch
from tests.helpers.architectures import LENGTH, LONG_IDS, TOLERANCE, build, compute_logits, relative_difference
from tests.models.test_layer_tables import ARCHITECTURES, WITH_LAYER_TYPES

from ropewalk.errors import UnsupportedModelError
from ropewalk.models.attention_bias import attention_biases, find_attention_layers

pytestmark = pytest.mark.usefixtures("one_thread")
TOKENS = LONG_IDS.shape[1]
CAUSAL_TT = torch.full((TOKENS, TOKENS), -torch.inf).triu(1)
BIAS_TT = CAUSAL_TT.clone()
BIAS_TT[TOKENS // 2 :, : TOKENS // 4] = torch.linspace(1, 3, TOKENS // 4)
# The tokens that each layer sees: one table for all layers, one for each type, linear and chunked attention.
SLIDING_WINDOWS = {
    "llama": [None, None], "gemma2": [16, None], "gemma3_text": [None], "gpt_oss": [16, None], "mistral": [16, 16],
    "olmo3": [None], "qwen3_next": [None],
}  # fmt: skip
SELECTING_KEYS = ["deepseek_v32"]


def add_bias(model, bias_TT):
    return attention_biases(dict.fromkeys(find_attention_layers(model, TOKENS), bias_TT))


@pytest.mark.parametrize("name", SLIDING_WINDOWS)
def test_the_layers_and_what_they_see_are_found(name):
    layers = find_attention_layers(model := build(name), TOKENS)
    assert list(layers.values()) == SLIDING_WINDOWS[name]
    last = list(model.model.layers)[-1]
    assert list(layers)[-1] is last


def test_a_sliding_window_as_long_as_the_text_is_none():
    model = build("mistral", sliding_window=TOKENS)
    assert list(find_attention_layers(model, TOKENS).values()) == [None, None]
    assert list(find_attention_layers(model, TOKENS + 1).values()) == [TOKENS, TOKENS]


@pytest.mark.parametrize("name", [name for name in [*ARCHITECTURES, *WITH_LAYER_TYPES] if name not in SELECTING_KEYS])
def test_a_bias_reaches_the_scores_and_one_of_zero_changes_nothing(name):
    model = build(name)
    plain = compute_logits(model, ids=LONG_IDS)
    with add_bias(model, CAUSAL_TT):
        assert relative_difference(compute_logits(model, ids=LONG_IDS), plain) < TOLERANCE
    with add_bias(model, BIAS_TT):
        assert relative_difference(compute_logits(model, ids=LONG_IDS), plain) > 100 * TOLERANCE


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_bias_is_added_to_the_scores(implementation):
    model = build("llama")
    model.set_attn_implementation(implementation)
    plain = compute_logits(model, ids=LONG_IDS)
    with torch.no_grad():
        expected = model(LONG_IDS, attention_mask=BIAS_TT[None, None], use_cache=False).logits
    with add_bias(model, BIAS_TT):
        biased = compute_logits(model, ids=LONG_IDS)
    assert relative_difference(biased, expected) < TOLERANCE
    assert torch.equal(compute_logits(model, ids=LONG_IDS), plain)  # nothing remains after the block


def test_layers_without_a_bias_keep_their_mask_and_others_share_their_sum():
    model, inputs = build("gemma2", num_hidden_layers=4), {}
    layers = find_attention_layers(model, TOKENS)

    def note(layer, args, kwargs):
        inputs[layer] = kwargs["attention_mask"]

    with attention_biases({layer: BIAS_TT for layer, window in layers.items() if window is None}):
        for layer in layers:
            layer.register_forward_pre_hook(note, with_kwargs=True)
        compute_logits(model, ids=LONG_IDS[:1])
    local, first, other_local, second = (inputs[layer] for layer in layers)
    assert torch.equal(first[0, 0], BIAS_TT)
    assert second is first
    assert other_local is local
    assert local[0, 0, -1, 0] < -1e30  # its own sliding window


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("zamba2", "Layer is not supported: it takes no mask that is added to attention scores"),
        ("zaya", "Layer is not supported: it takes no mask that is added to attention scores"),
        ("deepseek_v32", "DeepseekV32ForCausalLM is not supported: its attention selects keys"),
    ],
)
def test_models_whose_attention_takes_no_bias_are_refused_by_name(name, reason):
    with pytest.raises(UnsupportedModelError, match=reason):
        find_attention_layers(build(name), LENGTH)


def test_flash_attention_is_refused_by_name():
    model = build("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UnsupportedModelError, match="its attention, flash_attention_2, takes no bias"):
        find_attention_layers(model, LENGTH)
