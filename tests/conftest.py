"""Fixtures shared by all tests: the built-in model, its text, and a tiny random Llama; and the summary of skips."""

from __future__ import annotations

import os
from collections import Counter

import pytest

os.environ["TQDM_DISABLE"] = "1"  # libraries read it at import; the command line sets it without a terminal, too
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # torch would start as many threads as cores in each worker
    cores_per_worker = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores_per_worker)))

import ropewalk as rw
from ropewalk.evaluate.texts import read_text


def pytest_terminal_summary(terminalreporter):
    """End the run with its skips, grouped by reason."""
    reports = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reports)
    if reasons:
        terminalreporter.section("skipped, by reason (CONTRIBUTING.md says how to run them)")
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count:4}  {reason}")


@pytest.fixture(scope="session")
def smollm2():
    """The built-in model and its tokenizer, loaded once."""
    return rw.load("smollm2")


@pytest.fixture
def model(smollm2):
    """The built-in model; it is restored after the test."""
    yield smollm2[0]
    rw.restore(smollm2[0])


@pytest.fixture(scope="session")
def tokens(smollm2):
    """The token ids of the built-in text."""
    return smollm2[1](read_text("pydoc").content, verbose=False)["input_ids"]


@pytest.fixture(scope="session")
def tiny():
    """A random Llama in float32 with an original length of 64 tokens."""
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
    """The folder of the saved tiny model with a word tokenizer, as a user would have it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tiny")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(folder)
    tiny.save_pretrained(folder)
    return folder
