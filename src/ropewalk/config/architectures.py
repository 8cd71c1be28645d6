"""Facts about the architectures of transformers, keyed by `model_type`: one table for each fact.

The tables below hold the special cases that this package needs without importing transformers; class_defaults.json
holds the defaults of all classes. tests/config/test_every_architecture.py compares both with the rotary modules of the
installed transformers.

Facts about the architecture names of GGUF files are in gguf_architectures.py.
"""

from __future__ import annotations

from typing import Any

# Default `rope_theta` in transformers 4, where it is not 10,000.
# Source: configuration_*.py of transformers 4.57.
TRANSFORMERS_4_ROPE_THETA = {
    **dict.fromkeys(("falcon_h1", "helium"), 100_000.0),
    "gpt_oss": 150_000.0,
    **dict.fromkeys((
        "bitnet", "ernie4_5", "ernie4_5_moe", "ernie4_5_vl_moe_text", "flex_olmo", "llama4_text", "mllama_text_model",
        "paddleocr_vl_text",
    ), 500_000.0),
    "persimmon": 25_000.0,
    **dict.fromkeys((
        "cwm", "gemma3_text", "gemma3n_text", "lfm2", "lfm2_moe", "minimax", "ministral3", "mixtral", "phimoe",
        "qwen2_5_omni_text", "qwen2_5_vl_text", "qwen2_vl_text", "qwen3_omni_moe_text", "solar_open",
    ), 1_000_000.0),
    "smollm3": 2_000_000.0,
    **dict.fromkeys(
        ("minimax_m2", "minimax_m3_vl_text", "qwen3_vl_moe_text", "qwen3_vl_text"), 5_000_000.0
    ),
    "longcat_flash": 10_000_000.0,
    "hy_v3": 11_158_840.0,
    "apertus": 12_000_000.0,
}  # fmt: skip

# Defaults that the configuration class of an architecture applies to arguments that are not among its fields. The
# defaults of fields are in class_defaults.json.
# Source: `__post_init__` in configuration_*.py of transformers 5.
HIDDEN_DEFAULTS: dict[str, dict[str, Any]] = {
    "dbrx": {"attn_config": {"kv_n_heads": 1}},
    "diffusion_gemma_text": {"global_head_dim": 512},
    "embedding_gemma2_text": {"global_head_dim": 512, "num_global_key_value_heads": 1},
    "gemma4_text": {"global_head_dim": 512},
    "gemma4_unified_text": {"global_head_dim": 512},
    "hrm_text": {"H_cycles": 2, "L_cycles": 3},
    "dots3_note_text": {
        "sliding_window": 512, "swa_num_attention_heads": 64, "swa_num_key_value_heads": 64, "swa_q_lora_rank": 1024,
        "swa_kv_lora_rank": 1024, "swa_head_dim": 256, "swa_qk_nope_head_dim": 192, "swa_v_head_dim": 128,
    },
}  # fmt: skip

# The field that turns the rotary embedding of an architecture on, and the value with which it is on.
# Source: modeling_*.py of transformers 5.
ROTARY_SWITCHES: dict[str, tuple[str, Any]] = {
    "granitemoehybrid": ("position_embedding_type", "rope"),
    "zamba2": ("use_mem_rope", True),
    "falcon": ("alibi", False),
}

# Architectures without a rotary embedding that are published with rope fields all the same.
# Source: the attention classes of modeling_*.py in transformers 5.23.
NO_ROTARY_MODEL_TYPES = frozenset({"inkling2_text", "inkling_text", "jamba", "kimi_linear", "nemotron_h", "zamba"})

# Values of `position_embedding_type` of models without a rotary embedding.
OTHER_POSITION_EMBEDDINGS = ("nope", "none", "alibi", "learned")

# The layer types that a flat rope dict scales, for architectures where it scales sliding-window layers, too.
# Source: configuration_modernbert.py of transformers 5.
SCALED_LOCAL_LAYER_TYPES = dict.fromkeys(("modernbert", "modernbert-decoder"), ("full_attention", "sliding_attention"))

# Fields that the configuration class of an architecture does not read, although others do: it has another name for the
# base or the rotated fraction, or its rope_scaling is not a rope parameter.
# Source: configuration_*.py of transformers 5.
IGNORED_FIELDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt_neox", "gpt_neox_japanese"), ("rope_theta", "partial_rotary_factor")),
    **dict.fromkeys(("modernbert", "modernbert-decoder"), ("rope_theta",)),
    "cohere2_moe": ("rope_scaling",),
    "minimax_m3_vl_text": ("rotary_dim",),
    "olmo3": ("rope_local_base_freq", "local_rope_theta"),
    "step3p5": ("partial_rotary_factor",),
}

# Architectures that have one base for each layer type beside the rope dicts (rope_theta, swa_rope_theta), although the
# class of transformers has rope dicts by layer type.
# Source: the code published with MiMo-V2-Flash; configuration_dots3_note.py of transformers 5.
BASES_BESIDE_MODEL_TYPES = frozenset({"deepseek_v4", "dots3_note_text", "mimo_v2_flash"})

# Architectures in which `partial_rotary_factor` is `qk_rope_head_dim` divided by the size of a head, so that both
# fields say the same. In all other architectures with `qk_rope_head_dim`, this fraction of it is rotated.
# Source: configuration_*.py of transformers 5.
WHOLE_HEAD_PARTIAL_MODEL_TYPES = frozenset({"deepseek_v4", "dots3_note_text", "mistral4"})

# Architectures whose weights rotate neighboring channels (x_{2i}, x_{2i+1}) and not the two halves of a head.
# Source: the rotary functions of modeling_*.py in transformers 5.
INTERLEAVED_MODEL_TYPES = frozenset({
    "axk1", "axk2", "bailing_hybrid", "blt", "codegen", "cohere", "cohere2", "cohere2_moe", "deepseek_v2",
    "deepseek_v3", "deepseek_v32", "deepseek_v4", "dots3_note_text", "ernie4_5", "ernie4_5_moe",
    "ernie4_5_vl_moe_text", "glm", "glm4", "glm4_moe_lite", "glm4v_text", "glm_moe_dsa", "glm_ocr_text", "gptj",
    "helium", "hy_v4_vl_text", "kimi_k2", "kimi_k25", "llama4", "llama4_text", "longcat_flash", "mistral4",
    "mistral_large4", "sarvam_mla", "youtu",
})  # fmt: skip

# Architectures whose attention multiplies its softmax scale by m(factor, mscale_all_dim)^2 (DeepSeek-V2,
# arXiv 2405.04434). All others leave the softmax scale alone, even if their rope dict contains mscale_all_dim.
# Source: the attention classes of modeling_*.py in transformers 5; for kimi_k2, the code published with the model.
SOFTMAX_SCALED_MODEL_TYPES = frozenset({
    "axk1", "axk2", "bailing_hybrid", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa",
    "hy_v4", "hy_v4_vl_text", "kimi_k2", "longcat_flash", "minicpm3", "mistral4", "mistral_large4", "sarvam_mla",
    "youtu",
})  # fmt: skip

# Architectures whose configuration class in transformers 4 applies a scaling when `rope_scaling` is missing.
# An unscaled embedding must therefore be written out as `rope_type: default`.
# Source: configuration_apertus.py and configuration_gpt_oss.py of transformers 4.57.
DEFAULT_SCALING_MODEL_TYPES = frozenset({"apertus", "gpt_oss"})

# Architectures whose configuration classes accept LongRoPE lists and no other scaling. In transformers 4 they also
# refuse any key besides type, short_factor and long_factor.
# Source: configuration_phi3.py and configuration_phi4_multimodal.py of transformers 4.57 and 5.
LONGROPE_ONLY_MODEL_TYPES = frozenset({"phi3", "phi4_multimodal"})

# Architectures whose configuration class requires `short_mscale` and `long_mscale` in every scaled rope dict.
# Source: configuration_phimoe.py of transformers 4.57 and 5.
SHORT_LONG_MSCALE_MODEL_TYPES = frozenset({"phimoe"})

# Architectures whose configuration class leaves `head_dim` at None when the file omits it. For dynamic, yarn and
# longrope, transformers then fails, because it computes with that None.
# Source: configuration_*.py and modeling_rope_utils.py of transformers 5.
UNSET_HEAD_DIM_MODEL_TYPES = frozenset({
    "hunyuan_v1_dense", "hunyuan_v1_moe", "hunyuan_vl", "hunyuan_vl_text", "minimax", "ministral", "mixtral",
})  # fmt: skip

# Architectures whose configuration class raises an error for every type but `default`.
# Source: configuration_cosmos3_edge.py of transformers 5.
CONFIG_REJECTS_SCALING_MODEL_TYPES = frozenset({"cosmos3_edge_text"})

# Architectures whose configuration class accepts a scaling, but whose rotary module raises an error for it.
# Source: modeling_ernie4_5_vl_moe.py and modeling_recurrent_gemma.py of transformers 5.
MODULE_REJECTS_SCALING_MODEL_TYPES = frozenset({"ernie4_5_vl_moe_text", "recurrent_gemma"})

# Attention layers, each with a KV cache, for each layer that the configuration counts. All others have one.
# Source: configuration_longcat_flash.py and modeling_longcat_flash.py of transformers 5.23.
ATTENTIONS_PER_LAYER = {"longcat_flash": 2}

# How many times as many KV heads sliding-window layers have as the others, if the configuration does not say.
# Source: modeling_mimo_v2_flash.py of transformers 5.23.
SLIDING_KV_HEADS_MULTIPLIER = {"mimo_v2_flash": 2}

# Architectures that have both layers with a window and layers that attend to the whole text, and rotate only in the
# former. Without a window, all layers rotate.
# "llama4" is also the name of GGUF files.
# Source: the attention classes of modeling_*.py in transformers 5.23.
NO_ROPE_IN_FULL_ATTENTION_MODEL_TYPES = frozenset({
    "afmoe", "beam", "cohere2", "exaone4", "exaone_moe", "kolibri1", "lara_mini", "llama4", "llama4_text",
})  # fmt: skip

# Every n-th layer has an indexer of its own, the others reuse its selection. All other architectures: every layer.
# Source: configuration_hy_v4.py and configuration_hy_v4_vl.py of transformers 5.24.
INDEXER_PERIOD = {"hy_v4": 4, "hy_v4_vl_text": 4}

# Names of text parts that the class of a multimodal architecture replaces by those of another architecture.
# Source: configuration_exaone4_5.py of transformers 5.23.
RENAMED_TEXT_TYPES = {"exaone4_5_text": "exaone4"}
