from __future__ import annotations

import shlex
from typing import Any, ClassVar

from ropewalk.config import ModelConfig
from ropewalk.config.gguf import from_gguf_fields
from ropewalk.config.gguf_header import ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, ROPE_FREQS, ROPE_TENSORS
from ropewalk.errors import InputError
from ropewalk.scaling.longrope import LongRoPE
from ropewalk.serving.engines.base import Config, with_main_scaling
from ropewalk.serving.engines.gguf_engine import GgufEngine, require_gguf
from ropewalk.serving.engines.rope_dict import with_one_list

# Source of the tables: load_arch_hparams and load_arch_tensors in src/models/*.cpp, get_rope_factors in
# src/llama-model.cpp.

# Architectures that read the tensor rope_freqs. cogvlm, falcon-h1, llada, pangu-embedded and refact load it, but do not
# use it. All others refuse a file with a tensor that they do not read.
_READS_ROPE_FREQS = {
    "apertus", "arcee", "deci", "exaone", "exaone-moe", "exaone4", "granite", "granite_swa", "granitehybrid",
    "granitemoe", "llama", "llama-embed", "llama4", "minicpm", "mistral3", "nanbeige",
}  # fmt: skip
# Of these, the ones that read the two rope_factors tensors instead when rope.scaling.type is longrope.
_READS_ROPE_FACTORS_IF_LONGROPE = {
    "apertus", "deci", "granite", "granite_swa", "granitemoe", "llama", "llama-embed", "minicpm", "mistral3",
}  # fmt: skip
# Architectures that read the two rope_factors tensors, whatever rope.scaling.type is.
_READS_ROPE_FACTORS = {"minicpm3", "phi3", "phimoe"}
# Architectures whose rope depends on other fields than those that config/gguf.py reads.
_UNSUPPORTED_ARCHITECTURES = {
    "cogvlm", "deepseek2-ocr", "deepseek4", "dflash", "dots3note", "eagle3", "gemma4", "gemma4-assistant", "step35",
}  # fmt: skip
# Architectures whose sliding-window layers use the base and the factor of the file, even if options override them.
_SLIDING_LAYERS_IGNORE_OPTIONS = {
    "afmoe", "cohere2", "cohere2moe", "exaone-moe", "exaone4", "gemma2", "gpt-oss", "llama4", "maple", "mellum",
    "smallthinker", "spark2_5",
}  # fmt: skip
# The command-line options that override fields. Source: common/arg.cpp.
_OPTIONS = {
    "rope.scaling.type": "--rope-scaling",
    "rope.scaling.factor": "--rope-scale",
    "rope.scaling.original_context_length": "--yarn-orig-ctx",
    "rope.freq_base": "--rope-freq-base",
}
_SCALING_TYPES_OF_OPTION = ("none", "linear", "yarn")  # a file may have longrope, which --rope-scaling refuses
# The values that have the same effect as removing a field; for other fields it is 1.
_VALUES_OF_REMOVED_FIELDS: dict[str, Any] = {
    "rope.scaling.type": "none",
    "rope.scaling.yarn_log_multiplier": 0.0,
    "rope.scaling.alpha": 0.0,
}
_OVERRIDE_TYPES = {str: "str", int: "int", float: "float"}  # of --override-kv NAME=TYPE:VALUE
_CONTEXT_STEP = 256  # the context size is rounded up to a multiple of this


class LlamaCpp(GgufEngine):
    """llama.cpp: its server and all software that uses its library."""

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

    def build_command(self, model: str, length: int, changes: Config | None = None) -> str:
        if changes is not None:
            model = str(require_gguf(model))  # resolve a built-in name
        argv, overrides = ["llama-server", "-m", model, "-c", str(length)], []
        for name, new_value in (changes or {}).items():
            if name in ROPE_TENSORS:
                raise InputError("out", None, f"a folder, because {name} is a tensor that only a file can contain")
            architecture, _, field = name.partition(".")
            value = _VALUES_OF_REMOVED_FIELDS.get(field, 1.0) if new_value is None else new_value
            text = f"{value:.9g}" if isinstance(value, float) else str(value)
            is_option = field in _OPTIONS and architecture not in _SLIDING_LAYERS_IGNORE_OPTIONS
            if is_option and (field != "rope.scaling.type" or value in _SCALING_TYPES_OF_OPTION):
                argv += [_OPTIONS[field], text]
            else:
                overrides.append(f"{name}={_OVERRIDE_TYPES[type(value)]}:{text}")
        if overrides:
            argv += ["--override-kv", ",".join(overrides)]
        return shlex.join(argv)

    def _interpret(self, config: Config, length: int) -> ModelConfig:
        model_config = from_gguf_fields(config["fields"], config["divisors"])
        architecture, tensors = model_config.model_type, set(config["divisors"])
        if architecture in _UNSUPPORTED_ARCHITECTURES:
            expected = "an architecture whose rope ropewalk can compute from the metadata"
            raise InputError("general.architecture", architecture, expected)
        rope_type = config["fields"].get(f"{architecture}.rope.scaling.type")
        self._check_tensors(architecture, tensors, rope_type)
        layer = model_config.main_layer
        if not isinstance(layer.scaling, LongRoPE):
            return model_config
        # The size of the context, not the length of a text, chooses the list.
        context = -(-length // _CONTEXT_STEP) * _CONTEXT_STEP
        is_long = context > (layer.rope.original_length or context)
        return with_main_scaling(model_config, with_one_list(layer.scaling, use_long=is_long))

    def _check_tensors(self, architecture: str, tensors: set[str], rope_type: str | None) -> None:
        """Raise InputError if the file has a divisor tensor that the architecture does not read."""
        known: set[str] = set()
        if architecture in _READS_ROPE_FACTORS or (
            architecture in _READS_ROPE_FACTORS_IF_LONGROPE and rope_type == "longrope"
        ):
            known = {ROPE_FACTORS_SHORT, ROPE_FACTORS_LONG}
        elif architecture in _READS_ROPE_FREQS:
            known = {ROPE_FREQS}
        if not tensors <= known:
            condition = f"{architecture} reads with rope.scaling.type {rope_type or 'linear'}"
            expected = f"only tensors that {condition}: {', '.join(sorted(known)) or 'none'}"
            raise InputError("tensors", ", ".join(sorted(tensors)), expected)
