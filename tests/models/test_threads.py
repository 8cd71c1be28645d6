"""One model that several threads use at once: every call has its own frequencies."""

import asyncio
import copy
import gc
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from tests.helpers.architectures import LENGTH
from tests.helpers.cached_text import (
    CONTINUOUS,
    LONG,
    REQUEST,
    STEPPED,
    TEXT,
    TEXTS,
    continue_text,
    extended_model,
    generate,
    read_text,
)
from transformers import DynamicCache, TextIteratorStreamer

import ropewalk as rw
from ropewalk.compat.transformers import cache_for_generate
from ropewalk.models.extend import extension_of
from ropewalk.models.key_state import get_key_state

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:transformers cannot express"),  # nothing is saved here
]
ALL_POLICIES = pytest.mark.parametrize("policy", [STEPPED, CONTINUOUS, REQUEST])
PROMPT_LENGTHS = (10, 28, 30, 33, 40, 60, 62, 70, 90, 126)  # a step, or none, within 6 more tokens
NEW_TOKENS = 6


@pytest.fixture
def many_switches():
    """Let threads take turns as often as possible."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def answer(model, prompt):
    return generate(model, prompt, NEW_TOKENS).sequences.tolist()


def run_in_threads(*functions):
    """Run each function in a thread of its own; return their results."""
    with ThreadPoolExecutor(len(functions)) as executor:
        return [future.result(timeout=120) for future in [executor.submit(function) for function in functions]]


def let_calls_overlap(model, threads):
    """Hold every forward call, after it has chosen its frequencies, until this many threads have reached that point."""
    barrier = threading.Barrier(threads, timeout=60)

    def wait(module, args):
        barrier.wait()

    return model.get_input_embeddings().register_forward_pre_hook(wait)


@ALL_POLICIES
@pytest.mark.parametrize("fuse", [False, True], ids=["tables", "fused"])
def test_generations_that_overlap_in_every_forward(policy, fuse):
    model = extended_model(policy, fuse=fuse)
    prompts = [TEXTS[row : row + 1, :length] for row, length in enumerate((15, 28, 60))]
    alone = [answer(model, prompt) for prompt in prompts]
    handle = let_calls_overlap(model, len(prompts))
    try:
        together = run_in_threads(*(lambda prompt=prompt: answer(model, prompt) for prompt in prompts))
    finally:
        handle.remove()
    assert together == alone


@ALL_POLICIES
def test_200_generations_over_four_threads(policy, many_switches):
    model = extended_model(policy)
    prompts = [TEXTS[row : row + 1, :length] for length in PROMPT_LENGTHS for row in (0, 1)]
    alone = [answer(model, prompt) for prompt in prompts]
    with ThreadPoolExecutor(4) as executor:
        together = list(executor.map(lambda prompt: answer(model, prompt), prompts * 10))
    assert together == alone * 10


def test_600_forward_calls_over_four_threads(many_switches):
    model = extended_model()
    texts = [TEXTS[row : row + 1, :length] for length in PROMPT_LENGTHS for row in (0, 1)]
    alone = [read_text(model, text)[0] for text in texts]
    with ThreadPoolExecutor(4) as executor:
        together = list(executor.map(lambda text: read_text(model, text)[0], texts * 30))
    assert all(torch.equal(*pair) for pair in zip(together, alone * 30, strict=True))


@ALL_POLICIES
def test_a_streamer_reads_while_other_threads_generate(policy):
    model = extended_model(policy)
    tokenizer = SimpleNamespace(decode=lambda ids, **_: "".join(f"{int(token)} " for token in ids))
    prompts = [TEXTS[row : row + 1, :length] for row, length in enumerate((28, 62))]
    alone = [answer(model, prompt)[0] for prompt in prompts]
    streamers = [TextIteratorStreamer(tokenizer, timeout=60) for _ in prompts]
    handle = let_calls_overlap(model, len(prompts))
    threads = [
        threading.Thread(target=generate, args=(model, prompt, NEW_TOKENS), kwargs={"streamer": streamer})
        for prompt, streamer in zip(prompts, streamers, strict=True)
    ]
    for thread in threads:
        thread.start()
    streamed = [[int(token) for token in "".join(streamer).split()] for streamer in streamers]
    for thread in threads:
        thread.join()
    handle.remove()
    assert streamed == alone


@ALL_POLICIES
def test_tasks_that_take_turns_between_calls(policy):
    model = extended_model(policy)
    texts = [TEXTS[row : row + 1, :length] for row, length in enumerate((28, 60))]

    async def read(text):
        first, cache = read_text(model, text)
        parts = [first]
        # Under `request`, a cache within the original length goes on without a limit, and a longer one is full.
        for token in TEXTS[2:, :4].split(1, dim=1) if policy != REQUEST or text.shape[1] < LENGTH else ():
            await asyncio.sleep(0)
            parts.append(continue_text(model, token, cache))
        return torch.cat(parts, dim=1)

    async def read_all():
        return await asyncio.gather(*(read(text) for text in texts))

    alone = [asyncio.run(read(text)) for text in texts]
    assert all(torch.equal(*pair) for pair in zip(asyncio.run(read_all()), alone, strict=True))


def test_a_probe_leaves_the_calls_of_other_threads_alone():
    """A static model is probed when it continues a prefix that was read under another scaling."""
    model = extended_model(scaling=rw.YaRN(factor=2))
    _, prefix = read_text(model, LONG[:, :40])
    rw.extend(model, rw.YaRN(factor=4))
    expected = continue_text(extended_model(scaling=rw.YaRN(factor=4)), LONG[:, 40:60], copy.deepcopy(prefix))
    alone = read_text(model, LONG)[0]
    probed, read = threading.Event(), threading.Event()
    of_prober = []

    def hold(module, args):
        if threading.get_ident() in of_prober and not probed.is_set():
            probed.set()
            assert read.wait(60)

    model.get_input_embeddings().register_forward_pre_hook(hold)

    def probe():
        of_prober.append(threading.get_ident())
        return continue_text(model, LONG[:, 40:60], prefix)

    def read_during_probe():
        assert probed.wait(60)
        result = read_text(model, LONG)[0]
        read.set()
        return result

    actual, together = run_in_threads(probe, read_during_probe)
    assert get_key_state(prefix).rotations == 1
    assert torch.equal(together, alone)
    assert torch.equal(actual, expected)


@ALL_POLICIES
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_interrupted_generation_leaves_nothing_behind(policy, error):
    model = extended_model(policy)
    expected = answer(model, TEXT[:, :28])
    cache = DynamicCache()
    weak_cache = weakref.ref(cache)

    def interrupt(module, args):
        if weak_cache().get_seq_length() >= 62:
            raise error

    handle = model.model.layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(error):
        generate(model, TEXT[:, :60], NEW_TOKENS, **cache_for_generate(cache))
    handle.remove()
    del cache
    gc.collect()
    assert weak_cache() is None
    assert answer(model, TEXT[:, :28]) == expected


def test_a_model_can_be_extended_again_after_threads_have_used_it():
    model = extended_model()
    run_in_threads(*[lambda: answer(model, TEXT[:, :28])] * 2)
    rw.extend(model, rw.YaRN(factor=4))
    assert torch.equal(read_text(model, LONG)[0], read_text(extended_model(scaling=rw.YaRN(factor=4)), LONG)[0])
    assert not extension_of(model).is_dynamic
