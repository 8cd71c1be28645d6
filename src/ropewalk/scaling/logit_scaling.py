"""Logit scaling: multiply the attention logits of a query by a number that grows with its position.

The more keys a query attends to, the flatter its softmax becomes; larger logits sharpen it again. The rotary tables
cannot express this, because queries and keys share them, so whoever computes the attention multiplies the queries:

    table = LogN().factors(np.arange(length), original_length)  # [length]
    q = q * table[positions][:, None]
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ropewalk import spec as specs
from ropewalk.errors import InputError, check_length
from ropewalk.method import at_least, check_options, whole
from ropewalk.registry import find_by_name


class LogitScaling(ABC):
    """How the attention logits of a query depend on its position. A subclass is a frozen dataclass.

    Attributes:
        name: the name in specs and on the command line.
    """

    name: ClassVar[str]

    def __post_init__(self) -> None:
        check_options(self)

    def factors(self, positions: ArrayLike, original_length: int) -> NDArray[np.float64]:
        """Return the numbers that multiply the logits of queries at these positions.

        Args:
            positions: positions of queries, counted from 0, integers of any shape [...].
            original_length: tokens the model was trained on.

        Returns an array [...]. Raises InputError for an original length below 2.
        """
        if check_length("original_length", original_length) < 2:
            raise InputError("original_length", original_length, f"at least 2 tokens, which {self.name} needs")
        return self._factors(np.asarray(positions, dtype=np.float64), original_length)

    @abstractmethod
    def _factors(self, positions: NDArray[np.float64], original_length: int) -> NDArray[np.float64]:
        """Implement `factors`."""

    def __str__(self) -> str:
        """Return the spec, with the options that differ from their defaults."""
        return specs.format_spec(self)


@dataclass(frozen=True)
class LogN(LogitScaling):
    """max(1, ln n / ln L) for a query that attends to n keys (kexue.fm 8823, Su 2021; `use_logn_attn` of Qwen).

    The query at position p attends to n = p + 1 keys, as in `logn_list` of Qwen-7B's modeling_qwen.py.
    """

    name = "log-n"

    def _factors(self, positions: NDArray[np.float64], original_length: int) -> NDArray[np.float64]:
        return np.log(np.maximum(positions + 1, original_length)) / math.log(original_length)


@dataclass(frozen=True)
class Llama4Temperature(LogitScaling):
    """1 + a ln(1 + floor((p + 1) / f)) (`attn_temperature_tuning` of Llama 4: transformers, modeling_llama4.py).

    Llama 4 applies it to its layers without rotary embedding; see also arXiv 2501.19399.

    Args:
        attn_scale: a.
        floor_scale: f, in tokens; the original length by default. Llama 4 has 8192.
    """

    name = "llama-4"

    attn_scale: float = field(default=0.1, metadata=at_least(0))
    floor_scale: int | None = field(default=None, metadata=whole("tokens"))

    def _factors(self, positions: NDArray[np.float64], original_length: int) -> NDArray[np.float64]:
        blocks = np.floor((positions + 1) / (self.floor_scale or original_length))
        return 1 + self.attn_scale * np.log1p(blocks)


@dataclass(frozen=True)
class MistralTemperature(LogitScaling):
    """1 + b ln(1 + floor(p / L)) (`llama_4_scaling_beta` of Ministral 3 and Mistral 4: modeling_ministral3.py).

    Args:
        beta: b.
    """

    name = "mistral"

    beta: float = field(default=0.1, metadata=at_least(0))

    def _factors(self, positions: NDArray[np.float64], original_length: int) -> NDArray[np.float64]:
        return 1 + self.beta * np.log1p(np.floor(positions / original_length))


@dataclass(frozen=True)
class YarnTemperature(LogitScaling):
    """max(1, 1 + a ln(n / L))^2 for a query that attends to n keys: YaRN's temperature (arXiv 2309.00071, eq. 22).

    Qwen2.5-1M (arXiv 2501.15383) combines it with dual chunk attention. vLLM 0.10 multiplies the keys and the queries
    by 1 + 0.1 ln(n / L) each, with n for the whole request (dual_chunk_flash_attn.py, `scaling_factor`).

    Args:
        coefficient: a.
    """

    name = "yarn"

    coefficient: float = field(default=0.1, metadata=at_least(0))

    def _factors(self, positions: NDArray[np.float64], original_length: int) -> NDArray[np.float64]:
        length_ratios = np.maximum(positions + 1, original_length) / original_length
        return np.square(1 + self.coefficient * np.log(length_ratios))


LOGIT_SCALINGS: dict[str, type[LogitScaling]] = {
    cls.name: cls for cls in (LogN, Llama4Temperature, MistralTemperature, YarnTemperature)
}


def parse_logit_scaling(spec: Any) -> LogitScaling:
    """Parse a logit scaling from `name:option=value,...`; one that is parsed already is returned as is.

    Raises InputError that names the wrong option; UnknownNameError for an unknown name or option.
    """
    if isinstance(spec, LogitScaling):
        return spec
    if not isinstance(spec, str):
        raise InputError("logit_scaling", spec, ", ".join(LOGIT_SCALINGS))
    return specs.parse_spec(spec, lambda name: find_by_name("logit_scaling", name, LOGIT_SCALINGS))
