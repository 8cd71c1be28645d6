"""flash-attn's rotation in Triton, `flash_attn/ops/triton/rotary.py`; vLLM ships a copy of it."""

from __future__ import annotations

from importlib import import_module

from benchmarks.speed.peers.base import Call, Peer, found, needs
from benchmarks.speed.shapes import Case, Inputs

_PACKAGES = ("flash_attn", "vllm.vllm_flash_attn")


class FlashAttn(Peer):
    """`apply_rotary`, once for q and once for k; tables in the dtype of q, which it insisted on until lately."""

    name = "flash-attn"
    package = "flash-attn"

    def missing(self, case: Case) -> str | None:
        return needs(case, *_PACKAGES)

    def prepare(self, inputs: Inputs) -> Call:
        package = next(filter(found, _PACKAGES))
        apply = import_module(f"{package}.ops.triton.rotary").apply_rotary
        cos_NP, sin_NP = (part.to(inputs.case.dtype) for part in inputs.looked_up)
        q_BTHD, k_BTHD = inputs.q_BHTD.transpose(1, 2), inputs.k_BHTD.transpose(1, 2)
        options = {
            "seqlen_offsets": inputs.positions_BT[:, 0].contiguous() if inputs.case.tokens == 1 else 0,
            "interleaved": inputs.case.shape.layout == "interleaved",
            "inplace": self.in_place,
        }
        return lambda: tuple(apply(x_BTHD, cos_NP, sin_NP, **options).transpose(1, 2) for x_BTHD in (q_BTHD, k_BTHD))


class FlashAttnInPlace(FlashAttn):
    """The same, over q and k."""

    name = "flash-attn in place"
    in_place = True
