from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ropewalk.errors import InputError
from ropewalk.method import whole
from ropewalk.positions.base import FarSegment, PositionMethod, Positions

_CONFIG_OPTIONS = ("chunk_size", "local_size")  # of dual_chunk_attention_config that are options here


@dataclass(frozen=True, repr=False)
class DualChunk(PositionMethod):
    """Dual chunk attention: distances restart in every chunk of s = c - w tokens (arXiv 2402.17463, sec. 3).

    Keys of the query's own chunk have their trained distance. Those of the chunk before it have it up to c. For earlier
    keys, the query is at c (2s - 1 if that is less), the key at its position in its chunk. The paper caps at c - 1; the
    published code caps at c, as here (chunkllama_attn_replace.py of github.com/HKUNLP/ChunkLlama;
    DualChunkRotaryEmbedding of vLLM and SGLang, which serve Qwen2.5-1M). Qwen2.5-1M adds `logit_scaling="yarn"`.

    `ropewalk.extend` takes the options from `dual_chunk_attention_config` if the model's configuration has it.

    Args:
        chunk_size: c, tokens; by default three quarters of the original length, as in ChunkLlama.
        local_size: w, tokens of the previous chunk that keep their distance; by default one eighth of the original
            length, as in ChunkLlama.
    """

    name = "dual-chunk"
    formula = "key n mod s; own chunk: m mod s; previous: min(m mod s + s, c); earlier: min(2s - 1, c)"
    source = "dual chunk attention, arXiv 2402.17463; Qwen2.5-1M, arXiv 2501.15383"

    # sgl-project/sglang at 1951f6a, dual_chunk_flashattention_backend.py; vLLM dropped it in 0.11 (its issue 49296).
    engines = "SGLang applies it to a model whose config.json has dual_chunk_attention_config"

    chunk_size: int | None = field(default=None, metadata=whole("tokens"))
    local_size: int | None = field(default=None, metadata=whole("tokens"))

    def choose_options(self, original_length: int, length: int) -> dict[str, Any]:
        chunk_size = self.chunk_size or max(2, original_length * 3 // 4)
        local_size = self.local_size or max(1, original_length // 8)
        if local_size >= chunk_size:
            raise InputError("dual-chunk: local_size", local_size, f"fewer tokens than chunk_size, {chunk_size:,}")
        return {"chunk_size": chunk_size, "local_size": local_size}

    def with_defaults_of(self, dual_chunk_attention_config: Mapping[str, Any]) -> DualChunk:
        """Return the method with the options of a `dual_chunk_attention_config` where it has none of its own."""
        options = {name: getattr(self, name) or dual_chunk_attention_config.get(name) for name in _CONFIG_OPTIONS}
        return dataclasses.replace(self, **options)

    @property
    def stride(self) -> int:
        """The number of tokens after which positions restart, s = c - w."""
        assert self.chunk_size  # resolved
        assert self.local_size
        return self.chunk_size - self.local_size

    def near_start(self, queries: Positions) -> Positions:
        return queries // self.stride * self.stride * self.is_past_training(queries)

    @property
    def far_segments(self) -> tuple[FarSegment, ...]:
        def previous_start(queries: Positions) -> Positions:
            return (self.near_start(queries) - self.stride).clip(min=0)

        def previous_position(queries: Positions) -> Positions:
            return (queries % self.stride + self.stride).clip(max=self.chunk_size)

        def earlier_position(queries: Positions) -> Positions:
            return queries * 0 + min(2 * self.stride - 1, self.chunk_size)  # type: ignore[type-var]

        return (
            FarSegment(previous_start, previous_position),
            FarSegment(lambda queries: queries * 0, earlier_position),
        )

    def key_position(self, keys: Positions) -> Positions:
        return keys % self.stride
