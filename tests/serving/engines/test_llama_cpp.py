"""llama.cpp's reading and its commands; where it is installed, what it makes of exported files."""

import contextlib
import json
import os
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tests.helpers.gguf_model import LLAMA, small_gguf, tiny_llama

import ropewalk as rw
from ropewalk import config as configs
from ropewalk.config.gguf import from_fields
from ropewalk.serving.engines import find_engine
from ropewalk.serving.engines.encode import encode, same

LLAMA_CPP, OLLAMA = find_engine("llama.cpp"), find_engine("ollama")
LENGTH = 12_288
ONES, TWOS = (1.0,) * 32, (2.0,) * 32


def config(changes=None, divisors=None, architecture="llama"):
    fields = {f"{architecture}.{name}": value for name, value in {**LLAMA, **(changes or {})}.items()}
    return {"fields": {"general.architecture": architecture, **fields}, "divisors": divisors or {}}


def frequencies(read, length=LENGTH):
    layer = read.ropes["all"]
    return layer.scaling.frequencies(layer.rope, length)


LISTS = {"rope_factors_short.weight": ONES, "rope_factors_long.weight": TWOS}
LONGROPE = {"rope.scaling.type": "longrope", "rope.scaling.attn_factor": 1.25}


@pytest.mark.parametrize(
    ("architecture", "changes", "divisors"),
    [
        ("qwen2", {}, {"rope_freqs.weight": TWOS}),
        ("qwen3", LONGROPE, LISTS),
        ("falcon-h1", {}, {"rope_freqs.weight": TWOS}),
        ("phi3", {}, {"rope_freqs.weight": TWOS}),
        ("llama4", LONGROPE, LISTS),
        ("llama", {}, LISTS),  # they are read if the type says so
        ("llama", LONGROPE, {"rope_freqs.weight": TWOS}),
    ],
)
def test_tensors_that_an_architecture_does_not_read(architecture, changes, divisors):
    with pytest.raises(rw.InputError, match=rf"for {architecture} with rope\.scaling\.type .* llama\.cpp reads"):
        LLAMA_CPP.interpret(config(changes, divisors, architecture), LENGTH)


@pytest.mark.parametrize("architecture", ["deepseek4", "gemma4", "cogvlm"])
def test_architectures_that_are_read_otherwise(architecture):
    with pytest.raises(rw.InputError, match="in the usual way"):
        LLAMA_CPP.interpret(config(architecture=architecture), LENGTH)


def test_an_architecture_without_tensors_is_offered_none(tmp_path):
    source = small_gguf(tmp_path / "small.gguf", architecture="qwen3")
    opened = LLAMA_CPP.open(str(source))
    assert encode(LLAMA_CPP, *opened, rw.YaRN(4), LENGTH).changes["qwen3.rope.scaling.type"] == "yarn"
    assert encode(LLAMA_CPP, *opened, rw.NTKByParts(4), LENGTH).through == "yarn"
    with pytest.raises(rw.InputError, match=r"the nearest is yarn:factor=4$"):
        encode(LLAMA_CPP, *opened, rw.YaRN(4, beta_fast=16), LENGTH)


def test_phi_3_has_two_lists(tmp_path):
    source = small_gguf(tmp_path / "small.gguf", architecture="phi3")
    candidate = encode(LLAMA_CPP, *LLAMA_CPP.open(str(source)), rw.YaRN(4, beta_fast=16), LENGTH)
    assert candidate.through == "rope_factors tensors"


@pytest.mark.parametrize(("length", "divisor"), [(4096, 1), (8192, 1), (8193, 2), (32_768, 2)])
def test_one_of_two_lists_serves_every_text(length, divisor):
    read = LLAMA_CPP.interpret(config(LONGROPE, LISTS), length)
    for text in (1, 8192, 32_768):
        np.testing.assert_array_equal(frequencies(read, text).inv_freq, read.ropes["all"].rope.inv_freq / divisor)
    assert frequencies(read).attention_factor == 1.25


def test_the_context_is_rounded_up_before_a_list_is_chosen():
    trained = {**LONGROPE, "rope.scaling.original_context_length": 8100}
    read = LLAMA_CPP.interpret(config(trained, LISTS), 8090)  # served with a context of 8,192
    np.testing.assert_array_equal(frequencies(read).inv_freq, read.ropes["all"].rope.inv_freq / 2)


def candidate(spec, architecture="llama", changes=None, divisors=None):
    own = config(changes, divisors, architecture)
    return encode(LLAMA_CPP, own, from_fields(own["fields"], own["divisors"]), rw.parse(spec), LENGTH)


def flags(changes):
    """The command line on the built-in model as a mapping; overrides by themselves."""
    words = shlex.split(LLAMA_CPP.command("smollm2", LENGTH, changes))
    assert words[0] == "llama-server"
    given = dict(zip(words[1::2], words[2::2], strict=True))
    return given, dict(each.split("=") for each in given.pop("--override-kv", "").split(",") if each)


def test_the_command_of_a_file_says_no_more_than_its_size():
    assert LLAMA_CPP.command("my models/x.gguf", LENGTH) == "llama-server -m 'my models/x.gguf' -c 12288"


def test_the_flags_say_what_a_file_would():
    given, overrides = flags(candidate("yarn:factor=4").changes)
    assert given == {
        "-m": str(configs.locate("smollm2")),
        "-c": "12288",
        "--rope-scaling": "yarn",
        "--rope-scale": "4",
        "--yarn-orig-ctx": "8192",
    }
    assert overrides == {"llama.context_length": "int:12288"}  # past which the server would cut its slots


def test_an_attention_factor_is_no_flag():
    """--yarn-attn-factor is overwritten where yarn is on (llama-context.cpp)."""
    given, overrides = flags(candidate("ntk-by-parts:factor=4").changes)
    assert "--yarn-attn-factor" not in given
    kind, value = overrides["llama.rope.scaling.attn_factor"].split(":")
    assert kind == "float"
    assert float(value) == pytest.approx(1 / (1 + 0.1 * np.log(4)), rel=1e-7)


def test_what_the_file_says_is_overridden_where_it_is_to_go():
    own = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.attn_factor": 0.5}
    given, overrides = flags(candidate("abf:base=500000", changes=own).changes)
    assert (given["--rope-scaling"], given["--rope-freq-base"]) == ("none", "500000")
    assert overrides["llama.rope.scaling.attn_factor"] == "float:1"


def test_flags_that_do_not_reach_sliding_layers_are_not_used():
    given, overrides = flags(candidate("linear:factor=2", "gemma2").changes)
    assert set(given) == {"-m", "-c"}
    assert overrides["gemma2.rope.scaling.type"] == "str:linear"
    assert overrides["gemma2.rope.scaling.factor"] == "float:2"


def test_a_tensor_takes_a_file():
    with pytest.raises(rw.InputError, match=r"out: .* a folder: rope_freqs\.weight is a tensor"):
        LLAMA_CPP.command("smollm2", LENGTH, candidate("yarn:factor=4,beta_fast=16").changes)
    with pytest.raises(rw.InputError, match="a folder"):  # nor is one taken away without
        LLAMA_CPP.command("smollm2", LENGTH, candidate("none", divisors={"rope_freqs.weight": TWOS}).changes)


def test_ollama_is_given_a_modelfile(tmp_path):
    source = small_gguf(tmp_path / "small.gguf")
    made = encode(OLLAMA, *OLLAMA.open(str(source)), rw.YaRN(4), LENGTH)
    (tmp_path / "Long Small").mkdir()
    path = OLLAMA.write(str(source), made, tmp_path / "Long Small", LENGTH)
    assert path.read_text() == "FROM ./small.gguf\nPARAMETER num_ctx 12288\n"
    assert OLLAMA.command(str(path), LENGTH) == (
        f"ollama create long-small -f '{tmp_path}/Long Small/Modelfile' && ollama run long-small"
    )
    with pytest.raises(rw.InputError, match="from the GGUF file alone"):
        OLLAMA.command(str(source), LENGTH, made.changes)


# ---- the real engine, where `make engines` has put it

ENGINE = Path(os.environ.get("ROPEWALK_ENGINES", ".engines")) / "llama.cpp" / "bin" / "python"
ASKED = """
import json, sys
import xllamacpp as x
path, ids, vocabulary = sys.argv[1], json.load(sys.stdin), 300
params = x.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.n_gpu_layers = path, len(ids) + 8, 1, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.cache_type_k = params.cache_type_v = x.ggml_type.GGML_TYPE_F32
params.warmup = params.fit_params = False
server = x.Server(params)
request = {"prompt": ids, "n_predict": 1, "n_probs": vocabulary, "temperature": 0.0, "ignore_eos": True}
top = server.handle_completions(request)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
print("ANSWER", json.dumps(sorted([each["id"], each["logprob"]] for each in top)))
"""
LISTS_OF_16 = {"short_factor": [1.0] * 16, "long_factor": [1 + i / 4 for i in range(16)], "factor": 4}


@pytest.mark.skipif(not ENGINE.exists(), reason="llama.cpp is not installed (make engines)")
def test_every_writing_turns_the_real_engine_alike(tmp_path):
    """Metadata and tensors that say the same give the same distribution of the next token, and another than none."""
    length, source = 2048, tiny_llama(tmp_path / "tiny.gguf")
    ids = np.random.default_rng(1).integers(3, 300, length - 100).tolist()
    own, model_config = LLAMA_CPP.open(str(source))
    (tmp_path / "out").mkdir()

    def distributions(scaling):
        """Of each way to write it that `read` reads as it is meant."""
        for each in LLAMA_CPP.candidates(own, scaling, length):
            with contextlib.suppress(rw.InputError):
                read, expected = LLAMA_CPP.interpret(each.config, length).ropes["all"], model_config.ropes["all"]
                turned, wanted = (
                    one.frequencies(of.rope, length) for one, of in ((read.scaling, read), (scaling, expected))
                )
                if same(turned, wanted):
                    path = LLAMA_CPP.write(str(source), each, tmp_path / "out", length)
                    asked = [ENGINE, "-c", ASKED, path]
                    ran = subprocess.run(asked, input=json.dumps(ids), capture_output=True, text=True, check=False)
                    assert ran.returncode == 0, ran.stderr[-3000:]
                    answer = next(line for line in ran.stdout.splitlines() if line.startswith("ANSWER"))
                    yield each.through, np.exp([logprob for _, logprob in json.loads(answer[6:])])

    def apart(one, other):
        return abs(one - other).sum() / 2

    plain = dict(distributions(rw.NoScaling()))[""]
    assert plain.sum() == pytest.approx(1, abs=1e-2)
    written = {
        rw.Linear(4): {"", "rope_freqs tensor", "rope_factors tensors"},
        rw.NTK(4): {"rope.freq_base", "rope_freqs tensor", "rope_factors tensors"},
        rw.YaRN(4): {"", "rope_freqs tensor", "rope_factors tensors"},
        rw.YaRN(4, attention_factor=1.5): {"", "rope_freqs tensor", "rope_factors tensors"},
        rw.NTKByParts(4): {"yarn", "rope_freqs tensor", "rope_factors tensors"},
        rw.LongRoPE(**LISTS_OF_16): {"", "rope_freqs tensor", "rope_factors tensors"},
    }
    for scaling, candidates in written.items():
        found = dict(distributions(scaling))
        assert set(found) == candidates
        spread = max(apart(one, found["rope_freqs tensor"]) for one in found.values())
        assert apart(found["rope_freqs tensor"], plain) > 100 * max(spread, 1e-6), scaling
