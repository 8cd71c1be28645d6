"""What request factors do not work with is refused by name, before the server starts."""

from __future__ import annotations

import json
import re

import pytest

pytestmark = pytest.mark.engines
ROPE_DICT = {
    "rope_type": "ropewalk_dynamic_yarn",
    "rope_theta": 10_000.0,
    "original_max_position_embeddings": 128,
    "factors": [1, 2, 4],
}
CHATGLM = {  # a small ChatGLM
    "model_type": "chatglm", "num_layers": 1, "padded_vocab_size": 512, "hidden_size": 64, "ffn_hidden_size": 64,
    "kv_channels": 16, "num_attention_heads": 4, "seq_length": 512, "add_bias_linear": False, "add_qkv_bias": True,
    "rmsnorm": True, "multi_query_attention": True, "multi_query_group_num": 2, "layernorm_epsilon": 1e-5,
    "apply_residual_connection_post_layernorm": False, "original_rope": True, "tie_word_embeddings": False,
    "post_layer_norm": True, "eos_token_id": 2,
}  # fmt: skip
# Fields of the rope dict; the first two are those of published models.
ROPE_FIELDS = {
    "Qwen2.5-VL": ({"mrope_section": [16, 24, 24]}, "MRoPE"),
    "Ministral 3": ({"llama_4_scaling_beta": 0.1}, "attention scaled by position"),
    "a served length that no factor covers": ({"factors": [1, 2]}, "--max-model-len 512 .at most 256"),
}
OPTIONS = {
    "pooling": ({"runner": "pooling", "convert": "embed"}, "pooling"),
    "a KV connector": (
        {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}}, "a KV connector",
    ),
    "transformers' code": ({"model_impl": "transformers"}, "transformers' own model code"),
}  # fmt: skip
FAULTS = {  # what vLLM says of itself and of a model
    "another version": "it was tested with 0.0.1",
    "another signature": "the signature of vllm.model_executor",
    "a missing function": "vllm.LLM.missing does not exist",
    "microbatching": "--enable-dbo",
    "the Rust frontend": "unset VLLM_USE_RUST_FRONTEND",
    "latent attention": "MLA",
    "gpt-oss": "GptOssForCausalLM .a rope dict of its own",
}
IGNORES_ROPE_DICT = "a model that ignores its rope dict"


@pytest.fixture(scope="module")
def errors(run_servers, checkpoints, tmp_path_factory):
    """The error of each server by name."""
    job = {}
    for name, (rope_fields, _) in ROPE_FIELDS.items():
        fields = json.loads((checkpoints["dynamic"] / "config.json").read_text())
        fields["rope_parameters"] |= rope_fields
        job[name] = new_server(tmp_path_factory.mktemp("config"), fields)
    for name, (options, _) in OPTIONS.items():
        job[name] = {"path": str(checkpoints["dynamic"]), "options": options, "batches": None, "fault": None}
    for name in FAULTS:
        job[name] = {"path": str(checkpoints["dynamic"]), "options": {}, "batches": None, "fault": name}
    chatglm = {**CHATGLM, "architectures": ["ChatGLMModel"], "rope_parameters": ROPE_DICT}
    job[IGNORES_ROPE_DICT] = {**new_server(tmp_path_factory.mktemp("config"), chatglm), "batches": []}
    results = run_servers(list(job.values()))
    return {name: result.get("error") for name, result in zip(job, results, strict=True)}


def new_server(folder, fields):
    (folder / "config.json").write_text(json.dumps(fields))
    return {"path": str(folder), "options": {"load_format": "dummy"}, "batches": None, "fault": None}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *((name, message) for name, (_, message) in ROPE_FIELDS.items()),
        *((name, message) for name, (_, message) in OPTIONS.items()),
        *FAULTS.items(),
        (IGNORES_ROPE_DICT, "ChatGLMForCausalLM does not read the rope dict"),
    ],
)
def test_server_is_refused(errors, name, message):
    assert errors[name] is not None
    assert re.search(f"rope_type ropewalk_dynamic_yarn cannot be served: .*{message}", errors[name]), errors[name]
