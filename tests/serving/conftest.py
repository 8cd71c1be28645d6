from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config, items):
    """Skip tests that need the environments of the engines, unless they are selected with `-m engines`.

    With `--dist loadgroup`, each engine of a file is tested in one process, which keeps its servers and references.
    """
    is_selected = "engines" in config.option.markexpr
    for item in items:
        if not item.get_closest_marker("engines"):
            continue
        if not is_selected:
            item.add_marker(pytest.mark.skip(reason="needs the engines' environments: make test-engines"))
        else:
            engine = item.callspec.params.get("engine", "vllm") if hasattr(item, "callspec") else "vllm"
            item.add_marker(pytest.mark.xdist_group(f"{item.path.stem}-{engine}"))
