"""The rope types of transformers and the options of each in a rope dict."""

from __future__ import annotations

# Source: modeling_rope_utils.py of transformers 5, and the models that write `alpha`, `attn_factor` and the mscales.
ROPE_TYPE_OPTIONS: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor", "alpha", "original_max_position_embeddings"},
    "yarn": {
        "factor", "original_max_position_embeddings", "attention_factor", "attn_factor", "beta_fast", "beta_slow",
        "mscale", "mscale_all_dim", "truncate",
    },
    "longrope": {
        "factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor",
        "short_mscale", "long_mscale",
    },
    "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
    "proportional": {"factor"},
}  # fmt: skip
ALL_OPTIONS = set().union(*ROPE_TYPE_OPTIONS.values())
