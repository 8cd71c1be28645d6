from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import ropewalk as rw
from ropewalk.evaluate.perplexity import token_nll
from ropewalk.models.layer_tables import LayerTablePatch, find_table_layers
from ropewalk.models.patching import PatchSet
from ropewalk.tuning import loss as losses
from ropewalk.tuning.loss import checkpoint_patches, differentiable_nll
from ropewalk.tuning.tables import LearnedTables

IDS_T = torch.from_numpy(np.random.default_rng(0).integers(0, 97, size=90))
START = rw.YaRN(factor=3).frequencies(rw.Rope(dim=16, original_length=64))


@pytest.fixture
def frozen(tiny):
    """A copy of the tiny model whose weights have no gradients."""
    return copy.deepcopy(tiny).requires_grad_(False)


@pytest.fixture(autouse=True)
def small_head_blocks(monkeypatch):
    monkeypatch.setattr(losses, "_HEAD_BLOCK", 32)


@pytest.mark.parametrize("per_layer", [False, True])
def test_the_loss_is_that_of_the_evaluation_under_the_same_scaling(frozen, per_layer):
    with rw.extended(frozen, "yarn:factor=3"):
        expected = np.concatenate(list(token_nll(frozen, IDS_T)))
    layers = find_table_layers(frozen)
    patch = LayerTablePatch(layers, LearnedTables(layers, START, per_layer))
    patch.apply()
    assert np.allclose(differentiable_nll(frozen, IDS_T).detach(), expected, atol=1e-5)
    patch.revert()
    assert not np.allclose(differentiable_nll(frozen, IDS_T).detach(), expected, atol=1e-3)


@pytest.mark.parametrize("per_layer", [False, True])
def test_gradients_equal_finite_differences(frozen, per_layer):
    model = frozen.double()
    layers = find_table_layers(model)
    tables = LearnedTables(layers, START, per_layer).double()
    tables.positions_T = torch.cat([torch.arange(50), torch.arange(40) + 300])  # a jump, as in a short window
    patches = PatchSet([LayerTablePatch(layers, tables), *checkpoint_patches(layers.layers)])
    patches.apply()
    weight_T = torch.rand(89, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss():
        return (differentiable_nll(model, IDS_T) * weight_T).sum()

    loss().backward()
    step = 1e-4  # RMSNorm of transformers computes in float32
    for parameter in tables.parameters():
        for index in np.ndindex(*parameter.shape):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter[index] += sign * step
                    values.append(float(loss()))
                    parameter[index] -= sign * step
            expected = (values[0] - values[1]) / (2 * step)
            assert float(parameter.grad[index]) == pytest.approx(expected, rel=2e-3, abs=2e-3)


def test_checkpointed_layers_give_the_same_gradients(frozen):
    layers = find_table_layers(frozen)
    gradients = []
    for patches in (PatchSet([]), PatchSet(checkpoint_patches(layers.layers))):
        tables = LearnedTables(layers, START, is_per_layer=True)
        patch = LayerTablePatch(layers, tables)
        patch.apply()
        patches.apply()
        differentiable_nll(frozen, IDS_T).mean().backward()
        patches.revert()
        patch.revert()
        gradients.append(tables.log_divisor_SP.grad)
    assert gradients[0].abs().max() > 0
    assert torch.equal(*gradients)
