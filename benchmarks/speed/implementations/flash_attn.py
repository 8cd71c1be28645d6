"""The Triton rotation of flash-attn, `flash_attn/ops/triton/rotary.py`; vLLM contains a copy of it."""

from __future__ import annotations

from importlib import import_module

from benchmarks.speed.cases import Case, Inputs
from benchmarks.speed.implementations.base import Call, Implementation, find_missing_requirement, is_installed

_PACKAGES = ("flash_attn", "vllm.vllm_flash_attn")


class FlashAttn(Implementation):
    """`apply_rotary`, once for q and once for k. Older versions require tables in the dtype of q."""

    name = "flash-attn"
    package = "flash-attn"

    def unavailable_reason(self, case: Case) -> str | None:
        return find_missing_requirement(case, *_PACKAGES)

    def prepare(self, inputs: Inputs) -> Call:
        package = next(filter(is_installed, _PACKAGES))
        apply = import_module(f"{package}.ops.triton.rotary").apply_rotary
        cos_NP, sin_NP = (part.to(inputs.case.dtype) for part in inputs.tables_by_position)
        q_BTHD, k_BTHD = inputs.q_BHTD.transpose(1, 2), inputs.k_BHTD.transpose(1, 2)
        options = {
            "seqlen_offsets": inputs.positions_BT[:, 0].contiguous() if inputs.case.tokens == 1 else 0,
            "interleaved": inputs.case.is_interleaved,
            "inplace": self.in_place,
        }
        return lambda: tuple(apply(x_BTHD, cos_NP, sin_NP, **options).transpose(1, 2) for x_BTHD in (q_BTHD, k_BTHD))


class FlashAttnInPlace(FlashAttn):
    """`apply_rotary` with `inplace=True`."""

    name = "flash-attn in place"
    in_place = True
