"""What `extend` and `restore` promise, on the architectures where each promise is hard to keep."""

import copy
import json
import logging
import pickle
import warnings

import numpy as np
import pytest
import torch
from tests.helpers import architectures as tiny

import ropewalk as rw
from ropewalk.models import extend as extending
from ropewalk.models.extend import extended, extension_of
from ropewalk.models.patching import AttributePatch

pytestmark = pytest.mark.usefixtures("one_thread")
YARN = rw.YaRN(factor=4)
EXACTLY = rw.ContinuousPolicy(every=1, margin=1.0)  # as transformers
LONG = tiny.LONG_IDS.shape[1]  # tokens, past the original length
MODEL_DIM = 64

DYNAMIC_PARAMETERS = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
LONGROPE_PARAMETERS = {
    "rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": tiny.LENGTH,
    "short_factor": [1 + 0.1 * i for i in range(8)], "long_factor": [1 + 0.5 * i for i in range(8)],
}  # fmt: skip
THAT_COME_DYNAMIC = pytest.mark.parametrize(
    ("name", "own", "changes"),
    [
        ("llama", DYNAMIC_PARAMETERS, {}),
        ("llama", LONGROPE_PARAMETERS, {"max_position_embeddings": 4 * tiny.LENGTH}),
        ("phi3", LONGROPE_PARAMETERS, {"max_position_embeddings": 4 * tiny.LENGTH}),
    ],
    ids=["dynamic", "longrope", "phi3"],
)


@pytest.fixture
def llama():
    return tiny.build("llama")


def with_scaling(name, rope_parameters, **changes):
    """A tiny model that comes with this scaling."""
    model = tiny.build(name, rope_parameters=rope_parameters, **changes)
    assert "default" not in str(model.config.rope_parameters.get("rope_type"))
    return model


def same(model, other, **options):
    return tiny.off(tiny.logits(model, **options), tiny.logits(other, **options)) < tiny.EXACT


class TestReplacing:
    def test_a_scaling_replaces_the_earlier_one(self, llama):
        once = rw.extend(copy.deepcopy(llama), rw.NTK(factor=2))
        twice = rw.extend(rw.extend(copy.deepcopy(llama), YARN), rw.NTK(factor=2))
        assert torch.equal(tiny.logits(twice), tiny.logits(once))
        assert twice.config.to_dict() == once.config.to_dict()
        assert torch.equal(tiny.logits(rw.restore(twice)), tiny.logits(llama))

    def test_softmax_factors_do_not_compound(self):
        scaling = rw.YaRN(factor=40, mscale=1.0, mscale_all_dim=1.0)
        once = rw.extend(tiny.build("deepseek_v3"), scaling)
        twice = rw.extend(rw.extend(tiny.build("deepseek_v3"), scaling), scaling)
        assert torch.equal(tiny.logits(twice), tiny.logits(once))

    def test_restoring_a_model_as_it_came_does_nothing(self, llama):
        plain = tiny.logits(llama)
        assert rw.restore(llama) is llama
        assert torch.equal(tiny.logits(rw.restore(llama)), plain)

    def test_a_block_leaves_an_extended_model_as_it_was(self, llama):
        rw.extend(llama, YARN)
        before, config = tiny.logits(llama), llama.config.to_dict()
        with extended(llama, rw.NTK(factor=8)):
            assert not torch.equal(tiny.logits(llama), before)
        assert torch.equal(tiny.logits(llama), before)
        assert llama.config.to_dict() == config
        assert extension_of(llama).scalings == {"all": YARN}

    def test_a_target_plans(self, llama):
        rw.extend(llama, target=3 * tiny.LENGTH)
        assert extension_of(llama).scalings["all"] == rw.plan(tiny.build("llama"), target=3 * tiny.LENGTH).scaling


class TestFailing:
    """A call that fails leaves everything as it was, wherever it fails."""

    @pytest.mark.parametrize("before", [None, YARN], ids=["as it came", "extended"])
    @pytest.mark.parametrize(
        "scaling", ["yarn:factor=0", "longrope:short_factor=[1],long_factor=[1],factor=2", {"full_attention": "none"}]
    )
    def test_a_wrong_scaling(self, llama, before, scaling):
        self.fails(llama, before, rw.InputError, scaling)

    @pytest.mark.parametrize("before", [None, YARN], ids=["as it came", "extended"])
    @pytest.mark.parametrize("at", ["build_extension", "find_config_update"])
    def test_a_fault_while_planning(self, llama, before, at, monkeypatch):
        def patch():
            monkeypatch.setattr(extending, at, lambda *_: 1 / 0)

        self.fails(llama, before, ZeroDivisionError, rw.NTK(factor=2), patch)

    @pytest.mark.parametrize("before", [None, YARN], ids=["as it came", "extended"])
    def test_a_fault_halfway_through_the_changes(self, llama, before, monkeypatch):
        build = extending.build_extension

        def build_with_a_failing_patch(*arguments):
            extension = build(*arguments)
            extension.patches.patches.append(AttributePatch(object(), "accepts_no_attribute", 1))
            return extension

        self.fails(
            llama,
            before,
            AttributeError,
            rw.NTK(factor=2),
            lambda: monkeypatch.setattr(extending, "build_extension", build_with_a_failing_patch),
        )

    def test_neither_or_both_of_scaling_and_target(self, llama):
        for arguments in ({}, {"scaling": YARN, "target": 100}):
            with pytest.raises(rw.InputError, match="either a scaling or a target"):
                rw.extend(llama, **arguments)

    def test_what_is_no_model_of_transformers(self):
        with pytest.raises(rw.InputError, match="it has no config, as the models of transformers have"):
            rw.extend(torch.nn.Linear(2, 2), YARN)

    @staticmethod
    def fails(model, before, error, scaling, patch=lambda: None):
        if before is not None:
            rw.extend(model, before)
        patch()
        logits, config = tiny.logits(model), model.config.to_dict()
        extension = extension_of(model)
        with pytest.raises(error):
            rw.extend(model, scaling)
        assert torch.equal(tiny.logits(model), logits)
        assert model.config.to_dict() == config
        assert extension_of(model) is extension
        rw.restore(model)
        assert torch.equal(tiny.logits(model), tiny.logits(tiny.build("llama")))


class TestKeeping:
    """The tables stay exact, and stay on, whatever is done to the model afterwards."""

    def test_bfloat16_keeps_the_tables_exact(self, llama):
        rotary = rw.extend(llama, YARN).model.rotary_emb
        x, positions = torch.zeros(1, 1, MODEL_DIM), torch.tensor([[0, 7, tiny.FAR, 2**30 + 1]])
        cos, sin = rotary(x, positions)
        llama.to(torch.bfloat16)
        cos_16, sin_16 = rotary(x.bfloat16(), positions)
        assert torch.equal(cos_16, cos.bfloat16())
        assert torch.equal(sin_16, sin.bfloat16())

    def test_a_model_whose_frequencies_were_rounded_gets_exact_ones(self, llama):
        want = rw.extend(copy.deepcopy(llama), YARN).to(torch.bfloat16)
        rounded = rw.extend(llama.to(torch.bfloat16), YARN)  # which rounds its inv_freq, too
        assert torch.equal(tiny.logits(rounded, tiny.FAR), tiny.logits(want, tiny.FAR))

    @pytest.mark.parametrize("name", ["llama", "olmo2", "deepseek_v2", "llama4_text"])
    def test_the_tables_have_the_dtype_that_the_module_gives(self, name):
        model = tiny.build(name).to(torch.bfloat16)
        rotary = model.model.rotary_emb
        x, positions = torch.zeros(1, 1, MODEL_DIM, dtype=torch.bfloat16), torch.arange(4)[None]
        before = [table.dtype for table in as_tuple(rotary(x, positions))]
        rw.extend(model, YARN)
        assert [table.dtype for table in as_tuple(rotary(x, positions))] == before

    def test_the_tables_are_those_of_the_scaling(self, llama):
        rw.extend(llama, YARN)
        positions = torch.tensor([[0, 5, tiny.FAR, 2**31 - 1]])
        cos, sin = llama.model.rotary_emb(torch.zeros(1, 1, MODEL_DIM), positions)
        want_cos, want_sin = YARN.frequencies(rw.Rope(16, 10_000.0, tiny.LENGTH)).cos_sin(positions[0].numpy())
        np.testing.assert_array_equal(cos[0].numpy(), np.concatenate([want_cos, want_cos], axis=-1))
        np.testing.assert_array_equal(sin[0].numpy(), np.concatenate([want_sin, want_sin], axis=-1))

    @pytest.mark.parametrize("name", ["llama", "deepseek_v3", "gemma3_text", "granite_swa"])
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    def test_a_copy_is_extended_and_independent(self, name, copied):
        model = tiny.build(name)
        plain = tiny.logits(model)
        rw.extend(model, rw.YaRN(factor=4, mscale=1.0, mscale_all_dim=0.5) if "deepseek" in name else YARN)
        scaled = tiny.logits(model)
        twin = copied(model)
        assert torch.equal(tiny.logits(twin), scaled)
        rw.restore(model)
        assert torch.equal(tiny.logits(twin), scaled)
        assert twin.config.rope_parameters != model.config.rope_parameters
        assert torch.equal(tiny.logits(rw.restore(twin)), plain)

    def test_a_copy_follows_a_text_of_its_own(self, llama):
        rw.extend(llama, rw.DynamicNTK())
        twin = copy.deepcopy(llama)
        short = tiny.logits(llama)
        tiny.logits(twin, ids=tiny.LONG_IDS)
        assert torch.equal(tiny.logits(llama), short)

    def test_under_the_hooks_of_accelerate(self, llama):
        # device_map="auto" puts such a hook on every module, and a hook keeps the forward that it found
        hooks = pytest.importorskip("accelerate.hooks")
        want = tiny.logits(rw.extend(copy.deepcopy(llama), YARN))
        plain = tiny.logits(llama)
        hooks.add_hook_to_module(llama.model.rotary_emb, hooks.AlignDevicesHook(execution_device="cpu"))
        assert torch.equal(tiny.logits(rw.extend(llama, YARN)), want)
        assert torch.equal(tiny.logits(rw.restore(llama)), plain)

    def test_a_replaced_forward_is_refused(self, llama):
        rotary = llama.model.rotary_emb
        rotary.forward = lambda x, position_ids: type(rotary).forward(rotary, x, position_ids)
        with pytest.raises(rw.InputError, match="replaced its forward"):
            rw.extend(llama, YARN)

    def test_compiles_without_a_break(self, llama):
        torch.compiler.reset()
        rw.extend(llama, YARN)
        compiled = torch.compile(llama, fullgraph=True, backend="eager")
        assert same(compiled, llama)
        assert same(compiled, llama, start=tiny.FAR)

    def test_a_cache_gives_what_no_cache_gives(self, llama):
        rw.extend(llama, YARN)
        whole = tiny.logits(llama, ids=tiny.LONG_IDS)
        assert tiny.off(in_chunks(llama, tiny.LONG_IDS, 16), whole) < tiny.EXACT

    def test_generates(self, llama):
        rw.extend(llama, YARN)
        reference = tiny.rebuilt(llama)
        options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None}
        assert torch.equal(llama.generate(tiny.IDS, **options), reference.generate(tiny.IDS, **options))


class TestLayerTypes:
    def test_only_layers_that_see_everything_get_a_single_scaling(self):
        model = rw.extend(tiny.build("gemma3_text"), YARN)
        assert extension_of(model).scalings == {"sliding_attention": rw.NoScaling(), "full_attention": YARN}
        assert model.config.rope_parameters["sliding_attention"]["rope_type"] == "default"
        assert model.config.rope_parameters["full_attention"]["rope_type"] == "yarn"

    def test_deepseek_v4_calls_its_sliding_layers_main(self):
        model = rw.extend(tiny.build("deepseek_v4"), YARN)
        assert extension_of(model).scalings == {"main": rw.NoScaling(), "compress": YARN}

    def test_a_scaling_for_each_layer_type(self):
        model = tiny.build("gemma3_text")
        rw.extend(model, {"sliding_attention": "linear:factor=2", "full_attention": YARN})
        assert model.config.rope_parameters["sliding_attention"]["rope_type"] == "linear"
        assert same(model, tiny.rebuilt(model))

    def test_a_layer_type_left_out_keeps_its_own(self):
        model = rw.extend(tiny.build("gemma3_text"), {"sliding_attention": rw.Linear(factor=2)})
        assert extension_of(model).scalings["full_attention"] == rw.NoScaling()
        assert same(model, tiny.rebuilt(model))

    def test_an_unknown_layer_type_is_named(self):
        with pytest.raises(rw.InputError, match=r"layer type.*'global'.*sliding_attention"):
            rw.extend(tiny.build("gemma3_text"), {"global": YARN})

    def test_pairs_that_were_trained_to_stand_still_do(self):
        model = tiny.build("gemma4_text")
        with pytest.warns(UserWarning, match="transformers cannot express"):
            rw.extend(model, YARN)
        table = model.model.rotary_emb.ropewalk["full_attention"]
        assert (table.row_frequencies[0].inv_freq > 0).tolist() == [True] * 4 + [False] * 12
        same_method = rw.extend(tiny.build("gemma4_text"), rw.Proportional(p=0.25, factor=4.0))
        assert same(same_method, tiny.rebuilt(same_method))


class TestLatentAttention:
    @pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "kimi_k25"])
    @pytest.mark.parametrize("all_dim", [1.0, 0.707])
    def test_deepseek_yarn_is_what_transformers_builds(self, name, all_dim):
        model = tiny.build(name)
        plain = rw.extend(tiny.build(name), rw.YaRN(factor=40, attention_factor=1.0))
        rw.extend(model, rw.YaRN(factor=40, mscale=1.0, mscale_all_dim=all_dim))
        assert same(model, tiny.rebuilt(model), ids=tiny.LONG_IDS)
        assert not same(model, plain)  # the softmax factor is at work

    def test_a_model_that_comes_with_it(self):
        own = {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32.0,
               "beta_slow": 1.0, "rope_theta": 1e4, "original_max_position_embeddings": tiny.LENGTH}  # fmt: skip
        model = with_scaling("deepseek_v3", own, max_position_embeddings=40 * tiny.LENGTH)
        came = tiny.logits(model)
        rw.extend(model, rw.NoScaling())
        unscaled = tiny.build("deepseek_v3")
        unscaled.load_state_dict(model.state_dict())
        assert same(model, unscaled)
        rw.extend(model, rw.YaRN(factor=40, mscale=1.0, mscale_all_dim=1.0))
        assert tiny.off(tiny.logits(model), came) < tiny.EXACT
        assert torch.equal(tiny.logits(rw.restore(model)), came)

    def test_other_attention_has_no_place_for_a_softmax_factor(self, llama):
        with pytest.warns(
            UserWarning, match="applies to latent attention, which LlamaForCausalLM does not have"
        ) as said:
            rw.extend(llama, rw.YaRN(factor=4, mscale=1.0, mscale_all_dim=1.0))
        assert said[0].filename == __file__
        assert same(llama, tiny.rebuilt(llama))


class TestPositionsWithAxes:
    @pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "glm4v", "ernie4_5_vl_moe", "cohere_compass_text"])
    def test_an_axis_each(self, name):
        model = tiny.build(name)
        positions = torch.stack(
            [tiny.IDS * 0 + torch.arange(16) * step + start for start, step in ((0, 1), (3, 2), (9, 0))]
        )
        before = at(model, positions)
        assert tiny.off(before, at(model, positions[:1].expand(3, -1, -1))) > 100 * tiny.EXACT  # axes matter
        rw.extend(model, rw.NoScaling())
        assert tiny.off(at(model, positions), before) < tiny.EXACT
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rw.extend(model, YARN)
        if name != "ernie4_5_vl_moe":  # transformers knows no scaling of it
            assert tiny.off(at(model, positions), at(tiny.rebuilt(model), positions)) < tiny.EXACT
        assert tiny.off(at(model, positions + tiny.FAR), at(model, positions)) < tiny.EXACT

    def test_a_pair_may_turn_along_two_axes(self):
        # HunYuan splits the doubled table: channel i and its partner i + dim/2 may stand on different axes
        model = tiny.build("hunyuan_vl")
        positions = torch.stack([tiny.IDS * 0 + torch.arange(16) + start for start in (0, 3, 9, 11)])
        before = at(model, positions)
        rw.extend(model, YARN)
        assert tiny.off(at(model, positions), at(tiny.rebuilt(model), positions)) < tiny.EXACT
        assert tiny.off(at(model, positions), before) > 100 * tiny.EXACT

    def test_one_mixed_up_section_is_learned_from_the_module(self):
        model = tiny.build("qwen2_vl")
        rotary = rw.extend(model, YARN).model.language_model.rotary_emb
        channel_layout = rotary.ropewalk["all"].channel_layout
        assert channel_layout.axes == 3
        assert [axis for _, axis in channel_layout.columns_U] == [0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.filterwarnings("ignore:transformers cannot express")
class TestDynamic:
    @pytest.mark.parametrize(
        "scaling", [rw.DynamicNTK(), rw.DynamicYaRN(), rw.DynamicNTKByParts(), rw.CriticalBase()], ids=str
    )
    def test_without_a_cache_it_is_static_at_the_length_of_the_text(self, llama, scaling):
        rw.extend(llama, scaling, policy=EXACTLY)
        fixed = rw.extend(tiny.build("llama"), scaling, length=LONG)
        assert tiny.off(tiny.logits(llama, ids=tiny.LONG_IDS), tiny.logits(fixed, ids=tiny.LONG_IDS)) < tiny.EXACT
        assert tiny.off(tiny.logits(llama), tiny.logits(tiny.build("llama"))) < tiny.EXACT  # a short text pays nothing

    def test_fixed_by_length_it_is_what_transformers_builds(self, llama):
        rw.extend(llama, rw.DynamicYaRN(), length=4 * tiny.LENGTH)
        assert llama.config.max_position_embeddings == 4 * tiny.LENGTH
        assert same(llama, tiny.rebuilt(llama), ids=tiny.LONG_IDS)

    def test_fixed_by_length_it_takes_a_cache(self, llama):
        rw.extend(llama, rw.DynamicNTK(), length=LONG)
        whole = tiny.logits(llama, ids=tiny.LONG_IDS)
        assert tiny.off(in_chunks(llama, tiny.LONG_IDS, 16), whole) < tiny.EXACT

    def test_a_new_text_starts_anew(self, llama):
        plain = tiny.logits(llama)
        rw.extend(llama, rw.DynamicNTK())
        tiny.logits(llama, ids=tiny.LONG_IDS)
        assert tiny.off(tiny.logits(llama), plain) < tiny.EXACT


class TestModelsThatComeDynamic:
    @THAT_COME_DYNAMIC
    def test_any_scaling_goes_on_and_its_own_comes_back(self, name, own, changes):
        model = with_scaling(name, copy.deepcopy(own), **changes)
        config = model.config.to_dict()
        short, long = tiny.logits(model), tiny.logits(model, ids=tiny.LONG_IDS)
        unscaled = tiny.build(name)
        rw.extend(model, rw.NoScaling())
        assert same(model, unscaled)
        assert same(model, unscaled, ids=tiny.LONG_IDS)
        rw.extend(model, YARN)
        assert same(model, tiny.rebuilt(model), ids=tiny.LONG_IDS)
        rw.restore(model)
        assert model.config.to_dict() == config
        assert torch.equal(tiny.logits(model, ids=tiny.LONG_IDS), long)
        assert torch.equal(tiny.logits(model), short)

    @THAT_COME_DYNAMIC
    def test_after_a_long_text_too(self, name, own, changes):
        model = with_scaling(name, copy.deepcopy(own), **changes)
        long = tiny.logits(model, ids=tiny.LONG_IDS)  # its frequencies are now those of a long text
        rw.extend(model, rw.NoScaling())
        assert same(model, tiny.build(name), ids=tiny.LONG_IDS)
        rw.restore(model)
        assert torch.equal(tiny.logits(model, ids=tiny.LONG_IDS), long)

    @THAT_COME_DYNAMIC
    def test_its_own_put_back_follows_the_text(self, name, own, changes):
        model = with_scaling(name, copy.deepcopy(own), **changes)
        short, long = tiny.logits(model), tiny.logits(model, ids=tiny.LONG_IDS)
        same_scaling = rw.parse({key: value for key, value in own.items() if key != "rope_theta"})
        rw.extend(model, same_scaling, policy=EXACTLY)
        assert tiny.off(tiny.logits(model), short) < tiny.EXACT
        assert tiny.off(tiny.logits(model, ids=tiny.LONG_IDS), long) < tiny.EXACT

    def test_hunyuans_fixed_alpha(self):
        model = with_scaling(
            "hunyuan_v1_dense", {"rope_type": "dynamic", "alpha": 8.0, "factor": 1.0, "rope_theta": 1e4}
        )
        came = tiny.logits(model, ids=tiny.LONG_IDS)
        rw.extend(model, rw.DynamicNTK(alpha=8.0))
        assert tiny.off(tiny.logits(model, ids=tiny.LONG_IDS), came) < tiny.EXACT
        rw.extend(model, YARN)
        assert same(model, tiny.rebuilt(model), ids=tiny.LONG_IDS)


class TestTheConfig:
    def test_says_what_is_true(self, llama):
        rw.extend(llama, YARN)
        assert llama.config.rope_parameters["rope_type"] == "yarn"
        assert llama.config.rope_parameters["original_max_position_embeddings"] == tiny.LENGTH
        assert llama.config.max_position_embeddings == 4 * tiny.LENGTH
        assert rw.plan(llama, target=4 * tiny.LENGTH).needed is False

    def test_says_an_unknown_scaling_as_longrope(self, llama, tmp_path):
        rw.extend(llama, rw.NTK(factor=4))
        llama.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["rope_parameters"]["rope_type"] == "longrope"
        assert same(type(llama).from_pretrained(tmp_path), llama, ids=tiny.LONG_IDS)

    def test_phi3_takes_yarn_as_longrope(self):
        model = rw.extend(tiny.build("phi3"), YARN)
        assert model.config.rope_parameters["rope_type"] == "longrope"

    def test_keeps_what_is_the_models_own(self):
        model = rw.extend(tiny.build("qwen2_vl"), YARN)
        assert model.config.text_config.rope_parameters["mrope_section"] == [2, 3, 3]
        model = rw.extend(tiny.build("ministral3"), rw.NoScaling())
        kept = {"llama_4_scaling_beta", "original_max_position_embeddings"}  # its attention reads them
        assert kept <= set(model.config.rope_parameters)

    @pytest.mark.parametrize("scaling", ["power-ntk", "dynamic-yarn", "critical-base"])
    def test_what_cannot_be_said_leaves_it_as_it_was_and_warns_once(self, llama, scaling):
        config = llama.config.to_dict()
        with pytest.warns(UserWarning, match=f"transformers cannot express {scaling}") as said:
            rw.extend(llama, scaling)
        assert len(said) == 1
        assert said[0].filename == __file__
        assert llama.config.to_dict() == config

    def test_trying_it_makes_no_noise(self, caplog):
        with caplog.at_level(logging.WARNING), warnings.catch_warnings():
            warnings.simplefilter("error")
            for name in ("cwm", "gpt_oss", "phi3"):
                rw.extend(tiny.build(name), rw.Linear(factor=2))
        assert not [record for record in caplog.records if record.name.startswith("transformers")]


class TestRefusing:
    def test_a_table_that_the_config_does_not_describe(self, llama):
        llama.model.rotary_emb.inv_freq *= 0.5
        with pytest.raises(rw.InputError, match="does not compute what its config describes: none"):
            rw.extend(llama, YARN)

    def test_an_attention_factor_that_the_config_does_not_describe(self, llama):
        llama.model.rotary_emb.attention_scaling = 1.2
        with pytest.raises(rw.InputError, match="does not compute what its config describes: none"):
            rw.extend(llama, YARN)

    def test_frequencies_that_were_learned(self):
        model = tiny.build("mistral_large4")
        model.model.language_model.rotary_emb.alpha += torch.linspace(0, 1, 4)
        with pytest.raises(rw.InputError, match="a channel of its table belongs to no pair"):
            rw.extend(model, YARN)

    def test_an_encoder_that_reads_the_text_too(self):
        from transformers import T5GemmaConfig, T5GemmaForConditionalGeneration

        part = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 97}  # fmt: skip
        model = T5GemmaForConditionalGeneration(T5GemmaConfig(encoder=part, decoder=part, vocab_size=97))
        with pytest.raises(rw.InputError, match="its encoder reads the text too"):
            rw.extend(model, YARN)


def as_tuple(table):
    return table if isinstance(table, tuple) else (table,)


def at(model, positions):
    with torch.no_grad():
        return model(input_ids=tiny.IDS, position_ids=positions, use_cache=False).logits


def in_chunks(model, ids, chunk):
    """The logits of a text that is fed on with a cache."""
    cache, logits = None, []
    with torch.no_grad():
        for part in ids.split(chunk, dim=1):
            answer = model(part, past_key_values=cache, use_cache=True)
            cache = answer.past_key_values
            logits.append(answer.logits)
    return torch.cat(logits, dim=1)
