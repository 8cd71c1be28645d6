"""New GGUF files: what is in them, read back and compared with what they were made of."""

import hashlib

import gguf
import numpy as np
import pytest
from tests.helpers.gguf_model import small_gguf

import ropewalk as rw
from ropewalk import config as configs
from ropewalk.config.gguf import contents
from ropewalk.serving.engines import find_engine
from ropewalk.serving.engines.encode import encode, expected_scalings, same

LENGTH = 12_000
LLAMA_CPP = find_engine("llama.cpp")


def exported(model, scaling, folder, length=LENGTH, engine=LLAMA_CPP):
    config, model_config = engine.open(str(model))
    candidate = encode(engine, config, model_config, rw.parse(scaling), length)
    folder.mkdir(exist_ok=True)
    return engine.write(str(model), candidate, folder, length), candidate


def parts(path):
    """Every field as it stands in the file, and the digest, type and shape of every tensor."""
    reader = gguf.GGUFReader(path)
    fields = {
        name: (field.types, [part.tobytes() for part in field.parts])
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    tensors = {
        each.name: (hashlib.sha256(each.data.tobytes()).hexdigest(), each.tensor_type, each.shape.tolist())
        for each in reader.tensors
    }
    return fields, tensors


def differing(one, other):
    return {name for name in {*one, *other} if one.get(name) != other.get(name)}


def reads_as(path, scaling, length=LENGTH, of="smollm2"):
    """Whether a file turns by what was meant for the model that it was made of."""
    own, read = configs.read(of), configs.read(path)
    expected = expected_scalings(own, rw.parse(scaling))
    return all(
        same(
            configs.layer_frequencies(read.ropes[kind].scaling, read.ropes[kind], length),
            configs.layer_frequencies(expected[kind], own.ropes[kind], length),
        )
        for kind in expected
    )


@pytest.fixture(scope="module")
def original():
    return parts(configs.locate("smollm2"))


def test_nothing_changes_but_what_says_the_scaling(tmp_path, original):
    path, candidate = exported("smollm2", "yarn:factor=2", tmp_path / "out")
    (old_fields, old_tensors), (new_fields, new_tensors) = original, parts(path)
    assert len(old_tensors) == 272
    assert new_tensors == old_tensors
    assert list(new_tensors) == list(old_tensors)
    said = {
        "llama.context_length": 12_000,
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 2.0,
        "llama.rope.scaling.original_context_length": 8192,
    }
    assert candidate.changes == said
    assert differing(old_fields, new_fields) == set(said)
    assert said.items() <= contents(path)[0].items()
    assert reads_as(path, "yarn:factor=2")
    assert configs.read(path).max_length == 12_000


def test_a_tensor_is_added_and_the_others_stay(tmp_path, original):
    path, candidate = exported("smollm2", "llama3:factor=8,low_freq_factor=1,high_freq_factor=4", tmp_path / "out")
    assert candidate.through == "rope_freqs tensor"
    old, new = original[1], parts(path)[1]
    assert differing(old, new) == {"rope_freqs.weight"}
    assert new["rope_freqs.weight"][1:] == (gguf.GGMLQuantizationType.F32, [32])
    assert reads_as(path, "llama3:factor=8,low_freq_factor=1,high_freq_factor=4")


@pytest.mark.parametrize("alignment", [None, 256])
def test_quantized_tensors_odd_strings_and_alignment(tmp_path, alignment):
    source = small_gguf(tmp_path / "small.gguf", alignment=alignment)
    path, candidate = exported(source, "ntk:factor=2", tmp_path / "out")
    (old_fields, old_tensors), (new_fields, new_tensors) = parts(source), parts(path)
    assert new_tensors == old_tensors
    assert differing(old_fields, new_fields) == set(candidate.changes)
    assert {each.data_offset % (alignment or 32) for each in gguf.GGUFReader(path).tensors} == {0}


def test_what_the_source_said_of_its_scaling_is_gone(tmp_path):
    own = {
        "context_length": 32_768,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.attn_factor": 0.5,
        "rope.scaling.original_context_length": 8192,
        "rope.scaling.yarn_beta_fast": 16.0,
    }
    source = small_gguf(tmp_path / "small.gguf", own, {"rope_freqs.weight": [2.0] * 32})
    path, _ = exported(source, "none", tmp_path / "out")
    fields, divisors = contents(path)
    assert divisors == {}
    left = {name.removeprefix("llama.rope.") for name in fields if name.startswith("llama.rope.")}
    assert left == {"dimension_count", "freq_base", "scaling.original_context_length"}
    assert fields["llama.context_length"] == 32_768  # never less than it was
    assert reads_as(path, "none", of=source)


METHODS = {
    "none": "own",
    "linear:factor=2": "own",
    "ntk:factor=2": "rope.freq_base",
    "ntk:factor=2,variant=mixed": "rope_freqs tensor",
    "dynamic-ntk": None,
    "dynamic-ntk:alpha=4": "rope.freq_base",
    "ntk-by-parts:factor=4": "yarn",
    "ntk-by-parts:factor=4,ramp=rotations": "rope_freqs tensor",
    "dynamic-ntk-by-parts": None,
    "yarn:factor=4": "own",
    "yarn:factor=4,attention_factor=1.5": "own",
    "yarn:factor=4,original_length=4096": "own",
    "yarn:factor=4,beta_fast=16": "rope_freqs tensor",
    "yarn:factor=4,truncate=false": "rope_freqs tensor",
    "yarn:factor=4,mscale=1,mscale_all_dim=1": None,  # llama.cpp scales no softmax of a llama
    "dynamic-yarn": None,
    "llama3:factor=8,low_freq_factor=1,high_freq_factor=4": "rope_freqs tensor",
    "longrope": "own",
    "abf:base=500000": "own",
    "critical-base:factor=4": "rope.freq_base",
    "critical-base": None,
    "proportional:p=0.5,factor=2": "rope_freqs tensor",
    "power-ntk": None,
    "log-ntk": None,
}


def scaling_of(spec):
    if spec != "longrope":
        return rw.parse(spec)
    return rw.LongRoPE([1 + i / 100 for i in range(32)], [1 + i / 20 for i in range(32)], factor=4)


def test_every_method_is_tried():
    from ropewalk.scaling import REGISTRY

    assert {scaling_of(spec).name for spec in METHODS} == set(REGISTRY)


@pytest.mark.parametrize("engine", ["llama.cpp", "ollama"])
@pytest.mark.parametrize("spec", METHODS)
def test_a_method_is_written_and_read_back_or_refused_in_one_line(tmp_path, spec, engine):
    source, scaling = small_gguf(tmp_path / "small.gguf"), scaling_of(spec)
    if METHODS[spec] is None:
        with pytest.raises(rw.InputError, match="the nearest is ") as caught:
            exported(source, scaling, tmp_path / "out", engine=find_engine(engine))
        assert "\n" not in str(caught.value)
        return
    path, candidate = exported(source, scaling, tmp_path / "out", engine=find_engine(engine))
    assert (candidate.through or "own") == METHODS[spec]
    written = path.with_name("small.gguf")  # beside Ollama's Modelfile
    assert reads_as(written, scaling, of=source)
    assert contents(written) == (candidate.config["fields"], candidate.config["divisors"])
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
def test_the_softmax_factor_of_deepseek(tmp_path, architecture, spec, softmax_factor):
    source = small_gguf(tmp_path / "small.gguf", architecture=architecture)
    path, candidate = exported(source, spec, tmp_path / "out")
    assert candidate.through == ""
    assert reads_as(path, spec, of=source)
    read = configs.read(path).ropes["all"]
    assert read.scaling.frequencies(read.rope).softmax_factor == pytest.approx(softmax_factor, rel=1e-6)


def test_sliding_layers_keep_their_base(tmp_path):
    window = {"attention.sliding_window": 512, "rope.freq_base": 1e6}
    source = small_gguf(tmp_path / "small.gguf", window, architecture="gemma3")
    path, candidate = exported(source, "abf:base=4000000", tmp_path / "out")
    assert configs.read(path).ropes["full_attention"].rope.base == 4e6
    assert configs.read(path).ropes["sliding_attention"] == configs.read(source).ropes["sliding_attention"]
    assert candidate.changes["gemma3.rope.freq_base_swa"] == 10_000  # said, where it was llama.cpp's default
    with pytest.raises(rw.InputError, match=r"one that llama\.cpp"):  # an attention factor reaches them, too
        exported(source, "yarn:factor=4,attention_factor=1.5", tmp_path / "out")


@pytest.mark.parametrize("model", ["folder", "config.json"])
def test_another_model_is_converted_first(tmp_path, model):
    (tmp_path / "folder").mkdir()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(rw.InputError, match=r"convert_hf_to_gguf\.py"):
        LLAMA_CPP.open(str(tmp_path / model))


def test_a_model_in_parts_and_one_of_the_other_byte_order(tmp_path):
    source = small_gguf(tmp_path / "small.gguf")
    candidate = exported(source, "yarn:factor=2", tmp_path / "out")[1]
    writer = gguf.GGUFWriter(tmp_path / "part.gguf", "llama")
    writer.add_uint16("split.count", 2)
    swapped = gguf.GGUFWriter(tmp_path / "swapped.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    for each in (writer, swapped):
        each.write_header_to_file()
        each.write_kv_data_to_file()
        each.write_tensors_to_file()
        each.close()
    for name in ("part.gguf", "swapped.gguf"):
        with pytest.raises(rw.InputError, match="in one file, in this machine's order"):
            LLAMA_CPP.write(str(tmp_path / name), candidate, tmp_path / "out", LENGTH)


def test_a_file_without_its_end(tmp_path):
    source = small_gguf(tmp_path / "small.gguf")
    candidate = exported(source, "yarn:factor=2", tmp_path / "out")[1]
    source.write_bytes(source.read_bytes()[:-40])
    with pytest.raises(rw.InputError, match="a whole GGUF file"):
        LLAMA_CPP.write(str(source), candidate, tmp_path / "out", LENGTH)
