from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ropewalk.compat import lm_eval
from ropewalk.compat.lm_eval_ruler import (
    NIAH_ARGUMENTS,
    QA_READERS,
    find_sentence_splitter,
    generate_documents,
    read_questions,
)
from ropewalk.errors import InputError, UnknownNameError
from ropewalk.evaluate.prompt_encoder import PromptEncoder
from ropewalk.evaluate.sample import Sample
from ropewalk.evaluate.tasks.harness_task import (
    HarnessTask,
    chat_template,
    dataset_errors_as_input_error,
    digest_files,
)
from ropewalk.evaluate.texts import read_text
from ropewalk.files import parse_json

_QUESTION_FILES = {"ruler_qa_squad": "squad.json", "ruler_qa_hotpot": "hotpotqa.json"}
_QUESTION_FORMATS = {
    "ruler_qa_squad": "SQuAD's dev-v2.0.json",
    "ruler_qa_hotpot": "HotpotQA's hotpot_dev_distractor_v1.json",
}
_HARNESS_SAMPLES = 500  # samples that the harness generates for each task


@dataclass(frozen=True)
class Ruler(HarnessTask):
    """RULER (C.-P. Hsieh et al., arXiv 2404.06654): 13 synthetic tasks, made by the harness's generators.

    At seed 0 the samples are those of the harness; with a chat template, its samples for a length that leaves room for
    the tokens of the template. A prompt has at most `length` tokens and usually fewer, because the generators add text
    in large steps and reserve room for the answer. An answer may still end past `length`: niah uses part of the reserve
    for the first words of the answer, and fwe reserves none.

    Options: `task`, the harness's name of one task, by default all 13; `data`, a folder that contains any of essays.txt
    or essays/*.txt (any long text), squad.json (SQuAD v2 dev), hotpotqa.json (HotpotQA distractor dev) and nltk_data
    (with tokenizers/punkt_tab). Data that is not there is downloaded as the harness does, except for punkt_tab.
    """

    name = "ruler"
    main_score = "score"
    chat_choices = ("auto", "on")

    task: str = ""
    data: str | None = None

    def expand(self) -> Sequence[Ruler]:
        names = lm_eval.expand_group("ruler", lm_eval.index_suite("ruler").__getitem__)
        if not self.task:
            return [replace(self, task=name) for name in names]
        if self.task not in names:
            raise UnknownNameError("ruler: task", self.task, names)
        return [self]

    def fingerprint(self) -> dict[str, str]:
        files = self._data_files()
        return {"lm_eval": lm_eval.installed_version(), **({"data": digest_files(files)} if files else {})}

    def load(self, tokenizer: Any, length: int, count: int, seed: int, chat: bool) -> tuple[Any, list[list[Any]]]:
        from datasets import Dataset

        length -= PromptEncoder(tokenizer, chat).count_template_tokens()
        documents = self._generate(tokenizer, length, count, seed)
        if len(documents) < count < _HARNESS_SAMPLES:  # some questions do not fit; later ones of the harness may
            documents = self._generate(tokenizer, length, _HARNESS_SAMPLES, seed)
        task = lm_eval.load_task(lm_eval.index_suite("ruler")[self.task], seed, Dataset.from_list(documents))
        return task, lm_eval.build_requests(task, count, seed, chat_template=chat_template(tokenizer, chat))

    def make_samples(self, tokenizer: Any, length: int, count: int, seed: int, chat: bool = False) -> list[Sample]:
        samples = super().make_samples(tokenizer, length, count, seed, chat)
        longest = max(len(sample.prompt) for sample in samples)
        if length >= 4096 and longest < length / 2:
            raise InputError("lengths", length, f"at most about {longest}, the longest prompt of {self.task}")
        return samples

    def truncate(self, token_ids: list[int], length: int, max_tokens: int) -> list[int]:
        """Return the prompt unchanged, because `length` already includes the answer; refuse one that is longer."""
        if len(token_ids) > length:
            raise InputError(
                "lengths", length, f"another length, such as {len(token_ids)}", f"a prompt of {self.task} is longer"
            )
        return token_ids

    def score(self, sample: Sample, answer: str) -> dict[str, Any]:
        # The harness names the metric by the length of the document.
        return {self.main_score: super().score(sample, answer)[str(sample.task_data.content["max_length"])]}

    def _generate(self, tokenizer: Any, length: int, count: int, seed: int) -> list[dict[str, Any]]:
        """Generate `count` documents of the harness's task from the user's data or from downloaded data."""
        files = self._data_files()
        essays = questions = None
        if self.task in NIAH_ARGUMENTS:
            find_sentence_splitter(Path(self.data).expanduser() / "nltk_data" if self.data else None)
            if files:
                essays = " ".join(read_text(str(file)).content for file in files)
        with dataset_errors_as_input_error("ruler: data", f"no data for {self.task}", self._expected_data()):
            if self.task in QA_READERS:
                questions = self._read_question_file(files[0]) if files else read_questions(self.task)
            return generate_documents(self.task, tokenizer, length, count, seed, essays=essays, questions=questions)

    def _read_question_file(self, path: Path) -> tuple[Sequence[Any], list[str]]:
        """Return the questions and the documents in the user's file of SQuAD or HotpotQA."""
        expected = _QUESTION_FORMATS[self.task]
        try:
            questions, texts = read_questions(self.task, parse_json(path.read_bytes()))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise InputError("ruler: data", str(path), expected, repr(error)) from None
        if not questions:
            raise InputError("ruler: data", str(path), f"{expected}, with questions")
        return questions, texts

    def _data_files(self) -> list[Path]:
        """Return the files in the user's folder that this task uses."""
        if self.data is None:
            return []
        folder = Path(self.data).expanduser()
        if not folder.is_dir():
            raise InputError("ruler: data", self.data, "a folder that exists")
        files = []
        if self.task in _QUESTION_FILES:
            files = [folder / _QUESTION_FILES[self.task]]
        elif self.task in NIAH_ARGUMENTS:
            files = [folder / "essays.txt", *sorted((folder / "essays").glob("*.txt"))]
        return [file for file in files if file.is_file()]

    def _expected_data(self) -> str:
        if self.task in _QUESTION_FILES:
            return f"ruler:data=DIR with DIR/{_QUESTION_FILES[self.task]}, {_QUESTION_FORMATS[self.task]}"
        return "ruler:data=DIR with DIR/essays.txt or DIR/essays/*.txt, any long text"
