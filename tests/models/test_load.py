from __future__ import annotations

import pytest
import torch

import ropewalk as rw
from ropewalk.models.load import choose_dtype


def test_the_built_in_model_is_a_llama_trained_on_8192_tokens(smollm2):
    model, tokenizer = smollm2
    assert model.config.model_type == "llama"
    assert model.config.max_position_embeddings == 8192
    assert str(model.dtype) == f"torch.{choose_dtype(None)}"
    assert not model.training
    assert all(weight.dtype == model.dtype for weight in model.parameters())  # dequantized
    ids = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**ids, max_new_tokens=4, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])


@pytest.fixture
def folder(tiny, smollm2, tmp_path):
    tiny.save_pretrained(tmp_path)
    smollm2[1].save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_folder_is_loaded_in_the_requested_dtype(folder, dtype):
    model, _ = rw.load(str(folder), dtype=dtype)
    assert model.dtype == getattr(torch, dtype)
    by_file, _ = rw.load(str(folder / "config.json"), dtype=dtype)
    assert torch.equal(by_file.lm_head.weight, model.lm_head.weight)


def test_an_extended_model_that_was_saved_loads_extended(tiny, folder):
    ids = torch.randint(0, 97, (1, 150))
    rw.extend(tiny, "ntk:factor=4")
    tiny.save_pretrained(folder)
    expected = tiny(ids).logits
    rw.restore(tiny)
    loaded, _ = rw.load(str(folder), dtype="float32")
    assert torch.allclose(loaded(ids).logits, expected, atol=1e-5)
    rw.extend(loaded, "none")  # the original frequencies are known from the config
    assert torch.allclose(loaded(ids).logits, tiny(ids).logits, atol=1e-5)


def test_names_that_cannot_be_loaded_are_refused(tmp_path, folder):
    with pytest.raises(rw.InputError, match="dtype: got 'int8'"):
        rw.load(str(folder), dtype="int8")
    with pytest.raises(rw.InputError, match="device: got 'abacus'"):
        rw.load(str(folder), device="abacus")
    with pytest.raises(rw.InputError, match="exists"):
        rw.load(str(tmp_path / "missing.gguf"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(rw.InputError, match="transformers can load"):
        rw.load(str(tmp_path / "empty"))
