"""The data of the page that explains a model, against formulas written out here."""

from __future__ import annotations

import json
import math
import string
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from tests.helpers.fake_results import write_mixed_store
from tests.helpers.real_configs import real_config_path

import ropewalk as rw
from ropewalk.evaluate.curve_store import CurveStore
from ropewalk.report.explain.attention import (
    attention_share,
    build_scores,
    build_temperatures,
    expected_scores,
    stale_angles,
)
from ropewalk.report.explain.captions import build_captions, format_quantity
from ropewalk.report.explain.measured import build_curve, build_heatmaps
from ropewalk.report.explain.numbers import build_engine_configs, build_memory
from ropewalk.report.explain.page import LANGUAGES, load_texts
from ropewalk.report.explain.pictures import write_pictures
from ropewalk.report.explain.rotations import (
    assign_bands,
    build_rotations,
    choose_fast_pair,
    choose_slow_pair,
    compute_divisors,
)
from ropewalk.report.explain.subject import open_subject

DOCS = Path(__file__).parents[2] / "docs"
DIM, BASE, LENGTH = 64, 100_000.0, 8192
THETA = BASE ** (-np.arange(0, DIM, 2) / DIM)
CONFIG = {
    "model_type": "llama", "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 3, "head_dim": DIM, "max_position_embeddings": LENGTH, "rope_theta": BASE, "vocab_size": 97,
    "torch_dtype": "bfloat16",
}  # fmt: skip


def write_config(folder, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return str(folder)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    with open_subject(write_config(tmp_path_factory.mktemp("model")), 4 * LENGTH, []) as subject:
        yield subject


def test_the_common_scalings_are_compared_at_the_planned_factor(subject):
    names = [str(scaling) for scaling in subject.scalings]
    assert names == ["none", "linear:factor=5", "ntk:factor=5", "yarn:factor=5", "dynamic-yarn"]


def test_requested_scalings_are_compared_with_none(tmp_path):
    with open_subject(write_config(tmp_path / "m"), 4 * LENGTH, ["llama3:factor=8", "none"]) as subject:
        assert [str(scaling).split(":")[0] for scaling in subject.scalings] == ["none", "llama3"]


def test_a_trained_scaling_is_compared_too_and_gives_the_original_length():
    with open_subject(str(real_config_path("gpt_oss_20b")), 262_144, []) as subject:
        assert subject.original_length == 4096
        assert str(subject.scalings[1]).startswith("yarn:truncate=false,factor=32")
        assert subject.yarn == subject.plan.scaling


def test_the_length_stops_at_every_quarter_of_the_original_length_up_to_16_times(subject):
    assert subject.stops == [round(LENGTH * (1 + quarter / 4)) for quarter in range(61)]


@pytest.mark.parametrize("ratio", [17, 40, 500])
def test_the_length_reaches_a_target_beyond_16_times(subject, ratio):
    stops = replace(subject, target=ratio * LENGTH).stops
    assert stops[0] == LENGTH
    assert len(stops) <= 65
    assert ratio * LENGTH <= stops[-1] < 1.3 * ratio * LENGTH
    assert len(set(np.diff(stops))) == 1


def test_rotations_and_divisors_are_those_of_the_formulas(subject):
    rotations = build_rotations(subject)
    np.testing.assert_allclose(rotations["rotations"], LENGTH * THETA / (2 * math.pi), rtol=1e-14)
    none, linear, ntk, _, dynamic = rotations["methods"]
    np.testing.assert_allclose(none["turns"][0], THETA / (2 * math.pi), rtol=1e-11)
    np.testing.assert_allclose(linear["turns"][0], THETA / 5 / (2 * math.pi), rtol=1e-11)
    np.testing.assert_allclose(ntk["divisors"][0], 5 ** (np.arange(0, DIM, 2) / (DIM - 2)), rtol=1e-5)
    assert len(dynamic["turns"]) == len(rotations["stops"])
    np.testing.assert_allclose(dynamic["turns"][0], none["turns"][0], rtol=1e-14)  # at L, nothing is scaled
    assert dynamic["divisors"][-1][-1] == 16
    assert rotations["critical"] == math.ceil(DIM * math.log(LENGTH / (2 * math.pi)) / (2 * math.log(BASE)))


def test_texts_explain_the_yarn_that_was_requested():
    with open_subject("smollm2", 32_768, ["linear:factor=4", "yarn:factor=4"]) as subject:
        assert str(subject.yarn) == "yarn:factor=4"


def test_bands_of_yarn_are_those_of_its_ramp(subject):
    low, high = (
        DIM * math.log(LENGTH / (2 * math.pi * beta)) / (2 * math.log(BASE)) for beta in (32, 1)
    )  # correction dimensions, which YaRN rounds down and up
    low, high = math.floor(low), math.ceil(high)
    expected = ["untouched"] * (low + 1) + ["ramp"] * (high - low - 1) + ["interpolated"] * (DIM // 2 - high)
    scaled = rw.YaRN(factor=4).frequencies(subject.layer.rope)
    assert assign_bands(compute_divisors(subject, scaled), 4) == expected


def test_bands_of_other_scalings(subject):
    rope = subject.layer.rope

    def bands(scaling, factor):
        return assign_bands(compute_divisors(subject, scaling.frequencies(rope)), factor)

    assert set(bands(rw.NoScaling(), 1)) == {"untouched"}
    assert set(bands(rw.Linear(factor=3), 3)) == {"interpolated"}
    assert bands(rw.NTK(factor=3), 3) == ["untouched"] + ["ramp"] * 30 + ["interpolated"]
    assert bands(rw.ABF(base=1e6), 1) == ["untouched"] + ["ramp"] * 30 + ["interpolated"]
    assert bands(rw.Proportional(p=0.5), 1) == ["untouched"] * 16 + ["interpolated"] * 16


def test_the_opening_pair_is_fast_and_the_other_slow():
    rotations = np.array([100.0, 40.0, 20.0, 2.0, 0.3, 0.1])
    assert (choose_fast_pair(rotations), choose_slow_pair(rotations)) == (1, 4)
    assert choose_fast_pair(np.array([3.0, 2.0])) == 0


def test_scores_are_the_mean_cosine_times_the_squared_attention_factor(subject):
    scaled = rw.YaRN(factor=4).frequencies(subject.layer.rope)
    distances = np.array([0, 1, 77, 9000])
    expected = np.cos(distances[:, None] * scaled.inv_freq).mean(axis=1) * (0.1 * math.log(4) + 1) ** 2
    np.testing.assert_allclose(expected_scores(scaled, distances), expected, rtol=1e-9)
    softmax_factor = replace(scaled, softmax_factor=2.0)
    np.testing.assert_allclose(expected_scores(softmax_factor, distances), 2 * expected, rtol=1e-9)


def test_every_scaling_has_a_score_at_each_distance_up_to_the_target(subject):
    scores = build_scores(subject)
    assert (scores["x"][0], scores["x"][-1]) == (1, subject.target)
    assert [len(line) for line in scores["lines"]] == [len(scores["x"])] * len(subject.scalings)
    assert scores["lines"][3][0] > scores["lines"][0][0]  # YaRN's attention factor


def test_a_key_with_half_of_the_attention_loses_it_to_more_tokens():
    advantage = math.log(99)
    assert attention_share(advantage, 100) == pytest.approx(1 / 2)
    assert attention_share(advantage, 397) == pytest.approx(1 / 5)  # four times as many others
    assert attention_share(advantage, 100, 2.0) == pytest.approx(99 / 100)


def test_temperatures_are_those_of_yarn(subject):
    none, *_, yarn, dynamic = build_temperatures(subject)
    assert none["sharpness"] == 1
    assert none["share"] == pytest.approx(1 / 5, rel=1e-3)
    assert yarn["attention_factor"] == pytest.approx(0.1 * math.log(5) + 1)
    assert dynamic["sharpness"] == pytest.approx((0.1 * math.log(4) + 1) ** 2)


def test_stale_angles_are_position_times_the_change_of_the_frequency():
    old, new = rw.Frequencies(np.array([1.0, 0.01])), rw.Frequencies(np.array([0.5, 0.01]))
    positions = np.array([0, 1, 6, 7])
    wrapped = np.abs((0.5 * positions + math.pi) % (2 * math.pi) - math.pi)
    expected = np.stack([np.degrees(wrapped), np.zeros(4)], axis=1)
    np.testing.assert_allclose(stale_angles(old, new, positions), expected, atol=1e-9)


def test_captions_of_pair_20_are_worked_by_hand(subject):
    captions = build_captions(subject)
    wavelength = 2 * math.pi * BASE ** (40 / 64)  # 8378.9
    assert captions["pair"] == 20
    assert captions["pair_wavelength"] == "8,379" == format_quantity(wavelength)
    assert captions["pair_scaled_wavelength"] == "33,520"  # times 4, 4 significant digits
    assert captions["pair_rotations"] == "0.9777" == format_quantity(LENGTH / wavelength)
    assert (captions["band"], captions["pair_divisor"], captions["pair_long_rotations"]) == (
        "interpolated",
        "4",
        "3.911",
    )
    assert (captions["yarn_untouched"], captions["yarn_ramp"], captions["yarn_interpolated"]) == (11, 9, 12)
    assert captions["incomplete"] == 12
    assert captions["share_without"] == "20"


@pytest.mark.parametrize(("value", "shown"), [(12345.6, "12,350"), (0.123456, "0.1235"), (4.0, "4"), (math.inf, "∞")])
def test_quantities_have_four_significant_digits(value, shown):
    assert format_quantity(value) == shown


def test_memory_is_counted_at_multiples_of_the_original_length_and_at_the_target(subject):
    bytes_per_token = 3 * 2 * (64 + 64) * 2  # layers, heads, key and value, bfloat16
    lengths = [LENGTH, 2 * LENGTH, 4 * LENGTH, 8 * LENGTH, 16 * LENGTH]
    assert build_memory(subject) == [(length, length * bytes_per_token) for length in lengths]


def test_engine_configs_are_those_of_export(subject):
    engines = {engine["title"]: engine for engine in build_engine_configs(subject)}
    assert json.loads(engines["vLLM"]["config"])["rope_parameters"]["factor"] == 5
    assert engines["vLLM"]["command"].startswith(f"vllm serve {subject.name}")
    assert engines["MLX-LM"]["command"] == ""


def test_a_gguf_file_has_the_configs_of_engines_that_load_it():
    with open_subject(str(real_config_path("gemma3_27b_good.gguf")), 524_288, []) as subject:
        assert {engine["title"] for engine in build_engine_configs(subject)} == {"llama.cpp", "Ollama"}


def test_a_model_that_no_scaling_extends_is_refused_by_name():
    with pytest.raises(rw.errors.UnsupportedModelError, match="cohere2"):
        open_subject(str(real_config_path("command_a")), 2**21, []).__enter__()


def test_all_languages_have_the_same_texts_with_the_same_placeholders():
    def placeholders(text):
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    english, *others = (load_texts(language) for language in LANGUAGES)
    for other in others:
        for part in ("page", "live"):
            assert other[part].keys() == english[part].keys()
            for key, text in english[part].items():
                assert placeholders(other[part][key]) == placeholders(text), key


def curve_row(scaling, length, ppl):
    numbers = {"length": length, "ppl": ppl, "ppl_last": 9.0, "nll": 2.0, "tokens": length - 1, "seconds": 1.0}
    return {"scaling": scaling, "chunk": None, "policy": None, **numbers}


def test_a_curve_is_shown_by_scaling_and_length(tmp_path):
    store = CurveStore(tmp_path, {"model": "m", "text": "t", "dtype": "float32"})
    for row in (curve_row("none", 64, 9.5), curve_row("none", 128, math.inf), curve_row("yarn:factor=2", 128, 9.25)):
        store.add(row)
    curve = build_curve(tmp_path)
    assert (curve["x"], curve["labels"]) == ([64, 128], ["none", "yarn:factor=2"])
    assert curve["lines"] == [[9.5, None], [None, 9.25]]


def test_a_folder_without_a_curve_is_an_input_error(tmp_path):
    with pytest.raises(rw.InputError, match=r"^curve: got .*expected a folder that ropewalk curve wrote"):
        build_curve(tmp_path)
    CurveStore(tmp_path, {"model": "m", "text": "t", "dtype": "float32"})
    (tmp_path / "curve.json").write_text('{"model": "m", "text": "t", "dtype": "float32", "rows": []}')
    with pytest.raises(rw.InputError, match=r"^curve: got .*measured rows"):
        build_curve(tmp_path)


def test_heat_maps_have_the_shares_by_depth_and_length(tmp_path):
    write_mixed_store(tmp_path).close()
    (heatmap,) = build_heatmaps(tmp_path)
    assert (heatmap["task"], heatmap["lengths"], heatmap["depths"]) == ("passkey", [8192, 16384], [0, 100])
    assert heatmap["panels"]["none"] == [[100, 0], [100, 0]]
    assert heatmap["panels"]["dynamic-yarn (stepped)"] == [[100, 100], [100, None]]  # one sample is not finished


def test_the_pictures_of_the_docs_are_those_of_the_package(tmp_path):
    with open_subject("smollm2", 32_768, ["linear:factor=4", "yarn:factor=4"]) as subject:
        circles, pairs = write_pictures(subject, tmp_path)
    for picture in (circles, pairs):
        assert (
            picture.read_bytes() == (DOCS / "pictures" / picture.name).read_bytes()
        )  # docs/explain.md has the command
    # At 32,768 tokens, pair 24 is at 32767 / (2 pi 100000^(48/64)) = 0.9274 rotations; 0.2318 of them were trained.
    assert f"{round(360 * (0.92739 - 0.23183))}° never seen" in circles.read_text("utf-8")
    bars = ElementTree.fromstring(pairs.read_text("utf-8")).findall(".//{*}rect")
    assert len(bars) == 1 + 32 + 3 * 2 * 32 + 3  # background, rotations, divisors with their backgrounds, legend


def test_a_picture_of_a_dynamic_scaling_is_that_of_the_target(tmp_path):
    with open_subject("smollm2", 32_768, ["dynamic-yarn"]) as subject:
        _, dynamic = write_pictures(subject, tmp_path / "dynamic")
    with open_subject("smollm2", 32_768, ["yarn:factor=4"]) as subject:
        _, static = write_pictures(subject, tmp_path / "static")
    assert dynamic.read_text("utf-8").replace("dynamic-yarn", "yarn:factor=4") == static.read_text("utf-8")


def test_the_configuration_of_a_hub_id_is_fetched_once(monkeypatch):
    fetched = []
    monkeypatch.setattr("ropewalk.config.fetch_hub_config", lambda hub_id: fetched.append(hub_id) or CONFIG)
    with open_subject("owner/model", 4 * LENGTH, []) as subject:
        assert subject.plan.scaling == rw.YaRN(factor=5)
        engines = {engine["title"]: engine for engine in build_engine_configs(subject)}
    assert engines["vLLM"]["command"].startswith("vllm serve owner/model ")
    assert fetched == ["owner/model"]
    assert not subject.path.exists()
