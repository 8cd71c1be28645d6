from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config, items):
    """Skip tests that need the environments of the engines, unless they are selected with `-m engines`."""
    if "engines" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("engines"):
                item.add_marker(pytest.mark.skip(reason="needs the engines' environments: make test-engines"))
