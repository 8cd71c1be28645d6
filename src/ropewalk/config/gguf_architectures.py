"""Facts about the architecture names of GGUF files (`general.architecture`): one table for each fact.

They describe how llama.cpp reads the metadata of each architecture (src/models/*.cpp and src/llama-model.cpp).
Facts about transformers' `model_type` names are in architectures.py.
"""

from __future__ import annotations

from ropewalk.config.architectures import INTERLEAVED_MODEL_TYPES
from ropewalk.config.class_defaults import known_model_types

# Architectures that certainly have a rotary embedding, so that a file may omit rope.freq_base (10,000 is used then).
# GGUF uses the same names as transformers for these.
ROPE_GGUF_ARCHITECTURES = known_model_types()

# Architectures for which llama.cpp rotates nothing if rope.scaling.finetuned is false.
# Source: granite.cpp and granite-hybrid.cpp in src/models of llama.cpp.
ROPE_SWITCH_GGUF_ARCHITECTURES = frozenset({"granite", "granitemoe", "granitehybrid"})

# Architectures that rotate neighboring channels: those of transformers, and four that have another name in GGUF.
INTERLEAVED_GGUF_ARCHITECTURES = INTERLEAVED_MODEL_TYPES | {"command-r", "deepseek2", "deepseek32", "glm-dsa"}

# Architectures for which llama.cpp reads rope.scaling.yarn_beta_fast and yarn_beta_slow, with the defaults of the two.
# All others use 32 and 1 whatever the file contains.
YARN_BETA_DEFAULTS = {"grok": (8.0, 1.0), "mistral3": (32.0, 1.0)}

# Architectures for which llama.cpp reads rope.scaling.yarn_log_multiplier. The value times this number is
# DeepSeek's mscale_all_dim.
YARN_LOG_MULTIPLIER_SCALE = {"deepseek2": 10.0, "deepseek32": 10.0, "mistral4": 10.0, "mistral3": 1.0}

# Architectures whose attention multiplies its softmax scale by the square of YaRN's m(factor, mscale_all_dim).
SOFTMAX_SCALED_GGUF_ARCHITECTURES = frozenset({"deepseek2", "deepseek32", "glm-dsa", "mistral4"})

# Default base of the sliding-window layers, for architectures where these layers have one. None: the base of the other
# layers. The field rope.freq_base_swa overrides it, except for FIXED_SLIDING_BASE_GGUF_ARCHITECTURES.
SLIDING_ROPE_FREQ_BASE = {
    "gemma3": 10_000.0, "gemma3n": 10_000.0, "gemma4": 10_000.0, "gemma-embedding": 10_000.0, "mimo2": 10_000.0,
    "plamo3": 10_000.0, "muse-glimmer": None, "laguna": None, "olmo2": None, "mellum": None,
}  # fmt: skip

# Architectures for which llama.cpp does not read rope.freq_base_swa: sliding layers use the base of the other layers.
FIXED_SLIDING_BASE_GGUF_ARCHITECTURES = frozenset({"olmo2", "mellum"})

# Architectures whose sliding-window layers ignore rope.scaling.attn_factor.
UNSCALED_SLIDING_GGUF_ARCHITECTURES = frozenset({"laguna", "olmo2", "mellum"})

# Architectures with both kinds of layers: the last of every n layers attends to the whole text, the others to a sliding
# window. This is n; the field attention.sliding_window_pattern overrides it.
# Source: load_arch_hparams of src/models/*.cpp.
SLIDING_WINDOW_PERIOD = {
    "afmoe": 4, "cohere2": 4, "exaone4": 4, "gemma-embedding": 6, "gemma2": 2, "gemma3": 6, "gemma3n": 5, "gpt-oss": 2,
    "llama4": 4, "olmo2": 4, "plamo3": 8, "smallthinker": 4,
}  # fmt: skip

# Architectures in which the first of n layers attends to the whole text, not the last.
# Source: src/models/smallthinker.cpp.
FULL_FIRST_GGUF_ARCHITECTURES = frozenset({"smallthinker"})

# Windows that llama.cpp assumes if the file contains none. Source: load_arch_hparams of src/models/*.cpp.
DEFAULT_SLIDING_WINDOW = {"gemma2": 4096, "llama4": 8192}

# Architectures that divide the text into chunks of the size of the window: a token attends to its own chunk only.
# Source: src/models/llama4.cpp.
CHUNKED_GGUF_ARCHITECTURES = frozenset({"llama4"})

# Default period n of full attention among layers of linear attention: every n-th layer attends to the whole text. The
# field full_attention_interval overrides it. Source: src/models/qwen3next.cpp and qwen35*.cpp.
FULL_ATTENTION_INTERVAL = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "qwen4exp": 4}

# Layers with keys and values of their own, counted from the start; the others read those of earlier layers.
# Source: src/models/gemma3n.cpp.
LAYERS_WITH_OWN_KEYS = {"gemma3n": 20}
