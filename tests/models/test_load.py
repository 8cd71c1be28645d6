from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.helpers.damaged_models import (
    DAMAGED_TOKENIZERS,
    DAMAGED_WEIGHTS,
    ODD_CONFIGS,
    pickle_weights,
    rewrite_config,
)
from tests.helpers.gguf_model import tiny_llama

import ropewalk as rw
from ropewalk.models.load import choose_dtype, load_config, load_tokenizer


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


class TestWeights:
    """Weights that a checkpoint lacks would be random numbers, which only transformers' log tells."""

    def test_missing_weights_are_refused_by_number_and_name(self, folder):
        rewrite_weights(folder, lambda weights: [weights.pop(name) for name in list(weights) if "down_proj" in name])
        with pytest.raises(
            rw.InputError, match=r"missing 2 \(model.layers.0.mlp.down_proj.weight, model.layers.1"
        ) as error:
            rw.load(str(folder))
        assert "\n" not in str(error.value)

    def test_many_missing_weights_are_counted(self, folder):
        rewrite_weights(folder, lambda weights: [weights.pop(name) for name in list(weights) if "layers.1" in name])
        with pytest.raises(rw.InputError, match=r"missing 9 \(.*, .*, .* and 6 more\)"):
            rw.load(str(folder))

    def test_weights_of_another_shape_are_refused_by_name(self, folder):
        rewrite_config(folder, intermediate_size=32)
        with pytest.raises(
            rw.InputError, match=r"shapes of its configuration; other shapes have 6 \(model.layers.0.mlp"
        ):
            rw.load(str(folder))

    def test_a_tied_head_is_not_missing(self, tiny, smollm2, tmp_path):
        config = copy.deepcopy(tiny.config)
        config.tie_word_embeddings = True
        tied = type(tiny)(config)
        tied.save_pretrained(tmp_path)
        smollm2[1].save_pretrained(tmp_path)
        assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded, _ = rw.load(str(tmp_path), dtype="float32")
        assert torch.equal(loaded.lm_head.weight, tied.model.embed_tokens.weight)

    def test_buffers_of_older_checkpoints_are_neither_missing_nor_unused(self, folder):
        rewrite_weights(
            folder, lambda weights: weights.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rw.load(str(folder))

    def test_weights_that_the_model_does_not_use_are_one_warning(self, folder, caplog):
        rewrite_weights(folder, lambda weights: weights.update({"model.extra.weight": torch.ones(8)}))
        with pytest.warns(UserWarning, match=r"does not use 1 \(model.extra.weight\) of the checkpoint") as caught:
            rw.load(str(folder))
        assert len(caught) == 1
        assert caught[0].filename == __file__
        assert not [record for record in caplog.records if record.name == "transformers.modeling_utils"]

    @pytest.mark.parametrize("lacks", [None, "blk.1.ffn_up"])
    def test_a_gguf_file(self, tmp_path, lacks):
        path = tiny_llama(tmp_path / "tiny.gguf", without=lacks)
        if lacks is None:
            model, tokenizer = rw.load(str(path), dtype="float32")
            assert model.config.num_hidden_layers == 2
            assert len(tokenizer) == model.config.vocab_size
        else:
            with pytest.raises(rw.InputError, match=r"missing 1 \(model.layers.1.mlp.up_proj.weight\)"):
                rw.load(str(path))


def cases(damages):
    return pytest.mark.parametrize(("damage", "message"), damages.values(), ids=damages)


class TestDamagedFiles:
    """Each damage is one line, from `load` and from the loads of a part."""

    @pytest.fixture
    def shards(self, tiny, smollm2, tmp_path):
        folder = tmp_path / "model"
        tiny.save_pretrained(folder, max_shard_size="40kB")
        smollm2[1].save_pretrained(folder)
        return folder

    def test_the_undamaged_folder_loads(self, shards):
        assert len(list(shards.glob("*.safetensors"))) > 2
        rw.load(str(shards))

    @cases(DAMAGED_WEIGHTS)
    def test_weights(self, shards, damage, message):
        damage(shards)
        assert_refused(rw.load, shards, message)

    @cases(DAMAGED_TOKENIZERS)
    def test_tokenizers(self, shards, damage, message):
        damage(shards)
        assert_refused(rw.load, shards, message)
        assert_refused(load_tokenizer, shards, message)

    @cases(ODD_CONFIGS)
    def test_configs(self, shards, damage, message):
        damage(shards)
        assert_refused(rw.load, shards, message)
        assert_refused(load_config, shards, message)

    def test_pickled_weights_are_not_read(self, shards):
        pickle_weights(shards)
        (shards / "pytorch_model.bin").write_bytes(b"cos\nabort\n(tR.")  # os.abort() when it is unpickled
        assert_refused(rw.load, shards, "unpickling runs code")


class TestRemoteCode:
    """No path leads to the question of transformers whether code of the model may run."""

    @pytest.mark.parametrize("load", [rw.load, load_config, load_tokenizer])
    def test_it_is_refused_without_asking(self, folder, load, monkeypatch):
        monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
        rewrite_config(
            folder, model_type="custom", auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.M"}
        )
        tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text())
        tokenizer_config |= {"auto_map": {"AutoTokenizer": ["code.T", None]}, "tokenizer_class": "Custom"}
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
        assert_refused(load, folder, "contains custom code")


def assert_refused(load, folder, message):
    with pytest.raises(rw.InputError, match=message) as error:
        load(str(folder))
    assert "\n" not in str(error.value)


def rewrite_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
