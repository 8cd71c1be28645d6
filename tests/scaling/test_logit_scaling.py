"""Logit scaling by position, against hand-computed values and against the functions of transformers."""

import math

import numpy as np
import pytest
import torch
from transformers.models.llama4.configuration_llama4 import Llama4TextConfig
from transformers.models.llama4.modeling_llama4 import Llama4TextAttention
from transformers.models.ministral3.modeling_ministral3 import get_llama_4_attn_scale

import ropewalk as rw
from ropewalk.scaling.logit_scaling import (
    LOGIT_SCALINGS,
    Llama4Temperature,
    LogN,
    MistralTemperature,
    YarnTemperature,
    parse_logit_scaling,
)

POSITIONS = np.array([0, 1, 62, 63, 64, 126, 127, 128, 4095, 262_143])


def test_log_n_is_the_ratio_of_logarithms_past_the_original_length():
    # The query at position p attends to p + 1 keys: 100^2 keys are 2 times as many digits as 100.
    np.testing.assert_allclose(LogN().factors([0, 50, 99, 9_999, 999_999], 100), [1, 1, 1, 2, 3], rtol=1e-15)
    assert LogN().factors(100, 100) == pytest.approx(math.log(101) / math.log(100), rel=1e-15)


def test_log_n_equals_the_list_of_qwen():
    # logn_list of Qwen-7B's modeling_qwen.py, indexed by the position of the query
    qwen = [math.log(i, 512) if i > 512 else 1 for i in range(1, 2_000)]
    np.testing.assert_allclose(LogN().factors(np.arange(1_999), 512), qwen, rtol=1e-14)


def test_llama4_temperature_equals_hand_computed_values():
    # floor((p + 1) / 8192) = 0, 0, 1, 2 and 3
    found = Llama4Temperature().factors([0, 8190, 8191, 16_383, 24_575], 8192)
    wanted = [1, 1, 1 + 0.1 * math.log(2), 1 + 0.1 * math.log(3), 1 + 0.1 * math.log(4)]
    np.testing.assert_allclose(found, wanted, rtol=1e-15)
    stated = Llama4Temperature(attn_scale=0.5, floor_scale=10).factors(19, 8192)
    assert stated == pytest.approx(1 + 0.5 * math.log(3), rel=1e-15)


def test_llama4_temperature_equals_the_one_that_llama4_applies():
    seen = []

    def record_queries(module, query, key, value, *_, **__):
        seen.append(query)
        return torch.zeros(1, query.shape[2], query.shape[1], query.shape[3]), None

    config = Llama4TextConfig(
        hidden_size=8, num_attention_heads=1, num_key_value_heads=1, head_dim=8, num_hidden_layers=1,
        no_rope_layers=[0], floor_scale=16, attn_scale=0.3, attn_temperature_tuning=True, use_qk_norm=False,
    )  # fmt: skip
    from transformers import AttentionInterface

    AttentionInterface.register("record_queries", record_queries)
    config._attn_implementation = "record_queries"
    attention = Llama4TextAttention(config, layer_idx=0)
    torch.nn.init.eye_(attention.q_proj.weight)
    attention(torch.ones(1, 100, 8), None, None)
    found = Llama4Temperature(attn_scale=0.3, floor_scale=16).factors(np.arange(100), 4096)
    np.testing.assert_allclose(seen[0][0, 0, :, 0].detach().numpy(), found, rtol=1e-6)


def test_mistral_temperature_equals_the_function_of_ministral3():
    reference = get_llama_4_attn_scale(torch.from_numpy(POSITIONS)[None], 0.1, 64)[0, 0, :, 0]
    np.testing.assert_allclose(MistralTemperature(beta=0.1).factors(POSITIONS, 64), reference.numpy(), rtol=1e-6)
    # at the last position of a block, Llama 4 counts one token more
    assert MistralTemperature().factors(63, 64) == 1 < Llama4Temperature().factors(63, 64)


def test_yarn_temperature_is_the_square_of_the_attention_factor_of_yarn():
    attention_factors = [
        rw.YaRN(factor=factor).frequencies(rw.Rope(8, 10_000, 100)).attention_factor for factor in (2, 4)
    ]
    found = YarnTemperature().factors([0, 99, 199, 399], 100)
    np.testing.assert_allclose(found, [1, 1, *np.square(attention_factors)], rtol=1e-14)
    stated = YarnTemperature(coefficient=0.5).factors(199, 100)
    assert stated == pytest.approx((1 + 0.5 * math.log(2)) ** 2, rel=1e-14)


@pytest.mark.parametrize("scaling", [cls() for cls in LOGIT_SCALINGS.values()], ids=str)
def test_factors_are_1_up_to_the_original_length_and_never_decrease(scaling):
    found = scaling.factors(np.arange(5_000), 1_000)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found[:999], 1)
    assert found[-1] > 1
    assert (np.diff(found) >= 0).all()
    np.testing.assert_array_equal(scaling.factors(np.arange(6).reshape(2, 3) * 900, 1_000).ravel(), found[:4501:900])


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("log-n", LogN()),
        ("Log_N", LogN()),
        ("llama-4", Llama4Temperature()),
        ("llama-4:attn_scale=0.2,floor_scale=4096", Llama4Temperature(0.2, 4096)),
        (MistralTemperature(0.2), MistralTemperature(0.2)),
    ],
    ids=str,
)
def test_specs_parse_and_print(spec, parsed):
    assert parse_logit_scaling(spec) == parsed
    assert parse_logit_scaling(str(parsed)) == parsed
    assert hash(parse_logit_scaling(spec)) == hash(parsed)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("logm", "logit_scaling: got 'logm'; expected log-n, llama-4"),
        (None, "logit_scaling: got None"),
        ("log-n:base=2", "log-n: option: got 'base'"),
        ("llama-4:attn_scale=-1", "llama-4: attn_scale: got -1"),
        ("llama-4:floor_scale=0", "llama-4: floor_scale: got 0"),
        ("yarn:coefficient=-1", "yarn: coefficient: got -1"),
        ("mistral:beta=x", "mistral: beta: got 'x'"),
    ],
)
def test_wrong_specs_raise_one_line(spec, message):
    with pytest.raises(rw.InputError) as caught:
        parse_logit_scaling(spec)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [0, 1])
def test_an_original_length_without_a_logarithm_is_an_input_error(length):
    with pytest.raises(rw.InputError, match=r"^original_length: got "):
        LogN().factors([5], length)
