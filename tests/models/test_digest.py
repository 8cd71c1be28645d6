from __future__ import annotations

import shutil

import pytest

from ropewalk.errors import InputError
from ropewalk.models.digest import model_digest


@pytest.fixture
def folder(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "a")
    return tmp_path / "a"


def test_a_copy_has_the_same_digest(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "b")
    assert model_digest(str(folder)) == model_digest(str(tmp_path / "b"))
    assert model_digest(str(folder)).startswith("sha256:")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_any_changed_file_changes_the_digest(folder, name):
    before = model_digest(str(folder))
    file = folder / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert model_digest(str(folder)) != before


def test_a_loaded_model_is_identified_by_weights_and_config(tiny):
    import copy

    other = copy.deepcopy(tiny)
    assert model_digest(tiny) == model_digest(other)
    other.lm_head.weight.data[0, 0] += 1
    assert model_digest(tiny) != model_digest(other)
    same = copy.deepcopy(tiny)
    same.config.rope_parameters = {**same.config.rope_parameters, "rope_theta": 5.0}
    assert model_digest(tiny) != model_digest(same)


def test_the_built_in_model_has_a_stable_digest():
    assert model_digest("smollm2") == model_digest("smollm2")


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"model: got .*; expected a folder with weights"):
        model_digest(str(tmp_path))
