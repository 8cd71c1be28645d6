"""The page that explains a model: its file, and what it does in a real browser."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from tests.helpers.browser import BROWSER, Browser
from tests.helpers.fake_results import MODEL, describe_cell, make_sample, write_store
from tests.helpers.real_configs import real_config_path

import ropewalk as rw
from ropewalk import config as configs
from ropewalk.config.published import published_models
from ropewalk.evaluate.curve_store import CurveStore
from ropewalk.report.explain.page import write_explanation

HOSTILE = "</script><script>alert(1)</script><b id=\"q\" onclick='x'>&amp;{model} \u202eback\u202c \x1b"
PUBLISHED = {
    "llama": "meta-llama/Llama-3.1-8B-Instruct",
    "qwen3": "Qwen/Qwen3-8B",
    "deepseek": "deepseek-ai/DeepSeek-V3",
    "gpt-oss": "openai/gpt-oss-20b",
    "phi": "microsoft/Phi-4-mini-instruct",
    "qwen3-vl": "Qwen/Qwen3-VL-8B-Instruct",
    "glm": "zai-org/GLM-4.6",
}
NAMES = [*PUBLISHED, "gemma", "smollm2", "gguf"]
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no browser is installed")


class Page(HTMLParser):
    """The elements of a page as (tag, attributes), and its data."""

    def __init__(self, path):
        super().__init__()
        self.text = path.read_text("utf-8")
        self.elements, self._in_data = [], False
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._in_data = tag == "script" and dict(attrs).get("id") == "data"

    def handle_data(self, data):
        if self._in_data:
            self.data = json.loads(data)

    def handle_endtag(self, tag):
        self._in_data = False

    @property
    def tags(self):
        return {tag for tag, _ in self.elements}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """What to write as MODEL for each of ten configurations."""
    folder, paths = tmp_path_factory.mktemp("models"), {}
    for name, hub_id in PUBLISHED.items():
        paths[name] = folder / hub_id.split("/")[1]
        paths[name].mkdir()
        (paths[name] / "config.json").write_text(json.dumps(dict(published_models()[hub_id].config)))
    paths["gemma"] = real_config_path("gemma3_27b") / "config.json"
    paths["gguf"] = real_config_path("gemma3_27b_good.gguf")
    return {**{name: str(path) for name, path in paths.items()}, "smollm2": "smollm2"}


class Pages(dict):
    """The page of each configuration, written when a test first asks for it, and the scalings that it compares."""

    def __init__(self, models, folder):
        self._models, self._folder, self.scalings = models, folder, {}

    def __missing__(self, name):
        self[name] = self._folder / f"{name}.html"
        self.scalings[name] = write_explanation(self._models[name], 262_144, self[name]).scalings
        return self[name]


@pytest.fixture(scope="module")
def pages(models, tmp_path_factory):
    return Pages(models, tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    """A page whose model and measured results have names with markup in them."""
    folder = tmp_path_factory.mktemp("hostile")
    model = folder / HOSTILE.replace("/", "\u2215")
    model.mkdir()
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 4096}
    (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    curve = CurveStore(folder / "curve", {"model": HOSTILE, "text": HOSTILE, "dtype": HOSTILE})
    numbers = {"ppl": 10.0, "ppl_last": 9.0, "nll": 2.0, "tokens": 63, "seconds": 1.0, "chunk": None, "policy": None}
    for length in (2048, 8192):
        curve.add({"scaling": HOSTILE, "length": length, **numbers})
    sample = make_sample(0, 1, about={"depth": 0.0})
    cells = [(describe_cell(f"passkey:{HOSTILE}", HOSTILE, 4096, 1), [sample])]
    write_store(folder / "eval", cells, MODEL).close()
    out, measured = folder / "page.html", {"curve": str(folder / "curve"), "evaluation": str(folder / "eval")}
    write_explanation(str(model), 16_384, out, **measured)
    return out


def test_the_page_needs_no_other_file_and_is_small(pages, hostile_page):
    for path in (*(pages[name] for name in NAMES), hostile_page):
        page = Page(path)
        assert not page.tags & {"link", "iframe", "object", "embed", "img", "base", "form"}
        targets = [attrs[name] for _, attrs in page.elements for name in ("src", "href") if name in attrs]
        assert all(target.startswith("#") for target in targets)
        assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
        assert "url(" not in page.text
        assert "@import" not in page.text
        (policy,) = [attrs["content"] for tag, attrs in page.elements if tag == "meta" and "http-equiv" in attrs]
        assert policy == "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
        assert len(page.text) < 250_000


def test_hostile_names_stay_text(hostile_page):
    page = Page(hostile_page)
    assert "b" not in page.tags
    assert sum(tag == "script" for tag, _ in page.elements) == 2
    assert "\u202e" not in page.text
    assert "\x1b" not in page.text
    shown = HOSTILE.replace("\u202e", r"\u202e").replace("\u202c", r"\u202c").replace("\x1b", r"\x1b")
    assert page.data["curve"]["labels"] == [shown]


@pytest.mark.parametrize("name", NAMES)
def test_the_data_are_the_frequencies_of_the_package(name, models, pages):
    data, model_config = Page(pages[name]).data, configs.read(models[name])
    layer = model_config.main_layer
    original, rope = layer.scaling.resolve_original_length(layer.rope), layer.rope
    np.testing.assert_allclose(data["rotations"], original * rope.inv_freq / (2 * math.pi), rtol=1e-14)
    assert data["originalLength"] == original
    assert data["methods"][0]["label"] == "none"
    assert len(data["methods"]) >= 4
    for method, scaling in zip(data["methods"], pages.scalings[name], strict=True):
        assert len(method["label"]) < 120
        lengths = data["stops"] if scaling.is_dynamic else [data["target"]]
        expected = [scaling.frequencies(rope, length) for length in lengths]
        turns = [frequencies.inv_freq / (2 * math.pi) for frequencies in expected]
        np.testing.assert_allclose(method["turns"], turns, rtol=1e-11)
        np.testing.assert_allclose(method["attention"], [frequencies.attention_factor for frequencies in expected])
        assert {len(bands) for bands in method["bands"]} == {rope.dim // 2}


def test_the_texts_have_the_numbers_of_the_plan(models, pages):
    for name in ("qwen3", "gguf"):
        plan, text = rw.plan(models[name], target=262_144), pages[name].read_text("utf-8")
        assert f'<code class="spec">{plan.scaling}</code>' in text
        row = re.search(r'<th scope="row" class="number">262,144</th><td class="number">([\d.]+)</td>', text)
        assert float(row[1]) == pytest.approx(plan.kv_cache_bytes / 2**30, rel=5e-4)
        assert all(reason.replace("'", "&#39;") in text for reason in plan.reasons)


def test_the_page_is_written_where_the_configuration_cannot_express_the_scaling(tmp_path):
    config = {
        "model_type": "ernie4_5_vl_moe_text", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
        "max_position_embeddings": 4096, "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    subject = write_explanation(str(tmp_path), 16_384, tmp_path / "page.html")
    assert subject.plan is None
    assert "whose configuration can express yarn" in (tmp_path / "page.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": "page.txt"}, "^out: got .*a file whose name ends in .html"),
        ({"language": "ch"}, "^language: got 'ch'; expected en, zh"),
        ({"scalings": ["yarm"]}, "did you mean yarn"),
        ({"target": 0}, "^target: got 0"),
    ],
)
def test_a_wrong_value_is_an_input_error(tmp_path, changes, message):
    out = tmp_path / changes.pop("out", "page.html")
    with pytest.raises(rw.InputError, match=message):
        write_explanation("smollm2", changes.pop("target", 32_768), out, **changes)
    assert not out.exists()


@pytest.fixture(scope="module")
def started_browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def browser(started_browser):
    """The browser, which all tests share. A test fails if the console has an error at its end."""
    started_browser.errors.clear()
    yield started_browser
    started_browser.run("0")  # the answer comes after all earlier messages
    assert started_browser.errors == []


# Contrast of every text with the background behind it (WCAG 2.2), the lowest first, as [ratio, text].
CONTRAST = """(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (color) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const linear = (byte) => (byte /= 255) <= 0.04045 ? byte / 12.92 : ((byte + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const background = (element) => { for (let at = element; at; at = at.parentElement) {
    const color = rgba(getComputedStyle(at).backgroundColor); if (color[3] === 255) return color; } };
  const ratios = [];
  for (const element of document.body.querySelectorAll("*")) {
    const text = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data.trim()).join("");
    if (!text || !element.getClientRects().length || element.closest("script, .hidden")) continue;
    const style = getComputedStyle(element);
    const color = element.namespaceURI.endsWith("svg") ? style.fill : style.color;
    const [a, b] = [rgba(color), background(element)].map(luminance);
    ratios.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), text.slice(0, 40)]);
  }
  return ratios.sort((a, b) => a[0] - b[0]).slice(0, 3);
})()"""
# Texts of one picture whose boxes overlap.
OVERLAPS = """[...document.querySelectorAll("svg")].flatMap((svg) => {
  const texts = [...svg.querySelectorAll("text")].filter((text) => text.textContent && text.getClientRects().length);
  const boxes = texts.map((text) => text.getBoundingClientRect());
  return boxes.flatMap((a, i) => boxes.slice(i + 1).map((b, j) => [a, b, i, i + 1 + j]))
    .filter(([a, b]) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3)
    .map(([, , i, j]) => `${texts[i].textContent} / ${texts[j].textContent}`);
})"""
ANGLES = """[...document.querySelectorAll("[data-circle=slow] .angles tbody tr")].map((row) =>
  [...row.cells].map((cell) => cell.textContent))"""


def equals_as_printed(shown, value):
    """Return whether a printed number, such as 12,350, equals a value to its 4 significant digits."""
    if math.isinf(value):
        return shown == "∞"
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 3) if value else 1.0
    return abs(float(shown.replace(",", "")) - value) <= 0.505 * unit


@needs_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 900, 1600])
def test_every_width_and_theme_is_legible(browser, hostile_page, pages, width, theme):
    browser.resize(width)
    browser.prefer(theme)
    for path in (pages["qwen3"], hostile_page):
        browser.open(path)
        assert browser.run("document.documentElement.scrollWidth") <= width
        (lowest, text), *_ = browser.run(CONTRAST)
        assert lowest >= 4.5, text
        assert browser.run(OVERLAPS) == []


@needs_browser
@pytest.mark.parametrize("name", NAMES)
def test_printed_numbers_are_those_of_the_package(browser, models, pages, name):
    browser.open(pages[name])
    table = """(async () => { const details = document.querySelector("[data-table=pairs]"); details.open = true;
      await new Promise((done) => setTimeout(done, 50));
      const rows = [...details.querySelectorAll("tbody tr")];
      return rows.map((row) => [...row.cells].map((cell) => cell.textContent)); })()"""
    rows, angles = browser.run(table), browser.run(ANGLES)
    data = Page(pages[name]).data
    layer = configs.read(models[name]).main_layer
    rope = layer.rope
    length = browser.run("data.stops[state.stop]")
    assert length >= data["target"]
    scaled = [scaling.frequencies(rope, length).inv_freq for scaling in pages.scalings[name]]
    columns = [np.arange(rope.dim // 2), rope.wavelengths, rope.rotations(data["originalLength"])]
    columns += [np.divide(rope.inv_freq, inv_freq, out=np.full_like(inv_freq, np.inf), where=inv_freq > 0)
                for inv_freq in scaled[1:]]  # fmt: skip
    assert len(rows) == rope.dim // 2
    wrong = [
        (shown, value)
        for row, values in zip(rows, np.stack(columns, axis=1), strict=True)
        for shown, value in zip(row, values, strict=True)
        if not equals_as_printed(shown, value)
    ]
    assert wrong == []
    rotations = [(length - 1) * inv_freq[data["slow"]] / (2 * math.pi) for inv_freq in scaled]
    assert all(equals_as_printed(row[1], value) for row, value in zip(angles, rotations, strict=True))


@needs_browser
def test_angles_in_the_circle_are_those_of_the_package_at_every_length(browser, pages, models):
    """The one formula of the scripts, position x turns per token, against cos and sin of the package."""
    browser.open(pages["smollm2"])
    dots = browser.run("""(async () => { const all = [];
      for (let stop = 0; stop < data.stops.length; stop += 5) {
        update({ stop, slow: 3 });
        await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
        const circles = [...document.querySelectorAll("[data-circle=slow] svg g circle")];
        const dots = circles.filter((circle) => circle.getAttribute("r") < 10);
        all.push([data.stops[stop], ...dots.map((dot) => Math.atan2(dot.cy.baseVal.value, dot.cx.baseVal.value))]);
      } return all; })()""")
    data, rope = Page(pages["smollm2"]).data, configs.read("smollm2").main_layer.rope
    assert len(dots) >= 10
    for length, *angles in dots:
        for method, angle in zip(data["methods"], angles, strict=True):
            frequencies = rw.parse(method["label"]).frequencies(rope, length)
            cos, sin = rw.Frequencies(frequencies.inv_freq).cos_sin(np.array([length - 1]), "float64")
            assert math.cos(angle) == pytest.approx(cos[0, 3], abs=1e-5)
            assert math.sin(angle) == pytest.approx(sin[0, 3], abs=1e-5)


@needs_browser
def test_sliders_move_the_circles_and_the_strips(browser, pages):
    browser.resize(900)
    browser.open(pages["smollm2"])
    begin = browser.run(ANGLES)
    browser.run("document.querySelector('.length-input').focus()")
    browser.press("Home")
    at_original = browser.run(ANGLES)
    assert at_original[0][2] == "as trained"
    assert at_original != begin
    browser.press("ArrowRight")
    assert (
        browser.run("[...document.querySelectorAll('.length output')].map((each) => each.textContent)")
        == ["12,288 tokens = 1.5 L"] * 2
    )
    assert "never seen" in browser.run(ANGLES)[0][2]
    arcs = browser.run("document.querySelector('[data-circle=slow] svg').innerHTML")
    browser.run("document.getElementById('slow-pair').focus()")
    browser.press("ArrowLeft")
    assert browser.run("document.querySelector('[data-circle=slow] svg').innerHTML") != arcs
    strips = "document.querySelector('.strips')"
    pair = browser.run(f"Number({strips}.getAttribute('aria-valuenow'))")
    browser.run(f"{strips}.focus()")
    browser.press("ArrowLeft")
    assert browser.run(f"Number({strips}.getAttribute('aria-valuenow'))") == pair - 1
    assert browser.run("document.getElementById('slow-pair').value") == str(pair - 1)
    browser.press("Home")
    readout = "document.getElementById('strip-readout').textContent"
    assert browser.run(readout).startswith("Pair 0: 1 turn in 6.283 tokens")
    browser.run(f"{strips}.scrollIntoView()")
    box = browser.run(f"(({{x, y, width}}) => [x, y, width])({strips}.getBoundingClientRect())")
    browser.move(box[0] + box[2] * 20.5 / 32, box[1] + 60)
    assert browser.run(readout).startswith("Pair 20: 1 turn in 8,379 tokens")
    assert browser.run("frameTimes.length") > 5


@needs_browser
def test_charts_tables_buttons_and_themes_work_by_keyboard(browser, pages):
    browser.open(pages["qwen3"])
    browser.prefer("light")
    browser.run("document.querySelector('[data-chart=scores] > svg').focus()")
    browser.press("Home")
    value = "document.querySelector('[data-chart=scores] > svg').getAttribute('aria-valuetext')"
    assert browser.run(value).startswith("1 (distance in tokens): none ")
    browser.run("document.querySelector('[data-chart=stale] summary').focus()")
    browser.press("Enter")
    browser.run("new Promise((done) => setTimeout(done, 50))")
    assert browser.run("document.querySelectorAll('[data-chart=stale] tbody tr').length") == 97
    background = "getComputedStyle(document.body).backgroundColor"
    light = browser.run(background)
    browser.run("document.getElementById('theme').focus()")
    browser.press("Enter")
    assert browser.run(background) != light
    browser.run("document.querySelector('.engine[open] .copy').focus()")
    browser.press("Enter")
    browser.run("new Promise((done) => setTimeout(done, 50))")
    assert browser.run("document.querySelector('.engine[open] .copy').textContent") == "Copied"
    browser.run("document.getElementById('play').focus()")
    browser.press("Enter")
    assert browser.run("document.getElementById('play').textContent") == "Pause"
    pair = browser.run("state.slow")
    browser.run("new Promise((done) => setTimeout(done, 400))")
    assert browser.run("state.slow") != pair


@needs_browser
def test_everything_interactive_has_a_name_and_nothing_runs_from_hostile_names(browser, hostile_page):
    browser.open(hostile_page)
    unnamed = browser.run("""[...document.querySelectorAll("input, button, [role], summary")].filter((element) =>
      !(element.labels?.length || element.ariaLabel || element.textContent.trim()))
      .map((element) => element.outerHTML)""")
    assert unnamed == []
    assert browser.run("document.querySelectorAll('b, #q').length") == 0
    keys = browser.run("document.querySelector('[data-chart=curve] .keys').textContent")
    assert keys.startswith("</script><script>alert(1)</script>")
    assert browser.run("document.querySelectorAll('.heatmap td').length") == 1


@needs_browser
def test_the_chinese_page_works(browser, tmp_path):
    page = tmp_path / "zh.html"
    write_explanation("smollm2", 32_768, page, language="zh")
    browser.open(page)
    assert browser.run("document.documentElement.lang") == "zh"
    assert browser.run("document.querySelector('.length output').textContent") == "32,768 个 token = 4 L"
    assert "从未见过" in browser.run(ANGLES)[0][2]
