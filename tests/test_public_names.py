"""The names that `import ropewalk` offers, and what importing it costs."""

import importlib
import subprocess
import sys

import pytest

import ropewalk as rw


@pytest.mark.parametrize("name", rw.__all__)
def test_every_public_name_exists_and_is_listed(name):
    assert getattr(rw, name) is not None
    assert name in dir(rw)


def test_tutorial_methods_are_available_but_not_listed():
    for name in ("PowerNTK", "LogNTK"):
        assert getattr(rw, name) is rw.scaling.REGISTRY[getattr(rw, name).name]
        assert name not in dir(rw)


def test_unknown_name_raises_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rw.nothing


def test_planning_is_a_module_and_plan_a_function():
    assert importlib.import_module("ropewalk.planning").plan is rw.plan


def test_importing_ropewalk_config_and_doctor_needs_numpy_only():
    code = """
import sys
import ropewalk, ropewalk.config, ropewalk.serving.doctor, ropewalk.serving.export
print([name for name in ("torch", "transformers", "gguf", "typer") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
