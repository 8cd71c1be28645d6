"""Data for the tasks that run through lm-evaluation-harness, so that tests download nothing."""

from __future__ import annotations

import json
import random

import yaml

SENTENCES = [f"{subject} is laid here. " for subject in ("Rope", "Yarn", "Strand", "Hemp", "Knot")]


def write_jsonl(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def squad_json(questions):
    """Paragraphs of about 130 tokens in the format of SQuAD; the answer to question i is 1000 + i."""
    rng = random.Random(1)
    paragraphs = [
        {
            "context": f"Town {number} has {number + 1000} houses. {''.join(rng.choices(SENTENCES, k=25))}",
            "qas": [
                {
                    "question": f"How many houses has town {number}?",
                    "answers": [{"text": str(number + 1000)}],
                    "is_impossible": False,
                }
            ],
        }
        for number in range(questions)
    ]
    return {"data": [{"title": "Towns", "paragraphs": paragraphs}]}


def hotpotqa_json(questions):
    """Questions with ten paragraphs each in the format of HotpotQA; the answer to question i is `Person i`."""
    rng = random.Random(2)
    return [
        {
            "question": f"Who lives in house {number}?",
            "answer": f"Person {number}",
            "context": [
                [f"House {number}-{part}", [f"Person {number} is here. ", "".join(rng.choices(SENTENCES, k=10))]]
                for part in range(10)
            ],
        }
        for number in range(questions)
    ]


def character_tokenizer():
    """A tokenizer with one token per character that fits the vocabulary of 97 of the tiny model."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = [*map(chr, range(ord(" "), ord("~") + 1)), "\n", "<end>"]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(vocabulary)}, []))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def write_user_tasks(folder):
    """Write YAML files of tasks of every kind, two groups and a tag, with their data, as a user would."""
    rng = random.Random(3)

    def random_words(count):
        return " ".join(f"w{rng.randrange(2, 90)}" for _ in range(count))

    questions = [{"question": random_words(12 * n), "answer": random_words(3)} for n in range(1, 7)]
    write_jsonl(folder / "questions.jsonl", *questions)

    def task(name, **fields):
        return {
            "task": name,
            "tag": ["user_tag"],
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "questions.jsonl")}},
            "test_split": "test",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
            "metadata": {"version": 3.0},
            **fields,
        }

    greedy = {
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["w"], "max_gen_toks": 8, "do_sample": False},
    }
    exact_match = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    bleu = {"metric": "bleu", "aggregation": "bleu", "higher_is_better": True}
    take_first = {"function": "take_first"}
    first_word = {"function": "regex", "regex_pattern": r"(\S+)"}
    choice_metrics = {"brier_score": "brier_score", "acc": "mean", "acc_norm": "mean"}
    word_perplexity = {
        "metric": "word_perplexity",
        "aggregation": "weighted_perplexity",
        "higher_is_better": False,
    }
    configs = [
        task("user_generate", metric_list=[bleu, exact_match], **greedy),
        task(
            "user_filters",
            metric_list=[exact_match],
            filter_list=[
                {"name": "first", "filter": [first_word, take_first]},
                {"name": "all", "filter": [take_first]},
            ],
            **greedy,
        ),
        task(
            "user_choice",
            output_type="multiple_choice",
            doc_to_choice=["w3 w4", "w5", "w6 w7 w8"],
            doc_to_target=1,
            num_fewshot=1,
            fewshot_split="test",
            metric_list=[{"metric": name, "aggregation": how} for name, how in choice_metrics.items()],
        ),
        task(
            "user_rolling",
            output_type="loglikelihood_rolling",
            doc_to_text="",
            doc_to_target="{{question}}",
            metric_list=[word_perplexity],
        ),
        task("user_next", output_type="loglikelihood", metric_list=[{"metric": "perplexity"}]),
        task("user_sampled", generation_kwargs={"do_sample": True, "temperature": 1.0, "until": []}),
        {"group": "user_group", "task": ["user_rolling", "user_tag", {"task": "user_next", "num_fewshot": 2}]},
        {"group": "user_pair", "task": ["user_rolling", "user_next"]},
    ]
    for config in configs:
        (folder / f"{config.get('group', config['task'])}.yaml").write_text(yaml.dump(config))
