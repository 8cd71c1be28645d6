"""Reversible changes to live objects."""

import pytest
import torch
from torch import nn

from ropewalk.models.patching import AttributePatch, ClassPatch, PatchSet, has_replaced_forward


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.fixture
def linear():
    return nn.Linear(2, 2)


def test_reverting_an_attribute_restores_its_value_or_deletes_it(linear):
    patches = PatchSet([AttributePatch(linear, "in_features", 7), AttributePatch(linear, "new", 1)])
    patches.apply()
    assert (linear.in_features, linear.new) == (7, 1)
    patches.revert()
    assert linear.in_features == 2
    assert not hasattr(linear, "new")


def test_reverting_a_method_uncovers_that_of_the_class(linear):
    patch = AttributePatch(linear, "extra_repr", lambda: "patched")
    patch.apply()
    assert linear.extra_repr() == "patched"
    patch.revert()
    assert "extra_repr" not in vars(linear)


def test_a_class_can_be_applied_and_reverted_repeatedly(linear):
    x = torch.ones(1, 2)
    expected, patch = linear(x), ClassPatch(linear, Doubled)
    for _ in range(2):
        patch.apply()
        assert torch.equal(linear(x), 2 * expected)
        patch.revert()
        assert type(linear) is nn.Linear
        assert torch.equal(linear(x), expected)


def test_if_a_patch_fails_none_is_applied(linear):
    patches = PatchSet([ClassPatch(linear, Doubled), AttributePatch(object(), "accepts_no_attribute", 1)])
    with pytest.raises(AttributeError):
        patches.apply()
    assert type(linear) is nn.Linear


def test_a_forward_set_on_the_module_is_noticed(linear):
    assert not has_replaced_forward(linear)
    linear.forward = lambda x: x
    assert has_replaced_forward(linear)
