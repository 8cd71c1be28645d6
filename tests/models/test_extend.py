"""`extend`, `extended` and `restore`, on the architectures that are hardest for each property."""

import copy
import json
import logging
import pickle
import warnings

import numpy as np
import pytest
import torch
from tests.helpers.architectures import (
    FAR_POSITION,
    IDS,
    LENGTH,
    LONG_IDS,
    TOLERANCE,
    build,
    build_from_config,
    compute_logits,
    relative_difference,
)

import ropewalk as rw
from ropewalk.compat.transformers import cache_for_call, find_output_cache, learned_log_factors
from ropewalk.models import extend as extending
from ropewalk.models import rotary_modules
from ropewalk.models.channel_layout import probe_channel_layout
from ropewalk.models.extend import extended, extension_of
from ropewalk.models.patching import AttributePatch
from ropewalk.models.rotary_modules import RotaryModule

pytestmark = pytest.mark.usefixtures("one_thread")
YARN = rw.YaRN(factor=4)
EVERY_TOKEN = rw.ContinuousPolicy(every=1, margin=1.0)  # as transformers does
LONG = LONG_IDS.shape[1]  # tokens, past the original length
MODEL_DIM = 64

DYNAMIC_PARAMETERS = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
LONGROPE_PARAMETERS = {
    "rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": LENGTH,
    "short_factor": [1 + 0.1 * i for i in range(8)], "long_factor": [1 + 0.5 * i for i in range(8)],
}  # fmt: skip
COMES_WITH_DYNAMIC_SCALING = pytest.mark.parametrize(
    ("name", "rope_parameters", "changes"),
    [
        ("llama", DYNAMIC_PARAMETERS, {}),
        ("llama", LONGROPE_PARAMETERS, {"max_position_embeddings": 4 * LENGTH}),
        ("phi3", LONGROPE_PARAMETERS, {"max_position_embeddings": 4 * LENGTH}),
    ],
    ids=["dynamic", "longrope", "phi3"],
)


@pytest.fixture
def llama():
    return build("llama")


def with_scaling(name, rope_parameters, **changes):
    """Return a tiny model whose config has this scaling."""
    model = build(name, rope_parameters=rope_parameters, **changes)
    assert "default" not in str(model.config.rope_parameters.get("rope_type"))
    return model


def same(model, other, **options):
    return relative_difference(compute_logits(model, **options), compute_logits(other, **options)) < TOLERANCE


class TestReplacement:
    def test_a_scaling_replaces_the_earlier_one(self, llama):
        once = rw.extend(copy.deepcopy(llama), rw.NTK(factor=2))
        twice = rw.extend(rw.extend(copy.deepcopy(llama), YARN), rw.NTK(factor=2))
        assert torch.equal(compute_logits(twice), compute_logits(once))
        assert twice.config.to_dict() == once.config.to_dict()
        assert torch.equal(compute_logits(rw.restore(twice)), compute_logits(llama))

    def test_softmax_factors_do_not_compound(self):
        scaling = rw.YaRN(factor=40, mscale=1.0, mscale_all_dim=1.0)
        once = rw.extend(build("deepseek_v3"), scaling)
        twice = rw.extend(rw.extend(build("deepseek_v3"), scaling), scaling)
        assert torch.equal(compute_logits(twice), compute_logits(once))

    def test_restoring_a_model_that_is_not_extended_does_nothing(self, llama):
        plain = compute_logits(llama)
        assert rw.restore(llama) is llama
        assert torch.equal(compute_logits(rw.restore(llama)), plain)

    def test_a_block_leaves_an_extended_model_as_it_was(self, llama):
        rw.extend(llama, YARN)
        before, config = compute_logits(llama), llama.config.to_dict()
        with extended(llama, rw.NTK(factor=8)):
            assert not torch.equal(compute_logits(llama), before)
        assert torch.equal(compute_logits(llama), before)
        assert llama.config.to_dict() == config
        assert extension_of(llama).scalings == {"all": YARN}

    def test_a_target_is_planned(self, llama):
        rw.extend(llama, target=3 * LENGTH)
        assert extension_of(llama).scalings["all"] == rw.plan(build("llama"), target=3 * LENGTH).scaling


class TestExtendedBlock:
    def test_does_not_change_the_config(self, llama):
        config = llama.config.to_dict()
        with extended(llama, YARN):
            assert llama.config.to_dict() == config

    def test_takes_the_spec_of_a_policy(self, llama):
        with extended(llama, "dynamic-yarn", policy="request"):
            assert extension_of(llama).policy == rw.RequestPolicy()

    def test_shows_warnings_about_the_model_inside_the_block(self, llama):
        with (
            pytest.warns(UserWarning, match="applies to latent attention") as caught,
            extended(llama, rw.YaRN(factor=4, mscale=1.0, mscale_all_dim=1.0)),
        ):
            pass
        assert [warning.filename for warning in caught] == [__file__]

    def test_does_not_warn_about_saving(self, llama):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with extended(llama, rw.DynamicYaRN()):
                pass

    def test_probes_a_model_once_until_it_changes(self, llama, monkeypatch):
        probed = []

        def count_probes(*arguments):
            probed.append(arguments)
            return probe_channel_layout(*arguments)

        monkeypatch.setattr(rotary_modules, "probe_channel_layout", count_probes)
        for scaling in (YARN, rw.NTK(factor=2), rw.DynamicYaRN()):
            with extended(llama, scaling):
                pass
        assert len(probed) == 1
        llama.to(torch.bfloat16)  # rounds the frequencies
        with extended(llama, YARN):
            pass
        assert len(probed) == 2


class TestFailures:
    """A call that fails leaves the model as it was."""

    @pytest.mark.parametrize("before", [None, YARN], ids=["not extended", "extended"])
    @pytest.mark.parametrize(
        "scaling", ["yarn:factor=0", "longrope:short_factor=[1],long_factor=[1],factor=2", {"full_attention": "none"}]
    )
    def test_an_invalid_scaling(self, llama, before, scaling):
        self.fails(llama, before, rw.InputError, scaling)

    @pytest.mark.parametrize("before", [None, YARN], ids=["not extended", "extended"])
    @pytest.mark.parametrize("at", ["build_extension", "find_config_update"])
    def test_an_error_before_the_patches(self, llama, before, at, monkeypatch):
        def patch():
            monkeypatch.setattr(extending, at, lambda *_: 1 / 0)

        self.fails(llama, before, ZeroDivisionError, rw.NTK(factor=2), patch)

    @pytest.mark.parametrize("before", [None, YARN], ids=["not extended", "extended"])
    def test_an_error_halfway_through_the_patches(self, llama, before, monkeypatch):
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

    def test_a_module_that_is_no_transformers_model(self):
        with pytest.raises(rw.InputError, match="it has no config, as the models of transformers have"):
            rw.extend(torch.nn.Linear(2, 2), YARN)

    @staticmethod
    def fails(model, before, error, scaling, patch=lambda: None):
        if before is not None:
            rw.extend(model, before)
        patch()
        logits, config = compute_logits(model), model.config.to_dict()
        extension = extension_of(model)
        with pytest.raises(error):
            rw.extend(model, scaling)
        assert torch.equal(compute_logits(model), logits)
        assert model.config.to_dict() == config
        assert extension_of(model) is extension
        rw.restore(model)
        assert torch.equal(compute_logits(model), compute_logits(build("llama")))


class TestExtendedModel:
    """The tables stay exact and in place whatever is done to the model."""

    def test_converting_to_bfloat16_keeps_the_tables_exact(self, llama):
        rotary = rw.extend(llama, YARN).model.rotary_emb
        x, positions = torch.zeros(1, 1, MODEL_DIM), torch.tensor([[0, 7, FAR_POSITION, 2**30 + 1]])
        cos, sin = rotary(x, positions)
        llama.to(torch.bfloat16)
        cos_16, sin_16 = rotary(x.bfloat16(), positions)
        assert torch.equal(cos_16, cos.bfloat16())
        assert torch.equal(sin_16, sin.bfloat16())

    def test_a_bfloat16_model_gets_exact_frequencies(self, llama):
        expected = rw.extend(copy.deepcopy(llama), YARN).to(torch.bfloat16)
        rounded = rw.extend(llama.to(torch.bfloat16), YARN)  # rounds inv_freq too
        assert torch.equal(
            compute_logits(rounded, FAR_POSITION),
            compute_logits(expected, FAR_POSITION),
        )

    @pytest.mark.parametrize("name", ["llama", "olmo2", "deepseek_v2", "llama4_text"])
    def test_the_tables_have_the_dtype_of_the_original_module(self, name):
        model = build(name).to(torch.bfloat16)
        rotary = model.model.rotary_emb
        x, positions = torch.zeros(1, 1, MODEL_DIM, dtype=torch.bfloat16), torch.arange(4)[None]
        before = [table.dtype for table in as_tuple(rotary(x, positions))]
        rw.extend(model, YARN)
        assert [table.dtype for table in as_tuple(rotary(x, positions))] == before

    def test_the_tables_equal_cos_and_sin_of_the_scaling(self, llama):
        rw.extend(llama, YARN)
        positions = torch.tensor([[0, 5, FAR_POSITION, 2**31 - 1]])
        cos, sin = llama.model.rotary_emb(torch.zeros(1, 1, MODEL_DIM), positions)
        expected_cos, expected_sin = YARN.frequencies(rw.Rope(16, 10_000.0, LENGTH)).cos_sin(positions[0].numpy())
        np.testing.assert_array_equal(cos[0].numpy(), np.concatenate([expected_cos, expected_cos], axis=-1))
        np.testing.assert_array_equal(sin[0].numpy(), np.concatenate([expected_sin, expected_sin], axis=-1))

    @pytest.mark.parametrize("name", ["llama", "deepseek_v3", "gemma3_text", "granite_swa"])
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    def test_a_copy_is_extended_and_independent(self, name, copied):
        model = build(name)
        plain = compute_logits(model)
        rw.extend(model, rw.YaRN(factor=4, mscale=1.0, mscale_all_dim=0.5) if "deepseek" in name else YARN)
        scaled = compute_logits(model)
        twin = copied(model)
        assert torch.equal(compute_logits(twin), scaled)
        rw.restore(model)
        assert torch.equal(compute_logits(twin), scaled)
        assert twin.config.rope_parameters != model.config.rope_parameters
        assert torch.equal(compute_logits(rw.restore(twin)), plain)

    def test_a_copy_has_its_own_dynamic_frequencies(self, llama):
        rw.extend(llama, rw.DynamicNTK())
        twin = copy.deepcopy(llama)
        short = compute_logits(llama)
        compute_logits(twin, ids=LONG_IDS)
        assert torch.equal(compute_logits(llama), short)

    def test_works_under_hooks_of_accelerate(self, llama):
        # device_map="auto" adds such a hook to every module, and a hook saves the forward that it finds.
        hooks = pytest.importorskip("accelerate.hooks")
        expected = compute_logits(rw.extend(copy.deepcopy(llama), YARN))
        plain = compute_logits(llama)
        hooks.add_hook_to_module(llama.model.rotary_emb, hooks.AlignDevicesHook(execution_device="cpu"))
        assert torch.equal(compute_logits(rw.extend(llama, YARN)), expected)
        assert torch.equal(compute_logits(rw.restore(llama)), plain)

    def test_a_replaced_forward_is_refused(self, llama):
        rotary = llama.model.rotary_emb
        rotary.forward = lambda x, position_ids: type(rotary).forward(rotary, x, position_ids)
        with pytest.raises(rw.InputError, match="replaced its forward"):
            rw.extend(llama, YARN)

    def test_compiles_without_graph_breaks(self, llama):
        torch.compiler.reset()
        rw.extend(llama, YARN)
        compiled = torch.compile(llama, fullgraph=True, backend="eager")
        assert same(compiled, llama)
        assert same(compiled, llama, start=FAR_POSITION)

    def test_logits_with_and_without_a_cache_agree(self, llama):
        rw.extend(llama, YARN)
        at_once = compute_logits(llama, ids=LONG_IDS)
        assert relative_difference(in_chunks(llama, LONG_IDS, 16), at_once) < TOLERANCE

    def test_generates_the_tokens_of_the_model_that_transformers_builds(self, llama):
        rw.extend(llama, YARN)
        reference = build_from_config(llama)
        options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None}
        assert torch.equal(llama.generate(IDS, **options), reference.generate(IDS, **options))


class TestLayerTypes:
    def test_a_single_scaling_applies_to_layers_that_attend_to_the_whole_text(self):
        model = rw.extend(build("gemma3_text"), YARN)
        assert extension_of(model).scalings == {"sliding_attention": rw.NoScaling(), "full_attention": YARN}
        assert model.config.rope_parameters["sliding_attention"]["rope_type"] == "default"
        assert model.config.rope_parameters["full_attention"]["rope_type"] == "yarn"

    def test_the_main_layers_of_deepseek_v4_are_sliding_window_layers(self):
        model = rw.extend(build("deepseek_v4"), YARN)
        assert extension_of(model).scalings == {"main": rw.NoScaling(), "compress": YARN}

    def test_a_scaling_for_each_layer_type(self):
        model = build("gemma3_text")
        rw.extend(model, {"sliding_attention": "linear:factor=2", "full_attention": YARN})
        assert model.config.rope_parameters["sliding_attention"]["rope_type"] == "linear"
        assert same(model, build_from_config(model))

    def test_a_layer_type_that_is_not_given_keeps_its_scaling(self):
        model = rw.extend(build("gemma3_text"), {"sliding_attention": rw.Linear(factor=2)})
        assert extension_of(model).scalings["full_attention"] == rw.NoScaling()
        assert same(model, build_from_config(model))

    def test_an_unknown_layer_type_is_refused_by_name(self):
        with pytest.raises(rw.InputError, match=r"layer type.*'global'.*sliding_attention"):
            rw.extend(build("gemma3_text"), {"global": YARN})

    def test_pairs_that_were_trained_without_rotation_do_not_rotate(self):
        model = build("gemma4_text")
        with pytest.warns(UserWarning, match="transformers cannot express"):
            rw.extend(model, YARN)
        table = model.model.rotary_emb.ropewalk["full_attention"]
        assert (table.row_frequencies[0].inv_freq > 0).tolist() == [True] * 4 + [False] * 12
        same_method = rw.extend(build("gemma4_text"), rw.Proportional(p=0.25, factor=4.0))
        assert same(same_method, build_from_config(same_method))


class TestLatentAttention:
    @pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "kimi_k25"])
    @pytest.mark.parametrize("all_dim", [1.0, 0.707])
    def test_deepseek_yarn_equals_the_model_that_transformers_builds(self, name, all_dim):
        model = build(name)
        plain = rw.extend(build(name), rw.YaRN(factor=40, attention_factor=1.0))
        rw.extend(model, rw.YaRN(factor=40, mscale=1.0, mscale_all_dim=all_dim))
        assert same(model, build_from_config(model), ids=LONG_IDS)
        assert not same(model, plain)  # the softmax factor matters

    def test_a_model_that_comes_with_deepseek_yarn(self):
        rope_parameters = {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32.0,
               "beta_slow": 1.0, "rope_theta": 1e4, "original_max_position_embeddings": LENGTH}  # fmt: skip
        model = with_scaling("deepseek_v3", rope_parameters, max_position_embeddings=40 * LENGTH)
        original = compute_logits(model)
        rw.extend(model, rw.NoScaling())
        unscaled = build("deepseek_v3")
        unscaled.load_state_dict(model.state_dict())
        assert same(model, unscaled)
        rw.extend(model, rw.YaRN(factor=40, mscale=1.0, mscale_all_dim=1.0))
        assert relative_difference(compute_logits(model), original) < TOLERANCE
        assert torch.equal(compute_logits(rw.restore(model)), original)

    def test_a_softmax_factor_is_left_out_with_a_warning_for_other_attention(self, llama):
        with pytest.warns(
            UserWarning, match="applies to latent attention, which LlamaForCausalLM does not have"
        ) as caught:
            rw.extend(llama, rw.YaRN(factor=4, mscale=1.0, mscale_all_dim=1.0))
        assert caught[0].filename == __file__
        assert same(llama, build_from_config(llama))


class TestPositionsWithAxes:
    @pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "glm4v", "ernie4_5_vl_moe", "cohere_compass_text"])
    def test_each_axis_has_its_own_positions(self, name):
        model = build(name)
        positions = torch.stack([IDS * 0 + torch.arange(16) * step + start for start, step in ((0, 1), (3, 2), (9, 0))])
        before = logits_at(model, positions)
        assert (
            relative_difference(before, logits_at(model, positions[:1].expand(3, -1, -1))) > 100 * TOLERANCE
        )  # axes matter
        rw.extend(model, rw.NoScaling())
        assert relative_difference(logits_at(model, positions), before) < TOLERANCE
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rw.extend(model, YARN)
        if name != "ernie4_5_vl_moe":  # transformers cannot scale it
            assert (
                relative_difference(logits_at(model, positions), logits_at(build_from_config(model), positions))
                < TOLERANCE
            )
        assert relative_difference(logits_at(model, positions + FAR_POSITION), logits_at(model, positions)) < TOLERANCE

    def test_a_pair_may_follow_two_axes(self):
        # HunYuan splits the repeated table: channels i and i + dim/2 of a pair may follow different axes.
        model = build("hunyuan_vl")
        positions = torch.stack([IDS * 0 + torch.arange(16) + start for start in (0, 3, 9, 11)])
        before = logits_at(model, positions)
        rw.extend(model, YARN)
        assert (
            relative_difference(logits_at(model, positions), logits_at(build_from_config(model), positions)) < TOLERANCE
        )
        assert relative_difference(logits_at(model, positions), before) > 100 * TOLERANCE

    def test_the_layout_of_sections_is_probed(self):
        model = build("qwen2_vl")
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
        rw.extend(llama, scaling, policy=EVERY_TOKEN)
        fixed = rw.extend(build("llama"), scaling, length=LONG)
        assert (
            relative_difference(
                compute_logits(llama, ids=LONG_IDS),
                compute_logits(fixed, ids=LONG_IDS),
            )
            < TOLERANCE
        )
        assert (
            relative_difference(compute_logits(llama), compute_logits(build("llama"))) < TOLERANCE
        )  # a short text is unscaled

    def test_with_a_fixed_length_it_equals_the_model_that_transformers_builds(self, llama):
        rw.extend(llama, rw.DynamicYaRN(), length=4 * LENGTH)
        assert llama.config.max_position_embeddings == 4 * LENGTH
        assert same(llama, build_from_config(llama), ids=LONG_IDS)

    def test_with_a_fixed_length_logits_with_and_without_a_cache_agree(self, llama):
        rw.extend(llama, rw.DynamicNTK(), length=LONG)
        at_once = compute_logits(llama, ids=LONG_IDS)
        assert relative_difference(in_chunks(llama, LONG_IDS, 16), at_once) < TOLERANCE

    def test_a_short_text_after_a_long_one_is_unscaled(self, llama):
        plain = compute_logits(llama)
        rw.extend(llama, rw.DynamicNTK())
        compute_logits(llama, ids=LONG_IDS)
        assert relative_difference(compute_logits(llama), plain) < TOLERANCE


class TestModelsThatComeWithDynamicScaling:
    @COMES_WITH_DYNAMIC_SCALING
    def test_other_scalings_apply_and_restore_brings_back_its_own(self, name, rope_parameters, changes):
        model = with_scaling(name, copy.deepcopy(rope_parameters), **changes)
        config = model.config.to_dict()
        short, long = (
            compute_logits(model),
            compute_logits(model, ids=LONG_IDS),
        )
        unscaled = build(name)
        rw.extend(model, rw.NoScaling())
        assert same(model, unscaled)
        assert same(model, unscaled, ids=LONG_IDS)
        rw.extend(model, YARN)
        assert same(model, build_from_config(model), ids=LONG_IDS)
        rw.restore(model)
        assert model.config.to_dict() == config
        assert torch.equal(compute_logits(model, ids=LONG_IDS), long)
        assert torch.equal(compute_logits(model), short)

    @COMES_WITH_DYNAMIC_SCALING
    def test_extend_after_a_long_text(self, name, rope_parameters, changes):
        model = with_scaling(name, copy.deepcopy(rope_parameters), **changes)
        long = compute_logits(model, ids=LONG_IDS)  # leaves the frequencies of a long text in the model
        rw.extend(model, rw.NoScaling())
        assert same(model, build(name), ids=LONG_IDS)
        rw.restore(model)
        assert torch.equal(compute_logits(model, ids=LONG_IDS), long)

    @COMES_WITH_DYNAMIC_SCALING
    def test_its_own_scaling_applied_again_follows_the_text(self, name, rope_parameters, changes):
        model = with_scaling(name, copy.deepcopy(rope_parameters), **changes)
        short, long = (
            compute_logits(model),
            compute_logits(model, ids=LONG_IDS),
        )
        same_scaling = rw.parse({key: value for key, value in rope_parameters.items() if key != "rope_theta"})
        rw.extend(model, same_scaling, policy=EVERY_TOKEN)
        assert relative_difference(compute_logits(model), short) < TOLERANCE
        assert relative_difference(compute_logits(model, ids=LONG_IDS), long) < TOLERANCE

    def test_the_fixed_alpha_of_hunyuan(self):
        model = with_scaling(
            "hunyuan_v1_dense", {"rope_type": "dynamic", "alpha": 8.0, "factor": 1.0, "rope_theta": 1e4}
        )
        original = compute_logits(model, ids=LONG_IDS)
        rw.extend(model, rw.DynamicNTK(alpha=8.0))
        assert relative_difference(compute_logits(model, ids=LONG_IDS), original) < TOLERANCE
        rw.extend(model, YARN)
        assert same(model, build_from_config(model), ids=LONG_IDS)


class TestConfig:
    def test_describes_the_scaling(self, llama):
        rw.extend(llama, YARN)
        assert llama.config.rope_parameters["rope_type"] == "yarn"
        assert llama.config.rope_parameters["original_max_position_embeddings"] == LENGTH
        assert llama.config.max_position_embeddings == 4 * LENGTH
        assert rw.plan(llama, target=4 * LENGTH).needed is False

    def test_expresses_other_static_scalings_as_longrope(self, llama, tmp_path):
        rw.extend(llama, rw.NTK(factor=4))
        llama.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["rope_parameters"]["rope_type"] == "longrope"
        assert same(type(llama).from_pretrained(tmp_path), llama, ids=LONG_IDS)

    def test_expresses_yarn_as_longrope_for_phi3(self):
        model = rw.extend(build("phi3"), YARN)
        assert model.config.rope_parameters["rope_type"] == "longrope"

    def test_keeps_fields_that_are_not_about_the_scaling(self):
        model = rw.extend(build("qwen2_vl"), YARN)
        assert model.config.text_config.rope_parameters["mrope_section"] == [2, 3, 3]
        model = rw.extend(build("ministral3"), rw.NoScaling())
        kept = {"llama_4_scaling_beta", "original_max_position_embeddings"}  # the attention reads them
        assert kept <= set(model.config.rope_parameters)

    @pytest.mark.parametrize("scaling", ["power-ntk", "dynamic-yarn", "critical-base"])
    def test_a_scaling_that_transformers_cannot_express_changes_nothing_and_warns_once(self, llama, scaling):
        config = llama.config.to_dict()
        with pytest.warns(UserWarning, match=f"transformers cannot express {scaling}") as caught:
            rw.extend(llama, scaling)
        assert len(caught) == 1
        assert caught[0].filename == __file__
        assert llama.config.to_dict() == config

    def test_proving_the_config_logs_and_warns_nothing(self, caplog):
        with caplog.at_level(logging.WARNING), warnings.catch_warnings():
            warnings.simplefilter("error")
            for name in ("cwm", "gpt_oss", "phi3"):
                rw.extend(build(name), rw.Linear(factor=2))
        assert not [record for record in caplog.records if record.name.startswith("transformers")]


@pytest.mark.filterwarnings("ignore:transformers cannot express")
class TestOffloadedModels:
    """accelerate keeps offloaded weights on the meta device and loads them while a module runs."""

    @pytest.fixture
    def offloaded(self, llama, tmp_path):
        llama.save_pretrained(tmp_path / "model")
        model = type(llama).from_pretrained(
            tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path / "offloaded", offload_buffers=True
        )
        assert model.model.embed_tokens.weight.device.type == "meta"
        return model.eval()

    @pytest.mark.parametrize("scaling", ["yarn:factor=4", "dynamic-yarn"])
    def test_are_extended_and_restored(self, llama, offloaded, scaling):
        plain = compute_logits(llama, ids=LONG_IDS)
        expected = compute_logits(rw.extend(llama, scaling), ids=LONG_IDS)
        assert relative_difference(compute_logits(rw.extend(offloaded, scaling), ids=LONG_IDS), expected) < TOLERANCE
        assert torch.equal(compute_logits(rw.restore(offloaded), ids=LONG_IDS), plain)

    def test_a_cached_text_outgrows_its_frequencies(self, llama, offloaded):
        expected = in_chunks(rw.extend(llama, rw.DynamicYaRN(), policy=EVERY_TOKEN), LONG_IDS, 16)
        rw.extend(offloaded, rw.DynamicYaRN(), policy=EVERY_TOKEN)
        assert relative_difference(in_chunks(offloaded, LONG_IDS, 16), expected) < TOLERANCE

    def test_a_model_without_weights_is_refused(self, llama):
        with torch.device("meta"):
            model = type(llama)(llama.config)
        with pytest.raises(rw.InputError, match="its frequencies are on the meta device; load the weights first"):
            rw.extend(model, YARN)

    def test_a_device_without_float64_is_refused(self, llama, monkeypatch):
        monkeypatch.setattr(RotaryModule, "device", torch.device("mps"))
        with pytest.raises(rw.InputError, match="on an MPS device, which has no float64; use a CPU or CUDA"):
            rw.extend(llama, YARN)


class TestLearnedFactors:
    """Mistral Large 4 multiplies its frequencies by learned factors, after a scaling."""

    @pytest.fixture
    def model(self):
        model = build("mistral_large4")
        assert learned_log_factors(self.rotary(model)).unique().numel() > 1  # learned, not 0
        return model

    @staticmethod
    def rotary(model):
        return model.model.language_model.rotary_emb

    def test_multiply_scaled_frequencies(self, model):
        rotary = self.rotary(model)
        factors_P = learned_log_factors(rotary).detach().double().exp().numpy()
        rw.extend(model, "linear:factor=4")
        [layer] = rw.config.read(model).ropes.values()
        expected_P = layer.rope.inv_freq / 4 * factors_P
        np.testing.assert_allclose(rotary.ropewalk["all"].frequencies.inv_freq, expected_P, rtol=1e-12)

    def test_may_be_rounded(self, model):
        model.to(torch.bfloat16)
        factors_P = learned_log_factors(self.rotary(model)).detach().double().exp().numpy()
        rw.extend(model, "none")
        inv_freq_P = self.rotary(model).ropewalk["all"].frequencies.inv_freq
        np.testing.assert_allclose(inv_freq_P[0] / factors_P[0], 1, rtol=1e-12)  # not rounded, as the factors are

    def test_are_probed_again_after_training(self, model):
        rw.extend(model, YARN)
        before = compute_logits(model)
        rw.restore(model)
        with torch.no_grad():
            learned_log_factors(self.rotary(model)).add_(0.1)
        rw.extend(model, YARN)
        assert relative_difference(compute_logits(model), before) > 1e-3


class TestRefused:
    @pytest.mark.parametrize("scaling", ["yarn:factor=4", "dynamic-yarn", "self-extend"])
    @pytest.mark.parametrize("length", ["32k", 0, 1.5])
    def test_a_length_that_is_no_number_of_tokens(self, llama, scaling, length):
        with pytest.raises(rw.InputError, match=r"^length: got"):
            rw.extend(llama, scaling, length=length)

    def test_frequencies_that_the_config_does_not_describe(self, llama):
        llama.model.rotary_emb.inv_freq *= 0.5
        with pytest.raises(rw.InputError, match="does not compute what its config describes: none"):
            rw.extend(llama, YARN)

    def test_an_attention_factor_that_the_config_does_not_describe(self, llama):
        llama.model.rotary_emb.attention_scaling = 1.2
        with pytest.raises(rw.InputError, match="does not compute what its config describes: none"):
            rw.extend(llama, YARN)

    def test_encoder_decoder_models(self):
        from transformers import T5GemmaConfig, T5GemmaForConditionalGeneration

        part = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 97}  # fmt: skip
        model = T5GemmaForConditionalGeneration(T5GemmaConfig(encoder=part, decoder=part, vocab_size=97))
        with pytest.raises(rw.InputError, match="its encoder reads the text too"):
            rw.extend(model, YARN)


def as_tuple(table):
    return table if isinstance(table, tuple) else (table,)


def logits_at(model, positions):
    with torch.no_grad():
        return model(input_ids=IDS, position_ids=positions, use_cache=False).logits


def in_chunks(model, ids, chunk):
    """Return the logits of a text that is fed in chunks through a cache."""
    cache, logits = None, []
    with torch.no_grad():
        for part in ids.split(chunk, dim=1):
            answer = model(part, **cache_for_call(model, cache), use_cache=True)
            cache = find_output_cache(answer)
            logits.append(answer.logits)
    return torch.cat(logits, dim=1)
