from __future__ import annotations

import pytest
from tests.helpers.rotation import USABLE_LIBRARIES

from ropewalk.ops import BACKENDS, backend_for, use_backend
from ropewalk.ops.backends.cpu import Cpu


@pytest.fixture(params=["reference", *USABLE_LIBRARIES], ids=lambda param: getattr(param, "stem", param))
def backend(request, monkeypatch):
    """Use the reference backend, or the C++ one with each instruction set that this CPU has."""
    if request.param == "reference":
        use_backend("reference")
    else:
        monkeypatch.setitem(BACKENDS, "c++", Cpu([request.param]))
        use_backend("c++")
    yield backend_for("cpu")
    monkeypatch.undo()
    use_backend()
