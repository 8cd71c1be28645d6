"""Parsing of scalings: specs, dicts and JSON in and out, and the errors for wrong input."""

import contextlib
import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ropewalk as rw
from ropewalk import spec as specs

METHODS_PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
REGISTRY = rw.scaling.REGISTRY
factors = st.floats(1, 1e9) | st.integers(1, 10**6)
positive = st.floats(1e-3, 1e9) | st.integers(1, 1000)
divisors = st.lists(positive, min_size=4, max_size=4)

# A strategy for every option of every method. A new method adds its options here.
VALUES = {
    "original_length": st.none() | st.integers(1, 10**7),
    "date": st.none() | st.just("2026-11-28"),
    "digest": st.none(),
    "divisors": divisors | st.lists(divisors, min_size=1, max_size=3),
    "factor": factors,
    "file": st.none(),
    "alpha": st.none() | factors,
    "attention_factor": positive,
    "base": st.floats(1.5, 1e9),
    "beta_fast": st.floats(33, 100),
    "beta_slow": st.floats(0.1, 32),
    "critical": st.none() | st.integers(0, 200),
    "gamma": st.floats(0, 10),
    "high_freq_factor": st.floats(5, 10),
    "long_factor": divisors,
    "low_freq_factor": st.floats(0.1, 4),
    "mixed_b": positive,
    "model": st.none() | st.just("smollm2"),
    "mscale": st.none() | positive,
    "mscale_all_dim": st.none() | positive,
    "onset": st.none() | st.integers(0, 200),
    "p": st.floats(0, 1),
    "ramp": st.sampled_from(["index", "rotations"]),
    "short_factor": divisors,
    "target": st.none() | st.integers(1, 10**7),
    "truncate": st.booleans(),
    "variant": st.sampled_from(["aware", "fixed", "mixed"]),
    "version": st.none() | st.just("0.1.0"),
}


@st.composite
def scalings(draw, name):
    options = {field.name: VALUES[field.name] for field in dataclasses.fields(REGISTRY[name])}
    return specs.build_from_options(rw.scaling.find_scaling(name), draw(st.fixed_dictionaries(options)))


@pytest.mark.parametrize("name", REGISTRY)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_written_form_parses_back_to_an_equal_scaling(name, data):
    scaling = data.draw(scalings(name))
    assert scaling.to_dict()["name"] == name
    assert rw.parse(str(scaling)) == scaling
    assert rw.parse(scaling.to_dict()) == scaling
    assert rw.parse(json.dumps(scaling.to_dict())) == scaling
    assert rw.parse(scaling) is scaling


def test_registry_contains_the_documented_names():
    table = [line for line in METHODS_PAGE.read_text().splitlines() if line.startswith("| `")]
    documented = {name for row in table for name in re.findall(r"`([\w-]+)`", row.split("|")[1])}
    assert set(REGISTRY) == documented
    for cls in REGISTRY.values():
        assert getattr(rw, cls.__name__) is cls
        assert cls.formula
        assert cls.source


@pytest.mark.parametrize(
    ("spec", "scaling"),
    [
        ("none", rw.NoScaling()),
        (" YaRN:factor=4 ", rw.YaRN(factor=4)),
        ("yarn:factor=4, beta_fast=16", rw.YaRN(factor=4, beta_fast=16)),
        ("yarn:factor=4,truncate=false,ramp=rotations", rw.YaRN(factor=4, truncate=False, ramp="rotations")),
        ("yarn:factor=4,attention_factor=none", rw.YaRN(factor=4)),
        ("ntk:factor=2.5,variant=mixed", rw.NTK(factor=2.5, variant="mixed")),
        ('ntk:factor=2.5,variant="mixed"', rw.NTK(factor=2.5, variant="mixed")),
        ("dynamic_ntk", rw.DynamicNTK(factor=2)),
        ("dynamic", rw.DynamicNTK(factor=2)),
        ("pi:factor=2", rw.Linear(factor=2)),
        ("abf:base=1e6", rw.ABF(base=1e6)),
        ("longrope:short_factor=[1,1],long_factor=[2,3.5],factor=8", rw.LongRoPE((1, 1), (2, 3.5), 8)),
        ("yarn:factor=64,critical=25", rw.YaRN(factor=64, critical=25)),
        ("mrrope_pro:factor=4,beta_fast=16", rw.MrRoPEPro(factor=4, beta_fast=16)),
        ("MrRoPE-Uni:factor=4", rw.MrRoPEUni(factor=4)),
        ("cope:onset=44", rw.CoPE(onset=44)),
        ("cope", rw.CoPE()),
        ("yarn:factor=4,original_length=4096", rw.YaRN(factor=4, original_length=4096)),
        ({"name": "yarn", "factor": 4}, rw.YaRN(factor=4)),
        ('{"name": "yarn", "factor": 4}', rw.YaRN(factor=4)),
        ({"rope_type": "yarn", "factor": 4.0, "truncate": None}, rw.YaRN(factor=4)),
        ({"type": "linear", "factor": 2}, rw.Linear(factor=2)),
        ({"type": "su", "short_factor": [1], "long_factor": [2], "factor": 8}, rw.LongRoPE((1,), (2,), 8)),
        ({"rope_type": "default", "rope_theta": 1e6}, rw.NoScaling()),
        (  # as in the configuration of Ministral 3
            {"rope_type": "yarn", "factor": 16.0, "llama_4_scaling_beta": 0.1, "max_position_embeddings": 16_384},
            rw.YaRN(factor=16),
        ),
        ({"type": "mrope", "mrope_section": [16, 24, 24]}, rw.NoScaling()),
        ({"rope_type": "proportional", "partial_rotary_factor": 0.25}, rw.Proportional(p=0.25)),
        ({"rope_type": "dynamic", "alpha": 1000.0, "factor": 1.0}, rw.DynamicNTK(alpha=1000, factor=1)),
        (
            ' {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 4096}',
            rw.YaRN(factor=4, original_length=4096),
        ),
    ],
    ids=str,
)
def test_parse_accepts_specs_dicts_and_json(spec, scaling):
    assert rw.parse(spec) == scaling


@pytest.mark.parametrize(
    ("scaling", "spec"),
    [
        (rw.YaRN(factor=4.0), "yarn:factor=4"),
        (rw.YaRN(factor=4, truncate=False, beta_fast=16.5), "yarn:beta_fast=16.5,truncate=false,factor=4"),
        (rw.NoScaling(), "none"),
        (rw.DynamicNTK(), "dynamic-ntk"),
        (rw.LongRoPE([1, 2], [3.5, 4], 8), "longrope:short_factor=[1,2],long_factor=[3.5,4],factor=8"),
        (rw.Linear(factor=2, original_length=512), "linear:original_length=512,factor=2"),
    ],
    ids=str,
)
def test_spec_contains_only_options_that_differ_from_their_defaults(scaling, spec):
    assert str(scaling) == spec


@pytest.mark.parametrize(
    ("scaling", "text"),
    [
        (rw.YaRN(factor=4), "YaRN(factor=4)"),
        (rw.YaRN(factor=4, ramp="rotations"), "YaRN(ramp='rotations', factor=4)"),
        (rw.NoScaling(), "NoScaling()"),
        (rw.LongRoPE([1], [2], 8), "LongRoPE(short_factor=(1.0,), long_factor=(2.0,), factor=8)"),
    ],
    ids=str,
)
def test_repr_contains_only_options_that_differ_from_their_defaults(scaling, text):
    assert repr(scaling) == text
    assert eval(text, vars(rw)) == scaling


LISTS = '"long_factor": [1, 2], "factor": 2}'
WRONG = [
    # spec, beginning of the message, part of the message after "; expected "
    ("yran:factor=4", "scaling: got 'yran'", "did you mean yarn"),
    ("", "scaling: got ''", "yarn"),
    ({"rope_type": "axial"}, "scaling: got 'axial'", "yarn"),
    (4, "scaling: got 4", "a spec"),
    (None, "scaling: got None", "a spec"),
    (["yarn"], "scaling: got ['yarn']", "a spec"),
    ("yarn:factor=4,beta=3", "yarn: option: got 'beta'", "beta_fast"),
    ({"name": "yarn", "factor": 4, "original_max_position_embeddings": 1}, "yarn: option: got", "original_length"),
    ({"rope_type": "yarn", "factor": 4, "beta": 3}, "yarn: key: got 'beta'", "beta_fast"),
    ({"factor": 4}, "scaling: got {'factor': 4}", "rope_type"),
    ({}, "scaling: got {}", "rope_type"),
    ("ntk:factor=1e300", "ntk: factor: got 1e+300", "at most 1e12"),
    ("yarn:factor=4,factor=8", "yarn: option: got 'factor'", "once"),
    ("yarn:factor", "yarn: option: got 'factor'", "option=value"),
    ("yarn:=4", "yarn: option: got '=4'", "option=value"),
    ("yarn", "yarn: factor: got None", "a value"),
    ("linear:factor=none", "linear: factor: got None", "of at least 1"),
    ("linear:factor=0.5", "linear: factor: got 0.5", "of at least 1"),
    ("linear:factor=-4", "linear: factor: got -4", "of at least 1"),
    ("linear:factor=nan", "linear: factor: got 'nan'", "a finite number"),
    ("linear:factor=NaN", "linear: factor: got nan", "a finite number"),
    ("linear:factor=Infinity", "linear: factor: got inf", "a finite number"),
    ("linear:factor=1e999", "linear: factor: got inf", "a finite number"),
    ("linear:factor=true", "linear: factor: got True", "a finite number"),
    ("linear:factor=four", "linear: factor: got 'four'", "a finite number"),
    ("linear:factor=[4]", "linear: factor: got [4]", "a finite number"),
    ("linear:factor=4 5", "linear: factor: got '4 5'", "a finite number"),
    ("linear:factor=" + "9" * 400, "linear: factor: got 999", "a finite number"),
    ("linear:factor=" + "9" * 5000, "linear: factor: got '999", "a finite number"),
    ("linear:factor=" + "[" * 100_000, "linear: factor: got '[[[", "a finite number"),
    ("yarn:factor=0.99", "yarn: factor: got 0.99", "of at least 1"),
    ("yarn:factor=4,attention_factor=0", "yarn: attention_factor: got 0", "above 0"),
    ("yarn:factor=4,mscale=-1", "yarn: mscale: got -1", "of at least 0"),
    ("yarn:factor=4,mscale_all_dim=x", "yarn: mscale_all_dim: got 'x'", "of at least 0"),
    ("yarn:factor=4,truncate=1", "yarn: truncate: got 1", "true, false"),
    ("yarn:factor=4,ramp=linear", "yarn: ramp: got 'linear'", "index, rotations"),
    ("yarn:factor=4,beta_fast=0.5", "yarn: beta_fast: got 0.5", "above beta_slow (1)"),
    ("yarn:factor=4,beta_slow=0", "yarn: beta_slow: got 0", "at least 1e-09"),
    ("yarn:factor=4,critical=25.5", "yarn: critical: got 25.5", "the index of a pair"),
    ("yarn:factor=4,critical=true", "yarn: critical: got True", "the index of a pair"),
    ("mrrope-pro:factor=0.5", "mrrope-pro: factor: got 0.5", "of at least 1"),
    ("mrrope-pro:factor=4,ramp=index", "mrrope-pro: option: got 'ramp'", "beta_slow"),
    ("mrrope-uni:factor=4,beta_slow=33", "mrrope-uni: beta_fast: got 32", "at least beta_slow (33)"),
    ("cope:onset=-1", "cope: onset: got -1", "the index of a pair"),
    ("cope:onset=2.5", "cope: onset: got 2.5", "the index of a pair"),
    ("cope:factor=0.5", "cope: factor: got 0.5", "of at least 1"),
    ("yarn:factor=4,original_length=0", "yarn: original_length: got 0", "from 1 to 2^53"),
    ("yarn:factor=4,original_length=1.5", "yarn: original_length: got 1.5", "whole number"),
    ("dynamic-yarn:factor=4", "dynamic-yarn: option: got 'factor'", "beta_fast"),
    ("ntk-by-parts:factor=0", "ntk-by-parts: factor: got 0", "of at least 1"),
    ("ntk:factor=4,variant=best", "ntk: variant: got 'best'", "aware, fixed, mixed"),
    ("ntk:factor=4,mixed_b=0", "ntk: mixed_b: got 0", "above 0"),
    ("dynamic-ntk:alpha=0.5", "dynamic-ntk: alpha: got 0.5", "of at least 1"),
    ("llama3:low_freq_factor=5", "llama3: high_freq_factor: got 4", "at least low_freq_factor (5)"),
    ("abf:base=1", "abf: base: got 1", "above 1"),
    ("critical-base:factor=0.5", "critical-base: factor: got 0.5", "of at least 1"),
    ("proportional:p=1.5", "proportional: p: got 1.5", "from 0 to 1"),
    ("power-ntk:gamma=-1", "power-ntk: gamma: got -1", "of at least 0"),
    ("log-ntk:factor=0.5", "log-ntk: factor: got 0.5", "of at least 1"),
    ("longrope:short_factor=1,long_factor=[1]", "longrope: short_factor: got 1", "a list of numbers"),
    ("longrope:short_factor=[],long_factor=[]", "longrope: short_factor: got []", "a list of numbers"),
    ("longrope:short_factor=[1,0],long_factor=[1,1]", "longrope: short_factor[1]: got 0", "above 0"),
    (
        "longrope:short_factor=[1],long_factor=[1,2],factor=2",
        "longrope: short_factor and long_factor: got '1",
        "equal",
    ),
    ("longrope:short_factor=[1],long_factor=[1]", "longrope: factor: got None", "factor or attention_factor"),
    (
        '{"rope_type": "longrope", "short_factor": ["1", "2"], ' + LISTS,
        "longrope: short_factor[0]: got '1'",
        "number",
    ),
    ('{"rope_type": "longrope", ' + LISTS, "longrope: short_factor: got None", "a value"),
    ('{"rope_type": "yarn", "factor": 4', "scaling: got '{", "valid JSON"),
    ("{" + "[" * 100_000, "scaling: got '{[", "valid JSON"),
    ('{"a":' * 100_000, "scaling: got '{", "valid JSON"),
    ('{"rope_type": "linear", "factor": ' + "9" * 5000 + "}", "scaling: got '{", "valid JSON"),
    ("linear:factor=4\nx", "linear: factor: got '4\\nx'", "a finite number"),
]


@pytest.mark.parametrize(("spec", "beginning", "expected"), WRONG, ids=[str(spec)[:40] for spec, *_ in WRONG])
def test_wrong_input_raises_one_line_with_the_value_and_the_allowed_values(spec, beginning, expected):
    with pytest.raises(rw.InputError) as caught:
        rw.parse(spec)
    message = str(caught.value)
    assert message.startswith(beginning)
    assert expected in message.partition("; expected ")[2]
    assert "\n" not in message
    assert len(message) < 500


@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=40) | st.from_regex(r"(yarn|linear|longrope|ntk):[a-z_]*=[\[\]{}0-9a-zA-Z,.\"-]*", fullmatch=True)
)
def test_arbitrary_text_parses_or_raises_input_error(text):
    with contextlib.suppress(rw.InputError):
        assert rw.parse(rw.parse(text).to_dict()) == rw.parse(text)
