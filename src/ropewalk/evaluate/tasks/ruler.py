from __future__ import annotations

import importlib.metadata
import inspect
import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ropewalk.errors import InputError
from ropewalk.evaluate import harness
from ropewalk.evaluate.sample import Sample
from ropewalk.evaluate.tasks.harness_task import HarnessTask
from ropewalk.evaluate.texts import read_text

_ESSAYS = "baber/paul_graham_essays"
_QUESTIONS = {"ruler_qa_squad": "squad.json", "ruler_qa_hotpot": "hotpotqa.json"}
_FORMATS = {"squad.json": "SQuAD's dev-v2.0.json", "hotpotqa.json": "HotpotQA's hotpot_dev_distractor_v1.json"}
_OWN_SAMPLES = 500  # as many the harness makes itself


@dataclass(frozen=True)
class Ruler(HarnessTask):
    """RULER (C.-P. Hsieh et al., arXiv 2404.06654): 13 synthetic tasks, made by the harness's generators.

    At seed 0 the samples are those that the harness makes itself. A prompt has at most `length` tokens, mostly fewer:
    the generators add text in steps, and keep free what an answer takes. The answer may still go past the length: niah
    spends some of what is free on the first words of the answer, and fwe keeps nothing free.

    Options: `task`, one of the 13 by its name in the harness, by default all; `data`, a folder with any of essays.txt
    or essays/*.txt (any text), squad.json (SQuAD v2 dev), hotpotqa.json (HotpotQA distractor dev), nltk_data (with
    tokenizers/punkt_tab). What is not there is fetched as the harness does, but for punkt_tab.
    """

    name = "ruler"
    main = "score"

    task: str = ""
    data: str | None = None

    def expand(self) -> Sequence[Ruler]:
        names = harness.members("ruler", harness.suite("ruler").__getitem__)
        if not self.task:
            return [replace(self, task=name) for name in names]
        harness.known("ruler: task", self.task, names, ", ".join(names))
        return [self]

    def fingerprint(self) -> dict[str, str]:
        files = self._files()
        return {"lm_eval": harness.version(), **({"data": harness.digest(files)} if files else {})}

    def built(self, tokenizer: Any, length: int, count: int, seed: int) -> tuple[Any, list[list[Any]]]:
        entry = harness.suite("ruler")[self.task]
        if self.task.startswith("niah"):
            self._find_sentence_splitter()
        # Documents that do not fit are left out; the harness goes on to its 500th for others.
        for number in dict.fromkeys([count, max(count, _OWN_SAMPLES)]):
            task = self._made(entry, tokenizer, length, number, seed)
            if len(task.eval_docs) >= count:
                break
        return task, harness.requests(task, count, seed)

    def _made(self, entry: Any, tokenizer: Any, length: int, count: int, seed: int) -> Any:
        """The harness's task with `count` documents."""
        measure = _Measure(tokenizer, tries=1000 + length + 100 * count)
        source = self._source()
        wanted = f"{self.name}:data=DIR with DIR/{source}" if source else "a folder that can be read"
        try:
            with (
                harness.fetching("ruler: data", f"no data for {self.task}", wanted),
                _made_ours(harness.function(entry, "custom_dataset"), measure, count, self._files()),
            ):
                task = harness.load(entry, {"max_seq_lengths": [length]}, seed)
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError("lengths", length, f"one that a question of {self.task} fits into ({error})") from None
        if measure.gave_up or not all(task.eval_docs["outputs"]):
            raise InputError("lengths", length, f"one that a question of {self.task} fits into")
        return task

    def fit(self, ids: list[int], length: int, room: int) -> list[int]:
        if len(ids) > length:
            raise InputError(
                "lengths", length, f"another, say {len(ids)}: the harness's {self.task} came out that long"
            )
        return ids

    def samples(self, tokenizer: Any, length: int, count: int, seed: int) -> list[Sample]:
        samples = super().samples(tokenizer, length, count, seed)
        longest = max(len(sample.prompt) for sample in samples)
        if length >= 4096 and longest < length / 2:
            raise InputError("lengths", length, f"at most about {longest}: with its data, {self.task} gets no longer")
        return samples

    def score(self, sample: Sample, answer: str) -> dict[str, Any]:
        return {self.main: super().score(sample, answer)[str(sample.task_data.document["max_length"])]}

    def _source(self) -> str:
        """Which file in the folder of data serves this task, and what it is; empty for a task that needs none."""
        if self.task in _QUESTIONS:
            return f"{_QUESTIONS[self.task]}, {_FORMATS[_QUESTIONS[self.task]]}"
        return "essays.txt or essays/*.txt, any long text" if self.task.startswith("niah") else ""

    def _files(self) -> list[Path]:
        """The files in the folder of data that serve this task."""
        if self.data is None:
            return []
        folder = Path(str(self.data)).expanduser()
        if not folder.is_dir():
            raise InputError("ruler: data", str(self.data), "a folder that exists")
        if self.task in _QUESTIONS:
            files = [folder / _QUESTIONS[self.task]]
        elif self.task.startswith("niah"):
            files = [folder / "essays.txt", *sorted((folder / "essays").glob("*.txt"))]
        else:
            files = []
        return [file for file in files if file.is_file()]

    def _find_sentence_splitter(self) -> None:
        """Show nltk its punkt_tab. The harness asks for it at import, and would else try to download it."""
        import nltk

        folders = [Path(str(self.data)).expanduser() / "nltk_data"] if self.data else []
        try:
            carrier = importlib.metadata.distribution("llama-index-core")
            folders.append(Path(str(carrier.locate_file("llama_index/core/_static/nltk_cache"))))
        except importlib.metadata.PackageNotFoundError:
            pass
        for folder in [None, *folders]:
            if folder is not None:
                nltk.data.path.append(str(folder))
            try:
                nltk.data.find("tokenizers/punkt_tab")
                return
            except LookupError:
                if folder is not None:
                    nltk.data.path.remove(str(folder))
        raise InputError(
            "nltk",
            "no tokenizers/punkt_tab, which the harness's niah tasks split sentences with",
            "python -m nltk.downloader punkt_tab, pip install --no-deps llama-index-core, which carries it, or "
            "ruler:data=DIR with DIR/nltk_data/tokenizers/punkt_tab",
        )


class _Measure:
    """The tokenizer as the harness's generators take it: to tell how long a text is.

    Some of them (cwe, fwe, vt) try forever, and stop at no exception, when their shortest text does not fit. After so
    many `tries`, more than any length needs, it calls texts far too long and far too short in turn, which ends every
    such loop, and says that it `gave_up`. For that it brings a `len` along which knows no zero.
    """

    def __init__(self, tokenizer: Any, tries: int) -> None:
        self._tokenizer = tokenizer
        self._left = tries

    @property
    def gave_up(self) -> bool:
        return self._left < 0

    def __call__(self, text: str) -> Any:
        self._left -= 1
        if self.gave_up:
            return SimpleNamespace(input_ids=2**53 if self._left % 2 else -(2**53))
        return self._tokenizer(text, verbose=False)

    @staticmethod
    def len(measured: Any) -> int:
        return measured if isinstance(measured, int) else len(measured)


@contextmanager
def _made_ours(generator: Any, measure: _Measure, count: int, files: Sequence[Path]) -> Iterator[None]:
    """Inside, a generator of the harness makes `count` samples with our tokenizer, from these files, in a fresh state.

    It is steered by the names in its module: they have no other handle.
    """
    names = generator.__globals__
    ours: dict[str, Any] = {"get_tokenizer": lambda name: measure, "len": measure.len}
    for name, made in names.items():
        if inspect.isfunction(made) and "num_samples" in inspect.signature(made).parameters:
            ours[name] = _limited(made, count)
    if "RNG" in names:  # of cwe: as it stands after the import, where it shuffles the words
        ours["RNG"] = random.Random(42)
        ours["RNG"].shuffle(list(names["WORDS"]))
    if "generate_chains" in names:  # of vt, which would try forever to hide something in no text at all
        make = names["generate_input_output"]
        ours["generate_input_output"] = lambda noises, *chains, **icl: make(max(noises, 1), *chains, **icl)
    if "get_haystack" in names:  # it would keep the first essays it saw
        ours["get_haystack"] = names["get_haystack"].__wrapped__
    if "read_squad" in names:
        reads = ("read_squad", "read_hotpotqa")
        ours |= {name: _checked(names[name].__wrapped__, files) for name in reads}
        ours["generate_input_output"] = _with_own_documents(names["generate_input_output"])
        if files:
            ours["download_json"] = lambda url: _read_json(files[0])
    with ExitStack() as stack:
        if files and "get_haystack" in names:
            texts = [read_text(str(file)).content for file in files]
            stack.enter_context(harness.served(_ESSAYS, lambda name: {"text": texts}))
        stack.enter_context(harness.replaced(names, ours))
        yield


def _limited(make: Callable[..., Any], count: int) -> Callable[..., Any]:
    """`make` for `count` samples rather than the harness's 500, or for as many as there are questions."""
    signature = inspect.signature(make)

    def limited(*values: Any, **named: Any) -> Any:
        given = signature.bind(*values, **named)
        given.apply_defaults()
        if given.arguments["num_samples"] > 1:  # 1: the example that vt puts before its questions
            given.arguments["num_samples"] = min(count, len(given.arguments.get("qas", range(count))))
        return make(*given.args, **given.kwargs)

    return limited


def _with_own_documents(make: Callable[..., Any]) -> Callable[..., Any]:
    """`make`, which shuffles the documents in place when it takes all, with a copy: questions know them by place."""
    return lambda index, num_docs, qas, docs: make(index, num_docs, qas, list(docs))


def _checked(read: Callable[[], Any], files: Sequence[Path]) -> Callable[[], Any]:
    """`read`, which takes questions from a file of the user's."""

    def checked() -> Any:
        if not files:
            return read()
        try:
            questions, documents = read()
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("ruler: data", str(files[0]), f"{_FORMATS[files[0].name]} ({error!r})") from None
        if not questions:
            raise InputError("ruler: data", str(files[0]), f"{_FORMATS[files[0].name]}, with questions")
        return questions, documents

    return checked


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
