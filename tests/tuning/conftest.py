from __future__ import annotations

import numpy as np
import pytest
from transformers import AutoTokenizer

import ropewalk as rw
from ropewalk.tuning.base import TuneJob

TARGET = 192  # three times the original length of the tiny model


@pytest.fixture(scope="session")
def word_tokenizer(tiny_folder):
    """The tokenizer of the tiny model: a token for each word w0 to w96, and w0 for all others."""
    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture
def job(tiny, word_tokenizer, tmp_path):
    """A job on the tiny model and two random texts."""
    rng = np.random.default_rng(0)
    documents = tuple(rng.integers(0, 97, size=600) for _ in range(2))
    rope = rw.Rope(dim=16, base=10_000.0, original_length=64)
    return TuneJob(tiny, word_tokenizer, rope, TARGET, documents, (rng.integers(0, 97, size=TARGET),), tmp_path)
