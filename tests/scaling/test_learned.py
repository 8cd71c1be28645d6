"""The scaling `learned`: its file, its spec, and a set for each layer."""

import json
import pickle

import numpy as np
import pytest

import ropewalk as rw
from ropewalk.positions import parse
from ropewalk.scaling.learned import Learned

ROPE = rw.Rope(8, 10_000, 1000)
SHARED = Learned((1, 2, 4, 8), attention_factor=1.5, target=4000, model="smollm2", date="2026-11-28", version="0.1.0")
PER_LAYER = Learned(((1, 2, 4, 8), (1, 1, 3, 5)), attention_factor=(1.5, 1.25), target=4000)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "scaling.json"


class TestFile:
    @pytest.mark.parametrize("scaling", [SHARED, PER_LAYER], ids=["shared", "per layer"])
    def test_a_written_scaling_is_read_by_spec_and_by_path(self, scaling, path):
        written = scaling.write(path)
        content = json.loads(path.read_text())
        assert content["name"] == "learned"
        for spec in (f"learned:file={path}", f"learned:{path}", str(path), content, str(written), written):
            for read in (rw.parse, parse):
                assert read(spec) == scaling
        assert (written.model, written.date, written.version) == (scaling.model, scaling.date, scaling.version)

    def test_the_spec_is_short_and_names_the_content(self, path):
        written = SHARED.write(path)
        assert str(written) == f"learned:file={path},digest={SHARED.digest}"
        assert len(SHARED.digest) == 8

    def test_another_process_gets_it_without_the_file(self, path):
        written = SHARED.write(path)
        pickled = pickle.dumps(written)
        path.unlink()
        assert pickle.loads(pickled) == written
        assert rw.parse(written.to_dict()) == written

    def test_options_beside_the_file_are_refused(self, path):
        SHARED.write(path)
        with pytest.raises(rw.InputError, match=r"learned: attention_factor: got 2.0; expected that of .*scaling.json"):
            rw.parse(f"learned:file={path},attention_factor=2.0")

    def test_other_numbers_under_the_same_path_are_not_taken_for_those_of_before(self, path):
        spec = str(SHARED.write(path))
        other = Learned((1, 2, 4, 8.000001), attention_factor=1.5, target=4000).write(path)
        assert str(other) != spec
        with pytest.raises(rw.InputError, match=rf"learned: digest: got '{SHARED.digest}'; expected {other.digest}"):
            rw.parse(spec)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "No such file"),
            ("{", "Expecting property name"),
            ('{"name": "yarn", "factor": 4}', "without name learned and divisors"),
            ('{"name": "learned", "target": 4}', "without name learned and divisors"),
            ('{"name": "learned", "divisors": [1, 0]}', r"divisors\[1\]: got 0; expected a finite number above 0"),
            ('{"name": "learned", "divisors": [[1, 2], [1]]}', "lists of equal length"),
            ('{"name": "learned", "divisors": [1], "rate": 2}', "learned: option: got 'rate'"),
            (
                '{"name": "learned", "divisors": [[1], [1]], "attention_factor": [1]}',
                "1 numbers'; expected 2 numbers, one for each layer",
            ),
        ],
    )
    def test_a_file_that_cannot_be_used_gets_one_line(self, content, message, path):
        if content is not None:
            path.write_text(content)
        with pytest.raises(rw.InputError, match=message) as caught:
            rw.parse(f"learned:file={path}")
        assert "\n" not in str(caught.value)

    def test_a_file_of_another_scaling_is_read_by_its_path(self, path):
        path.write_text(json.dumps(rw.YaRN(factor=4, beta_fast=20).to_dict()))
        assert rw.parse(str(path)) == rw.YaRN(factor=4, beta_fast=20)
        path.write_text("[1]")
        with pytest.raises(rw.InputError, match=r"scaling: got .*scaling\.json'; expected the scaling\.json that"):
            rw.parse(str(path))

    def test_without_a_file_the_message_says_what_writes_it(self):
        with pytest.raises(rw.InputError, match=r"file: got None; expected the scaling\.json that `ropewalk tune`"):
            rw.parse("learned")


class TestOneSet:
    def test_saved_as_longrope_lists_it_has_the_same_frequencies(self):
        rope_parameters = SHARED.to_rope_parameters(ROPE)
        assert rope_parameters["original_max_position_embeddings"] == 1000
        assert rope_parameters["factor"] == 4
        read = rw.parse(rope_parameters)
        assert read.frequencies(ROPE) == SHARED.frequencies(ROPE)
        assert not SHARED.is_dynamic

    def test_another_number_of_pairs_is_refused(self):
        with pytest.raises(rw.InputError, match="'4 numbers'; expected 8 numbers, one for each pair"):
            SHARED.frequencies(rw.Rope(16))


class TestASetForEachLayer:
    def test_each_layer_has_its_own_frequencies(self):
        first, second = PER_LAYER.layer_frequencies(ROPE)
        np.testing.assert_allclose(first.inv_freq, [1, 0.05, 0.0025, 0.000125], rtol=1e-13)
        np.testing.assert_allclose(second.inv_freq, [1, 0.1, 0.01 / 3, 0.0002], rtol=1e-13)
        assert (first.attention_factor, second.attention_factor) == (1.5, 1.25)

    def test_what_has_one_table_refuses_it_and_names_extend(self):
        with pytest.raises(rw.InputError, match=r"one set for all layers here; ropewalk\.extend takes a set for each"):
            PER_LAYER.frequencies(ROPE)
        assert PER_LAYER.to_rope_parameters(ROPE) is None
        with pytest.raises(rw.InputError, match="a scaling with a set for each layer"):
            SHARED.layer_frequencies(ROPE)
