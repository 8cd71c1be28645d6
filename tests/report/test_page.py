from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from matplotlib.image import imread
from tests.helpers.fake_results import MODEL, description, mixed, outcome, store

import ropewalk as rw
from ropewalk.evaluate.evaluation_store import EvaluationStore
from ropewalk.report.evaluation import rows
from ropewalk.report.page import write_report

NASTY = "<script>alert(1)</script></style></td><b id=\"q\" onclick='x'>&amp; \u202eback\u202c مرحبا \x00\x1b"
GONE = {**MODEL, "model": "gone"}
LONG = "yes " * 25_000
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


class Page(HTMLParser):
    """The elements, and the texts of table cells, of a page."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.cells, self._open = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")
            self._open = True

    def handle_endtag(self, tag):
        self._open = self._open and tag not in ("td", "th")

    def handle_data(self, data):
        if self._open:
            self.cells[-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def report(folder, out=None):
    with folder:
        return write_report(folder, out or folder.folder / "report.html")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The files of a report."""
    folder = tmp_path_factory.mktemp("mixed")
    return report(mixed(folder))


@pytest.fixture(scope="module")
def nasty(tmp_path_factory):
    """The page of a model that answers with markup, of a command and a task that hold some."""
    given = [outcome(0, 1, answer=LONG), outcome(1, 0, answer=NASTY, references=[NASTY], about={"bin": NASTY})]
    cells = [(description(f"needle:text={NASTY}", "none", 4096, 2, main=NASTY), [
        {**each, "scores": {NASTY: each["scores"]["found"]}} for each in given
    ])]  # fmt: skip
    model = {**GONE, "model": "gone/<i>model", "digest": NASTY, "dtype": NASTY}
    page, *_ = report(store(tmp_path_factory.mktemp("nasty"), cells, model, command=NASTY))
    return page


def test_the_page_has_the_values_of_the_store(written, tmp_path):
    page = Page(written[0].read_text("utf-8"))
    with mixed(tmp_path) as folder:
        expected = [row.shown(column) for row in rows(folder.cells()) for column in row.entries]
    shown = [cell.removesuffix("*") for cell in page.cells]
    assert {"100.0", "9.88", "1/2", "37.5"} <= set(expected) <= set(shown)
    assert [cell for cell in page.cells if cell.endswith("*")].count("9.50*") == 1


def test_the_page_says_what_was_asked_and_what_is_missing(written):
    text = written[0].read_text("utf-8")
    for part in ("ropewalk eval smollm2", "python 3.11", "sha256:0123", "bfloat16", "trained on 8,192 tokens"):
        assert part in text
    assert "Unfinished: 23 of 24 cells are done, 29 samples are in" in text
    assert "YaRN with factor 2: made for 16,384 tokens, twice the 8,192" in text


def test_the_page_stands_alone(written, nasty):
    for path in (written[0], nasty):
        text = path.read_text("utf-8")
        page = Page(text)
        told = {tag for tag, _ in page.elements}
        assert not told & {"script", "link", "iframe", "object", "embed", "form", "base", "b", "i"}
        targets = [
            attributes[name] for _, attributes in page.elements for name in ("src", "href") if name in attributes
        ]
        assert all(target.startswith("data:image/png;base64,") for target in targets)
        assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
        assert "url(" not in text
        assert "@import" not in text
        (policy,) = [each["content"] for each in page.all("meta") if "http-equiv" in each]
        assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert page.all("html") == [{"lang": "en"}]


def test_pictures_are_in_the_page_and_beside_it(written):
    page, *pictures = written
    names = {path.name for path in pictures}
    assert names == {
        "passkey-by-depth.png", "passkey-by-length.png", "perplexity-by-length.png",
        "ruler-by-length.png", "ruler-by-task.png",
    }  # fmt: skip
    images = Page(page.read_text("utf-8")).all("img")
    assert len(images) == len(pictures)
    assert all(re.search(r"\d", image["alt"]) for image in images)
    assert not list(page.parent.glob(".*.png"))


def test_answers_are_shown_as_text_and_wrong_ones_first(nasty):
    text = nasty.read_text("utf-8")
    assert "\x00" not in text
    assert "\u202e" not in text
    cells = Page(text).cells
    seen = NASTY.replace("\x00", r"\x00").replace("\x1b", r"\x1b").replace("\u202e", r"\u202e")
    seen = seen.replace("\u202c", r"\u202c")
    (at,) = [place for place, cell in enumerate(cells) if cell.startswith("yes yes")]
    assert cells.count(seen) == 3  # the bin of length, the reference and the answer
    assert cells.index(seen) < at
    assert cells[at] == f"{LONG[:400]} … (100,000 characters)"
    assert len(text) < 400_000


def test_scores_of_the_harness_that_are_no_numbers_or_no_shares(tmp_path):
    sample = outcome(0, 1.0, main="acc,none")
    sample["scores"]["bleu,none"] = [["right"], ["answer"]]
    cells = [(description("lm_eval:x", "none", 4096, 2, main="bleu,none"), [sample])]
    store(tmp_path, cells, GONE).close()
    with EvaluationStore(tmp_path, GONE) as folder:
        folder.finish("0", {"bleu,none": 31.25, "acc,none": 1.0})
    page, *_ = report(EvaluationStore(tmp_path))
    cells = Page(page.read_text("utf-8")).cells
    assert cells[cells.index("bleu,none") :][:3] == ["bleu,none", "4k", "31.25"]
    assert {"acc,none, %", "100.0", "acc,none 100.0 %"} <= set(cells)


def test_what_cannot_be_reported(tmp_path):
    with store(tmp_path / "empty", []) as folder, pytest.raises(rw.InputError, match=r"^folder: got"):
        write_report(folder, tmp_path / "report.html")
    with mixed(tmp_path / "mixed") as folder:
        for out in ("results.sqlite", "page"):
            with pytest.raises(rw.InputError, match=r"^out: got"):
                write_report(folder, folder.folder / out)


def test_nothing_is_done_yet(tmp_path):
    page, *pictures = report(store(tmp_path, [(description("passkey", "none", 4096, 10), [])], GONE))
    assert pictures == []
    assert "0/10" in Page(page.read_text("utf-8")).cells


def browse(page, profile, *options):
    command = [BROWSER, *QUIET, f"--user-data-dir={profile}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_a_browser_shows_the_summary_and_runs_nothing(nasty, written, tmp_path):
    seen = Page(browse(written[0], tmp_path / "a", "--dump-dom"))
    assert {"passkey", "100.0*", "1/2", "ruler, mean of 2"} <= set(seen.cells)
    made = Page(browse(nasty, tmp_path / "b", "--dump-dom"))
    assert not {tag for tag, _ in made.elements} & {"script", "b", "i"}
    assert any(cell.startswith("<script>alert(1)</script></style></td>") for cell in made.cells)


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_draws_it(written, tmp_path, width):
    shot = tmp_path / "shot.png"
    browse(written[0], tmp_path / "profile", f"--window-size={width},1600", f"--screenshot={shot}")
    pixels = imread(shot)
    assert pixels.shape[:2] == (1600, width)
    assert len({*map(bytes, (pixels[::4, ::4, :3] * 255).astype("u1").reshape(-1, 3))}) > 50
