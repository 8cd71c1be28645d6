"""Every metric equals its library on random cases, and values worked by hand in edge cases."""

from __future__ import annotations

import math
import random
import sys
import warnings

import pytest
import sacrebleu
from lm_eval.tasks.ruler import common_utils as ruler
from rouge_score import rouge_scorer

from ropewalk.errors import InputError, MissingPackageError
from ropewalk.evaluate import metrics
from ropewalk.evaluate.metrics import METRICS, find_metric

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # fuzzywuzzy recommends a faster library
    from lm_eval.tasks.longbench import metrics as longbench

WORDS = ["the", "rope", "is", "laid", "in", "a", "long", "lane", "of", "300", "yards", "The,", "Rope!", "naïve", "12"]
CHINESE = "绳索由许多股纱线拧成工人沿着长廊倒退"


def random_cases(count=60):
    rng = random.Random(0)

    def text():
        if rng.random() < 0.2:
            return "".join(rng.choices(CHINESE, k=rng.randrange(1, 12)))
        return " ".join(rng.choices(WORDS, k=rng.randrange(0, 12)))

    return [(text(), [text() or "rope" for _ in range(rng.randrange(1, 4))]) for _ in range(count)]


def best(function):
    return lambda answer, references: max(float(function(answer, reference)) for reference in references)


def rouge(kind):
    scorer = rouge_scorer.RougeScorer([kind])
    return best(lambda answer, reference: scorer.score(reference, answer)[kind].fmeasure)


LIBRARY = {
    "string-match": lambda answer, references: ruler.string_match_all([answer], [references]),
    "f1": best(longbench.qa_f1_score),
    "f1-zh": best(longbench.qa_f1_zh_score),
    "bleu": lambda answer, references: sacrebleu.sentence_bleu(answer, references).score / 100,
    "bleu-zh": lambda answer, references: sacrebleu.sentence_bleu(answer, references, tokenize="zh").score / 100,
    "rouge-1": rouge("rouge1"),
    "rouge-2": rouge("rouge2"),
    "rouge-l": rouge("rougeL"),
    "longbench-rouge": best(longbench.rouge_score),
    "longbench-rouge-zh": best(longbench.rouge_zh_score),
    "longbench-code-sim": best(longbench.code_sim_score),
    "longbench-count": best(longbench.count_score),
}


@pytest.mark.parametrize("name", LIBRARY)
def test_scores_of_random_cases_equal_those_of_the_library(name):
    scores = []
    for answer, references in random_cases():
        scores.append(find_metric(name).score(answer, references))
        assert scores[-1] == pytest.approx(LIBRARY[name](answer, references), abs=1e-12)
        assert 0 <= scores[-1] <= 1
    if name != "longbench-count":
        assert len(set(scores)) >= 3, "the cases have different scores"


def test_corpus_bleu_equals_the_library():
    cases = [(answer, references[:1]) for answer, references in random_cases() if answer]
    answers, references = [answer for answer, _ in cases], [correct for _, correct in cases]
    expected = sacrebleu.corpus_bleu(answers, [[correct[0] for correct in references]]).score / 100
    assert METRICS["bleu"].corpus_score(answers, references) == pytest.approx(expected, abs=1e-12)


def test_corpus_bleu_accepts_several_references_per_answer():
    """Case 1 equals its second reference, case 2 its only one: everything matches, so BLEU is 1."""
    answers = ["the rope is laid in a lane", "men walk backwards all day"]
    references = [["not this one at all", "the rope is laid in a lane"], ["men walk backwards all day"]]
    assert METRICS["bleu"].corpus_score(answers, references) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "answer", "references", "expected"),
    [
        # Equal or not, ignoring case, punctuation and spaces.
        ("exact-match", " The rope. ", ["a lane", "the rope"], 1),
        ("exact-match", "the ropes", ["the rope"], 0),
        ("exact-match", "", ["rope"], 0),
        ("exact-match", "Größe", ["größe"], 1),
        ("exact-match", "绳索", ["绳索"], 1),
        # The answer contains two of the three references; a repeated one counts once.
        ("string-match", "12 and 34, 12 again", ["12", "34", "56"], 2 / 3),
        ("string-match", "", ["12"], 0),
        ("string-match", "在ROPE里", ["rope"], 1),
        # Normalized as in SQuAD: without case, punctuation and articles.
        ("substring-exact-match", "It is the Old-Lane, there.", ["mill", "an old lane"], 0),
        ("substring-exact-match", "It is the Old, Lane there.", ["mill", "an old lane!"], 1),
        ("substring-exact-match", "old", ["old lane"], 0),
        ("substring-exact-match", "mill", ["The", "!"], 0),  # normalized to nothing, which every answer contains
        # {rope, laid} against {rope, laid, lane}: precision 1, recall 2/3, F1 4/5; articles do not count.
        ("f1", "the rope laid", ["a rope laid lane"], 4 / 5),
        # "rope rope" has one word too many: precision 1/2, recall 1, F1 2/3.
        ("f1", "rope rope", ["rope"], 2 / 3),
        ("f1", "", ["rope"], 0),
        ("f1", "naïve!", ["Naïve"], 1),
        # 我 / 爱 / 北京: all three of three.
        ("f1-zh", "我爱北京", ["我爱北京。"], 1),
        ("f1-zh", "", ["北京"], 0),
        # Words 1..4 of 5: precisions 1, brevity exp(1 - 5/4).
        ("bleu", "a b c d", ["a b c d e"], math.exp(1 - 5 / 4)),
        ("bleu", "", ["a b c d"], 0),
        # Each of the six characters is a word.
        ("bleu-zh", "绳索由纱线拧", ["绳索由纱线拧"], 1),
        # Of "a b c" against "a c d": words a and c, 2 of 3 each way; no pair; longest common subsequence a c.
        ("rouge-1", "a b c", ["a c d"], 2 / 3),
        ("rouge-2", "a b c", ["a c d"], 0),
        ("rouge-l", "a b c", ["a c d"], 2 / 3),
        ("rouge-l", "c b a", ["a b c"], 1 / 3),
        ("rouge-l", "", ["a b c"], 0),
        ("rouge-1", "绳索", ["绳索"], 0),  # rouge-score ignores all but a-z and digits; use longbench-rouge-zh
        ("longbench-rouge-zh", "我爱北京", ["我爱北京"], 1),
        ("longbench-rouge", "", ["a b c"], 0),
        # Only the first line of code counts.
        ("longbench-code-sim", "# comment\nx = 1\ny = 2", ["x = 1"], 1),
        # One of the two numbers in the answer.
        ("longbench-count", "3 or 4", ["4"], 1 / 2),
        ("longbench-retrieval", "Paragraph 7", ["Paragraph 7"], 1),
        ("longbench-retrieval-zh", "段落3", ["段落4"], 0),
    ],
)
def test_scores_equal_those_worked_by_hand(name, answer, references, expected):
    assert find_metric(name).score(answer, references) == pytest.approx(expected, abs=1e-6)


def test_every_metric_is_tested_by_hand():
    named = {
        case.args[0] if hasattr(case, "args") else case[0]
        for case in test_scores_equal_those_worked_by_hand.pytestmark[0].args[1]
    }
    assert named == set(METRICS)


def test_an_unknown_metric_suggests_the_nearest():
    with pytest.raises(InputError, match=r"metric: got 'rogue-l'; expected exact-match, .*did you mean rouge-l"):
        find_metric("rogue-l")


def test_a_missing_library_is_a_missing_package(monkeypatch):
    metrics._import.cache_clear()
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    monkeypatch.delitem(sys.modules, "rouge_score.rouge_scorer")
    with pytest.raises(MissingPackageError, match=r"the metric rouge-l needs the package rouge_score"):
        find_metric("rouge-l").score("a", ["a"])
