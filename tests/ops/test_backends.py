"""Which backend serves which device, and the reasons why one cannot run."""

from __future__ import annotations

from importlib import metadata

import pytest
from tests.helpers.rotation import USABLE_LIBRARIES

from ropewalk.errors import InputError, UnknownNameError
from ropewalk.ops import BACKENDS, backend_for, use_backend
from ropewalk.ops.backends.cpu import Cpu


def test_the_fastest_backend_serves_each_device():
    assert backend_for("cpu").name == ("c++" if USABLE_LIBRARIES else "reference")
    assert backend_for("mps").name == "reference"


def is_installed():
    try:
        return metadata.version("ropewalk") != ""
    except metadata.PackageNotFoundError:
        return False


@pytest.mark.skipif(not is_installed(), reason="rotate.cpp is compiled when ropewalk is installed with pip")
def test_installation_compiled_the_cpp_backend():
    """Without it, most of tests/ops would silently test the reference backend alone."""
    assert BACKENDS["c++"].unavailable_reason() is None


def test_a_backend_selected_by_name_serves_its_devices():
    use_backend("reference")
    try:
        assert backend_for("cpu").name == "reference"
    finally:
        use_backend()


def test_an_unknown_backend_is_refused():
    with pytest.raises(UnknownNameError, match=r"rotation backend: got 'cuda'; expected .*reference"):
        use_backend("cuda")


def test_a_backend_that_cannot_run_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setitem(BACKENDS, "c++", Cpu([]))
    with pytest.raises(InputError, match=r"got 'c.*'; expected .*reference.*compiler"):
        use_backend("c++")
    use_backend()
    assert backend_for("cpu").name == "reference"
    monkeypatch.undo()
    use_backend()


def test_a_library_that_does_not_load_is_reported(tmp_path):
    (tmp_path / "rotate_x.so").write_bytes(b"not a library")
    assert "rotate_x.so" in Cpu([tmp_path / "rotate_x.so"]).unavailable_reason()
