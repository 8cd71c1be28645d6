"""A tiny model with sharp attention, so that every fault of a rotation shows, and vLLM to serve it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from ropewalk.serving.engines import find_engine
from ropewalk.serving.verify.environments import find_python

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ORIGINAL, FACTORS, VOCABULARY = 128, (1, 2, 4), 512
ROPE_DICTS = {
    "dynamic": {
        "rope_type": "ropewalk_dynamic_yarn",
        "original_max_position_embeddings": ORIGINAL,
        "factors": list(FACTORS),
    },
    "1": {"rope_type": "default"},
    "2": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": ORIGINAL},
    "4": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
}


@pytest.fixture(scope="session")
def tokenizer():
    """A tokenizer of bytes; the other half of the vocabulary are numbers in angle brackets."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(f"<{number}>" for number in range(256, VOCABULARY))]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=tokens[-1])


@pytest.fixture(scope="session")
def model():
    config = transformers.LlamaConfig(
        hidden_size=256,
        intermediate_size=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=3,
        vocab_size=VOCABULARY,
        max_position_embeddings=max(FACTORS) * ORIGINAL,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.data *= 3
    return model


@pytest.fixture(scope="session")
def checkpoints(model, tokenizer, tmp_path_factory):
    """A folder for each rope dict, with the same weights."""
    folders = {}
    for name, rope_dict in ROPE_DICTS.items():
        folders[name] = tmp_path_factory.mktemp("checkpoints") / name
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
        file = folders[name] / "config.json"
        fields = json.loads(file.read_text())
        file.write_text(json.dumps({**fields, "rope_parameters": {"rope_theta": 10_000.0, **rope_dict}}))
    return folders


@pytest.fixture(scope="session")
def vllm_python():
    return Path(find_python(find_engine("vllm")))


@pytest.fixture(scope="session")
def vllm_environment():
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**environment, "VLLM_LOGGING_LEVEL": "ERROR"}


@pytest.fixture(scope="session")
def run_servers(vllm_python, vllm_environment, tmp_path_factory):
    """A function that runs a job of benchmarks/vllm_servers.py with model runner V1 or V2, and returns its results.

    All servers run in one process, because importing vLLM takes long.
    """
    script = Path(__file__).parents[3] / "benchmarks" / "vllm_servers.py"

    def run(job, runner="V1"):
        environment = {**vllm_environment, "VLLM_USE_V2_MODEL_RUNNER": "1" if runner == "V2" else "0"}
        folder = tmp_path_factory.mktemp("job")
        (folder / "job.json").write_text(json.dumps(job))
        command = [vllm_python, script, folder / "job.json", folder / "result.json"]
        subprocess.run(command, check=True, env=environment)
        return json.loads((folder / "result.json").read_text())

    return run
