"""Small GGUF files with the content that llama.cpp's converter writes: metadata, a tokenizer, tensors."""

from __future__ import annotations

import gguf
import numpy as np

# The fields of SmolLM2: trained on 8,192 tokens, 32 channel pairs per head.
LLAMA = {
    "block_count": 30,
    "context_length": 8192,
    "embedding_length": 576,
    "attention.head_count": 9,
    "attention.head_count_kv": 3,
    "rope.dimension_count": 64,
    "rope.freq_base": 100_000.0,
}


def small_gguf(path, changes=None, divisors=None, architecture="llama", alignment=None):
    """Write a file with a few tensors of different types, which no engine can run, and return its path.

    Args:
        path: the file to write.
        changes: fields to add to those of `LLAMA`, without the prefix of the architecture; None removes a field.
        divisors: further tensors by name, lists of numbers.
        architecture: the architecture, which is also the prefix of its fields.
        alignment: alignment of the tensor data, in bytes.
    """
    writer = gguf.GGUFWriter(path, architecture)
    if alignment:
        writer.add_custom_alignment(alignment)
    for name, value in {**LLAMA, **(changes or {})}.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        if isinstance(value, list):
            writer.add_array(f"{architecture}.{name}", value)
        elif value is not None:
            add[type(value)](f"{architecture}.{name}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([b"\xff\xfe", "ü", "", *(f"w{i}" for i in range(40))])
    writer.add_token_types([1] * 43)
    writer.add_uint64("general.parameter_count", 2**40)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    rng = np.random.default_rng(0)
    writer.add_tensor("token_embd.weight", rng.normal(size=(43, 64)).astype(np.float16))
    writer.add_tensor("output_norm.weight", rng.normal(size=64).astype(np.float32))
    blocks = rng.integers(0, 256, size=(4, 34 * 2), dtype=np.uint8)  # two blocks of Q8_0 per row
    writer.add_tensor("blk.0.attn_q.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for name, values in (divisors or {}).items():
        writer.add_tensor(name, np.array(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny_llama(path, without=None):
    """Write a complete Llama with random float32 weights, which llama.cpp can run: 2 layers, 16 pairs per head.

    Its first tokens are the printable ASCII characters, and the others words that no text has.

    `without`: the name of a tensor to leave out.
    """
    hidden_size, heads, intermediate_size, vocabulary = 64, 2, 96, 300
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(hidden_size)
    writer.add_feed_forward_length(intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)  # transformers needs it to bring the channels of q and k into its own order
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden_size // heads)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(vocabulary)
    characters = ["\u2581", *map(chr, range(33, 127))]
    words = [*characters, *(f"w{i}" for i in range(vocabulary - 3 - len(characters)))]
    types = gguf.TokenType
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *words])
    writer.add_token_scores([0.0] * vocabulary)
    writer.add_token_types([types.UNKNOWN, types.CONTROL, types.CONTROL] + [types.NORMAL] * len(words))
    rng = np.random.default_rng(0)

    def add_random_tensor(name, *shape):
        if name != without:
            writer.add_tensor(f"{name}.weight", (2 * rng.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32))

    add_random_tensor("token_embd", vocabulary, hidden_size)
    writer.add_tensor("output_norm.weight", np.ones(hidden_size, dtype=np.float32))
    for block in ("blk.0", "blk.1"):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add_random_tensor(f"{block}.{name}", hidden_size, hidden_size)
        add_random_tensor(f"{block}.ffn_gate", intermediate_size, hidden_size)
        add_random_tensor(f"{block}.ffn_up", intermediate_size, hidden_size)
        add_random_tensor(f"{block}.ffn_down", hidden_size, intermediate_size)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{block}.{name}.weight", np.ones(hidden_size, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
