from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from matplotlib.image import imread
from tests.helpers.fake_results import MODEL, describe_cell, make_sample, write_mixed_store, write_store

import ropewalk as rw
from ropewalk.evaluate.evaluation_store import EvaluationStore
from ropewalk.report.page import write_report
from ropewalk.report.score_rows import all_rows

HOSTILE = "<script>alert(1)</script></style></td><b id=\"q\" onclick='x'>&amp; \u202eback\u202c مرحبا \x00\x1b"
UNKNOWN_MODEL = {**MODEL, "model": "gone"}
LONG_ANSWER = "yes " * 25_000
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BROWSER_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


class Page(HTMLParser):
    """The elements of a page as (tag, attributes), and the texts of its table cells."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.cells, self._in_cell = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")
            self._in_cell = True

    def handle_endtag(self, tag):
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._in_cell:
            self.cells[-1] += data

    def attributes_of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def report(store):
    with store:
        return write_report(store, store.folder / "report.html")


@pytest.fixture(scope="module")
def mixed_report(tmp_path_factory):
    """The paths of a report's files, the page first."""
    return report(write_mixed_store(tmp_path_factory.mktemp("mixed")))


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    """The page of an evaluation in which every text contains markup and control characters."""
    samples = [
        make_sample(0, 1, main=HOSTILE, answer=LONG_ANSWER),
        make_sample(1, 0, main=HOSTILE, answer=HOSTILE, references=[HOSTILE], about={"bin": HOSTILE}),
    ]
    cells = [(describe_cell(f"needle:text={HOSTILE}", "none", 4096, 2, main=HOSTILE), samples)]
    model = {"model": "gone/<i>model", "digest": HOSTILE, "dtype": HOSTILE}
    page, *_ = report(write_store(tmp_path_factory.mktemp("hostile"), cells, model, command=HOSTILE))
    return page


def test_the_page_shows_the_stored_values(mixed_report, tmp_path):
    page = Page(mixed_report[0].read_text("utf-8"))
    with write_mixed_store(tmp_path) as store:
        expected = [row.format(column) for row in all_rows(store.cells()) for column in row.entries]
    shown = [cell.removesuffix("*") for cell in page.cells]
    assert {"100.0", "9.88", "1/2", "37.5"} <= set(expected) <= set(shown)
    assert [cell for cell in page.cells if cell.endswith("*")].count("9.50*") == 1


def test_the_page_shows_the_run_and_what_is_unfinished(mixed_report):
    text = mixed_report[0].read_text("utf-8")
    for part in ("ropewalk eval smollm2", "python 3.11", "sha256:0123", "bfloat16", "trained on 8,192 tokens"):
        assert part in text
    assert "Unfinished: 23 of 24 cells and 29 samples are done" in text
    assert "YaRN with factor 2: for texts of up to 16,384 tokens, twice the 8,192" in text


def test_the_page_needs_no_other_file_and_runs_no_script(mixed_report, hostile_page):
    for path in (mixed_report[0], hostile_page):
        text = path.read_text("utf-8")
        page = Page(text)
        tags = {tag for tag, _ in page.elements}
        assert not tags & {"script", "link", "iframe", "object", "embed", "form", "base", "b", "i"}
        targets = [
            attributes[name] for _, attributes in page.elements for name in ("src", "href") if name in attributes
        ]
        assert all(target.startswith("data:image/png;base64,") for target in targets)
        assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
        assert "url(" not in text
        assert "@import" not in text
        (policy,) = [meta["content"] for meta in page.attributes_of("meta") if "http-equiv" in meta]
        assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        assert page.attributes_of("html") == [{"lang": "en"}]


def test_pictures_are_in_the_page_and_beside_it(mixed_report):
    page, *pictures = mixed_report
    assert {path.name for path in pictures} == {
        "passkey-by-depth.png", "passkey-by-length.png", "perplexity-by-length.png",
        "ruler-by-length.png", "ruler-by-task.png",
    }  # fmt: skip
    images = Page(page.read_text("utf-8")).attributes_of("img")
    assert len(images) == len(pictures)
    assert all(re.search(r"\d", image["alt"]) for image in images)
    assert not list(page.parent.glob(".*.png"))  # no temporary file is left


def test_answers_are_escaped_and_truncated_and_wrong_ones_come_first(hostile_page):
    text = hostile_page.read_text("utf-8")
    assert "\x00" not in text
    assert "\u202e" not in text
    cells = Page(text).cells
    escaped = HOSTILE
    for character, escape in (("\x00", r"\x00"), ("\x1b", r"\x1b"), ("\u202e", r"\u202e"), ("\u202c", r"\u202c")):
        escaped = escaped.replace(character, escape)
    assert cells.count(escaped) == 3  # the bin of length, the reference and the answer
    (right_answer,) = [index for index, cell in enumerate(cells) if cell.startswith("yes yes")]
    assert cells.index(escaped) < right_answer
    assert cells[right_answer] == f"{LONG_ANSWER[:400]} … (100,000 characters)"
    assert len(text) < 400_000


def test_scores_of_lm_eval_may_be_lists_or_above_one(tmp_path):
    sample = make_sample(0, 1.0, main="acc,none")
    sample["scores"]["bleu,none"] = [["right"], ["answer"]]
    cells = [(describe_cell("lm_eval:x", "none", 4096, 2, main="bleu,none"), [sample])]
    write_store(tmp_path, cells, UNKNOWN_MODEL).close()
    with EvaluationStore(tmp_path, UNKNOWN_MODEL) as store:
        store.finish("0", {"bleu,none": 31.25, "acc,none": 1.0})
    page, *_ = report(EvaluationStore(tmp_path))
    cells = Page(page.read_text("utf-8")).cells
    assert cells[cells.index("bleu,none") :][:3] == ["bleu,none", "4k", "31.25"]
    assert {"acc,none, %", "100.0", "acc,none 100.0 %"} <= set(cells)


def test_an_empty_folder_is_an_input_error(tmp_path):
    with write_store(tmp_path / "empty", []) as store, pytest.raises(rw.InputError, match=r"^folder: got"):
        write_report(store, tmp_path / "report.html")


@pytest.mark.parametrize("out", ["results.sqlite", "page"])
def test_an_output_that_is_not_html_is_an_input_error(tmp_path, out):
    with write_mixed_store(tmp_path) as store, pytest.raises(rw.InputError, match=r"^out: got"):
        write_report(store, tmp_path / out)


def test_an_evaluation_without_finished_samples_has_a_page_without_pictures(tmp_path):
    page, *pictures = report(write_store(tmp_path, [(describe_cell("passkey", "none", 4096, 10), [])], UNKNOWN_MODEL))
    assert pictures == []
    assert "0/10" in Page(page.read_text("utf-8")).cells


def browse(page, profile, *options):
    command = [BROWSER, *BROWSER_OPTIONS, f"--user-data-dir={profile}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_a_browser_shows_the_summary_and_runs_nothing(hostile_page, mixed_report, tmp_path):
    page = Page(browse(mixed_report[0], tmp_path / "a", "--dump-dom"))
    assert {"passkey", "100.0*", "1/2", "ruler, mean of 2"} <= set(page.cells)
    page = Page(browse(hostile_page, tmp_path / "b", "--dump-dom"))
    assert not {tag for tag, _ in page.elements} & {"script", "b", "i"}
    assert any(cell.startswith("<script>alert(1)</script></style></td>") for cell in page.cells)


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_renders_the_page_in_color(mixed_report, tmp_path, width):
    screenshot = tmp_path / "page.png"
    browse(mixed_report[0], tmp_path / "profile", f"--window-size={width},1600", f"--screenshot={screenshot}")
    pixels = imread(screenshot)
    assert pixels.shape[:2] == (1600, width)
    assert len({*map(bytes, (pixels[::4, ::4, :3] * 255).astype("u1").reshape(-1, 3))}) > 50
