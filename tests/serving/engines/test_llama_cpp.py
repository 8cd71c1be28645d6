"""How llama.cpp interprets metadata and tensors, its commands, and the real engine (`make test-engines`)."""

import json
import shlex
import subprocess

import numpy as np
import pytest
from tests.helpers.gguf_model import LLAMA, small_gguf, tiny_llama

import ropewalk as rw
from ropewalk import config as configs
from ropewalk.config.gguf import from_gguf_fields
from ropewalk.config.scaled_fields import frequencies_match
from ropewalk.errors import UnsupportedScalingError
from ropewalk.serving.engines import find_engine
from ropewalk.serving.engines.encode import encode
from ropewalk.serving.verify.environments import find_python

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
        ("llama", {}, LISTS),  # read only with rope.scaling.type longrope
        ("llama", LONGROPE, {"rope_freqs.weight": TWOS}),
    ],
)
def test_a_tensor_that_the_architecture_does_not_read_is_refused(architecture, changes, divisors):
    with pytest.raises(
        rw.InputError, match=rf"llama\.cpp: tensors: got .*that {architecture} reads with rope\.scaling\.type"
    ):
        LLAMA_CPP.interpret(config(changes, divisors, architecture), LENGTH)


@pytest.mark.parametrize("architecture", ["deepseek4", "gemma4", "cogvlm"])
def test_an_architecture_with_other_rope_fields_is_refused(architecture):
    with pytest.raises(rw.InputError, match=rf"llama\.cpp: general\.architecture: got '{architecture}'"):
        LLAMA_CPP.interpret(config(architecture=architecture), LENGTH)


def test_no_tensor_is_written_for_an_architecture_that_reads_none(tmp_path):
    source = small_gguf(tmp_path / "small.gguf", architecture="qwen3")
    opened = LLAMA_CPP.load_config(str(source))
    assert encode(LLAMA_CPP, *opened, rw.YaRN(4), LENGTH).changes["qwen3.rope.scaling.type"] == "yarn"
    assert encode(LLAMA_CPP, *opened, rw.NTKByParts(4), LENGTH).encoded_as == "yarn"
    with pytest.raises(UnsupportedScalingError) as caught:
        encode(LLAMA_CPP, *opened, rw.YaRN(4, beta_fast=16), LENGTH)
    assert caught.value.nearest == "yarn:factor=4"


def test_phi_3_is_encoded_as_two_lists(tmp_path):
    source = small_gguf(tmp_path / "small.gguf", architecture="phi3")
    candidate = encode(LLAMA_CPP, *LLAMA_CPP.load_config(str(source)), rw.YaRN(4, beta_fast=16), LENGTH)
    assert candidate.encoded_as == "rope_factors tensors"


@pytest.mark.parametrize(("length", "divisor"), [(4096, 1), (8192, 1), (8193, 2), (32_768, 2)])
def test_the_context_size_chooses_one_list_for_every_text(length, divisor):
    read = LLAMA_CPP.interpret(config(LONGROPE, LISTS), length)
    for text in (1, 8192, 32_768):
        np.testing.assert_array_equal(frequencies(read, text).inv_freq, read.ropes["all"].rope.inv_freq / divisor)
    assert frequencies(read).attention_factor == 1.25


def test_the_context_is_rounded_up_before_a_list_is_chosen():
    changes = {**LONGROPE, "rope.scaling.original_context_length": 8100}
    read = LLAMA_CPP.interpret(config(changes, LISTS), 8090)  # served with a context of 8,192
    np.testing.assert_array_equal(frequencies(read).inv_freq, read.ropes["all"].rope.inv_freq / 2)


def candidate(spec, architecture="llama", changes=None, divisors=None):
    original = config(changes, divisors, architecture)
    return encode(
        LLAMA_CPP, original, from_gguf_fields(original["fields"], original["divisors"]), rw.parse(spec), LENGTH
    )


def parse_command(changes):
    """Return the options of the command for the built-in model, and its --override-kv, as two dicts."""
    words = shlex.split(LLAMA_CPP.build_command("smollm2", LENGTH, changes))
    assert words[0] == "llama-server"
    options = dict(zip(words[1::2], words[2::2], strict=True))
    overrides = options.pop("--override-kv", "")
    return options, dict(override.split("=") for override in overrides.split(",") if override)


def test_the_command_for_a_written_file_only_sets_the_context_size():
    assert LLAMA_CPP.build_command("my models/x.gguf", LENGTH) == "llama-server -m 'my models/x.gguf' -c 12288"


def test_changes_are_passed_as_options():
    options, overrides = parse_command(candidate("yarn:factor=4").changes)
    assert options == {
        "-m": str(configs.locate("smollm2")),
        "-c": "12288",
        "--rope-scaling": "yarn",
        "--rope-scale": "4",
        "--yarn-orig-ctx": "8192",
    }
    assert overrides == {"llama.context_length": "int:12288"}  # the server limits its slots to this


def test_the_attention_factor_is_passed_as_an_override():
    """llama-context.cpp overwrites --yarn-attn-factor when yarn is on."""
    options, overrides = parse_command(candidate("ntk-by-parts:factor=4").changes)
    assert "--yarn-attn-factor" not in options
    value_type, value = overrides["llama.rope.scaling.attn_factor"].split(":")
    assert value_type == "float"
    assert float(value) == pytest.approx(1 / (1 + 0.1 * np.log(4)), rel=1e-7)


def test_removed_fields_are_overridden_with_neutral_values():
    old = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.attn_factor": 0.5}
    options, overrides = parse_command(candidate("abf:base=500000", changes=old).changes)
    assert (options["--rope-scaling"], options["--rope-freq-base"]) == ("none", "500000")
    assert overrides["llama.rope.scaling.attn_factor"] == "float:1"


def test_the_type_that_the_option_refuses_is_passed_as_an_override():
    options, overrides = parse_command({"phi3.rope.scaling.type": "longrope"})
    assert "--rope-scaling" not in options
    assert overrides == {"phi3.rope.scaling.type": "str:longrope"}


def test_options_that_sliding_layers_ignore_are_passed_as_overrides():
    options, overrides = parse_command(candidate("linear:factor=2", "gemma2").changes)
    assert set(options) == {"-m", "-c"}
    assert overrides["gemma2.rope.scaling.type"] == "str:linear"
    assert overrides["gemma2.rope.scaling.factor"] == "float:2"


def test_tensors_require_a_folder():
    with pytest.raises(rw.InputError, match=r"out: .* a folder, because rope_freqs\.weight is a tensor"):
        LLAMA_CPP.build_command("smollm2", LENGTH, candidate("yarn:factor=4,beta_fast=16").changes)
    with pytest.raises(rw.InputError, match="a folder"):  # removing one also needs a file
        LLAMA_CPP.build_command("smollm2", LENGTH, candidate("none", divisors={"rope_freqs.weight": TWOS}).changes)


def test_ollama_starts_from_a_modelfile(tmp_path):
    source = small_gguf(tmp_path / "small.gguf")
    encoded = encode(OLLAMA, *OLLAMA.load_config(str(source)), rw.YaRN(4), LENGTH)
    (tmp_path / "Long Small").mkdir()
    path = OLLAMA.write_checkpoint(str(source), encoded, tmp_path / "Long Small", LENGTH)
    assert path.read_text() == "FROM ./small.gguf\nPARAMETER num_ctx 12288\n"
    assert OLLAMA.build_command(str(path), LENGTH) == (
        f"ollama create long-small -f '{tmp_path}/Long Small/Modelfile' && ollama run long-small"
    )
    with pytest.raises(rw.InputError, match="only from the GGUF file"):
        OLLAMA.build_command(str(source), LENGTH, encoded.changes)


# ---- the real engine

NEXT_TOKEN_SCRIPT = """
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
print("LOGPROBS", json.dumps(sorted([token["id"], token["logprob"]] for token in top)))
"""
LISTS_OF_16 = {"short_factor": [1.0] * 16, "long_factor": [1 + i / 4 for i in range(16)], "factor": 4}


@pytest.mark.engines
def test_all_encodings_of_a_scaling_agree_in_the_real_engine(tmp_path):
    """Metadata and tensors for the same scaling give the same next-token distribution, unlike an unscaled model."""
    length, source = 2048, tiny_llama(tmp_path / "tiny.gguf")
    ids = np.random.default_rng(1).integers(3, 300, length - 100).tolist()
    config, model_config = LLAMA_CPP.load_config(str(source))
    (tmp_path / "out").mkdir()

    def distributions(scaling):
        """Yield (encoded_as, probabilities) for each candidate that is interpreted as the scaling."""
        expected = scaling.frequencies(model_config.main_layer.rope, length)
        for candidate in LLAMA_CPP.candidates(config, model_config, scaling, length):
            try:
                layer = LLAMA_CPP.interpret(candidate.config, length).main_layer
            except rw.InputError:
                continue
            if not frequencies_match(layer.scaling.frequencies(layer.rope, length), expected):
                continue
            path = LLAMA_CPP.write_checkpoint(str(source), candidate, tmp_path / "out", length)
            argv = [find_python(LLAMA_CPP), "-c", NEXT_TOKEN_SCRIPT, path]
            process = subprocess.run(argv, input=json.dumps(ids), capture_output=True, text=True, check=False)
            assert process.returncode == 0, process.stderr[-3000:]
            line = next(line for line in process.stdout.splitlines() if line.startswith("LOGPROBS"))
            yield candidate.encoded_as, np.exp([logprob for _, logprob in json.loads(line.removeprefix("LOGPROBS"))])

    def total_variation(one, other):
        return abs(one - other).sum() / 2

    plain = dict(distributions(rw.NoScaling()))[""]
    assert plain.sum() == pytest.approx(1, abs=1e-2)
    encodings = {
        rw.Linear(4): {"", "rope_freqs tensor", "rope_factors tensors"},
        rw.NTK(4): {"rope.freq_base", "rope_freqs tensor", "rope_factors tensors"},
        rw.YaRN(4): {"", "rope_freqs tensor", "rope_factors tensors"},
        rw.YaRN(4, attention_factor=1.5): {"", "rope_freqs tensor", "rope_factors tensors"},
        rw.NTKByParts(4): {"yarn", "rope_freqs tensor", "rope_factors tensors"},
        rw.LongRoPE(**LISTS_OF_16): {"", "rope_freqs tensor", "rope_factors tensors"},
    }
    for scaling, expected in encodings.items():
        found = dict(distributions(scaling))
        assert set(found) == expected
        spread = max(total_variation(one, found["rope_freqs tensor"]) for one in found.values())
        assert total_variation(found["rope_freqs tensor"], plain) > 100 * max(spread, 1e-6), scaling
