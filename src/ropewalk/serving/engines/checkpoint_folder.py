"""The files of a checkpoint folder: find them, link the weights, and adapt the tokenizer's configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ropewalk import config as configs
from ropewalk.errors import InputError
from ropewalk.files import write_text_atomically

MANIFEST_NAME = "ropewalk.json"  # records in an exported folder what was exported, and which files belong to it
_TOKENIZER_CONFIG = "tokenizer_config.json"
# Files of a hub id that an exported folder does not need: the same weights in other formats.
_OTHER_FORMATS = ["original/*", "onnx/*", "*.gguf", "*.h5", "*.msgpack", "*.pth"]
_NO_LIMIT = 10**30  # transformers writes about this number as model_max_length of a tokenizer without a limit
# The class that transformers 5 writes for tokenizers that are stored completely in tokenizer.json.
_TRANSFORMERS5_TOKENIZER_CLASS = "TokenizersBackend"


def locate_gguf(model: str) -> Path | None:
    """Return the .gguf file that MODEL names, or None if it names something else."""
    path = configs.locate(model)
    return path if path is not None and path.suffix == ".gguf" else None


def locate_or_download(model: str, files: tuple[str, ...] | None = None) -> Path:
    """Return the folder with a model's weights; a hub id is downloaded if necessary.

    Args:
        model: a folder, the config.json in it, or a hub id.
        files: the files of a hub id that are needed; None for all.

    Raises InputError for anything else, and for a hub id that cannot be downloaded.
    """
    path = configs.locate(model)
    if path is None:
        from huggingface_hub import snapshot_download

        allowed = None if files is None else list(files)
        try:
            return Path(snapshot_download(model, allow_patterns=allowed, ignore_patterns=_OTHER_FORMATS))
        except Exception as error:
            raise InputError("model", model, f"a hub id that can be downloaded ({error})") from None
    if path.name == "config.json":
        return path.parent
    if path.is_file():
        raise InputError("model", model, "a folder with config.json and weights")
    return path


def read_config(model: str) -> dict[str, Any]:
    """Read a model's config.json and fill in its architecture's defaults; that of a .gguf file is derived from it.

    Raises InputError if config.json is missing or damaged.
    """
    gguf_path = locate_gguf(model)
    if gguf_path is not None:
        return read_gguf_as_config(gguf_path)
    folder = locate_or_download(model, ("config.json", _TOKENIZER_CONFIG))
    path = configs.locate(model) or folder  # errors name the path as the user gave it
    return dict(configs.fill_defaults_if_incomplete(configs.read_json_object(path)))


def read_gguf_as_config(path: Path) -> dict[str, Any]:
    """Return the config.json that transformers derives from a .gguf file."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        parsed = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
        architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[parsed.model_type]
    except (OSError, ValueError, LookupError) as error:
        raise InputError("model", str(path), f"a .gguf file that transformers can unpack ({error})") from None
    config: dict[str, Any] = parsed.to_dict()
    for key in ("quantization_config", "_name_or_path"):  # the weights are written in bfloat16, to another folder
        config.pop(key, None)
    return config | {"architectures": [architecture], "dtype": "bfloat16"}


def link_or_unpack(model: str, out: Path) -> None:
    """Put the weights and the tokenizer of a model into the folder `out`.

    Files and folders of a checkpoint are linked, except config.json, the manifest, hidden files, and params.json, which
    vLLM reads instead of config.json if both are there. A .gguf file is unpacked to the format of transformers, with
    its weights rounded to bfloat16.
    """
    if locate_gguf(model) is not None:
        from ropewalk.models.load import load

        loaded, tokenizer = load(model, dtype="bfloat16", device="cpu")
        loaded.save_pretrained(out)
        tokenizer.save_pretrained(out)
        return
    for file in sorted(locate_or_download(model).iterdir()):
        is_replaced = file.name in ("config.json", "params.json", MANIFEST_NAME) or file.name.startswith(".")
        contains_out = out.resolve().is_relative_to(file.resolve())
        if file.exists() and not is_replaced and not contains_out:
            os.symlink(file.resolve(), out / file.name)


def adapt_tokenizer_config(folder: Path, length: int, tokenizer_class: str) -> None:
    """Raise the tokenizer's length limit and rename its generic class, in a copy that replaces the link.

    Args:
        folder: a checkpoint folder whose tokenizer_config.json may be a link.
        length: tokens to serve. Some engines use the smaller of the model's and the tokenizer's limit.
        tokenizer_class: what the engine's version of transformers calls the generic class for tokenizer.json.
    """
    path = folder / _TOKENIZER_CONFIG
    old = _read_json_or_empty(path)
    new, limit = dict(old), _length_limit(old)
    if limit is not None and limit < length:
        new["model_max_length"] = length
    if old.get("tokenizer_class") == _TRANSFORMERS5_TOKENIZER_CLASS:
        new["tokenizer_class"] = tokenizer_class
    if new != old:
        write_text_atomically(path, json.dumps(new, indent=2, ensure_ascii=False) + "\n")


def read_tokenizer_limit(model: str) -> int | None:
    """Return `model_max_length` of the tokenizer in a folder or of a downloaded hub id; None if there is none."""
    path = configs.locate(model)
    if path is None:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(model, _TOKENIZER_CONFIG)
        return _length_limit(_read_json_or_empty(Path(cached))) if isinstance(cached, str) else None
    folder = path.parent if path.is_file() else path
    return _length_limit(_read_json_or_empty(folder / _TOKENIZER_CONFIG))


def _length_limit(tokenizer_config: Mapping[str, Any]) -> int | None:
    """Return the tokenizer's limit in tokens, or None if it has none."""
    limit = tokenizer_config.get("model_max_length")
    return int(limit) if isinstance(limit, int | float) and 0 < limit < _NO_LIMIT else None


def _read_json_or_empty(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty dict if the file is missing or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
