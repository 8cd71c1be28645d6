"""Prompts of passkey and needle have exact lengths and depths, with four kinds of tokenizers."""

from __future__ import annotations

import re

import pytest
from tests.helpers.chat import with_template
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ropewalk.errors import InputError
from ropewalk.evaluate.tasks import parse_task
from ropewalk.evaluate.texts import read_text

TEXT = read_text("pydoc").content[:100_000]
CHINESE = "绳索由许多股纱线拧成。工人沿着长廊倒退着走，一边走一边放线！谁知道它有多长？没有人数过。"


def byte_level_bpe():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def unigram():
    """Like the tokenizer of Llama 2: a space before the first word, and a token at the beginning of every text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=2000, special_tokens=["<s>", "<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


def single_characters():
    letters = ["<unk>", *sorted({*TEXT, *CHINESE, *"0123456789"})]
    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern="", behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.fixture(scope="module", params=["smollm2", byte_level_bpe, unigram, single_characters])
def tokenizer(request):
    return request.getfixturevalue("smollm2")[1] if request.param == "smollm2" else request.param()


def decode(tokenizer, sample):
    return tokenizer.decode(sample.prompt, skip_special_tokens=True, clean_up_tokenization_spaces=False)


MULTI_NEEDLE = "needle:keys=3,values=2,questions=2"


@pytest.mark.parametrize(
    ("spec", "length"),
    [
        *[(spec, length) for spec in ("passkey", "needle", MULTI_NEEDLE, "passkey:keys=2") for length in (700, 1001)],
        (MULTI_NEEDLE, 4096),
    ],
)
def test_prompts_have_exactly_the_length(tokenizer, spec, length):
    samples = parse_task(spec).make_samples(tokenizer, length, 6, seed=1)
    assert [len(sample.prompt) for sample in samples] == [length] * 6
    for sample in samples:
        text = decode(tokenizer, sample)
        assert len(tokenizer(text)["input_ids"]) == length, "tokenizing the text again gives the same length"
        assert all(number in text for number in sample.references)


@pytest.mark.parametrize("spec", ["passkey", "passkey:keys=2", "needle", MULTI_NEEDLE])
def test_prompts_in_a_chat_template_have_exactly_the_length(tokenizer, spec):
    tokenizer = with_template(tokenizer)
    template = parse_task(spec).prompt_template(chat=True)
    for sample in parse_task(spec).make_samples(tokenizer, 700, 3, seed=1, chat=True):
        assert len(sample.prompt) == 700
        text = decode(tokenizer, sample)
        question = template.question.strip().replace("{name}", r"(\w+)").replace("?", r"\?")
        prefix = template.answer_prefix.replace("{name}", r"\1")
        assert re.fullmatch(rf"(?s)\[user\].*{question}\[end\]\[assistant\]{prefix}", text)
        assert all(number in text for number in sample.references)


@pytest.mark.parametrize("name", ["passkey", "needle"])
def test_the_statement_is_at_its_depth(tokenizer, name):
    length = 2048
    task = parse_task(name)
    template = task.prompt_template()
    parts = (template.before, template.question, template.answer_prefix, template.statement)
    frame = sum(len(tokenizer(part)["input_ids"]) for part in parts)
    sentences = re.split(r"(?<=[.!?])\s|\n\s*\n", TEXT[:20_000])
    longest_sentence = max(len(tokenizer(sentence)["input_ids"]) for sentence in sentences)
    for sample in task.make_samples(tokenizer, length, 7, seed=0):
        text = decode(tokenizer, sample)
        position = len(tokenizer(text[: text.index(sample.references[0])])["input_ids"])
        expected = sample.metadata["depth"] * (length - frame)
        # 40 tokens for the beginning of the prompt and for the words before the number.
        assert abs(position - expected) < longest_sentence + 40


def test_depths_are_spread_evenly_over_the_samples(smollm2):
    samples = parse_task("needle").make_samples(smollm2[1], 500, 5, seed=0)
    assert [sample.metadata["depth"] for sample in samples] == [0, 0.25, 0.5, 0.75, 1]
    assert [s.metadata["depth"] for s in parse_task("needle").make_samples(smollm2[1], 500, 1, seed=0)] == [0.5]


def test_statements_are_between_sentences(smollm2):
    for sample in parse_task("needle").make_samples(smollm2[1], 3000, 9, seed=0):
        text = decode(smollm2[1], sample)
        before = text[: text.index("\nRemember: the lucky number")]
        assert TEXT.startswith(before)
        ended = re.search(r"[.!?][\"')\]]*$", before) or re.match(r"\n\s*\n", TEXT[len(before) :])
        assert before == "" or ended or sample.metadata["depth"] == 1


def test_samples_depend_on_the_seed_only(smollm2):
    task = parse_task("needle:keys=2")
    first, second, other = (task.make_samples(smollm2[1], 800, 4, seed=seed) for seed in (3, 3, 4))
    assert first == second
    assert all(a.references != b.references for a, b in zip(first, other, strict=True))


def test_each_question_asks_for_the_values_of_another_key_in_the_same_text(smollm2):
    samples = parse_task("needle:keys=3,values=2,questions=2").make_samples(smollm2[1], 1500, 4, seed=0)
    texts = [decode(smollm2[1], sample) for sample in samples]
    statements = [sorted(re.findall(r"Remember: a lucky number of (\w+) is (\d+)", text)) for text in texts]
    assert [len(found) for found in statements] == [6] * 4
    assert statements[0] == statements[1] != statements[2] == statements[3], "two questions about each text"
    for sample, text, found in zip(samples, texts, statements, strict=True):
        asked = re.search(r"Remember: the lucky numbers of (\w+) are", text)[1]
        assert sorted(sample.references) == sorted(number for name, number in found if name == asked)
    names = [re.search(r"Remember: the lucky numbers of (\w+) are", text)[1] for text in texts[:2]]
    assert names[0] != names[1]


def test_statements_are_between_chinese_sentences(smollm2, tmp_path):
    path = tmp_path / "rope.txt"
    path.write_text(CHINESE * 200, encoding="utf-8")
    for sample in parse_task(f"needle:{path}").make_samples(smollm2[1], 1234, 5, seed=0):
        assert len(sample.prompt) == 1234
        before = decode(smollm2[1], sample).split("\nRemember: the lucky number")[0]
        assert before == "" or before[-1] in "。！？" or sample.metadata["depth"] == 1


def test_statements_are_between_the_lines_of_a_text_without_sentences(smollm2, tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("".join(f"{i:05d} worker {i % 7} took {i * 7 % 91} ms\n" for i in range(5000)))
    for sample in parse_task(f"needle:{path}").make_samples(smollm2[1], 2000, 5, seed=0):
        before = decode(smollm2[1], sample).split("\nRemember: the lucky number")[0]
        assert len(sample.prompt) == 2000
        assert before == "" or before.endswith("ms") or sample.metadata["depth"] == 1


def test_lengths_that_do_not_fit_are_refused(smollm2, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("A short text. It ends here.")
    with pytest.raises(InputError, match=r"lengths: got 4096; expected at most \d+ tokens, the length of the text"):
        parse_task(f"needle:{path}").make_samples(smollm2[1], 4096, 2, seed=0)
    with pytest.raises(InputError, match=r"lengths: got 20; expected at least \d+ tokens, for the question alone"):
        parse_task("passkey").make_samples(smollm2[1], 20, 2, seed=0)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("12345", 0.5),
        (" 12345 and 67890.", 1),
        ("", 0),
        ("912345", 0),
        ("12345 12345", 0.5),
        ("是67890。12345", 1),
        ("12,345", 0.5),
        ("12345,67890", 1),
    ],
)
def test_only_whole_numbers_count_as_found(smollm2, answer, found):
    task = parse_task("needle:values=2")
    sample = task.make_samples(smollm2[1], 300, 1, seed=0)[0]
    assert task.score(type(sample)(0, [], ("12345", "67890")), answer) == {"found": found}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nedle", "task: got 'nedle'; expected .*did you mean needle"),
        ("needle:keys=0", "needle: keys: got 0"),
        ("needle:keys=33", "needle: keys: got 33; expected at most 32"),
        ("needle:questions=2", "needle: questions: got 2; expected at most the 1 keys"),
        ("needle:keys=1.5", "needle: keys: got 1.5; expected a whole number of keys"),
        ("passkey:depth=3", "passkey: option: got 'depth'; expected keys, values, questions"),
    ],
)
def test_invalid_specs_are_refused(spec, message):
    with pytest.raises(InputError, match=message):
        parse_task(spec)


def test_a_missing_text_is_refused():
    with pytest.raises(InputError, match=r"text: got 'no.txt'"):
        parse_task("needle:no.txt").fingerprint()
