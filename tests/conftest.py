from __future__ import annotations

import os

import pytest

os.environ["TQDM_DISABLE"] = "1"  # as the command line sets it where nobody watches; libraries read it when imported

import ropewalk as rw
from ropewalk.evaluate.texts import read_text


@pytest.fixture(scope="session")
def smollm2():
    """The built-in model and tokenizer, loaded once; a test that extends it restores it."""
    return rw.load("smollm2")


@pytest.fixture
def model(smollm2):
    yield smollm2[0]
    rw.restore(smollm2[0])


@pytest.fixture(scope="session")
def tokens(smollm2):
    """The built-in text in tokens."""
    return smollm2[1](read_text("pydoc").content, verbose=False)["input_ids"]


@pytest.fixture(scope="session")
def tiny():
    """A random Llama that was "trained" on 64 tokens, in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tiny_folder(tiny, tmp_path_factory):
    """The tiny model with a tokenizer of words, saved as a user has one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tiny")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(folder)
    tiny.save_pretrained(folder)
    return folder
