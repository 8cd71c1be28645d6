"""`extend` on every architecture of the catalogue, compared with the models that transformers builds."""

import warnings

import pytest
import torch
import transformers
from tests.helpers.architectures import (
    ALIASES,
    DEPENDS_ON_POSITION,
    FAR_POSITION,
    FLOAT32_FAR_TOLERANCE,
    LENGTH,
    LONG_IDS,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MULTIMODAL_MODELS,
    NOT_EXPRESSIBLE,
    TEXT_MODELS,
    TOLERANCE,
    UNSUPPORTED,
    UNSUPPORTED_SAMPLES,
    build,
    build_from_config,
    compute_logits,
    relative_difference,
)

import ropewalk as rw
from ropewalk import config as configs

pytestmark = pytest.mark.usefixtures("one_thread")
COVERED = [*TEXT_MODELS, *MULTIMODAL_MODELS]
SCALINGS = ["none", "linear", "yarn", "llama3", "longrope", "ntk", "dynamic"]


@pytest.fixture(scope="module", params=COVERED)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return build(name)


@pytest.fixture(autouse=True)
def _restore(model):
    yield
    rw.restore(model)


def scaling_for(model, kind):
    model_config = configs.read(model)
    rope = model_config.main_layer.rope
    length = {} if rope.original_length else {"original_length": LENGTH}  # RecurrentGemma gives no length
    pairs = range(rope.dim // 2)
    short, long = [1 + 0.1 * pair for pair in pairs], [1 + 0.5 * pair for pair in pairs]
    return {
        "none": lambda: rw.NoScaling(**length),
        "linear": lambda: rw.Linear(factor=4, **length),
        "yarn": lambda: rw.YaRN(factor=4, **length),
        "llama3": lambda: rw.Llama3(factor=8, **length),
        "longrope": lambda: rw.LongRoPE(short, long, factor=4, **length),
        "ntk": lambda: rw.NTK(factor=4, **length),  # transformers does not know it
        "dynamic": lambda: rw.DynamicNTK(factor=2, **length),
    }[kind]()


@pytest.mark.parametrize("kind", SCALINGS)
def test_a_scaling_equals_the_model_that_transformers_builds_from_the_config(name, model, kind):
    scaling = scaling_for(model, kind)
    plain = compute_logits(model, ids=LONG_IDS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rw.extend(model, scaling, policy="continuous:every=1,margin=1")  # as transformers does
    scaled = compute_logits(model, ids=LONG_IDS)
    if kind != "none":
        assert relative_difference(scaled, plain) > 10 * TOLERANCE  # the scaling has an effect to compare
    not_expressible = any("transformers cannot express" in str(warning.message) for warning in caught)
    assert not_expressible == (kind in NOT_EXPRESSIBLE.get(name, ()))
    if not_expressible:
        return
    if (name, kind) == ("deepseek_v4", "dynamic"):
        return  # transformers takes the number of compressed windows as the length of the text
    reference = build_from_config(model)
    # transformers computes dynamic frequencies in float32; on some CPUs step3p7 differs by 1.003e-5 because of that.
    tolerance = 2 * TOLERANCE if kind == "dynamic" else TOLERANCE
    assert relative_difference(scaled, compute_logits(reference, ids=LONG_IDS)) < tolerance
    if not scaling.is_dynamic:
        far = compute_logits(model, FAR_POSITION)
        assert relative_difference(far, compute_logits(reference, FAR_POSITION)) < FLOAT32_FAR_TOLERANCE


def test_its_own_scaling_applied_again_changes_nothing(model):
    own_scalings = {kind: layer.scaling for kind, layer in configs.read(model).ropes.items()}
    config, near, far = (
        model.config.to_dict(),
        compute_logits(model),
        compute_logits(model, FAR_POSITION),
    )
    rw.extend(model, own_scalings)
    assert relative_difference(compute_logits(model), near) < TOLERANCE
    assert relative_difference(compute_logits(model, FAR_POSITION), far) < FLOAT32_FAR_TOLERANCE
    assert model.config.to_dict() == config


@pytest.mark.filterwarnings("ignore:transformers cannot express")
def test_far_positions_are_as_accurate_as_near_ones(name, model):
    if name in DEPENDS_ON_POSITION:
        pytest.skip(DEPENDS_ON_POSITION[name])
    rw.extend(model, scaling_for(model, "yarn"))
    near = compute_logits(model)
    assert relative_difference(compute_logits(model, FAR_POSITION), near) < TOLERANCE
    assert relative_difference(compute_logits(model, 2**24 + 1), near) < TOLERANCE  # float32 has no such position


@pytest.mark.filterwarnings("ignore:transformers cannot express")
def test_restoring_gives_the_same_bits_and_the_same_config(model):
    config, keys = model.config.to_dict(), list(model.state_dict())
    near, far = compute_logits(model), compute_logits(model, FAR_POSITION)
    rw.extend(model, scaling_for(model, "yarn"))
    assert list(model.state_dict()) == keys
    compute_logits(model)
    rw.restore(model)
    assert torch.equal(compute_logits(model), near)
    assert torch.equal(compute_logits(model, FAR_POSITION), far)
    assert model.config.to_dict() == config


def test_a_saved_model_loads_with_the_scaling(name, model, tmp_path):
    kind = "none" if "yarn" in NOT_EXPRESSIBLE.get(name, ()) else "yarn"
    rw.extend(model, scaling_for(model, kind))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert relative_difference(compute_logits(loaded), compute_logits(model)) < TOLERANCE


@pytest.mark.filterwarnings("ignore:transformers cannot express")
def test_eager_and_sdpa_attention_agree(model):
    if not model._supports_sdpa:
        pytest.skip("it supports eager attention only")
    rw.extend(model, scaling_for(model, "yarn"))
    computed = {}
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        computed[attention] = compute_logits(model)
    assert relative_difference(computed["eager"], computed["sdpa"]) < TOLERANCE


class TestCatalogue:
    @pytest.fixture(autouse=True)
    def _restore(self):  # these tests share no model
        pass

    @pytest.mark.parametrize("name", UNSUPPORTED_SAMPLES)
    def test_models_without_rotary_modules_are_refused_in_one_line(self, name):
        with pytest.raises(rw.InputError, match="it has no rotary modules") as error:
            rw.extend(build(name), rw.YaRN(factor=4))
        assert "\n" not in str(error.value)

    def test_covers_the_architectures_of_transformers(self):
        print(f"\n{len(COVERED)} architectures:", ", ".join(sorted(COVERED)))
        assert len(COVERED) >= 100
        assert set(ALIASES.values()) <= set(COVERED)
        if transformers.__version__.startswith("5.24."):
            assert set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - {*COVERED, *UNSUPPORTED, *ALIASES} == set()
