"""Fails when gguf or transformers moves what ropewalk.compat.gguf depends on."""

import functools

import gguf
import numpy as np
import pytest
from tests.helpers.gguf_model import tiny_llama
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

import ropewalk as rw
from ropewalk.compat.gguf import _array_reader_class, fast_gguf_loading, read_gguf


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.gguf"
    tiny_llama(path)
    return str(path)


def test_fields_and_tensors_equal_those_of_the_library(file):
    expected, actual = gguf.GGUFReader(file), read_gguf(file)
    assert list(actual.fields) == list(expected.fields)
    for name, field in expected.fields.items():
        assert (actual.fields[name].types, actual.fields[name].data) == (field.types, field.data)
        for actual_part, part in zip(actual.fields[name].parts, field.parts, strict=True):
            np.testing.assert_array_equal(actual_part, part)
    assert [tensor.name for tensor in actual.tensors] == [tensor.name for tensor in expected.tensors]
    for actual_tensor, tensor in zip(actual.tensors, expected.tensors, strict=True):
        np.testing.assert_array_equal(actual_tensor.data, tensor.data)


def test_the_first_file_may_be_parsed_inside_the_block(file):
    _array_reader_class.cache_clear()
    with fast_gguf_loading(functools.cache(read_gguf)):
        assert load_gguf_checkpoint(file) == load_gguf_checkpoint(file)


def test_transformers_uses_the_reader_inside_the_block_only(file):
    paths = []

    def read_and_note(path):
        paths.append(path)
        return read_gguf(path)

    original = gguf.GGUFReader
    expected = load_gguf_checkpoint(file)
    with fast_gguf_loading(read_and_note):
        assert load_gguf_checkpoint(file) == expected
    assert paths == [file]
    assert gguf.GGUFReader is original


def test_loading_a_model_parses_its_file_once(file, monkeypatch):
    parse, paths = gguf.GGUFReader.__init__, []

    def parse_and_note(self, path, *args, **options):
        paths.append(str(path))
        parse(self, path, *args, **options)

    monkeypatch.setattr(gguf.GGUFReader, "__init__", parse_and_note)
    rw.load(file)
    assert paths == [file]


def test_loading_a_model_builds_its_table_of_names_once(file, monkeypatch):
    build, architectures = gguf.TensorNameMap.__init__, []

    def build_and_note(self, architecture, blocks):
        architectures.append(architecture)
        build(self, architecture, blocks)

    monkeypatch.setattr(gguf.TensorNameMap, "__init__", build_and_note)
    get_tensor_name_map = gguf.get_tensor_name_map
    rw.load(file)
    assert architectures == [gguf.MODEL_ARCH.LLAMA]
    assert gguf.get_tensor_name_map is get_tensor_name_map
