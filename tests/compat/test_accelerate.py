"""Fails when accelerate moves what ropewalk.compat.accelerate depends on."""

import pytest
from torch import nn

from ropewalk.compat.accelerate import SAVED_FORWARD

hooks = pytest.importorskip("accelerate.hooks")


def test_a_hook_saves_the_forward_of_the_class_and_restores_it():
    module = nn.Linear(2, 2)
    hooks.add_hook_to_module(module, hooks.ModelHook())
    assert vars(module)[SAVED_FORWARD].__func__ is nn.Linear.forward
    assert "forward" in vars(module)
    hooks.remove_hook_from_module(module)
    assert SAVED_FORWARD not in vars(module)
    assert vars(module)["forward"].__func__ is nn.Linear.forward
