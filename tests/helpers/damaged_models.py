"""Damages to the folder of a model, each with a pattern that the error about it matches.

The folder has several safetensors files with an index, as large models have.
"""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file


def remove_first_shard(folder):
    sorted(folder.glob("*.safetensors"))[0].unlink()


def truncate_first_shard(folder):
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])


def pickle_weights(folder):
    weights = {}
    for shard in folder.glob("*.safetensors"):
        weights |= load_file(shard)
        shard.unlink()
    (folder / "model.safetensors.index.json").unlink()
    torch.save(weights, folder / "pytorch_model.bin")


def move_shard_outside(folder):
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.rename(folder.parent / shard.name)
    rewrite_index(folder, lambda name: f"../{name}" if name == shard.name else name)


def rewrite_index(folder, rename):
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = {weight: rename(shard) for weight, shard in content["weight_map"].items()}
    index.write_text(json.dumps(content))


def rewrite_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


DAMAGED_WEIGHTS = {
    "truncated": (truncate_first_shard, "model-00001.*a complete safetensors file"),
    "pickled": (pickle_weights, "pytorch_model.bin.*unpickling runs code.*save_pretrained"),
    "a shard is missing": (remove_first_shard, "model-00001.*a complete safetensors file"),
    "a shard outside": (move_shard_outside, r"weight_map: got '\.\./model-00001.*in the folder of"),
    "an absolute shard": (
        lambda folder: rewrite_index(folder, lambda _: "/etc/passwd"),
        "weight_map: got '/etc/passwd'",
    ),
    "a shard that is a number": (lambda folder: rewrite_index(folder, lambda _: 3), "weight_map: got '3'"),
    "an index of nothing": (write("model.safetensors.index.json", "{}"), "an index whose weight_map"),
    "an index that is a list": (write("model.safetensors.index.json", "[]"), "contains an object"),
    "no weights": (lambda folder: [file.unlink() for file in folder.glob("model*")], "AutoModelForCausalLM: .*no file"),
}
DAMAGED_TOKENIZERS = {
    "empty": (write("tokenizer.json", "{}"), "AutoTokenizer: KeyError"),
    "a list": (write("tokenizer.json", "[]"), "AutoTokenizer: TypeError"),
    "cut off": (write("tokenizer.json", '{"version"'), "AutoTokenizer: Expecting"),
    "missing": (lambda folder: [file.unlink() for file in folder.glob("tokenizer*")], "AutoTokenizer: Couldn't inst"),
    "a config that is a list": (write("tokenizer_config.json", "[]"), "AutoTokenizer: AttributeError"),
    "a class that is a number": (write("tokenizer_config.json", '{"tokenizer_class": 7}'), "AutoTokenizer: Attribute"),
}
ODD_CONFIGS = {
    "a list": (write("config.json", "[]"), "model"),
    "a size that is text": (lambda folder: rewrite_config(folder, hidden_size="64"), "'hidden_size' expected int"),
    "no heads": (lambda folder: rewrite_config(folder, num_attention_heads=0), "ZeroDivisionError"),
    "an unknown dtype": (lambda folder: rewrite_config(folder, dtype="quux"), "no attribute 'quux'"),
    "rope parameters that are a list": (
        lambda folder: rewrite_config(folder, rope_parameters=[1]),
        "'rope_parameters'",
    ),
    "a model type that is a number": (lambda folder: rewrite_config(folder, model_type=5), "does not recognize"),
}
