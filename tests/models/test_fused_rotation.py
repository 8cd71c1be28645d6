"""Learning what a rotary function does, from functions in place of that of Llama."""

import pytest
import torch
from tests.helpers.architectures import TOLERANCE, build, compute_logits, relative_difference
from torch import nn
from transformers.models.glm import modeling_glm
from transformers.models.llama import modeling_llama

import ropewalk as rw

pytestmark = pytest.mark.usefixtures("one_thread")
YARN = rw.YaRN(factor=4)
ORIGINAL = modeling_llama.apply_rotary_pos_emb


@pytest.fixture
def llama():
    return build("llama")


def learned_rotations(model):
    """Return the learned rotations of a fused model, by the name of the function."""
    return dict(pair for module in model.modules() for pair in getattr(type(module), "ropewalk_rotations", ()))


def shifted(q, k, cos, sin, unsqueeze_dim=1):
    q, k = ORIGINAL(q, k, cos, sin, unsqueeze_dim)
    return q, k + 1e-3


def by_position(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
    if position_ids is not None:
        cos, sin = cos[position_ids], sin[position_ids]
    return ORIGINAL(q, k, cos, sin, unsqueeze_dim)


def in_float32(q, k, cos, sin, unsqueeze_dim=1):
    return ORIGINAL(q.float(), k.float(), cos, sin, unsqueeze_dim)


def with_values(q, k, v, cos, sin, unsqueeze_dim=1):
    return (*ORIGINAL(q, k, cos, sin, unsqueeze_dim), v)


def inverse_on_request(q, k, cos, sin, unsqueeze_dim=1, backwards=False):
    return ORIGINAL(q, k, cos, -sin if backwards else sin, unsqueeze_dim)


def without_tables(q, k, *tables):
    return ORIGINAL(q, k, *tables)


class RotaryModuleOfKernels(nn.Module):
    def forward(self, q, k, cos, sin, unsqueeze_dim=1):
        return ORIGINAL(q, k, cos, sin, unsqueeze_dim)


class TestLearning:
    """Other functions in place of that of Llama."""

    @pytest.mark.parametrize("function", [shifted, by_position, in_float32, with_values, inverse_on_request])
    def test_a_function_that_does_something_else_is_refused_by_name(self, monkeypatch, llama, function):
        monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", function)
        with pytest.raises(rw.InputError, match=f"fuse: got 'apply_rotary_pos_emb of {__name__}"):
            rw.extend(llama, YARN, fuse=True)
        assert not learned_rotations(llama)

    def test_a_model_without_a_rotary_function_is_refused(self, monkeypatch, llama):
        monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", without_tables)
        with pytest.raises(rw.InputError, match="fuse: got 'LlamaModel'"):
            rw.extend(llama, YARN, fuse=True)

    def test_a_rotary_function_that_is_a_module_is_learned(self, monkeypatch, llama):
        expected = compute_logits(rw.extend(llama, YARN))
        monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", RotaryModuleOfKernels())
        assert relative_difference(compute_logits(rw.extend(llama, YARN, fuse=True)), expected) < TOLERANCE

    @pytest.mark.parametrize(("name", "source"), [("llama", modeling_llama), ("glm", modeling_glm)])
    def test_a_learned_rotation_holds_for_other_shapes(self, name, source):
        generator = torch.Generator().manual_seed(5)
        model = rw.extend(build(name), YARN, fuse=True)
        rotation, function = learned_rotations(model)["apply_rotary_pos_emb"], source.apply_rotary_pos_emb
        pairs = len(model.model.rotary_emb.inv_freq)
        cos, sin = torch.randn(2, 1, 7, pairs, generator=generator).repeat(1, 1, 1, 2)
        q, k = (torch.randn(4, 7, heads, 2 * pairs, generator=generator) for heads in (8, 1))
        for ours, theirs in zip(rotation(q, k, cos, sin, unsqueeze_dim=-2), function(q, k, cos, sin, 2), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
