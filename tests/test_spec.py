"""Specs with texts that contain the characters of the syntax; tests/scaling/test_parse.py has the scalings."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ropewalk.errors import InputError
from ropewalk.evaluate.tasks import parse_task
from ropewalk.evaluate.tasks.longbench import LongBench
from ropewalk.evaluate.tasks.needle import Needle


@given(st.text(min_size=1))
@example("one, two.txt")
@example("keys=4,text=x.txt")
@example('"quoted".txt')
@example('"')
@example("[1,2].txt")
@example(" padded ")
@example("none")
@example("2024")
@example("1e5")
def test_every_path_survives_its_spec(path):
    task = Needle(text=path)
    assert parse_task(str(task)) == task
    assert parse_task(f"{task},keys=4") == Needle(text=path, keys=4)


@given(st.none() | st.text(min_size=1))
@example("none")
@example("a=b, c")
def test_every_optional_path_survives_its_spec(path):
    task = LongBench(task="qasper", data=path)
    assert parse_task(str(task)) == task


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ('needle:"one, two.txt"', "one, two.txt"),
        ('needle:text="one, two.txt",keys=4', "one, two.txt"),
        ("needle:text=x=y.txt", "x=y.txt"),
        ("needle:[draft].txt", "[draft].txt"),
        ("needle:1.50", "1.50"),
        ('needle:6" gun.txt', '6" gun.txt'),
    ],
)
def test_path_in_a_spec(spec, path):
    assert parse_task(spec).text == path


def test_simple_specs_stay_as_they_are():
    """They identify the rows of results folders."""
    assert str(Needle(text="x=y [1].txt", keys=2)) == "needle:keys=2,text=x=y [1].txt"


def test_comma_outside_of_quotes_is_explained():
    with pytest.raises(InputError, match=r"got 'two.txt'; expected option=value \(a text that contains a comma needs"):
        parse_task("needle:one,two.txt")
