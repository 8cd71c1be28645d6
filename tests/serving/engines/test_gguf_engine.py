"""Exported GGUF files, read back and compared with the file that they were made from."""

import hashlib
import struct

import gguf
import numpy as np
import pytest
from tests.helpers.gguf_model import small_gguf

import ropewalk as rw
from ropewalk import config as configs
from ropewalk.config.gguf_header import read_gguf_header
from ropewalk.config.scaled_fields import expected_scalings, frequencies_match
from ropewalk.errors import UnsupportedScalingError
from ropewalk.serving.engines import find_engine
from ropewalk.serving.engines.encode import encode

LENGTH = 12_000
LLAMA_CPP = find_engine("llama.cpp")


def export(model, scaling, folder, length=LENGTH, engine=LLAMA_CPP):
    config, model_config = engine.load_config(str(model))
    candidate = encode(engine, config, model_config, rw.parse(scaling), length)
    folder.mkdir(exist_ok=True)
    return engine.write_checkpoint(str(model), candidate, folder, length), candidate


def file_content(path):
    """Return every field as raw bytes, and the digest, type and shape of every tensor."""
    reader = gguf.GGUFReader(path)
    fields = {
        name: (field.types, [part.tobytes() for part in field.parts])
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    tensors = {
        tensor.name: (hashlib.sha256(tensor.data.tobytes()).hexdigest(), tensor.tensor_type, tensor.shape.tolist())
        for tensor in reader.tensors
    }
    return fields, tensors


def different_keys(one, other):
    return {name for name in {*one, *other} if one.get(name) != other.get(name)}


def is_interpreted_as(path, scaling, length=LENGTH, original="smollm2"):
    """Return whether a file has the frequencies of a scaling of the original model."""
    trained, exported = configs.read(original), configs.read(path)
    return all(
        frequencies_match(
            configs.compute_layer_frequencies(exported.ropes[layer_type].scaling, exported.ropes[layer_type], length),
            configs.compute_layer_frequencies(expected, trained.ropes[layer_type], length),
        )
        for layer_type, expected in expected_scalings(trained, rw.parse(scaling)).items()
    )


def tensor_section(content):
    """Split the tensors of a GGUF file into their descriptions (name, shape, type, offset) and their data."""
    start, last_name = content.index(b"token_embd.weight"), content.rindex(b".weight", 0, 2**21)
    (dimensions,) = struct.unpack_from("<I", content, last_name + len(b".weight"))
    end = last_name + len(b".weight") + 4 + 8 * dimensions + 4 + 8
    return content[start:end], content[-(-end // 32) * 32 :]


def test_only_the_fields_of_the_scaling_change(tmp_path):
    path, candidate = export("smollm2", "yarn:factor=2", tmp_path / "out")
    source = configs.locate("smollm2")
    old, new = source.read_bytes(), path.read_bytes()
    assert tensor_section(old)[0].count(b".weight") == 272
    assert tensor_section(new) == tensor_section(old)
    assert old[old.index(b"tokenizer.") : old.index(b"general.quantization_version")] in new
    fields = {
        "llama.context_length": 12_000,
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 2.0,
        "llama.rope.scaling.original_context_length": 8192,
    }
    assert candidate.changes == fields
    assert different_keys(read_gguf_header(source)[0], read_gguf_header(path)[0]) == set(fields)
    assert fields.items() <= read_gguf_header(path)[0].items()
    assert is_interpreted_as(path, "yarn:factor=2")
    assert configs.read(path).max_length == 12_000


def test_a_tensor_is_added_and_the_others_stay(tmp_path):
    source, spec = small_gguf(tmp_path / "small.gguf"), "llama3:factor=8,low_freq_factor=1,high_freq_factor=4"
    path, candidate = export(source, spec, tmp_path / "out")
    assert candidate.encoded_as == "rope_freqs tensor"
    old, new = file_content(source)[1], file_content(path)[1]
    assert different_keys(old, new) == {"rope_freqs.weight"}
    assert new["rope_freqs.weight"][1:] == (gguf.GGMLQuantizationType.F32, [32])
    assert is_interpreted_as(path, spec, original=source)


@pytest.mark.parametrize("alignment", [None, 256])
def test_quantized_tensors_invalid_utf8_and_alignment_are_kept(tmp_path, alignment):
    source = small_gguf(tmp_path / "small.gguf", alignment=alignment)
    path, candidate = export(source, "ntk:factor=2", tmp_path / "out")
    (old_fields, old_tensors), (new_fields, new_tensors) = file_content(source), file_content(path)
    assert new_tensors == old_tensors
    assert different_keys(old_fields, new_fields) == set(candidate.changes)
    assert {each.data_offset % (alignment or 32) for each in gguf.GGUFReader(path).tensors} == {0}


def test_the_scaling_of_the_source_is_removed(tmp_path):
    old = {
        "context_length": 32_768,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.attn_factor": 0.5,
        "rope.scaling.original_context_length": 8192,
        "rope.scaling.yarn_beta_fast": 16.0,
    }
    source = small_gguf(tmp_path / "small.gguf", old, {"rope_freqs.weight": [2.0] * 32})
    path, _ = export(source, "none", tmp_path / "out")
    fields, divisors = read_gguf_header(path)
    assert divisors == {}
    remaining = {name.removeprefix("llama.rope.") for name in fields if name.startswith("llama.rope.")}
    assert remaining == {"dimension_count", "freq_base", "scaling.original_context_length"}
    assert fields["llama.context_length"] == 32_768  # never lowered
    assert is_interpreted_as(path, "none", original=source)


# How llama.cpp encodes each spec; None if it is refused.
METHODS = {
    "none": "native",
    "linear:factor=2": "native",
    "ntk:factor=2": "rope.freq_base",
    "ntk:factor=2,variant=mixed": "rope_freqs tensor",
    "dynamic-ntk": None,
    "dynamic-ntk:alpha=4": "rope.freq_base",
    "ntk-by-parts:factor=4": "yarn",
    "ntk-by-parts:factor=4,ramp=rotations": "rope_freqs tensor",
    "dynamic-ntk-by-parts": None,
    "yarn:factor=4": "native",
    "yarn:factor=4,attention_factor=1.5": "native",
    "yarn:factor=4,original_length=4096": "native",
    "yarn:factor=4,beta_fast=16": "rope_freqs tensor",
    "yarn:factor=4,truncate=false": "rope_freqs tensor",
    "yarn:factor=4,critical=18": "rope_freqs tensor",
    "mrrope-uni:factor=4": "rope_freqs tensor",
    "mrrope-pro:factor=4": "rope_freqs tensor",
    "cope": "rope_freqs tensor",
    "cope:factor=4": "rope_freqs tensor",
    "yarn:factor=4,mscale=1,mscale_all_dim=1": None,  # llama.cpp does not scale the softmax of Llama
    "dynamic-yarn": None,
    "llama3:factor=8,low_freq_factor=1,high_freq_factor=4": "rope_freqs tensor",
    "longrope": "native",
    "learned": "rope_freqs tensor",
    "abf:base=500000": "native",
    "critical-base:factor=4": "rope.freq_base",
    "critical-base": None,
    "proportional:p=0.5,factor=2": "rope_freqs tensor",
    "power-ntk": None,
    "log-ntk": None,
}


def scaling_of(spec):
    if spec == "learned":
        return rw.Learned([1 + i / 20 for i in range(32)], attention_factor=1.1, target=32_768)
    if spec != "longrope":
        return rw.parse(spec)
    return rw.LongRoPE([1 + i / 100 for i in range(32)], [1 + i / 20 for i in range(32)], factor=4)


def test_every_method_is_tested():
    from ropewalk.scaling import REGISTRY

    assert {scaling_of(spec).name for spec in METHODS} == set(REGISTRY)


@pytest.mark.parametrize("engine", ["llama.cpp", "ollama"])
@pytest.mark.parametrize("spec", METHODS)
def test_a_method_is_encoded_exactly_or_refused_in_one_line(tmp_path, spec, engine):
    source, scaling = small_gguf(tmp_path / "small.gguf"), scaling_of(spec)
    if METHODS[spec] is None:
        with pytest.raises(UnsupportedScalingError) as caught:
            export(source, scaling, tmp_path / "out", engine=find_engine(engine))
        assert caught.value.nearest in str(caught.value)
        assert "\n" not in str(caught.value)
        return
    path, candidate = export(source, scaling, tmp_path / "out", engine=find_engine(engine))
    assert (candidate.encoded_as or "native") == METHODS[spec]
    written = path.with_name("small.gguf")  # beside Ollama's Modelfile
    assert is_interpreted_as(written, scaling, original=source)
    assert read_gguf_header(written) == (candidate.config["fields"], candidate.config["divisors"])
    assert configs.read(written).ropes["all"].rope.original_length == (scaling.original_length or 8192)


@pytest.mark.parametrize(
    ("architecture", "spec", "softmax_factor"),
    [
        ("deepseek2", "yarn:factor=40,mscale=1,mscale_all_dim=1", (1 + 0.1 * np.log(40)) ** 2),
        ("deepseek2", "yarn:factor=40,mscale=0.707,mscale_all_dim=0.707", (1 + 0.0707 * np.log(40)) ** 2),
        ("deepseek2", "yarn:factor=40,mscale=1,mscale_all_dim=0.5", (1 + 0.05 * np.log(40)) ** 2),
        ("deepseek2", "yarn:factor=40", 1),
        ("deepseek32", "yarn:factor=40,mscale=1,mscale_all_dim=1", (1 + 0.1 * np.log(40)) ** 2),
        ("deepseek32", "yarn:factor=40,mscale=0.707,mscale_all_dim=0.707", (1 + 0.0707 * np.log(40)) ** 2),
        ("mistral3", "yarn:factor=16,beta_fast=4", 1),
    ],
)
def test_the_softmax_factor_of_deepseek_is_encoded(tmp_path, architecture, spec, softmax_factor):
    source = small_gguf(tmp_path / "small.gguf", architecture=architecture)
    path, candidate = export(source, spec, tmp_path / "out")
    assert candidate.encoded_as == ""
    assert is_interpreted_as(path, spec, original=source)
    read = configs.read(path).ropes["all"]
    assert read.scaling.frequencies(read.rope).softmax_factor == pytest.approx(softmax_factor, rel=1e-6)


def test_sliding_layers_keep_their_base(tmp_path):
    window = {"attention.sliding_window": 512, "rope.freq_base": 1e6}
    source = small_gguf(tmp_path / "small.gguf", window, architecture="gemma3")
    path, candidate = export(source, "abf:base=4000000", tmp_path / "out")
    assert configs.read(path).ropes["full_attention"].rope.base == 4e6
    assert configs.read(path).ropes["sliding_attention"] == configs.read(source).ropes["sliding_attention"]
    assert candidate.changes["gemma3.rope.freq_base_swa"] == 10_000  # written, although it is the default
    with pytest.raises(UnsupportedScalingError, match=r"llama\.cpp"):  # it would change the sliding layers, too
        export(source, "yarn:factor=4,attention_factor=1.5", tmp_path / "out")


@pytest.mark.parametrize("model", ["folder", "config.json"])
def test_a_folder_must_be_converted_first(tmp_path, model):
    (tmp_path / "folder").mkdir()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(rw.InputError, match=r"convert_hf_to_gguf\.py"):
        LLAMA_CPP.load_config(str(tmp_path / model))


def test_split_files_and_the_other_byte_order_are_refused(tmp_path):
    source = small_gguf(tmp_path / "small.gguf")
    candidate = export(source, "yarn:factor=2", tmp_path / "out")[1]
    writer = gguf.GGUFWriter(tmp_path / "part.gguf", "llama")
    writer.add_uint16("split.count", 2)
    swapped = gguf.GGUFWriter(tmp_path / "swapped.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    for each in (writer, swapped):
        each.write_header_to_file()
        each.write_kv_data_to_file()
        each.write_tensors_to_file()
        each.close()
    for name in ("part.gguf", "swapped.gguf"):
        with pytest.raises(rw.InputError, match="in one file, in this machine's byte order"):
            LLAMA_CPP.write_checkpoint(str(tmp_path / name), candidate, tmp_path / "out", LENGTH)


def test_a_truncated_file_is_refused(tmp_path):
    source = small_gguf(tmp_path / "small.gguf")
    candidate = export(source, "yarn:factor=2", tmp_path / "out")[1]
    source.write_bytes(source.read_bytes()[:-40])
    with pytest.raises(rw.InputError, match="a complete GGUF file"):
        LLAMA_CPP.write_checkpoint(str(source), candidate, tmp_path / "out", LENGTH)
