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


def plant(tokenizer, seed, length=LENGTH, count=FACTS):
    """Plant facts in the beginning of the text, as `sample_window` does in a piece of one."""
    planter, rng = FactPlanter(tokenizer), random.Random(seed)
    facts = planter.draw_facts(count, rng)
    return planter.insert(tokenizer(TEXT)["input_ids"][: planter.text_tokens(length, facts)], facts, rng)


@pytest.fixture(scope="module")
def planted(tokenizer):
    return plant(tokenizer, seed=3)


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
    assert (plant(tokenizer, seed=3).ids_T == planted.ids_T).all()
    assert (plant(tokenizer, seed=4).ids_T != planted.ids_T).any()


def test_the_wordings_are_not_those_of_the_evaluation():
    evaluated = [Passkey().prompt_template(), Passkey(keys=2).prompt_template(), Needle().prompt_template()]
    words = {word for each in evaluated for part in (each.statement, each.question) for word in part.lower().split()}
    assert {"remember", "lucky"} <= {word.strip(":,.") for word in words}
    wordings = [wording for kind in retrieval_prompts._KINDS for side in kind for wording in side]
    assert not [wording for wording in wordings if "remember" in wording.lower() or "lucky" in wording.lower()]


def test_a_short_length_and_too_many_facts_are_refused(tokenizer):
    with pytest.raises(InputError, match="window: got 300"):
        plant(tokenizer, seed=0, length=300)
    with pytest.raises(InputError, match=f"facts: got {MAX_FACTS + 1}; expected from 0 to {MAX_FACTS}"):
        plant(tokenizer, seed=0, count=MAX_FACTS + 1)
