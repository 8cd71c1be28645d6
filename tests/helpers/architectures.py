"""Tiny models of all architectures of transformers with random weights: the catalogue, and how they are built.

`TEXT_MODELS` and `MULTIMODAL_MODELS` list the architectures that the tests cover, each with the config fields that
differ from the common small sizes. `UNSUPPORTED` lists the others, each with the reason.
"""

from __future__ import annotations

import copy
import functools

import torch
import transformers
from torch import Tensor
from transformers import CONFIG_MAPPING
from transformers.modeling_outputs import MoeCausalLMOutputWithPast
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

# Llama4ForConditionalGeneration of transformers 5.24.0 reads this output of its text model, which has none.
if not hasattr(MoeCausalLMOutputWithPast, "image_outputs"):
    MoeCausalLMOutputWithPast.image_outputs = None

LENGTH = 32  # original length of the tiny models, tokens
FAR_POSITION = 20_000
IDS = torch.randint(3, 97, (2, 16), generator=torch.Generator().manual_seed(1))
LONG_IDS = torch.randint(3, 97, (2, 3 * LENGTH // 2), generator=torch.Generator().manual_seed(2))
# Largest difference of float32 logits, relative to their standard deviation, from rounding.
TOLERANCE = 1e-5
# The same at FAR_POSITION, where the float32 angles of transformers are inaccurate.
FLOAT32_FAR_TOLERANCE = 2e-2

# Values for those of these fields that a config has.
SMALL_SIZES = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": LENGTH, "sliding_window": 16,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_k": 2, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
    "index_n_heads": 2, "index_head_dim": 16, "index_topk": 8,
    "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 16,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 97,
    "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": LENGTH, "d_model": 64, "rotary_dim": 8,
}  # fmt: skip
# The same for vision and audio encoders, which the tests never run.
SMALL_ENCODER_SIZES = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "depth": 1, "num_attention_heads": 2,
    "num_heads": 2, "num_key_value_heads": 2, "embed_dim": 16, "out_hidden_size": 64, "image_size": 28,
    "patch_size": 14, "num_blocks": 1, "encoder_layers": 1, "d_model": 16, "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16, "num_position_embeddings": 16, "num_layers": 1, "head_dim": 8, "output_dim": 64,
    "num_global_layers": 1, "vision_output_dim": 64, "projector_input_dim": 16, "projector_output_dim": 16,
    "deepstack_visual_indexes": [], "fullatt_block_indexes": [0], "conv_hidden_size": 16, "max_position_embeddings": 32,
    "downsample_hidden_size": 16, "ext_pw_out_channel": 16, "depthwise_separable_out_channel": 16,
    "nemo_conv_channels": 16, "text_hidden_size": 64,
}  # fmt: skip

_LINEAR_THEN_FULL = {"layer_types": ["linear_attention", "full_attention"]}
_SLIDING_THEN_FULL = {"layer_types": ["sliding_attention", "full_attention"]}
_ROTARY = {"rope_type": "default", "rope_theta": 10_000.0}
_MROPE = {"rope_parameters": {**_ROTARY, "mrope_section": [2, 3, 3]}}
_PARTIAL_MROPE = {"rope_parameters": {**_ROTARY, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}}
_LLAMA3 = {"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 5e5}
_YARN = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "rope_theta": 1e5}
_SPLIT = {"rope_parameters": {**_ROTARY, "mrope_section": [3, 3, 2]}}
_TRAINED_ON = {"original_max_position_embeddings": LENGTH}

TEXT_MODELS = {
    "afmoe": {},
    "apertus": {"rope_parameters": {**_LLAMA3, **_TRAINED_ON}, "max_position_embeddings": 16 * LENGTH},
    "apertus1p5_text": {"rope_parameters": {**_LLAMA3, **_TRAINED_ON}, "max_position_embeddings": 16 * LENGTH},
    "arcee": {},
    "aria_text": {},
    "axk1": {},
    "axk2": {},
    "bailing_hybrid": {
        **_LINEAR_THEN_FULL, "mlp_layer_types": ["dense", "sparse"], "head_dim": 16, "model_max_length": LENGTH,
        "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "num_local_experts": 4,
    },
    "bamba": {"attn_layer_indices": [1]},
    "beam": {},
    "bitnet": {},
    "cohere": {"logit_scale": 1.0},
    "cohere2": {**_SLIDING_THEN_FULL, "logit_scale": 1.0},
    "cohere2_moe": {**_SLIDING_THEN_FULL, "logit_scale": 1.0},
    "cohere_compass_text": {
        **_SLIDING_THEN_FULL,
        "rope_parameters": {"full_attention": None, "sliding_attention": {**_ROTARY, "mrope_section": [2, 3, 3]}},
    },
    "cwm": {"rope_parameters": {**_LLAMA3, **_TRAINED_ON}, "max_position_embeddings": 16 * LENGTH},
    "dbrx": {
        "n_heads": 4, "n_layers": 2, "max_seq_len": LENGTH,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {},
    "deepseek_v3": {},
    "deepseek_v32": {},
    "deepseek_v4": {
        "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
        "num_hidden_layers": 3, "num_key_value_heads": 1, "head_dim": 16, "partial_rotary_factor": 0.5,
        "o_lora_rank": 8, "o_groups": 2,
    },
    "diffllama": {},
    "doge": {},
    "dory": {
        "layer_types": ["sliding_attention", "full_attention", "full_attention"], "num_hidden_layers": 3,
        "n_input_layers": 1, "n_output_layers": 1, "initializer_range": 0.5, "ngpt_alpha_init": 0.2,
    },
    "dots1": {},
    "dots3_note_text": {
        "num_key_value_heads": 4, "head_dim": 16, "per_layer_config": {}, "qk_rope_head_dim": 8,
        "layer_types": ["indexed_attention", "indexed_attention"], "shared_experts_intermediate_size": 32,
    },
    "emu3": {},
    "ernie4_5": {},
    "ernie4_5_moe": {},
    "exaone4": {},
    "exaone_moe": {},
    "falcon": {},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_d_head": 16},
    "flex_olmo": {},
    "flint": _SLIDING_THEN_FULL,
    "gemma": {},
    "gemma2": {},
    "gemma3_text": _SLIDING_THEN_FULL,
    "gemma3n_text": {
        **_SLIDING_THEN_FULL, "num_kv_shared_layers": 0, "laurel_rank": 4, "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.0, 0.0], "intermediate_size": [96, 96],
    },
    "gemma4_text": {**_SLIDING_THEN_FULL, "global_head_dim": 32},
    "gemma4_unified_text": {**_SLIDING_THEN_FULL, "global_head_dim": 32},
    "glm": {},
    "glm4": {},
    "glm4_moe": {},
    "glm4_moe_lite": {},
    "glm_moe_dsa": {},
    "gpt_neox": {},
    "gpt_neox_japanese": {},
    "gpt_oss": {"rope_parameters": {**_YARN, **_TRAINED_ON, "truncate": False}, "max_position_embeddings": 4 * LENGTH},
    "granite": {},
    "granite_swa": {"layer_rope_theta": [10_000.0, 500_000.0]},
    "granitemoe": {},
    "granitemoe_swa": {"layer_rope_theta": [10_000.0, 500_000.0]},
    "granitemoehybrid": {"position_embedding_type": "rope", "layer_types": ["mamba", "attention"]},
    "granitemoeshared": {},
    "helium": {},
    "hrm_text": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {},
    "hy_v3": {},
    "hy_v4": {},
    "hyperclovax": {},
    "jais2": {},
    "jetmoe": {"kv_channels": 16},
    "kolibri1": {},
    "laguna": _SLIDING_THEN_FULL,
    "lara_mini": {
        "layer_types": ["linear_attention", "sliding_attention", "full_attention"], "num_hidden_layers": 3,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lfm3": {"layer_types": ["conv", "sliding_attention", "full_attention"], "num_hidden_layers": 3},
    "llama": {},
    "llama4_text": {},
    "longcat_flash": {
        "head_dim": 8, "num_layers": 2, "ffn_hidden_size": 96, "moe_topk": 2, "zero_expert_num": 2,
        "expert_ffn_hidden_size": 32,
    },
    "mellum": _SLIDING_THEN_FULL,
    "mimo_v2_flash": {**_SLIDING_THEN_FULL, "head_dim": 24},
    "minicpm3": {},
    "minimax": _LINEAR_THEN_FULL,
    "minimax_m2": {},
    "minimax_m3_vl_text": {
        "rope_parameters": {**_ROTARY, "partial_rotary_factor": 0.5}, "dense_intermediate_size": 32,
        "shared_intermediate_size": 32,
    },
    "ministral": {},
    "ministral3": {
        "rope_parameters": {**_YARN, **_TRAINED_ON, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
        "max_position_embeddings": 4 * LENGTH,
    },
    "mistral": {},
    "mixtral": {},
    "modernbert-decoder": _SLIDING_THEN_FULL,
    "moshi": {"ffn_dim": 192},
    "nanochat": {},
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": _SLIDING_THEN_FULL,
    "olmo_hybrid": _LINEAR_THEN_FULL,
    "olmoe": {},
    "persimmon": {},
    "phi": {},
    "phi3": {"original_max_position_embeddings": LENGTH},
    "phi4_multimodal": {
        "original_max_position_embeddings": LENGTH, "vision_config": SMALL_ENCODER_SIZES,
        "audio_config": SMALL_ENCODER_SIZES,
    },
    "phimoe": {},
    "qwen2": {},
    "qwen2_moe": {},
    "qwen3": {},
    "qwen3_5_text": {**_LINEAR_THEN_FULL, **_PARTIAL_MROPE},
    "qwen3_5_moe_text": {**_LINEAR_THEN_FULL, **_PARTIAL_MROPE},
    "qwen3_moe": {},
    "qwen3_next": _LINEAR_THEN_FULL,
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"], "hc_count": 2, "hc_lowrank": 4,
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 16,
        "indexer_compress_ratio": 4, **_PARTIAL_MROPE,
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "seed_oss": {},
    "smollm3": {"no_rope_layers": [1, 0]},
    "solar_open": {},
    "stablelm": {},
    "starcoder2": {},
    "vaultgemma": {},
    "youtu": {"tie_word_embeddings": False},  # transformers loads tied ones with a random embedding
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"], "layer_types": ["linear_attention", "hybrid"],
        "use_mem_rope": True, "n_mamba_heads": 4, "chunk_size": 16, "num_key_value_heads": 4,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}  # fmt: skip

# Multimodal models. The tests feed them text only.
MULTIMODAL_MODELS = {
    "chameleon": {
        "vocabulary_map": {"<image>": 5},
        "vq_config": {
            "base_channels": 32,
            "channel_multiplier": [1],
            "num_res_blocks": 1,
            "embed_dim": 8,
            "latent_channels": 8,
            "num_embeddings": 8,
        },
    },
    "cosmos3_edge": {"text_config": _MROPE},
    "ernie4_5_vl_moe": {"text_config": {**_SPLIT, "moe_intermediate_size": [32, 32]}},
    "gemma3": {"text_config": _SLIDING_THEN_FULL},
    "glm4v": {"text_config": _MROPE},
    "glm4v_moe": {"text_config": _PARTIAL_MROPE},
    "glm_ocr": {"text_config": _MROPE},
    "granite_docling": {
        "text_config": {"attention_multiplier": 0.25, "residual_multiplier": 1.0, "logits_scaling": 1.0}
    },
    "hunyuan_vl": {"text_config": {"rope_parameters": {**_ROTARY, "mrope_section": [2, 2, 2, 2]}}},
    "hy_v4_vl": {"text_config": {"rope_parameters": {**_ROTARY, "mrope_section": [2, 1, 1]}}},
    "kimi_k25": {},
    "llama4": {},
    "llava": {},
    "mistral3": {},
    "mistral4": {},
    "mistral_large4": {},
    "mllama": {},
    "molmo2": {"vision_config": {"image_size": [28, 28]}, "adapter_config": {"vision_feature_layer": [0]}},
    "muse_glimmer": {
        "text_config": {"qk_scale_factor": 1.0, "output_multiplier": 1.0},
        "out_hidden_size": 64,
        "projector_hidden_size": 64,
    },
    "paddleocr_vl": {"text_config": _MROPE},
    "qwen2_5_omni_thinker": {"text_config": _MROPE},
    "qwen2_5_vl": {"text_config": _MROPE},
    "qwen2_vl": {"text_config": _MROPE},
    "qwen3_omni_moe_thinker": {"text_config": _MROPE},
    "qwen3_vl": {"text_config": _MROPE},
    "qwen3_vl_moe": {"text_config": _MROPE},
    "step3p7": {},
}


def build(name: str, **changes: object) -> torch.nn.Module:
    """Return a tiny model of an architecture, with weights for which logits are of order 1 and depend on positions.

    `changes`: fields of the config of a text model. Without them the model is a copy of one that is built once.
    """
    return copy.deepcopy(_build_once(name)) if not changes else _build_text_model(name, changes)


@functools.cache
def _build_once(name: str) -> torch.nn.Module:
    if name in MULTIMODAL_MODELS:
        architecture = _class(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[name])
        return build_with_random_weights(architecture, _multimodal_config(name))
    return _build_text_model(name, {})


def _build_text_model(name: str, changes: dict[str, object]) -> torch.nn.Module:
    config = type(CONFIG_MAPPING[name]().get_text_config(decoder=True))
    fields = _small_fields(config(), SMALL_SIZES) | TEXT_MODELS.get(name, {}) | changes
    architecture = _class(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name])
    return build_with_random_weights(architecture, config(**copy.deepcopy(fields)))


def build_with_random_weights(architecture: type, config: object) -> torch.nn.Module:
    model = architecture(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
            else:
                parameter.uniform_(0.3, 0.7, generator=generator)
    model.tie_weights()
    return model


def build_from_config(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model that transformers builds from the config of another, with the same weights."""
    twin = type(model)(copy.deepcopy(model.config)).eval()
    twin.load_state_dict(model.state_dict())
    return twin


def compute_logits(model: torch.nn.Module, start: int = 0, ids: Tensor = IDS, **options: object) -> Tensor:
    """Return the logits of a text whose first token is at position `start`, computed without a cache."""
    positions = torch.arange(start, start + ids.shape[1]).expand(ids.shape)
    with torch.no_grad():
        return model(input_ids=ids, position_ids=positions, use_cache=False, **options).logits.float()


def _class(name: str | tuple[str, ...]) -> type:
    return getattr(transformers, name if isinstance(name, str) else name[0])


def _small_fields(config: object, sizes: dict) -> dict:
    known = config.to_dict()
    fields = {name: size for name, size in sizes.items() if name in known}
    if "qk_rope_head_dim" in fields:
        # Latent attention has as many key heads as query heads, and its config computes head_dim.
        fields["num_key_value_heads"] = fields["num_attention_heads"]
        fields.pop("head_dim", None)
    return fields


def _multimodal_config(name: str) -> object:
    config = CONFIG_MAPPING[name]()
    text = config.get_text_config(decoder=True)
    parts = _small_fields(config, SMALL_SIZES) if text is config else {}
    for part in type(config).sub_configs:
        sub = getattr(config, part)
        if sub is not None:
            sizes = SMALL_SIZES if sub is text else SMALL_ENCODER_SIZES
            parts[part] = {"model_type": sub.model_type, **_small_fields(sub, sizes)}
    for part, fields in MULTIMODAL_MODELS[name].items():
        parts[part] = {**parts[part], **fields} if isinstance(parts.get(part), dict) else fields
    return type(config)(**copy.deepcopy(parts))


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the standard deviation of the expected tensor."""
    return float((actual - expected).abs().max() / expected.std())


# Architectures whose logits change when all positions are shifted, apart from the rotary embedding.
DEPENDS_ON_POSITION = {
    "beam": "scales queries by their position in layers without rotary embedding",
    "deepseek_v4": "counts its compressed windows from the start of the cache",
    "dory": "scales the channels of queries after the rotation",
    "hunyuan_v1_dense": "scales the channels of queries and keys after the rotation",
    "hunyuan_v1_moe": "scales the channels of queries and keys after the rotation",
    "hunyuan_vl": "scales the channels of queries and keys after the rotation",
    "ministral3": "scales queries by their position",
    "mistral4": "scales queries by their position",
    "mistral_large4": "scales queries by their position",
    "recurrent_gemma": "its recurrence resets at position 0",
}
# Scalings that transformers cannot express for an architecture, so that `extend` warns.
EVERY_SCALING = {"linear", "yarn", "llama3", "longrope", "ntk", "dynamic"}
NOT_EXPRESSIBLE = {
    "cosmos3_edge": EVERY_SCALING,  # its config validates unscaled frequencies only
    "ernie4_5_vl_moe": EVERY_SCALING,  # as above
    "gemma4_text": EVERY_SCALING,  # p-RoPE with a scaling requires longrope, which its config rejects
    "gemma4_unified_text": EVERY_SCALING,  # as above
    "lfm3": {"longrope", "dynamic"},  # p-RoPE is expressed as a static longrope
    "phi3": {"dynamic"},  # its config validates longrope only, which expresses every static scaling
    "phi4_multimodal": {"dynamic"},  # as above
    "phimoe": EVERY_SCALING,  # its rotary module reads short_mscale and long_mscale
    "recurrent_gemma": EVERY_SCALING,  # its rotary module is built unscaled only
}

# The other causal language models of transformers 5.24: those that `extend` refuses, and aliases of covered ones.
WITHOUT_ROTARY = [
    "bart", "bert", "bert-generation", "big_bird", "bigbird_pegasus", "biogpt", "blenderbot", "blenderbot-small",
    "bloom", "camembert", "cpmant", "ctrl", "data2vec-text", "electra", "ernie", "falcon_mamba", "git", "gpt-sw3",
    "gpt2", "gpt_bigcode", "gpt_neo", "inkling2_loop_text", "inkling2_text", "inkling_text", "jamba", "kimi_linear",
    "mamba", "mamba2", "marian", "mbart", "megatron-bert", "mpt", "musicgen", "musicgen_melody", "mvp", "nemotron_h",
    "openai-gpt", "opt", "pegasus", "plbart", "prophetnet", "reformer", "rembert", "roberta", "roberta-prelayernorm",
    "roc_bert", "rwkv", "trocr", "whisper", "xglm", "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xlstm", "xmod",
    "zamba",
]  # fmt: skip
OTHER_ROTARY = ["codegen", "gptj", "roformer"]  # fixed tables without a rotary module
UNSUPPORTED = {
    **dict.fromkeys(WITHOUT_ROTARY, "no rotary embedding"),
    **dict.fromkeys(OTHER_ROTARY, "a rotary embedding without a rotary module"),
    "blt": "four stacks with a rotary embedding each, none of which is the text decoder",
}
ALIASES = {
    "dots3_note": "dots3_note_text", "exaone": "llama", "fuyu": "persimmon", "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text", "gemma4_assistant": "gemma4_text", "gemma4_unified": "gemma4_unified_text",
    "gemma4_unified_assistant": "gemma4_unified_text", "got_ocr2": "qwen2", "internlm3": "llama",
    "iquestcoder": "llama", "moss_transcribe_diarize": "qwen3", "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text", "qwen4_exp": "qwen4_exp_text", "sarvam_mla": "deepseek_v3",
    "sarvam_moe": "glm4_moe",
}  # fmt: skip
# Unsupported architectures that a test builds and passes to `extend`.
UNSUPPORTED_SAMPLES = ["bloom", "codegen", "gpt2", "gptj", "jamba", "mamba", "mpt", "opt", "roformer"]
