"""`extend` on every architecture of the catalogue in tiny.py, against the models that transformers builds."""

import warnings

import pytest
import torch
import transformers
from tests.helpers import architectures as tiny

import ropewalk as rw
from ropewalk import config as configs

pytestmark = pytest.mark.usefixtures("one_thread")
COVERED = [*tiny.TEXT_MODELS, *tiny.SEEING_MODELS]
SCALINGS = ["none", "linear", "yarn", "llama3", "longrope", "ntk", "dynamic"]


@pytest.fixture(scope="module", params=COVERED)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return tiny.build(name)


@pytest.fixture(autouse=True)
def _as_it_came(model):
    yield
    rw.restore(model)


def scaling_for(model, kind):
    model_config = configs.read(model)
    rope = model_config.main_layer.rope
    length = {} if rope.original_length else {"original_length": tiny.LENGTH}  # RecurrentGemma does not say
    pairs = range(rope.dim // 2)
    short, long = [1 + 0.1 * pair for pair in pairs], [1 + 0.5 * pair for pair in pairs]
    return {
        "none": lambda: rw.NoScaling(**length),
        "linear": lambda: rw.Linear(factor=4, **length),
        "yarn": lambda: rw.YaRN(factor=4, **length),
        "llama3": lambda: rw.Llama3(factor=8, **length),
        "longrope": lambda: rw.LongRoPE(short, long, factor=4, **length),
        "ntk": lambda: rw.NTK(factor=4, **length),  # unknown to transformers
        "dynamic": lambda: rw.DynamicNTK(factor=2, **length),
    }[kind]()


@pytest.mark.parametrize("kind", SCALINGS)
def test_a_scaling_gives_what_transformers_builds_from_the_config(name, model, kind):
    scaling = scaling_for(model, kind)
    plain = tiny.logits(model, ids=tiny.LONG_IDS)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        rw.extend(model, scaling, policy="continuous:every=1,margin=1")  # as transformers follows a text
    scaled = tiny.logits(model, ids=tiny.LONG_IDS)
    if kind != "none":
        assert tiny.off(scaled, plain) > 10 * tiny.EXACT  # it matters, so that the rest of the test does
    not_said = any("transformers cannot express" in str(warning.message) for warning in said)
    assert not_said == (kind in tiny.NOT_SAID.get(name, ()))
    if not_said:
        return
    if (name, kind) == ("deepseek_v4", "dynamic"):
        return  # transformers takes the number of compressed windows for the length of the text
    reference = tiny.rebuilt(model)
    assert tiny.off(scaled, tiny.logits(reference, ids=tiny.LONG_IDS)) < tiny.EXACT
    if not scaling.is_dynamic:
        far = tiny.logits(model, tiny.FAR)
        assert tiny.off(far, tiny.logits(reference, tiny.FAR)) < tiny.FAR_IN_FLOAT32


def test_its_own_scaling_put_back_changes_nothing(model):
    own = {kind: layer.scaling for kind, layer in configs.read(model).ropes.items()}
    config, near, far = model.config.to_dict(), tiny.logits(model), tiny.logits(model, tiny.FAR)
    rw.extend(model, own)
    assert tiny.off(tiny.logits(model), near) < tiny.EXACT
    assert tiny.off(tiny.logits(model, tiny.FAR), far) < tiny.FAR_IN_FLOAT32
    assert model.config.to_dict() == config


@pytest.mark.filterwarnings("ignore:transformers cannot express")
def test_far_positions_are_as_exact_as_near_ones(name, model):
    if name in tiny.NOT_SHIFTED:
        pytest.skip(tiny.NOT_SHIFTED[name])
    rw.extend(model, scaling_for(model, "yarn"))
    near = tiny.logits(model)
    assert tiny.off(tiny.logits(model, tiny.FAR), near) < tiny.EXACT
    assert tiny.off(tiny.logits(model, 2**24 + 1), near) < tiny.EXACT  # float32 has no such position


@pytest.mark.filterwarnings("ignore:transformers cannot express")
def test_restoring_gives_the_same_bits_and_the_same_config(model):
    config, keys = model.config.to_dict(), list(model.state_dict())
    near, far = tiny.logits(model), tiny.logits(model, tiny.FAR)
    rw.extend(model, scaling_for(model, "yarn"))
    assert list(model.state_dict()) == keys
    tiny.logits(model)
    rw.restore(model)
    assert torch.equal(tiny.logits(model), near)
    assert torch.equal(tiny.logits(model, tiny.FAR), far)
    assert model.config.to_dict() == config


def test_a_saved_model_loads_with_the_scaling(name, model, tmp_path):
    kind = "none" if "yarn" in tiny.NOT_SAID.get(name, ()) else "yarn"
    rw.extend(model, scaling_for(model, kind))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert tiny.off(tiny.logits(loaded), tiny.logits(model)) < tiny.EXACT


@pytest.mark.filterwarnings("ignore:transformers cannot express")
def test_eager_and_sdpa_attention_agree(model):
    if not model._supports_sdpa:
        pytest.skip("it knows eager attention only")
    rw.extend(model, scaling_for(model, "yarn"))
    computed = {}
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        computed[attention] = tiny.logits(model)
    assert tiny.off(computed["eager"], computed["sdpa"]) < tiny.EXACT


class TestTheCatalogue:
    @pytest.fixture(autouse=True)
    def _as_it_came(self):  # the tests here share no model
        pass

    @pytest.mark.parametrize("name", tiny.BUILT_TO_REFUSE)
    def test_models_without_such_rotary_embeddings_are_refused_in_one_line(self, name):
        with pytest.raises(rw.InputError, match="it has no rotary modules") as error:
            rw.extend(tiny.build(name), rw.YaRN(factor=4))
        assert "\n" not in str(error.value)

    def test_covers_the_architectures_of_transformers(self):
        print(f"\n{len(COVERED)} architectures:", ", ".join(sorted(COVERED)))
        assert len(COVERED) >= 100
        assert set(tiny.THE_SAME_AS.values()) <= set(COVERED)
        if transformers.__version__.startswith("5.23."):
            assert set(tiny.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - {*COVERED, *tiny.REFUSED, *tiny.THE_SAME_AS} == set()
