from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.helpers.plain_nll import plain_nll

import ropewalk as rw
from ropewalk.evaluate.native_window import native_window_nll, native_window_tokens


@pytest.mark.parametrize(("window", "stride"), [(64, 16), (64, 63), (50, 1), (64, None)])
def test_each_token_is_predicted_from_the_last_tokens_that_fit_the_window(tiny, random_ids, window, stride):
    ids = random_ids[:101]
    expected, step = list(plain_nll(tiny, ids[:window])), stride or window // 8
    while len(expected) < len(ids) - 1:
        end = min(len(expected) + 1 + step, len(ids))
        expected += list(plain_nll(tiny, ids[end - window : end]))[len(expected) + 1 - end :]
    measured = native_window_nll(tiny, torch.tensor(ids), window, stride=stride)
    assert np.allclose(measured, expected, atol=1e-5)


def test_a_text_within_the_window_is_read_once(tiny, random_ids):
    ids = random_ids[:40]
    assert np.allclose(native_window_nll(tiny, torch.tensor(ids), 64), plain_nll(tiny, ids), atol=1e-5)
    assert native_window_tokens(40, 64) == 40


def test_an_extended_model_is_read_unscaled_and_stays_extended(tiny, random_ids):
    ids = torch.tensor(random_ids[:40])
    unscaled = native_window_nll(tiny, ids, 32)
    rw.extend(tiny, rw.YaRN(factor=4, original_length=16))
    try:
        assert np.array_equal(native_window_nll(tiny, ids, 32), unscaled)
        assert not np.allclose(plain_nll(tiny, ids.tolist()), unscaled, atol=1e-3)
    finally:
        rw.restore(tiny)


def test_progress_counts_every_token_that_is_read(tiny, random_ids):
    counts = []
    native_window_nll(tiny, torch.tensor(random_ids[:100]), 32, stride=8, on_tokens=counts.append)
    assert sum(counts) == pytest.approx(native_window_tokens(100, 32, 8))
    assert native_window_tokens(100, 32, 8) == 32 * 10  # 32 tokens, then 9 passes for the other 68


@pytest.mark.parametrize(
    ("window", "stride", "message"),
    [
        (1, None, "window: got 1; expected at least 2 tokens"),
        (32, 32, "stride: got 32; expected below the window of 32 tokens"),
        (32, 0, "stride: got 0; expected a whole number of tokens"),
    ],
)
def test_a_window_or_stride_out_of_range_is_refused(tiny, random_ids, window, stride, message):
    with pytest.raises(rw.InputError, match=message):
        native_window_nll(tiny, torch.tensor(random_ids), window, stride=stride)
