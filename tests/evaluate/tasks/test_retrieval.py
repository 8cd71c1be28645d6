"""Prompts of passkey and needle: exact lengths, true depths, for tokenizers of four kinds."""

from __future__ import annotations

import re

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ropewalk.errors import InputError
from ropewalk.evaluate.tasks import parse_task
from ropewalk.evaluate.texts import read_text

TEXT = read_text("pydoc").content[:300_000]
CHINESE = "绳索由许多股纱线拧成。工人沿着长廊倒退着走，一边走一边放线！谁知道它有多长？没有人数过。"


def bytes_bpe():
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=made)


def sentence_pieces():
    """As Llama 2 has it: a space before the first word, and a token at the beginning of every text."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=2000, special_tokens=["<s>", "<unk>"], unk_token="<unk>")
    made.train_from_iterator([TEXT], trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", unk_token="<unk>")


def characters():
    letters = ["<unk>", *sorted({*TEXT, *CHINESE, *"0123456789"})]
    made = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(pattern="", behavior="isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


@pytest.fixture(scope="module", params=["smollm2", bytes_bpe, sentence_pieces, characters])
def tokenizer(request):
    return request.getfixturevalue("smollm2")[1] if request.param == "smollm2" else request.param()


def text_of(tokenizer, sample):
    return tokenizer.decode(sample.prompt, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("spec", ["passkey", "needle", "needle:keys=3,values=2,questions=2", "passkey:keys=2"])
@pytest.mark.parametrize("length", [700, 1001, 4096])
def test_prompts_have_exactly_the_length(tokenizer, spec, length):
    samples = parse_task(spec).samples(tokenizer, length, 6, seed=1)
    assert [len(sample.prompt) for sample in samples] == [length] * 6
    for sample in samples:
        text = text_of(tokenizer, sample)
        assert len(tokenizer(text)["input_ids"]) == length, "read again as text, it is as long"
        assert all(number in text for number in sample.references)


@pytest.mark.parametrize("name", ["passkey", "needle"])
def test_the_statement_stands_at_its_depth(tokenizer, name):
    length = 4096
    task = parse_task(name)
    longest = max(len(tokenizer(part)["input_ids"]) for part in re.split(r"(?<=[.!?])\s|\n\s*\n", TEXT[:20_000]))
    for sample in task.samples(tokenizer, length, 7, seed=0):
        text = text_of(tokenizer, sample)
        around = [task.wording().before, task.wording().question, task.wording().statement]
        room = length - sum(len(tokenizer(part)["input_ids"]) for part in around)
        at = len(tokenizer(text[: text.index(sample.references[0])])["input_ids"])
        assert abs(at - sample.metadata["depth"] * room) < longest + 40, (
            "40: the words around, and those before the number"
        )


def test_depths_are_spread_evenly(smollm2):
    samples = parse_task("needle").samples(smollm2[1], 500, 5, seed=0)
    assert [sample.metadata["depth"] for sample in samples] == [0, 0.25, 0.5, 0.75, 1]
    assert [s.metadata["depth"] for s in parse_task("needle").samples(smollm2[1], 500, 1, seed=0)] == [0.5]


def test_a_statement_is_not_put_within_a_sentence(smollm2):
    for sample in parse_task("needle").samples(smollm2[1], 3000, 9, seed=0):
        text = text_of(smollm2[1], sample)
        before = text[: text.index("\nRemember: the lucky number")]
        assert TEXT.startswith(before)
        ended = re.search(r"[.!?][\"')\]]*$", before) or re.match(r"\n\s*\n", TEXT[len(before) :])
        assert before == "" or ended or sample.metadata["depth"] == 1


def test_the_seed_says_it_all(smollm2):
    task = parse_task("needle:keys=2")
    once, again, other = (task.samples(smollm2[1], 800, 4, seed=seed) for seed in (3, 3, 4))
    assert once == again
    assert all(a.references != b.references for a, b in zip(once, other, strict=True))


def test_several_keys_values_and_questions(smollm2):
    samples = parse_task("needle:keys=3,values=2,questions=2").samples(smollm2[1], 1500, 4, seed=0)
    texts = [text_of(smollm2[1], sample) for sample in samples]
    statements = [sorted(re.findall(r"Remember: a lucky number of (\w+) is (\d+)", text)) for text in texts]
    assert [len(found) for found in statements] == [6] * 4
    assert statements[0] == statements[1] != statements[2] == statements[3], "two questions over the same text"
    for sample, text, found in zip(samples, texts, statements, strict=True):
        asked = re.search(r"Remember: the lucky numbers of (\w+) are", text)[1]
        assert sorted(sample.references) == sorted(number for name, number in found if name == asked)
    names = [re.search(r"Remember: the lucky numbers of (\w+) are", text)[1] for text in texts[:2]]
    assert names[0] != names[1]


def test_a_chinese_text(smollm2, tmp_path):
    path = tmp_path / "rope.txt"
    path.write_text(CHINESE * 200, encoding="utf-8")
    for sample in parse_task(f"needle:{path}").samples(smollm2[1], 1234, 5, seed=0):
        assert len(sample.prompt) == 1234
        before = text_of(smollm2[1], sample).split("\nRemember: the lucky number")[0]
        assert before == "" or before[-1] in "。！？" or sample.metadata["depth"] == 1


def test_a_text_without_sentences(smollm2, tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("".join(f"{i:05d} worker {i % 7} took {i * 7 % 91} ms\n" for i in range(5000)))
    for sample in parse_task(f"needle:{path}").samples(smollm2[1], 2000, 5, seed=0):
        before = text_of(smollm2[1], sample).split("\nRemember: the lucky number")[0]
        assert len(sample.prompt) == 2000
        assert before == "" or before.endswith("ms") or sample.metadata["depth"] == 1


def test_lengths_that_cannot_be(smollm2, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("A short text. It ends here.")
    with pytest.raises(InputError, match=r"lengths: got 4096; expected at most \d+ tokens, which the text is long"):
        parse_task(f"needle:{path}").samples(smollm2[1], 4096, 2, seed=0)
    with pytest.raises(InputError, match=r"lengths: got 20; expected at least \d+ tokens, for the question alone"):
        parse_task("passkey").samples(smollm2[1], 20, 2, seed=0)


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
def test_a_number_is_found_whole(smollm2, answer, found):
    task = parse_task("needle:values=2")
    sample = task.samples(smollm2[1], 300, 1, seed=0)[0]
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
def test_bad_specs(spec, message):
    with pytest.raises(InputError, match=message):
        parse_task(spec)


def test_a_missing_text():
    with pytest.raises(InputError, match=r"text: got 'no.txt'"):
        parse_task("needle:no.txt").fingerprint()
