from __future__ import annotations

import random

import numpy as np
import pytest
from tests.helpers.harness_tasks import character_tokenizer

from ropewalk.errors import InputError
from ropewalk.evaluate.tasks.needle import Needle
from ropewalk.evaluate.tasks.passkey import Passkey
from ropewalk.tuning import retrieval_prompts
from ropewalk.tuning.retrieval_prompts import MAX_FACTS, FactPlanter

TEXT = "The rope is long. It was laid in the walk by the sea. " * 60
LENGTH, FACTS = 2600, 8


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer()


@pytest.fixture(scope="module")
def planted(tokenizer):
    ids = tokenizer(TEXT)["input_ids"]
    return FactPlanter(tokenizer).plant(ids, LENGTH, FACTS, random.Random(3))


def decode(tokenizer, ids):
    return tokenizer.decode(ids)


def test_the_length_is_exact_and_without_the_facts_the_text_remains(tokenizer, planted):
    assert len(planted.ids_T) == LENGTH
    text = decode(tokenizer, planted.ids_T[planted.is_text_T])
    assert TEXT.startswith(text)
    assert not (planted.is_text_T & planted.is_answer_T).any()


def test_each_answer_follows_its_question_at_the_end_and_stands_in_a_statement_before(tokenizer, planted):
    end_of_text = int(np.flatnonzero(planted.is_text_T)[-1])
    starts = np.flatnonzero(np.diff(planted.is_answer_T.astype(int), prepend=0) == 1)
    before = decode(tokenizer, planted.ids_T[:end_of_text])
    assert len(starts) == FACTS
    for start in starts:
        stop = start + int(np.argmin(np.append(planted.is_answer_T[start:], False)))
        answer = decode(tokenizer, planted.ids_T[start:stop]).strip()
        assert start > end_of_text
        assert answer
        assert answer in before


def test_facts_are_spread_over_the_text_between_sentences(tokenizer, planted):
    kinds = planted.is_text_T.astype(int)
    begins = np.flatnonzero(np.diff(kinds) == -1)[:FACTS]
    assert begins[0] < LENGTH / FACTS
    assert np.diff(begins).max() < 3 * LENGTH / FACTS
    for begin in begins:
        assert decode(tokenizer, planted.ids_T[: begin + 1]).rstrip().endswith(".")


def test_equal_seeds_give_equal_texts_and_others_do_not(tokenizer, planted):
    ids, planter = tokenizer(TEXT)["input_ids"], FactPlanter(tokenizer)
    assert (planter.plant(ids, LENGTH, FACTS, random.Random(3)).ids_T == planted.ids_T).all()
    assert (planter.plant(ids, LENGTH, FACTS, random.Random(4)).ids_T != planted.ids_T).any()


def test_the_wordings_are_not_those_of_the_evaluation():
    evaluated = [Passkey().prompt_template(), Passkey(keys=2).prompt_template(), Needle().prompt_template()]
    words = {word for each in evaluated for part in (each.statement, each.question) for word in part.lower().split()}
    assert {"remember", "lucky"} <= {word.strip(":,.") for word in words}
    wordings = [wording for kind in retrieval_prompts._KINDS for side in kind for wording in side]
    assert not [wording for wording in wordings if "remember" in wording.lower() or "lucky" in wording.lower()]


def test_a_short_text_a_short_length_and_too_many_facts_are_refused(tokenizer):
    planter, rng = FactPlanter(tokenizer), random.Random(0)
    ids = tokenizer(TEXT)["input_ids"]
    with pytest.raises(InputError, match=r"text: got '100 tokens'; expected at least [\d,]+ tokens"):
        planter.plant(ids[:100], LENGTH, FACTS, rng)
    with pytest.raises(InputError, match="length: got 300"):
        planter.plant(ids, 300, FACTS, rng)
    with pytest.raises(InputError, match=f"facts: got {MAX_FACTS + 1}; expected from 0 to {MAX_FACTS}"):
        planter.plant(ids, LENGTH, MAX_FACTS + 1, rng)
