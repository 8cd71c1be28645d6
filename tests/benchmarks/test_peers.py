"""Every contestant does what the tables call it, on the smallest of cases."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from benchmarks.speed.peers import PEERS, Peer, copying
from benchmarks.speed.peers.flash_attn import FlashAttn
from benchmarks.speed.rotate import measure, turned
from benchmarks.speed.shapes import SHAPES, Case, Inputs, Shape

from ropewalk.config.published import published_models

CPU = torch.device("cpu")
HALF = Shape("half", 3, 2, 8, 10_000.0, "")
INTERLEAVED = Shape("interleaved", 4, 1, 8, 10_000.0, "", "interleaved", 6, 10)
LAYOUTS = pytest.mark.parametrize("shape", [HALF, INTERLEAVED], ids=lambda shape: shape.name)
STEPS = pytest.mark.parametrize(("batch", "tokens"), [(1, 5), (3, 1)], ids=["prefill", "decode"])
ALLOWED = {torch.float32: 1e-6, torch.bfloat16: 0.0625}


def case_of(shape, batch=1, tokens=5, dtype=torch.float32):
    return Case(shape, batch, tokens, dtype, CPU)


def by_hand(x_BHTD, positions_BT, shape):
    """The rotation with numpy, one token and one pair at a time."""
    x, out = x_BHTD.double().numpy(), np.empty(x_BHTD.shape)
    pairs = shape.dim // 2
    for row in range(x.shape[0]):
        for token, position in enumerate(positions_BT[min(row, len(positions_BT) - 1)].tolist()):
            for i in range(pairs):
                one, two = (i, i + pairs) if shape.layout == "half" else (2 * i, 2 * i + 1)
                angle = position * shape.base ** (-2 * i / shape.dim)
                a, b = x[row, :, token, one], x[row, :, token, two]
                out[row, :, token, one] = a * np.cos(angle) - b * np.sin(angle)
                out[row, :, token, two] = a * np.sin(angle) + b * np.cos(angle)
    return torch.from_numpy(out)


@LAYOUTS
@STEPS
def test_the_rotation_they_are_held_against(shape, batch, tokens):
    inputs = Inputs(case_of(shape, batch, tokens))
    expected = by_hand(inputs.q_BHTD, inputs.positions_BT, shape)
    found = turned(inputs.q_BHTD.double(), inputs.positions_BT, inputs)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@LAYOUTS
@STEPS
@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
@pytest.mark.parametrize("name", ["ropewalk", "ropewalk in place", "ropewalk from positions", "transformers"])
def test_contestants_that_run_here(name, shape, batch, tokens, dtype):
    inputs = Inputs(case_of(shape, batch, tokens, dtype))
    before = [x.clone() for x in (inputs.q_BHTD, inputs.k_BHTD)]
    peer = PEERS[name]
    assert peer.missing(inputs.case) is None
    answer = peer.answer(inputs, peer.prepare(inputs)())
    for own, x in zip(answer, before, strict=True):
        off = (own.double() - by_hand(x, inputs.positions_BT, shape)).abs().max() / x.double().abs().max()
        assert off < 2 * ALLOWED[dtype]
    assert peer.in_place or torch.equal(before[0], inputs.q_BHTD)
    assert peer.in_place == (answer[0].data_ptr() == inputs.q_BHTD.data_ptr())


def test_what_torch_compiles():
    row = measure(case_of(HALF), 1, {name: PEERS[name] for name in ("copy", "torch.compile")})
    assert row["contestants"]["torch.compile"].get("error", 1.0) < 1e-6, row


def test_the_limits_move_the_same_bytes_and_turn_nothing():
    inputs = Inputs(case_of(INTERLEAVED))
    own = (inputs.q_BHTD, inputs.k_BHTD)
    for name in ("copy", "copy into", "copy, large pages")[: 3 if sys.platform == "linux" else 2]:
        copies = (call := PEERS[name].prepare(inputs))()
        assert [torch.equal(*pair) for pair in zip(copies, own, strict=True)] == [True, True]
        again = call()
        for first, second, x in zip(copies, again, own, strict=True):
            assert first.data_ptr() != x.data_ptr()
            assert (first.data_ptr() == second.data_ptr()) == (name == "copy into")
    into = PEERS["copy into"].prepare(inputs)
    assert into()[0].data_ptr() == into()[0].data_ptr() != inputs.q_BHTD.data_ptr()
    assert inputs.case.moved == 2 * 4 * 5 * (4 + 1) * 8


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_large_pages_are_asked_for_on_whole_pages_of_large_copies(monkeypatch):
    asked = []
    monkeypatch.setattr(copying.ctypes, "CDLL", lambda _: SimpleNamespace(madvise=_Recorded(asked)))
    case = case_of(Shape("large", 2, 1, 8, 10_000.0, ""), tokens=100_000)  # q has 6.1 MiB, k 3.1
    inputs = Inputs(case)
    q_BHTD, k_BHTD = PEERS["copy, large pages"].prepare(inputs)()
    assert torch.equal(q_BHTD, inputs.q_BHTD)
    assert torch.equal(k_BHTD, inputs.k_BHTD)
    ((begin, length, advice),) = asked
    assert (begin % 4096, length % 4096, advice) == (0, 0, 14)  # MADV_HUGEPAGE of <asm-generic/mman-common.h>
    before, behind = begin - q_BHTD.data_ptr(), q_BHTD.data_ptr() + q_BHTD.nbytes - begin - length
    assert 0 <= before < 4096
    assert 0 <= behind < 4096


class _Recorded:
    """A function of C that keeps what it is called with."""

    def __init__(self, calls):
        self.calls = calls

    def __call__(self, *arguments):
        self.calls.append(arguments)


def test_large_pages_are_of_the_memory_of_cpus():
    peer = PEERS["copy, large pages"]
    assert peer.missing(Case(HALF, 1, 5, torch.float32, torch.device("cuda")))
    assert "too small" in peer.missing(case_of(HALF)) or sys.platform != "linux"
    assert (peer.missing(case_of(HALF, tokens=2**16)) is None) == (sys.platform == "linux")  # q has 6 MiB


@pytest.mark.parametrize(
    ("name", "model"),
    [("llama-3-8b", "meta-llama/Llama-3.1-8B-Instruct"), ("deepseek-v3", "deepseek-ai/DeepSeek-V3")],
)
def test_shapes_are_as_published(name, model):
    shape, config = SHAPES[name], published_models()[model].config
    latent = "kv_lora_rank" in config
    assert shape.heads == config["num_attention_heads"]
    assert shape.kv_heads == (1 if latent else config["num_key_value_heads"])
    assert shape.base == config["rope_theta"]
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    assert shape.dim == (config["qk_rope_head_dim"] if latent else head_dim)
    assert (shape.before_q, shape.before_k) == (config.get("qk_nope_head_dim", 0), config.get("kv_lora_rank", 0))


def test_shapes_that_are_not_among_the_known():
    # Qwen/Qwen3-32B and HuggingFaceTB/SmolLM2-135M-Instruct, config.json
    shapes = [SHAPES[name] for name in ("qwen3-32b", "smollm2")]
    assert [(shape.heads, shape.kv_heads, shape.dim, shape.base) for shape in shapes] == [
        (64, 8, 128, 1_000_000.0),
        (9, 3, 64, 100_000.0),
    ]


def test_shapes_are_views_as_projections_give_them():
    inputs = Inputs(case_of(SHAPES["deepseek-v3"], tokens=2))
    assert inputs.q_BHTD.shape == (1, 128, 2, 64)
    assert inputs.q_BHTD.stride() == (2 * 128 * 192, 192, 128 * 192, 1)
    assert inputs.k_BHTD.shape == (1, 1, 2, 64)
    assert inputs.k_BHTD.stride(2) == 576


def test_rows_of_a_decoding_step_stand_at_positions_of_their_own():
    assert Inputs(case_of(HALF, 3, 1)).positions_BT.tolist() == [[4096], [4193], [4290]]
    assert Inputs(case_of(HALF, 1, 3)).positions_BT.tolist() == [[0, 1, 2]]


def test_in_place_turns_do_not_make_the_numbers_vanish():
    inputs = Inputs(case_of(HALF))
    inputs.q_BHTD.zero_()
    inputs.spend(200)
    assert not inputs.q_BHTD.any()
    inputs.spend(200)
    assert inputs.q_BHTD.all()


def test_those_that_need_a_gpu_say_so():
    for name in ("flash-attn", "Liger-Kernel", "FlashInfer"):
        assert PEERS[name].missing(case_of(HALF))


def test_nothing_is_looked_for_where_it_could_not_run(monkeypatch):
    def imports(module):
        raise AssertionError(module)

    monkeypatch.setattr("benchmarks.speed.peers.base.found", imports)
    assert PEERS["flash-attn"].missing(case_of(HALF)) == "runs on CUDA devices"
    on_gpu = Case(INTERLEAVED, 1, 5, torch.float32, torch.device("cuda"))
    assert PEERS["Liger-Kernel"].missing(on_gpu) == "turns the half layout"


def test_what_one_cannot_turn(monkeypatch):
    monkeypatch.setattr("benchmarks.speed.peers.base.found", lambda _: True)
    gpu = torch.device("cuda")
    reasons = [PEERS["Liger-Kernel"].missing(Case(shape, 1, 5, torch.float32, gpu)) for shape in (HALF, INTERLEAVED)]
    assert reasons == [None, "turns the half layout"]
    assert [PEERS["vLLM"].missing(case_of(shape)) is None for shape in (HALF, INTERLEAVED)] == [True, False]
    assert PEERS["vLLM"].missing(Case(INTERLEAVED, 1, 5, torch.float32, gpu)) is None


# The projects whose kernels need a GPU, by the signatures and shapes that they document, in plain torch.


def _flash_attn(x, cos, sin, seqlen_offsets=0, cu_seqlens=None, max_seqlen=None, interleaved=False, inplace=False):
    batch, seqlen, _, dim = x.shape
    assert cos.shape == sin.shape
    assert cos.shape[1] * 2 == dim
    assert x.dtype == cos.dtype
    offsets = torch.as_tensor(seqlen_offsets).expand(batch)
    at = offsets[:, None] + torch.arange(seqlen)
    out = _turn(x, cos[at][:, :, None], sin[at][:, :, None], interleaved)
    return x.copy_(out) if inplace else out


def _liger(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
    assert cos.shape[-2:] == (q.shape[2], q.shape[3])
    half = q.shape[3] // 2
    tables = cos[:, None, :, :half], sin[:, None, :, :half]
    return q.copy_(_turn(q, *tables, False)), k.copy_(_turn(k, *tables, False))


def _flashinfer(positions, query, key, head_size, cos_sin_cache, is_neox=True):
    assert cos_sin_cache.dtype == torch.float32
    _looked_up(positions, query, key, head_size, cos_sin_cache, is_neox)


def _vllm(positions, query, key, head_size, cos_sin_cache, is_neox):
    assert cos_sin_cache.dtype == query.dtype
    _looked_up(positions, query, key, head_size, cos_sin_cache, is_neox)


def _looked_up(positions, query, key, head_size, cos_sin_cache, is_neox):
    assert positions.ndim == 1
    cos, sin = cos_sin_cache[positions][:, None].to(query.dtype).chunk(2, -1)
    for x in (query, key):
        heads = x.view(len(positions), -1, head_size)
        heads.copy_(_turn(heads, cos, sin, not is_neox))


def _turn(x, cos, sin, interleaved):
    a, b = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    parts = (a * cos - b * sin, b * cos + a * sin)
    return torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1)


STUBS = {
    "flash-attn": ("flash_attn.ops.triton.rotary", "apply_rotary", _flash_attn),
    "flash-attn in place": ("flash_attn.ops.triton.rotary", "apply_rotary", _flash_attn),
    "Liger-Kernel": ("liger_kernel.transformers.rope", "liger_rotary_pos_emb", _liger),
    "FlashInfer": ("flashinfer.rope", "apply_rope_with_cos_sin_cache_inplace", _flashinfer),
    "vLLM": ("vllm._custom_ops", "rotary_embedding", _vllm),
}


@STEPS
@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, shape) for name in STUBS for shape in (HALF, INTERLEAVED)[: 1 if name == "Liger-Kernel" else 2]],
    ids=lambda part: getattr(part, "name", part),
)
def test_others_are_called_as_they_document(name, shape, batch, tokens, monkeypatch):
    module, function, stub = STUBS[name]
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(parts[end - 1]))
    setattr(sys.modules[module], function, stub)
    monkeypatch.setattr("benchmarks.speed.peers.flash_attn.found", lambda package: package == "flash_attn")
    peer = PEERS[name]
    monkeypatch.setattr(type(peer), "missing", lambda *_: None)
    for dtype, allowed in ALLOWED.items():
        row = measure(case_of(shape, batch, tokens, dtype), 1, {name: peer})
        assert row["contestants"][name].get("error", 1.0) < allowed, row["contestants"]


def test_flash_attn_is_taken_from_vllm_where_it_is_not_itself(monkeypatch):
    taken = []
    monkeypatch.setattr("benchmarks.speed.peers.flash_attn.found", lambda package: package.startswith("vllm"))
    monkeypatch.setattr(
        "benchmarks.speed.peers.flash_attn.import_module", lambda name: taken.append(name) or ModuleType("rotary")
    )
    with pytest.raises(AttributeError):
        FlashAttn().prepare(Inputs(case_of(HALF)))
    assert taken == ["vllm.vllm_flash_attn.ops.triton.rotary"]


def test_limits_come_first_and_then_ours():
    roles = [peer.role for peer in PEERS.values()]
    assert roles == sorted(roles, key=["limit", "ours", "peer"].index)
    assert all(isinstance(peer, Peer) for peer in PEERS.values())
