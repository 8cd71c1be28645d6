"""Commands that load a model end with one line for damaged files, and never with a traceback."""

import shutil

import pytest
from tests.helpers.damaged_models import DAMAGED_TOKENIZERS, DAMAGED_WEIGHTS, ODD_CONFIGS


@pytest.fixture(scope="module")
def undamaged(tiny, smollm2, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undamaged")
    tiny.save_pretrained(folder, max_shard_size="40kB")
    smollm2[1].save_pretrained(folder)
    return folder


@pytest.mark.parametrize("command", ["curve", "eval"])
@pytest.mark.parametrize(
    "damage",
    [damage for damages in (DAMAGED_WEIGHTS, DAMAGED_TOKENIZERS, ODD_CONFIGS) for damage, _ in damages.values()],
    ids=[
        *DAMAGED_WEIGHTS,
        *(f"tokenizer: {name}" for name in DAMAGED_TOKENIZERS),
        *(f"config: {name}" for name in ODD_CONFIGS),
    ],
)
def test_one_line(run, undamaged, text_file, tmp_path, command, damage):
    folder = tmp_path / "model"
    shutil.copytree(undamaged, folder)
    damage(folder)
    options = {"curve": ("--text", text_file), "eval": ("--task", "passkey", "--samples", "1")}[command]
    status, out, err = run(
        command,
        folder,
        "--scaling",
        "none",
        "--lengths",
        "64",
        "--out",
        tmp_path / "out",
        "--dtype",
        "float32",
        *options,
    )
    errors = [line for line in err.splitlines() if "expected" in line]
    assert status == 2
    assert len(errors) == 1
    assert "Traceback" not in err
    assert out == ""
