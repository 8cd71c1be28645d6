from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any, ClassVar

from ropewalk.config import ModelConfig
from ropewalk.config.gguf import LONG, ROPE_FREQS, SHORT, from_fields
from ropewalk.errors import InputError
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.serving.engines.base import Config
from ropewalk.serving.engines.gguf_engine import GgufEngine, source_file

# Architectures that read the tensors; all others refuse to load a file with a tensor that they do not know, and
# cogvlm, falcon-h1, llada, pangu-embedded and refact load rope_freqs and turn by none of it.
_READ_FREQS = {
    "apertus", "arcee", "deci", "exaone", "exaone-moe", "exaone4", "granite", "granite_swa", "granitehybrid",
    "granitemoe", "llama", "llama-embed", "llama4", "minicpm", "mistral3", "nanbeige",
}  # fmt: skip
# These read the two lists when rope.scaling.type is longrope, and rope_freqs when it is not;
_READ_EITHER = {
    "apertus", "deci", "granite", "granite_swa", "granitemoe", "llama", "llama-embed", "minicpm", "mistral3",
}  # fmt: skip
_READ_LISTS = {"minicpm3", "phi3", "phimoe"}  # and these the two lists, whatever it says.
# Whose rope is formed from more than what is read here, or from less.
_OTHERWISE = {
    "cogvlm", "deepseek2-ocr", "deepseek4", "dflash", "dots3note", "eagle3", "gemma4", "gemma4-assistant", "step35",
}  # fmt: skip
# Whose sliding layers have the base and the factor of the file, and none of what the command line says.
_LOCAL_BY_FILE = {
    "afmoe", "cohere2", "cohere2moe", "exaone-moe", "exaone4", "gemma2", "gpt-oss", "llama4", "maple", "mellum",
    "smallthinker", "spark2_5",
}  # fmt: skip
_FLAGS = {
    "rope.scaling.type": "--rope-scaling",
    "rope.scaling.factor": "--rope-scale",
    "rope.scaling.original_context_length": "--yarn-orig-ctx",
    "rope.freq_base": "--rope-freq-base",
}
# What a field that is to be taken away is overridden with.
_NOTHING: Mapping[str, Any] = {
    "rope.scaling.type": "none",
    "rope.scaling.yarn_log_multiplier": 0.0,
    "rope.scaling.alpha": 0.0,
}
_KINDS = {str: "str", int: "int", float: "float"}  # of an override
_CONTEXT_STEP = 256  # the context is rounded up to a multiple of this


class LlamaCpp(GgufEngine):
    """llama.cpp: its server and everything that loads through its library."""

    name = "llama.cpp"
    title = "llama.cpp"
    version = "0c1e57098 (2026-10)"
    sources: ClassVar[tuple[str, ...]] = (
        "src/llama-context.cpp (llama_context)",
        "src/llama-model.cpp (load_hparams, get_rope_factors)",
        "src/models/*.cpp (load_arch_hparams, load_arch_tensors)",
        "ggml/src/ggml-cpu/ops.cpp (rope_yarn)",
        "tools/server/server-context.cpp (n_ctx_slot)",
        "common/arg.cpp",
    )
    requirements: ClassVar[tuple[str, ...]] = ("xllamacpp==2026.10.11549", "numpy")

    def _interpret(self, config: Config, length: int) -> ModelConfig:
        model_config = from_fields(config["fields"], config["divisors"])
        architecture, tensors = model_config.model_type, set(config["divisors"])
        if architecture in _OTHERWISE:
            raise InputError(
                "general.architecture", architecture, f"one whose rope {self.title} forms in the usual way"
            )
        self._check_tensors(architecture, tensors, config["fields"].get(f"{architecture}.rope.scaling.type"))
        main = model_config.ropes[model_config.main]
        if not isinstance(main.scaling, LongRoPE):
            return model_config
        # One of the lists serves every text, chosen by the size of the context.
        context = -(-length // _CONTEXT_STEP) * _CONTEXT_STEP
        past = context > (main.rope.original_length or context)
        chosen = main.scaling.long_factor if past else main.scaling.short_factor
        fixed = dataclasses.replace(main.scaling, short_factor=chosen, long_factor=chosen)
        return dataclasses.replace(
            model_config, ropes={**model_config.ropes, model_config.main: dataclasses.replace(main, scaling=fixed)}
        )

    def _check_tensors(self, architecture: str, tensors: set[str], kind: str | None) -> None:
        lists = architecture in _READ_LISTS or (architecture in _READ_EITHER and kind == "longrope")
        freqs = architecture in _READ_FREQS and not lists
        known = {SHORT, LONG} if lists else {ROPE_FREQS} if freqs else set()
        if not tensors <= known:
            said = f"for {architecture} with rope.scaling.type {kind or 'linear'}, {self.title} reads"
            raise InputError("tensors", ", ".join(sorted(tensors)), f"{said} {', '.join(sorted(known)) or 'none'}")

    def command(self, model: str, length: int, changes: Config | None = None) -> str:
        if changes is not None:
            model = str(source_file(model))  # which may have been a built-in name
        words, overrides = ["llama-server", "-m", model, "-c", str(length)], []
        for name, value in (changes or {}).items():
            architecture, _, field = name.partition(".")
            if name in (ROPE_FREQS, SHORT, LONG):
                raise InputError("out", None, f"a folder: {name} is a tensor, which only a file can hold")
            said: Any = _NOTHING.get(field, 1.0) if value is None else value
            shown = f"{said:.9g}" if isinstance(said, float) else str(said)
            if field in _FLAGS and architecture not in _LOCAL_BY_FILE:
                words += [_FLAGS[field], shown]
            else:
                overrides.append(f"{name}={_KINDS[type(said)]}:{shown}")
        if overrides:
            words += ["--override-kv", ",".join(overrides)]
        return shlex.join(words)
