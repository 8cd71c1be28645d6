"""Which serving engine supports which scaling method: natively, through an equivalent, or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from ropewalk.config import from_dict
from ropewalk.errors import InputError, UnsupportedScalingError
from ropewalk.scaling import REGISTRY, Scaling, parse
from ropewalk.scaling.learned import Learned
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.serving.engines import ENGINES
from ropewalk.serving.engines.base import Engine
from ropewalk.serving.engines.encode import encode

# Support is determined for a model like Llama 3 8B, trained on 8,192 tokens and served at 32,768.
SERVED_LENGTH = 32_768
_FACTOR = 4.0
_LLAMA_CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "rope_theta": 500_000.0,
}
_LLAMA_GGUF_FIELDS = {
    "general.architecture": "llama",
    "llama.embedding_length": 4096,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
    "llama.block_count": 32,
    "llama.rope.dimension_count": 128,
    "llama.context_length": 8192,
    "llama.rope.freq_base": 500_000.0,
}
_REQUIRED_KEYS = {"engine", "version", "scaling", "length", "verdict", "date"}


@dataclass(frozen=True)
class MethodSupport:
    """How one engine supports one method.

    Attributes:
        engine: name of the engine.
        method: name of the scaling method.
        how: "own" if the engine has the method, "through" if other fields give the same frequencies, else "no".
        detail: for "through", the method or field that is used; for "no", the nearest scaling that is supported.
        proven: results of `ropewalk verify` that passed on the real engine.
        refuted: those that failed.
    """

    engine: str
    method: str
    how: str
    detail: str
    proven: tuple[Mapping[str, Any], ...] = ()
    refuted: tuple[Mapping[str, Any], ...] = ()


def list_support(verify_results: Sequence[Mapping[str, Any]] = ()) -> list[MethodSupport]:
    """Return the support of every method on every engine.

    `verify_results`: documents of `ropewalk verify --json`, which are added to the methods that they are about.
    """
    return [
        _determine_support(engine, method, _make_example(cls), verify_results)
        for method, cls in REGISTRY.items()
        for engine in ENGINES.values()
    ]


def read_verify_results(folder: Path) -> list[dict[str, Any]]:
    """Return the results of `ropewalk verify --json` in a folder, one per JSON file, sorted by file name.

    Raises InputError for a missing folder and for a file that is not such a result.
    """
    if not folder.is_dir():
        raise InputError("verified", str(folder), "a folder with results of `ropewalk verify --json`")
    results = []
    for path in sorted(folder.glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            result = None
        if not isinstance(result, dict) or not set(result) >= _REQUIRED_KEYS:
            raise InputError("verified", str(path), "a result of `ropewalk verify --json`")
        results.append(result)
    return results


def _determine_support(
    engine: Engine, method: str, scaling: Scaling, verify_results: Sequence[Mapping[str, Any]]
) -> MethodSupport:
    """Return how an engine supports a method, judged by one example of it, with the results of `ropewalk verify`."""
    if engine.checkpoint_format == "folder":
        config = dict(_LLAMA_CONFIG)
        model_config = from_dict(config)
    else:
        config = {"fields": dict(_LLAMA_GGUF_FIELDS), "divisors": {}}
        model_config = engine.interpret(config, SERVED_LENGTH)
    try:
        candidate = encode(engine, config, model_config, scaling, SERVED_LENGTH)
    except UnsupportedScalingError as error:
        return MethodSupport(engine.name, method, "no", error.nearest or "")
    results: dict[str, list[Mapping[str, Any]]] = {"pass": [], "fail": []}
    for result in verify_results:
        is_about_it = result["engine"] == engine.name and parse(result["scaling"]).name == method
        if is_about_it and result["verdict"] in results:
            results[result["verdict"]].append(result)
    how = "through" if candidate.encoded_as else "own"
    return MethodSupport(engine.name, method, how, candidate.encoded_as, tuple(results["pass"]), tuple(results["fail"]))


def _make_example(cls: type[Scaling]) -> Scaling:
    """Return the method with a factor of 4, or with example values for the options that it requires instead."""
    pairs = range(_LLAMA_CONFIG["head_dim"] // 2)
    if cls is Learned:
        return Learned(tuple(1 + i / 20 for i in pairs), target=SERVED_LENGTH)
    if cls is LongRoPE:
        return LongRoPE(tuple(1 + i / 100 for i in pairs), tuple(1 + i / 20 for i in pairs), factor=_FACTOR)
    examples: dict[str, Any] = {"factor": _FACTOR, "base": 4_000_000.0, "p": 0.5}
    needed = [f.name for f in fields(cls) if f.default is MISSING or (f.name == "factor" and f.default is None)]
    return cls(**{name: examples[name] for name in needed})
