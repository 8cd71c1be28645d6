"""`extend` and `restore` through a wrapper change the model inside, and are the same through either."""

import copy
import warnings

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from tests.helpers.architectures import IDS, LENGTH, LONG_IDS, TOLERANCE, build, compute_logits, relative_difference
from torch import nn

import ropewalk as rw
from ropewalk.compat.transformers import cache_for_call, find_output_cache
from ropewalk.models.extend import extended, extension_of
from ropewalk.models.wrappers import unwrap_measurable_model, unwrap_model

pytestmark = pytest.mark.usefixtures("one_thread")
YARN = rw.YaRN(factor=4)


class Holder(nn.Module):
    """A module of a user that holds a model, as one with a value head does."""

    def __init__(self, model):
        super().__init__()
        self.value_head = nn.Linear(64, 1)
        self.pretrained = model

    def forward(self, *args, **kwargs):
        return self.pretrained(*args, **kwargs)


def with_lora(model):
    torch.manual_seed(0)
    peft_model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:  # zero in a new adapter, which would have no effect
                parameter.fill_(0.05)
    return peft_model.eval()


WRAPPERS = {
    "lora": with_lora,
    "prefix": lambda model: get_peft_model(model, PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")),
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "data_parallel": nn.DataParallel,
    "holder": Holder,
    "twice": lambda model: Holder(with_lora(model)),
}
EVERY_WRAPPER = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


@pytest.fixture
def llama():
    return build("llama")


@EVERY_WRAPPER
class TestEveryWrapper:
    def test_extends_the_model_inside(self, llama, wrap):
        wrapper = wrap(llama)
        plain, config = compute_logits(llama, ids=LONG_IDS), llama.config.to_dict()
        assert rw.extend(wrapper, YARN) is wrapper
        expected = copy.deepcopy(llama)
        rw.extend(rw.restore(expected), YARN)
        assert torch.equal(compute_logits(llama, ids=LONG_IDS), compute_logits(expected, ids=LONG_IDS))
        assert llama.config.rope_parameters["rope_type"] == "yarn"
        assert extension_of(wrapper) is extension_of(llama) is extension_of(llama.model)
        for _ in range(3):
            assert rw.restore(wrapper) is wrapper
            assert torch.equal(compute_logits(llama, ids=LONG_IDS), plain)
            assert llama.config.to_dict() == config
        assert extension_of(wrapper) is extension_of(llama) is None

    def test_what_one_applied_the_other_restores(self, llama, wrap):
        plain = compute_logits(llama, ids=LONG_IDS)
        wrapper = wrap(llama)
        wrapped = compute_logits(llama, ids=LONG_IDS)  # an adapter changes it
        rw.extend(llama, YARN)
        rw.restore(wrapper)
        assert torch.equal(compute_logits(llama, ids=LONG_IDS), wrapped)
        rw.extend(wrapper, YARN)
        rw.restore(llama)
        assert torch.equal(compute_logits(llama, ids=LONG_IDS), wrapped)
        with extended(wrapper, YARN):
            assert extension_of(llama).scalings == {"all": YARN}
        rw.extend(wrapper, YARN)
        rw.extend(llama, rw.NTK(factor=2))  # replaces it
        assert extension_of(wrapper).scalings == {"all": rw.NTK(factor=2)}
        rw.restore(wrapper)
        assert torch.equal(compute_logits(llama, ids=LONG_IDS), wrapped)
        assert torch.equal(plain, compute_logits(build("llama"), ids=LONG_IDS))


def replicate(module):
    """Return a replica of a module as `DataParallel` makes one for each of several GPUs."""
    replica = module._replicate_for_data_parallel()
    for name, parameter in module._parameters.items():
        setattr(replica, name, parameter)
    for name, child in module._modules.items():
        replica._modules[name] = None if child is None else replicate(child)
    return replica


@pytest.mark.filterwarnings("ignore:transformers cannot express")
def test_the_replicas_of_data_parallel_follow_the_text(llama):
    unscaled = compute_logits(llama, ids=LONG_IDS)
    expected = compute_logits(rw.extend(llama, "dynamic-yarn"), ids=LONG_IDS)
    assert not torch.equal(expected, unscaled)
    assert torch.equal(compute_logits(replicate(llama), ids=LONG_IDS), expected)


class TestPeft:
    @pytest.mark.parametrize("first", ["extend", "wrap"])
    def test_lora_before_or_after_extend(self, llama, first):
        expected = with_lora(build("llama"))
        rw.extend(expected.base_model.model, YARN)
        peft_model = with_lora(rw.extend(llama, YARN)) if first == "extend" else rw.extend(with_lora(llama), YARN)
        assert torch.equal(logits_of(peft_model, LONG_IDS), logits_of(expected, LONG_IDS))
        rw.restore(peft_model)
        unscaled = logits_of(with_lora(build("llama")), LONG_IDS)
        assert torch.equal(logits_of(peft_model, LONG_IDS), unscaled)
        assert relative_difference(logits_of(expected, LONG_IDS), unscaled) > 100 * TOLERANCE

    def test_the_scaling_outlives_merging(self, llama):
        expected = with_lora(build("llama")).merge_and_unload()
        plain = compute_logits(expected, ids=LONG_IDS)
        merged = rw.extend(with_lora(llama), YARN).merge_and_unload()
        assert extension_of(merged).scalings == {"all": YARN}
        assert torch.equal(
            compute_logits(merged, ids=LONG_IDS), compute_logits(rw.extend(expected, YARN), ids=LONG_IDS)
        )
        assert torch.equal(compute_logits(rw.restore(merged), ids=LONG_IDS), plain)

    def test_the_wrapper_has_the_config_of_the_model(self, llama):
        peft_model = rw.extend(with_lora(llama), YARN)
        assert peft_model.config is llama.config
        assert rw.plan(peft_model, target=4 * LENGTH).needed is False

    @pytest.mark.filterwarnings("ignore:transformers cannot express")
    def test_the_wrapper_keeps_the_config_of_the_model_after_a_position_method(self, llama):
        peft_model = with_lora(llama)
        with extended(peft_model, "self-extend"):
            assert peft_model.config is llama.config
        rw.extend(peft_model, YARN)
        assert peft_model.config is llama.config
        assert rw.plan(peft_model, target=4 * LENGTH).needed is False

    @pytest.mark.filterwarnings("ignore:transformers cannot express")
    def test_generate_of_the_wrapper_reports_the_length_of_a_request(self, llama):
        def generate(model):
            rw.extend(model, rw.DynamicYaRN(), policy="request")
            return model.generate(input_ids=IDS, max_new_tokens=3 * LENGTH, min_new_tokens=3 * LENGTH, do_sample=False)

        peft_model = with_lora(llama)
        assert torch.equal(generate(peft_model), generate(with_lora(build("llama")).base_model.model))

    def test_prompt_learning_cannot_be_measured_as_the_model_inside(self, llama):
        with pytest.raises(rw.InputError, match="its virtual tokens come before the text"):
            unwrap_measurable_model(WRAPPERS["prefix"](llama))
        assert unwrap_measurable_model(with_lora(build("llama"))).config.model_type == "llama"


class TestUnwrapping:
    def test_a_model_is_itself(self, llama):
        assert unwrap_model(llama) is llama
        assert unwrap_model(llama.model) is llama.model
        vision_model = build("qwen2_vl")  # its language model is a model too
        assert unwrap_model(vision_model) is vision_model

    def test_a_module_without_a_model_is_itself(self):
        linear = nn.Linear(2, 2)
        assert unwrap_model(linear) is linear

    def test_several_models_are_refused_by_name(self, llama):
        both = nn.ModuleDict({"teacher": llama, "student": build("llama")})
        with pytest.raises(rw.InputError, match=r"ModuleDict is not supported: it holds 2 models.*: teacher, student"):
            rw.extend(both, YARN)
        rw.extend(both["student"], YARN)
        assert extension_of(llama) is None


class TestSharedConfig:
    """Models that are built from one config object share it."""

    @pytest.mark.parametrize("name", ["llama", "qwen2_vl", "gemma3_text", "granite_swa", "deepseek_v3"])
    def test_only_the_extended_model_gets_the_scaling(self, name):
        model = build(name)
        other = type(model)(model.config).eval()
        other.load_state_dict(model.state_dict())
        assert other.config is model.config
        before, plain = other.config.to_dict(), compute_logits(other)
        rw.extend(model, YARN)
        assert model.config.to_dict() != before
        assert other.config.to_dict() == before
        assert torch.equal(compute_logits(other), plain)
        rw.restore(model)
        assert model.config.to_dict() == other.config.to_dict() == before

    @pytest.mark.parametrize("name", ["llama", "qwen2_vl", "gemma3_text"])
    def test_all_parts_of_the_extended_model_have_the_same_config(self, name):
        model = build(name)
        text_config = model.config.get_text_config(decoder=True)
        holders = [module for module in model.modules() if vars(module).get("config") is text_config]
        assert len(holders) > 1
        rw.extend(model, YARN)
        extended_config = model.config.get_text_config(decoder=True)
        assert extended_config is not text_config
        assert all(module.config is extended_config for module in holders)

    def test_changes_of_other_fields_outlive_restore(self, llama):
        rw.extend(llama, YARN)
        llama.set_attn_implementation("eager")
        rw.restore(llama)
        assert (
            llama.config._attn_implementation == llama.model.layers[0].self_attn.config._attn_implementation == "eager"
        )


class TestStaticScalingFollowsNothing:
    """Under a static scaling, a cache that the hooks have not seen is used as it is."""

    def test_learned_prefixes_are_used_as_they_are(self, llama):
        prefix_model = WRAPPERS["prefix"](llama).eval()
        rw.extend(prefix_model, YARN)
        reference = copy.deepcopy(prefix_model)
        transformers_model = type(llama)(copy.deepcopy(llama.config)).eval()
        transformers_model.load_state_dict(llama.state_dict())
        reference.base_model = transformers_model
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            actual = logits_of(prefix_model, IDS)
        assert relative_difference(actual, logits_of(reference, IDS)) < TOLERANCE

    @pytest.mark.filterwarnings("ignore:transformers cannot express")
    def test_learned_prefixes_are_refused_in_one_line_under_a_dynamic_scaling(self, llama):
        prefix_model = rw.extend(WRAPPERS["prefix"](llama).eval(), rw.DynamicYaRN())
        with pytest.raises(RuntimeError, match="the cache holds 3 tokens") as error:
            logits_of(prefix_model, IDS)
        assert "\n" not in str(error.value)

    def test_a_compiled_prefill_continues_eagerly(self, llama):
        expected = logits_of(rw.extend(build("llama"), YARN), LONG_IDS)
        rw.extend(llama, YARN)
        torch.compiler.reset()
        compiled = torch.compile(llama, backend="eager")
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            prefill = compiled(LONG_IDS[:, :40], use_cache=True)
            rest = llama(LONG_IDS[:, 40:], **cache_for_call(llama, find_output_cache(prefill))).logits
        assert relative_difference(torch.cat([prefill.logits, rest], dim=1), expected) < TOLERANCE


def logits_of(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits
