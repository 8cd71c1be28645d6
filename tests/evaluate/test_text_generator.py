"""Answers of the reader against plain `generate`, prompt by prompt."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from ropewalk.evaluate import text_generator as readers
from ropewalk.evaluate.sample import Sample
from ropewalk.evaluate.text_generator import TextGenerator
from ropewalk.scaling import parse
from ropewalk.scaling.policies import parse_policy

NEW = 6
SHAPE = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,  # sharp enough that answers hang on where a token stands
}


class Words:
    """A tokenizer that calls token 5 `w5`."""

    pad_token_id = None
    eos_token_id = None

    def batch_decode(self, rows, skip_special_tokens):
        return [" ".join(f"w{token}" for token in row if token != 96) for row in rows.tolist()]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, max_position_embeddings=64)).eval()


def prompts(kind):
    dice = random.Random(0)
    if kind == "shared":  # 40 tokens in common, then questions of their own
        start = [dice.randrange(96) for _ in range(40)]
        return [start + [dice.randrange(96) for _ in range(n)] for n in (3, 3, 5, 9, 1, 30, 40)]
    if kind == "nested":
        start = [dice.randrange(96) for _ in range(50)]
        return [start[:n] for n in (20, 30, 50, 50, 31)]
    return [[dice.randrange(96) for _ in range(n)] for n in (10, 10, 11, 30, 60, 90, 3, 61, 62)]


def in_process_executor(model, prompt):
    ids_BT = torch.tensor([prompt])
    with torch.inference_mode():
        out_BT = model.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), max_new_tokens=NEW, do_sample=False)
    return Words().batch_decode(out_BT[:, len(prompt) :], True)[0]


def answered(model, texts, **options):
    samples = [Sample(index, prompt, (), NEW, **options) for index, prompt in enumerate(texts)]
    given = {sample.index: answer for sample, answer in TextGenerator(model, Words()).generate(samples)}
    assert sorted(given) == list(range(len(texts)))
    return [given[index] for index in range(len(texts))]


@pytest.mark.parametrize("kind", ["shared", "nested", "alone"])
@pytest.mark.parametrize(
    ("scaling", "policy"),
    [
        ("none", "stepped"),
        ("yarn:factor=4", "stepped"),
        ("dynamic-yarn", "stepped"),
        ("dynamic-yarn", "continuous:every=1"),
        ("dynamic-ntk", "request"),
    ],
)
def test_answers_are_those_of_each_prompt_alone(model, kind, scaling, policy):
    texts = prompts(kind)
    with TextGenerator(model, Words()).scaled(parse(scaling), parse_policy(policy)):
        expected = [in_process_executor(model, prompt) for prompt in texts]
        assert answered(model, texts) == expected


def test_the_control_sees_a_difference(model):
    """Were prompts that are read with other frequencies taken from one cache, answers would change."""
    texts = prompts("shared")
    plain = [in_process_executor(model, prompt) for prompt in texts]
    with TextGenerator(model, Words()).scaled(parse("linear:factor=4"), parse_policy("stepped")):
        assert [in_process_executor(model, prompt) for prompt in texts] != plain


@pytest.fixture
def tokens_read(model):
    counted = []
    hook = model.model.embed_tokens.register_forward_hook(lambda _, args, out: counted.append(out.shape[:2].numel()))
    yield counted
    hook.remove()


def test_a_shared_beginning_is_read_once(model, tokens_read):
    texts = prompts("shared")
    answered(model, texts)
    new = len(texts) * (NEW - 1)
    # Each of the seven, beyond what it shares with the one before; in a batch they would have been read whole.
    assert sum(tokens_read) - new == 40 + sum(len(text) - 40 for text in texts)


def test_like_lengths_are_read_in_one_batch(model, tokens_read):
    dice = random.Random(1)
    answered(model, [[dice.randrange(96) for _ in range(20)] for _ in range(5)])
    assert tokens_read == [100] + [5] * (NEW - 1)


def test_no_batch_is_larger_than_its_budget(model, tokens_read, monkeypatch):
    monkeypatch.setitem(readers._BATCH_TOKENS, "cpu", 60)
    dice = random.Random(1)
    answered(model, [[dice.randrange(96) for _ in range(20)] for _ in range(5)])
    assert [count for count in tokens_read if count > 5] == [40, 40, 20]


def test_a_batch_that_memory_does_not_hold_is_halved(model, monkeypatch):
    dice = random.Random(1)
    texts = [[dice.randrange(96) for _ in range(20)] for _ in range(5)]
    expected, tried, generate = answered(model, texts), [], model.generate

    def small(ids_BT, **options):
        tried.append(len(ids_BT))
        if len(ids_BT) > 2:
            raise torch.OutOfMemoryError("no room")
        return generate(ids_BT, **options)

    monkeypatch.setattr(model, "generate", small)
    assert answered(model, texts) == expected
    assert tried == [5, 2, 3, 1, 2]
    monkeypatch.setattr(model, "generate", lambda ids_BT, **_: small(ids_BT.repeat(3, 1)))
    with pytest.raises(torch.OutOfMemoryError):
        answered(model, texts)


def test_frequencies_that_follow_the_text_forbid_to_go_on_from_another_length(model, tokens_read):
    """60 + 20 tokens are read with factor 2; a prompt of 50 that shares 48 with it is read anew, unscaled."""
    dice = random.Random(2)
    long = [dice.randrange(96) for _ in range(80)]
    texts = [long, [*long[:48], 1, 2]]
    with TextGenerator(model, Words()).scaled(parse("dynamic-yarn"), parse_policy("stepped")):
        expected = [in_process_executor(model, prompt) for prompt in texts]
        tokens_read.clear()
        assert answered(model, texts) == expected
    assert sorted(count for count in tokens_read if count > 2) == [50, 80]


def test_a_sliding_window_cannot_be_cut_back():
    torch.manual_seed(0)
    windowed = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=16)).eval()
    texts = prompts("shared")
    assert answered(windowed, texts) == [in_process_executor(windowed, prompt) for prompt in texts]


def test_an_answer_ends_before_a_stop_string(smollm2):
    model, tokenizer = smollm2
    sample = Sample(0, tokenizer("The alphabet: A, B, C, D, E,")["input_ids"], (), 12, stop=(" H", "Q"))
    ((_, answer),) = TextGenerator(model, tokenizer).generate([sample])
    assert answer == " F, G,"


def test_a_stop_string_counts_in_the_answer_alone(smollm2):
    """A prompt that ends in a new line, and an answer that begins with one, make no empty line of the answer's own."""
    model, tokenizer = smollm2
    prompt = tokenizer("Introduction\n")["input_ids"]
    plain, stopped = (
        next(TextGenerator(model, tokenizer).generate([Sample(0, prompt, (), 8, stop=stop)]))[1]
        for stop in ((), ("\n\n",))
    )
    assert stopped == plain.split("\n\n")[0] != ""


HABITS = {
    "no_repeat_ngram_size": 1,
    "suppress_tokens": list(range(0, 97, 2)),
    "forced_eos_token_id": 3,
    "use_cache": False,
    "num_return_sequences": 2,
    "return_dict_in_generate": True,
    "cache_implementation": "static",
    "repetition_penalty": 5.0,
    "max_time": 1e-9,
}


@pytest.mark.parametrize("habit", HABITS)
@pytest.mark.parametrize("kind", ["shared", "alone"])
def test_a_model_s_habits_do_not_count(model, kind, habit, monkeypatch):
    texts = prompts(kind)
    expected = [in_process_executor(model, prompt) for prompt in texts]
    with_habit = copy.deepcopy(model.generation_config)
    setattr(with_habit, habit, HABITS[habit])
    monkeypatch.setattr(model, "generation_config", with_habit)
    assert answered(model, texts) == expected
    assert model.generation_config is with_habit


def test_a_model_in_training_answers_without_dropout(model):
    reader = TextGenerator(model.train(), Words())
    with reader.scaled(parse("none"), parse_policy("stepped")):
        assert not model.training
    assert model.training
    model.eval()


@pytest.mark.parametrize("policy", ["stepped", "request"])
def test_answers_that_pass_the_trained_length_leave_no_trace_in_the_next(model, tokens_read, policy):
    """Prompts within 64 tokens whose answers go past it: their keys were turned, so that nobody goes on from them."""
    dice = random.Random(3)
    start = [dice.randrange(96) for _ in range(52)]
    texts = [start + [dice.randrange(96) for _ in range(n)] for n in (8, 9, 10, 11)]
    with TextGenerator(model, Words()).scaled(parse("dynamic-yarn"), parse_policy(policy)):
        expected = [in_process_executor(model, prompt) for prompt in texts]
        tokens_read.clear()
        assert answered(model, texts) == expected
    assert max(tokens_read) >= 60, "read whole"


def test_no_samples(model):
    assert list(TextGenerator(model, Words()).generate([])) == []
