"""Tables for each layer: of `learned` scalings and of any callable, on the architectures of the catalogue."""

import copy
import json
import pickle
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tests.helpers.architectures import IDS, LONG_IDS, TOLERANCE, build, compute_logits, relative_difference
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

import ropewalk as rw
from ropewalk.compat.transformers import cache_for_call
from ropewalk.errors import UnsupportedModelError
from ropewalk.models import layer_tables
from ropewalk.models.layer_tables import LayerTablePatch, find_table_layers

pytestmark = pytest.mark.usefixtures("one_thread")
ARCHITECTURES = [
    "llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "phi3", "cohere", "gpt_neox", "falcon", "stablelm",
    "olmo2", "glm4", "granite", "dbrx", "gpt_oss", "mixtral", "qwen3_moe", "smollm3", "deepseek_v2", "deepseek_v3",
    "deepseek_v32", "longcat_flash", "llama4_text", "hrm_text", "qwen3_next", "qwen3_vl", "ernie4_5",
]  # fmt: skip
WITH_LAYER_TYPES = ["gemma3_text", "gemma4_text", "olmo3"]
REFUSED = {
    "granitemoe_swa": "one rotary module for all layers, and it has 3",
    "molmo2": "one rotary module for all layers, and it has 2",
    "granite_swa": "one rotary module for all layers, and it has 3",
    "recurrent_gemma": "layers that take cos and sin from their decoder",
    "moshi": "one rotary module for all layers, and it has 2",
    "deepseek_v4": "one rotary module for all layers, and it has 4",
}


def divisors_of(layer, pairs):
    return tuple(1 + (layer + 1) * pair / pairs for pair in range(pairs))


def learned_for(model, same=False):
    """Return a scaling with other divisors and another attention factor for each layer, or with the same for all."""
    layers = find_table_layers(model)
    pairs = len(layers.table.frequencies.inv_freq)
    sets = tuple(divisors_of(0 if same else layer, pairs) for layer in range(len(layers.layers)))
    factors = tuple(1.1 if same else 1.1 + layer / 10 for layer in range(len(layers.layers)))
    return rw.Learned(sets, factors, original_length=32, target=64)


def extend_per_layer(model, scaling):
    with pytest.warns(UserWarning, match="only ropewalk.load reads a set of frequencies for each layer"):
        return rw.extend(model, scaling)


@pytest.fixture
def llama():
    return build("llama")


@pytest.mark.parametrize("name", [*ARCHITECTURES, *WITH_LAYER_TYPES])
@pytest.mark.filterwarnings("ignore:only ropewalk.load reads", "ignore:transformers cannot express")
def test_the_same_set_for_each_layer_equals_one_set_for_all(name):
    model = build(name)
    plain, scaling = compute_logits(model, ids=LONG_IDS), learned_for(model, same=True)
    shared = rw.Learned(scaling.divisors[0], 1.1, original_length=32, target=64)
    rw.extend(model, shared)
    expected = compute_logits(model, ids=LONG_IDS)
    rw.extend(model, scaling)
    assert torch.equal(compute_logits(model, ids=LONG_IDS), expected)
    assert relative_difference(expected, plain) > 100 * TOLERANCE
    rw.restore(model)
    assert torch.equal(compute_logits(model, ids=LONG_IDS), plain)


def test_different_sets_equal_a_model_whose_attention_was_changed_by_hand(llama):
    scaling = learned_for(llama)
    extend_per_layer(llama, scaling)
    actual = compute_logits(llama, ids=LONG_IDS)
    by_hand = build("llama")
    positions = torch.arange(LONG_IDS.shape[1], dtype=torch.float64)
    for layer, divisors, factor in zip(by_hand.model.layers, scaling.divisors, scaling.attention_factor, strict=True):
        inv_freq = 10_000.0 ** (-torch.arange(0, 16, 2, dtype=torch.float64) / 16) / torch.tensor(divisors)
        angles = (positions[:, None] * inv_freq).repeat(1, 2)[None]
        cos, sin = (angles.cos() * factor).float(), (angles.sin() * factor).float()
        forward = layer.self_attn.forward
        layer.self_attn.forward = lambda *args, forward=forward, table=(cos, sin), **kwargs: forward(
            *args, **kwargs | {"position_embeddings": table}
        )
    assert relative_difference(actual, compute_logits(by_hand, ids=LONG_IDS)) < TOLERANCE


def test_a_real_model_takes_a_set_for_each_layer(model, tokens):
    divisors, ids = divisors_of(0, 32), torch.tensor(tokens[:64])[None]
    computed = []
    for scaling in (rw.Learned(divisors), rw.Learned((divisors,) * 30), rw.Learned((divisors,) * 29 + ((1.0,) * 32,))):
        with rw.extended(model, scaling):
            computed.append(compute_logits(model, ids=ids))
    assert torch.equal(computed[1], computed[0])
    assert not torch.equal(computed[2], computed[0])


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_whose_layers_do_not_take_one_table_is_refused_by_name(name):
    model = build(name)
    plain = compute_logits(model)
    with pytest.raises(UnsupportedModelError, match=REFUSED[name]) as caught:
        rw.extend(model, rw.Learned(((1.0,) * 8,) * 2, original_length=32))
    assert type(model).__name__ in str(caught.value)
    assert torch.equal(compute_logits(model), plain)


def test_another_number_of_layers_or_pairs_is_refused(llama):
    with pytest.raises(rw.InputError, match="one set for each of the 2 layers of LlamaForCausalLM"):
        rw.extend(llama, rw.Learned(((1.0,) * 8,) * 3))
    with pytest.raises(rw.InputError, match="7 numbers'; expected 8 numbers, one for each pair"):
        rw.extend(llama, rw.Learned(((1.0,) * 7,) * 2))


class TestCalls:
    @pytest.fixture
    def extended(self, llama):
        return extend_per_layer(llama, learned_for(llama))

    def test_decoding_with_a_cache_equals_one_pass(self, extended):
        cache, parts = DynamicCache(config=extended.config), []
        for chunk in LONG_IDS.split([17, 1, 20, 10], dim=1):
            with torch.no_grad():
                parts.append(extended(chunk, **cache_for_call(extended, cache)).logits)
        assert relative_difference(torch.cat(parts, 1), compute_logits(extended, ids=LONG_IDS)) < TOLERANCE

    def test_tables_that_are_computed_layer_by_layer_are_the_same(self, extended, monkeypatch):
        expected = compute_logits(extended)
        monkeypatch.setattr(layer_tables, "_MAX_STACKED_TOKENS", 0)
        assert torch.equal(compute_logits(extended), expected)

    def test_generate_with_padding_on_the_left_equals_without(self, extended):
        options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
        alone = extended.generate(IDS[:1], attention_mask=torch.ones_like(IDS[:1]), **options)[:, 16:]
        padded = torch.cat([torch.zeros_like(IDS[:1, :5]), IDS[:1]], 1)
        mask = (torch.arange(21) >= 5).long()[None]
        assert torch.equal(extended.generate(padded, attention_mask=mask, **options)[:, 21:], alone)

    def test_threads_with_texts_of_different_lengths_do_not_disturb_each_other(self, extended):
        texts = [LONG_IDS[:, :length] for length in (7, 48, 21, 33)]
        expected = [compute_logits(extended, ids=ids) for ids in texts]
        with ThreadPoolExecutor(4) as pool:
            computed = list(pool.map(lambda ids: compute_logits(extended, ids=ids), texts * 10))
        assert all(torch.equal(logits, wanted) for logits, wanted in zip(computed, expected * 10, strict=True))

    def test_a_copy_and_a_pickled_model_keep_the_tables(self, extended):
        expected = compute_logits(extended)
        for twin in (copy.deepcopy(extended), pickle.loads(pickle.dumps(extended))):
            assert torch.equal(compute_logits(twin), expected)
            rw.restore(twin)
            assert not torch.equal(compute_logits(twin), expected)
        assert torch.equal(compute_logits(extended), expected)

    def test_a_cache_that_was_read_with_other_frequencies_is_refused(self, extended):
        cache = DynamicCache(config=extended.config)
        with torch.no_grad():
            extended(IDS, **cache_for_call(extended, cache))
            rw.extend(extended, "yarn:factor=2")
            with pytest.raises(RuntimeError, match="16 tokens that were read with other frequencies"):
                extended(IDS[:, :1], **cache_for_call(extended, cache))

    def test_fused_rotation_uses_the_tables_of_the_layers(self, extended):
        expected, scaling = compute_logits(extended), learned_for(rw.restore(extended))
        with rw.extended(extended, scaling, fuse=True):
            assert relative_difference(compute_logits(extended), expected) < TOLERANCE

    def test_it_compiles_without_graph_breaks(self):
        model = build("llama", num_hidden_layers=1)
        extend_per_layer(model, learned_for(model))
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert relative_difference(compute_logits(compiled), compute_logits(model)) < TOLERANCE

    def test_half_precision_keeps_exact_angles(self, extended):
        expected = compute_logits(extended, start=20_000)
        half = compute_logits(extended.to(torch.bfloat16), start=20_000)
        assert relative_difference(half, expected) < 0.2  # angles rounded to bfloat16 would be off by whole rotations


class TestGradients:
    @pytest.fixture
    def trained(self):
        """Return a model that computes in float64 throughout, and a function from log divisors to its loss."""
        model = build("starcoder2").double().requires_grad_(requires_grad=False)
        layers = find_table_layers(model)
        self.log_divisors = torch.zeros(2, 8, dtype=torch.float64, requires_grad=True)

        def compute_tables(x, position_ids):
            inv_freq_LP = torch.tensor(layers.table.frequencies.inv_freq) * (-self.log_divisors).exp()
            angle_LBTU = layers.table.column_positions(position_ids) * inv_freq_LP[:, None, None, layers.table.pair_U]
            return list(zip(*layers.table.to_channels(x, angle_LBTU.cos(), angle_LBTU.sin()), strict=True))

        patch = LayerTablePatch(layers, compute_tables)
        patch.apply()
        yield model, lambda: cross_entropy(model(LONG_IDS[:, :-1]).logits.flatten(0, 1), LONG_IDS[:, 1:].flatten())
        patch.revert()

    def test_they_equal_finite_differences(self, trained):
        _, loss = trained
        [gradient] = torch.autograd.grad(loss(), self.log_divisors)
        assert gradient.abs().min() > 0
        with torch.no_grad():
            for layer, pair in ((0, 0), (0, 5), (1, 3), (1, 7)):
                values = []
                for step in (1e-4, -1e-4):
                    self.log_divisors[layer, pair] += step
                    values.append(loss())
                    self.log_divisors[layer, pair] -= step
                assert float((values[0] - values[1]) / 2e-4) == pytest.approx(float(gradient[layer, pair]), rel=1e-4)

    def test_gradient_checkpointing_gives_the_same(self, trained):
        model, loss = trained
        [expected] = torch.autograd.grad(loss(), self.log_divisors)
        model.train()
        model.activation_checkpointing_enable()
        # A second forward call before the backward must not change the tables of the first.
        total = loss()
        with torch.no_grad():
            model(input_ids=IDS)
        [gradient] = torch.autograd.grad(total, self.log_divisors)
        torch.testing.assert_close(gradient, expected)


class TestSaving:
    @pytest.mark.parametrize("name", ["llama", "gemma3_text", "gemma3"])
    def test_a_saved_model_loads_with_identical_logits(self, name, tmp_path, tiny_folder):
        model = build(name)
        extend_per_layer(model, learned_for(model))
        model.save_pretrained(tmp_path)
        for file in tiny_folder.glob("tokenizer*"):
            shutil.copy(file, tmp_path)
        with pytest.warns(UserWarning, match="only ropewalk.load"):
            loaded, _ = rw.load(str(tmp_path), dtype="float32", device="cpu")
        assert torch.equal(compute_logits(loaded), compute_logits(model))
        rw.restore(loaded)
        assert torch.equal(compute_logits(loaded), compute_logits(build(name)))
        assert "ropewalk_scaling" not in json.dumps(loaded.config.to_dict(), default=str)

    def test_other_readers_see_the_model_as_it_was(self, llama, tmp_path):
        extend_per_layer(llama, learned_for(llama))
        llama.save_pretrained(tmp_path)
        plain = type(llama).from_pretrained(tmp_path).eval()
        assert torch.equal(compute_logits(plain), compute_logits(build("llama")))

    def test_another_scaling_replaces_the_saved_one(self, llama, tmp_path):
        extend_per_layer(llama, learned_for(llama))
        llama.save_pretrained(tmp_path)
        plain = rw.extend(type(llama).from_pretrained(tmp_path), "yarn:factor=2")
        plain.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["ropewalk_scaling"] is None

    def test_one_set_for_all_layers_is_saved_as_longrope_lists(self, llama, tmp_path):
        scaling = rw.Learned(divisors_of(0, 8), 1.2, target=64)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rw.extend(llama, scaling)
        assert llama.config.rope_parameters["long_factor"] == list(scaling.divisors)
        assert llama.config.max_position_embeddings == 64
        llama.save_pretrained(tmp_path)
        loaded = type(llama).from_pretrained(tmp_path).eval()
        assert relative_difference(compute_logits(loaded), compute_logits(llama)) < TOLERANCE


@pytest.mark.parametrize("chunk", [None, 16])
def test_a_curve_measures_the_loss_of_the_extended_model(llama, chunk, tmp_path):
    written, tokens = learned_for(llama).write(tmp_path / "scaling.json"), LONG_IDS[0]
    [short, row] = rw.perplexity_curve(llama, tokens, [20, 48], [str(tmp_path / "scaling.json")], chunk=chunk)
    assert row["scaling"] == str(written)
    with rw.extended(llama, written), torch.no_grad():
        logits = llama(tokens[None]).logits[0, :-1]
    expected = cross_entropy(logits, tokens[1:], reduction="none")
    assert row["nll"] == pytest.approx(float(expected.mean()), rel=1e-5)
    assert short["nll"] == pytest.approx(float(expected[:19].mean()), rel=1e-5)
