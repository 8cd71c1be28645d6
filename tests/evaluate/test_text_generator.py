"""Answers of TextGenerator compared with plain `generate` on one prompt at a time."""

from __future__ import annotations

import copy
import inspect
import logging
import random

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.helpers.architectures import build
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers.generation import stopping_criteria

from ropewalk.evaluate import text_generator
from ropewalk.evaluate.sample import Sample
from ropewalk.evaluate.text_generator import TextGenerator
from ropewalk.scaling import parse
from ropewalk.scaling.policies import parse_policy

NEW_TOKENS = 6
SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,  # large enough that an answer depends on the positions of the tokens
}


class WordTokenizer:
    """A tokenizer that decodes token 5 to `w5`."""

    pad_token_id = None
    eos_token_id = None

    def batch_decode(self, rows, skip_special_tokens):
        return [" ".join(f"w{token}" for token in row if token != 96) for row in rows.tolist()]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, max_position_embeddings=64)).eval()


def make_prompts(kind):
    dice = random.Random(0)
    if kind == "shared":  # 40 tokens in common, then different ones
        start = [dice.randrange(96) for _ in range(40)]
        return [start + [dice.randrange(96) for _ in range(n)] for n in (3, 3, 5, 9, 1, 30, 40)]
    if kind == "nested":  # prefixes of one text
        start = [dice.randrange(96) for _ in range(50)]
        return [start[:n] for n in (20, 30, 50, 50, 31)]
    return [[dice.randrange(96) for _ in range(n)] for n in (10, 10, 11, 30, 60, 90, 3, 61, 62)]


def plain_answer(model, prompt):
    """Return the greedy answer to one prompt by `generate`."""
    ids_BT = torch.tensor([prompt])
    with torch.inference_mode():
        out_BT = model.generate(
            ids_BT, attention_mask=torch.ones_like(ids_BT), max_new_tokens=NEW_TOKENS, do_sample=False
        )
    return WordTokenizer().batch_decode(out_BT[:, len(prompt) :], True)[0]


def generated_answers(model, prompts):
    """Return the answers of TextGenerator to the prompts, in their order."""
    samples = [Sample(index, prompt, (), NEW_TOKENS) for index, prompt in enumerate(prompts)]
    answers = {sample.index: answer for sample, answer in TextGenerator(model, WordTokenizer()).generate(samples)}
    assert sorted(answers) == list(range(len(prompts)))
    return [answers[index] for index in range(len(prompts))]


@pytest.mark.parametrize("kind", ["shared", "nested", "unrelated"])
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
    prompts = make_prompts(kind)
    with TextGenerator(model, WordTokenizer()).scaled(parse(scaling), parse_policy(policy)):
        expected = [plain_answer(model, prompt) for prompt in prompts]
        assert generated_answers(model, prompts) == expected


def test_other_frequencies_give_other_answers(model):
    """The control of the test above: keys cached with wrong frequencies would change the answers."""
    prompts = make_prompts("shared")
    plain = [plain_answer(model, prompt) for prompt in prompts]
    with TextGenerator(model, WordTokenizer()).scaled(parse("linear:factor=4"), parse_policy("stepped")):
        assert [plain_answer(model, prompt) for prompt in prompts] != plain


@pytest.fixture
def tokens_read(model):
    """The number of tokens of each forward call."""
    counts = []
    hook = model.model.embed_tokens.register_forward_hook(lambda _, args, out: counts.append(out.shape[:2].numel()))
    yield counts
    hook.remove()


def test_a_shared_prefix_is_read_once(model, tokens_read):
    prompts = make_prompts("shared")
    generated_answers(model, prompts)
    answer_tokens = len(prompts) * (NEW_TOKENS - 1)
    probe = 1  # it tells whether the model continues from a cache
    # A batch would have read the whole of each prompt.
    assert sum(tokens_read) - probe - answer_tokens == 40 + sum(len(prompt) - 40 for prompt in prompts)


def test_prompts_of_equal_length_form_one_batch(model, tokens_read):
    dice = random.Random(1)
    generated_answers(model, [[dice.randrange(96) for _ in range(20)] for _ in range(5)])
    assert tokens_read == [100] + [5] * (NEW_TOKENS - 1)


def test_no_batch_has_more_tokens_than_allowed(model, tokens_read, monkeypatch):
    monkeypatch.setitem(text_generator._MAX_BATCH_TOKENS, "cpu", 60)
    dice = random.Random(1)
    generated_answers(model, [[dice.randrange(96) for _ in range(20)] for _ in range(5)])
    assert [count for count in tokens_read if count > 5] == [40, 40, 20]


def test_a_batch_that_does_not_fit_into_memory_is_halved(model, monkeypatch):
    dice = random.Random(1)
    prompts = [[dice.randrange(96) for _ in range(20)] for _ in range(5)]
    expected, batch_sizes, generate = generated_answers(model, prompts), [], model.generate

    def generate_in_little_memory(ids_BT, **options):
        batch_sizes.append(len(ids_BT))
        if len(ids_BT) > 2:
            raise torch.OutOfMemoryError("no room")
        return generate(ids_BT, **options)

    monkeypatch.setattr(model, "generate", generate_in_little_memory)
    assert generated_answers(model, prompts) == expected
    assert batch_sizes == [5, 2, 3, 1, 2]
    monkeypatch.setattr(model, "generate", lambda ids_BT, **_: generate_in_little_memory(ids_BT.repeat(3, 1)))
    with pytest.raises(torch.OutOfMemoryError):
        generated_answers(model, prompts)


def test_prompts_with_different_frequencies_do_not_share_a_cache(model, tokens_read):
    """A prompt of 80 tokens is read with factor 2; one of 50 tokens that shares 48 of them is read without scaling."""
    dice = random.Random(2)
    long = [dice.randrange(96) for _ in range(80)]
    prompts = [long, [*long[:48], 1, 2]]
    with TextGenerator(model, WordTokenizer()).scaled(parse("dynamic-yarn"), parse_policy("stepped")):
        expected = [plain_answer(model, prompt) for prompt in prompts]
        tokens_read.clear()
        assert generated_answers(model, prompts) == expected
    assert sorted(count for count in tokens_read if count > 2) == [50, 80]


def test_a_model_with_a_sliding_window_does_not_share_a_cache():
    torch.manual_seed(0)
    windowed = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=16)).eval()
    prompts = make_prompts("shared")
    assert generated_answers(windowed, prompts) == [plain_answer(windowed, prompt) for prompt in prompts]


def test_an_answer_ends_before_a_stop_string(smollm2):
    model, tokenizer = smollm2
    sample = Sample(0, tokenizer("The alphabet: A, B, C, D, E,")["input_ids"], (), 12, stop=(" H", "Q"))
    ((_, answer),) = TextGenerator(model, tokenizer).generate([sample])
    assert answer == " F, G,"


def test_a_stop_string_must_be_in_the_answer_alone(smollm2):
    """A newline at the end of the prompt and one at the start of the answer do not match the stop string of two."""
    model, tokenizer = smollm2
    prompt = tokenizer("Introduction\n")["input_ids"]
    plain, stopped = (
        next(TextGenerator(model, tokenizer).generate([Sample(0, prompt, (), 8, stop=stop)]))[1]
        for stop in ((), ("\n\n",))
    )
    assert stopped == plain.split("\n\n")[0] != ""


GENERATION_DEFAULTS = {
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


@pytest.mark.parametrize("option", GENERATION_DEFAULTS)
@pytest.mark.parametrize("kind", ["shared", "unrelated"])
def test_the_generation_config_of_the_model_is_ignored(model, kind, option, monkeypatch):
    prompts = make_prompts(kind)
    expected = [plain_answer(model, prompt) for prompt in prompts]
    with_option = copy.deepcopy(model.generation_config)
    setattr(with_option, option, GENERATION_DEFAULTS[option])
    monkeypatch.setattr(model, "generation_config", with_option)
    assert generated_answers(model, prompts) == expected
    assert model.generation_config is with_option


def test_a_model_in_training_mode_answers_without_dropout(model):
    generator = TextGenerator(model.train(), WordTokenizer())
    with generator.scaled(parse("none"), parse_policy("stepped")):
        assert not model.training
    assert model.training
    model.eval()


@pytest.mark.parametrize("policy", ["stepped", "request"])
def test_answers_past_the_original_length_do_not_change_the_next_answer(model, tokens_read, policy):
    """Prompts within 64 tokens whose answers end past it: their keys were rotated, so the next prompt is read whole."""
    dice = random.Random(3)
    start = [dice.randrange(96) for _ in range(52)]
    prompts = [start + [dice.randrange(96) for _ in range(n)] for n in (8, 9, 10, 11)]
    with TextGenerator(model, WordTokenizer()).scaled(parse("dynamic-yarn"), parse_policy(policy)):
        expected = [plain_answer(model, prompt) for prompt in prompts]
        tokens_read.clear()
        assert generated_answers(model, prompts) == expected
    assert max(tokens_read) >= 60


def test_without_samples_there_are_no_answers(model):
    assert list(TextGenerator(model, WordTokenizer()).generate([])) == []


def test_the_reminder_of_the_original_length_is_not_logged_but_other_messages_are(model, monkeypatch):
    """Transformers logs the reminder once per process, so the test checks the text of its source and logs it itself."""
    reminder = "the current text generation call has exceeded the model's predefined maximum length"
    assert "exceeded the model's predefined " in inspect.getsource(stopping_criteria)
    generate, messages, handler = model.generate, [], logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())

    def generate_and_log(*args, **kwargs):
        stopping_criteria.logger.warning(reminder)
        stopping_criteria.logger.warning("another message")
        return generate(*args, **kwargs)

    monkeypatch.setattr(model, "generate", generate_and_log)
    stopping_criteria.logger.addHandler(handler)
    try:
        generated_answers(model, [[1] * 70])
    finally:
        stopping_criteria.logger.removeHandler(handler)
    assert messages == ["another message"]


@pytest.mark.parametrize("name", ["minimax", "recurrent_gemma"])
def test_models_with_a_cache_of_their_own_share_no_prefix(name):
    model = build(name)
    start = list(range(3, 43))
    prompts = [[*start, 50], [*start, 60]]
    assert generated_answers(model, prompts) == [plain_answer(model, prompt) for prompt in prompts]


def test_a_wrapper_answers_as_the_model_inside(model):
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    prompts = make_prompts("shared")
    assert generated_answers(adapted, prompts) == [plain_answer(adapted.base_model.model, prompt) for prompt in prompts]


def test_every_part_stays_in_its_mode(model):
    model = copy.deepcopy(model).train()
    model.lm_head.eval()
    modes = {module: module.training for module in model.modules()}
    with TextGenerator(model, WordTokenizer()).scaled(parse("none"), parse_policy("stepped")):
        assert not any(module.training for module in model.modules())
    assert {module: module.training for module in model.modules()} == modes


def test_an_answer_ends_at_the_token_of_the_model_and_at_that_of_the_tokenizer(model):
    """A chat model may end its turn with a token that only its tokenizer names."""
    prompt = make_prompts("own")[0]
    sample = Sample(0, prompt, (), max_new_tokens=NEW_TOKENS)
    ((_, whole),) = TextGenerator(model, WordTokenizer()).generate([sample])
    words = whole.split()
    for of_model, of_tokenizer in [(None, words[2]), (words[2], None), (words[4], words[2]), (words[2], words[4])]:
        tokenizer = WordTokenizer()
        tokenizer.eos_token_id = of_tokenizer and int(of_tokenizer[1:])
        changed = copy.deepcopy(model)
        changed.generation_config.eos_token_id = of_model and int(of_model[1:])
        ((_, answer),) = TextGenerator(changed, tokenizer).generate([sample])
        assert answer.split() == words[: words.index(words[2]) + 1]
