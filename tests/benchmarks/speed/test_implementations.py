"""Every implementation computes the rotation that its name says, on small cases."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from benchmarks.speed.cases import MODEL_SHAPES, Case, Inputs, ModelShape
from benchmarks.speed.implementations import IMPLEMENTATIONS, Implementation, copies
from benchmarks.speed.implementations.flash_attn import FlashAttn
from benchmarks.speed.rotation import measure_rotation, rotate_float64

from ropewalk.config.published import published_models

MODULE = "benchmarks.speed.implementations"
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HALF = ModelShape("half", 3, 2, 8, 10_000.0, "")
INTERLEAVED = ModelShape("interleaved", 4, 1, 8, 10_000.0, "", "interleaved", 6, 10)
LAYOUTS = pytest.mark.parametrize("shape", [HALF, INTERLEAVED], ids=lambda shape: shape.name)
PHASES = pytest.mark.parametrize(("batch", "tokens"), [(1, 5), (3, 1)], ids=["prefill", "decode"])
MAX_ERROR = {torch.float32: 1e-6, torch.bfloat16: 0.0625}


def make_case(shape, batch=1, tokens=5, dtype=torch.float32):
    return Case(shape, batch, tokens, dtype, CPU)


def expected_rotation(x_BHTD, positions_BT, shape):
    """Rotate with numpy, one token and one pair at a time."""
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
@PHASES
def test_the_float64_rotation_that_all_are_checked_against(shape, batch, tokens):
    inputs = Inputs(make_case(shape, batch, tokens))
    expected = expected_rotation(inputs.q_BHTD, inputs.positions_BT, shape)
    result = rotate_float64(inputs.q_BHTD.double(), inputs.positions_BT, inputs)
    assert torch.allclose(result, expected, rtol=0, atol=1e-12)


@LAYOUTS
@PHASES
@pytest.mark.parametrize("dtype", MAX_ERROR, ids=str)
@pytest.mark.parametrize("name", ["ropewalk", "ropewalk in place", "ropewalk from positions", "transformers"])
def test_implementations_that_run_on_cpus(name, shape, batch, tokens, dtype):
    inputs = Inputs(make_case(shape, batch, tokens, dtype))
    before = [x.clone() for x in (inputs.q_BHTD, inputs.k_BHTD)]
    implementation = IMPLEMENTATIONS[name]
    assert implementation.unavailable_reason(inputs.case) is None
    results = implementation.get_result(inputs, implementation.prepare(inputs)())
    for result, x in zip(results, before, strict=True):
        error = (result.double() - expected_rotation(x, inputs.positions_BT, shape)).abs().max()
        assert error < 2 * MAX_ERROR[dtype] * x.double().abs().max()
    assert implementation.in_place or torch.equal(before[0], inputs.q_BHTD)
    assert implementation.in_place == (results[0].data_ptr() == inputs.q_BHTD.data_ptr())


# torch.compile uses torch.jit.script_method itself when it is first used.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method:DeprecationWarning")
def test_torch_compile():
    row = measure_rotation(make_case(HALF), 1, {name: IMPLEMENTATIONS[name] for name in ("copy", "torch.compile")})
    assert row["contestants"]["torch.compile"].get("error", 1.0) < 1e-6, row


def test_the_limits_copy_q_and_k_unchanged():
    inputs = Inputs(make_case(INTERLEAVED))
    originals = (inputs.q_BHTD, inputs.k_BHTD)
    for name in ("copy", "copy into", "copy, large pages")[: 3 if sys.platform == "linux" else 2]:
        call = IMPLEMENTATIONS[name].prepare(inputs)
        copied = call()
        assert [torch.equal(*pair) for pair in zip(copied, originals, strict=True)] == [True, True]
        again = call()
        for first, second, x in zip(copied, again, originals, strict=True):
            assert first.data_ptr() != x.data_ptr()
            assert (first.data_ptr() == second.data_ptr()) == (name == "copy into")
    into = IMPLEMENTATIONS["copy into"].prepare(inputs)
    assert into()[0].data_ptr() == into()[0].data_ptr() != inputs.q_BHTD.data_ptr()
    assert inputs.case.bytes_moved == 2 * 4 * 5 * (4 + 1) * 8


@pytest.mark.skipif(sys.platform != "linux", reason="large pages are requested on Linux only")
def test_large_pages_are_requested_for_the_whole_pages_of_a_large_copy(monkeypatch):
    requests = []
    monkeypatch.setattr(copies.ctypes, "CDLL", lambda _: SimpleNamespace(madvise=_RecordedFunction(requests)))
    case = make_case(ModelShape("large", 2, 1, 8, 10_000.0, ""), tokens=100_000)  # q has 6.1 MiB, k 3.1
    inputs = Inputs(case)
    q_BHTD, k_BHTD = IMPLEMENTATIONS["copy, large pages"].prepare(inputs)()
    assert torch.equal(q_BHTD, inputs.q_BHTD)
    assert torch.equal(k_BHTD, inputs.k_BHTD)
    ((begin, length, advice),) = requests
    assert (begin % 4096, length % 4096, advice) == (0, 0, 14)  # MADV_HUGEPAGE of <asm-generic/mman-common.h>
    bytes_before, bytes_after = begin - q_BHTD.data_ptr(), q_BHTD.data_ptr() + q_BHTD.nbytes - begin - length
    assert 0 <= bytes_before < 4096
    assert 0 <= bytes_after < 4096


class _RecordedFunction:
    """A C function that records its arguments."""

    def __init__(self, calls):
        self.calls = calls

    def __call__(self, *arguments):
        self.calls.append(arguments)


def test_large_pages_are_for_large_copies_in_cpu_memory():
    implementation = IMPLEMENTATIONS["copy, large pages"]
    assert implementation.unavailable_reason(Case(HALF, 1, 5, torch.float32, CUDA))
    is_linux = sys.platform == "linux"
    assert "too small" in implementation.unavailable_reason(make_case(HALF)) or not is_linux
    large_case = make_case(HALF, tokens=2**16)  # q has 6 MiB
    assert (implementation.unavailable_reason(large_case) is None) == is_linux


@pytest.mark.parametrize(
    ("name", "model"),
    [("llama-3-8b", "meta-llama/Llama-3.1-8B-Instruct"), ("deepseek-v3", "deepseek-ai/DeepSeek-V3")],
)
def test_shapes_agree_with_the_published_configurations(name, model):
    shape, config = MODEL_SHAPES[name], published_models()[model].config
    has_latent_attention = "kv_lora_rank" in config
    assert shape.heads == config["num_attention_heads"]
    assert shape.kv_heads == (1 if has_latent_attention else config["num_key_value_heads"])
    assert shape.base == config["rope_theta"]
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    assert shape.dim == (config["qk_rope_head_dim"] if has_latent_attention else head_dim)
    assert (shape.q_prefix, shape.k_prefix) == (config.get("qk_nope_head_dim", 0), config.get("kv_lora_rank", 0))


def test_shapes_without_a_stored_configuration():
    # Qwen/Qwen3-32B and HuggingFaceTB/SmolLM2-135M-Instruct, config.json
    shapes = [MODEL_SHAPES[name] for name in ("qwen3-32b", "smollm2")]
    assert [(shape.heads, shape.kv_heads, shape.dim, shape.base) for shape in shapes] == [
        (64, 8, 128, 1_000_000.0),
        (9, 3, 64, 100_000.0),
    ]


def test_q_and_k_are_views_as_projections_return_them():
    inputs = Inputs(make_case(MODEL_SHAPES["deepseek-v3"], tokens=2))
    assert inputs.q_BHTD.shape == (1, 128, 2, 64)
    assert inputs.q_BHTD.stride() == (2 * 128 * 192, 192, 128 * 192, 1)
    assert inputs.k_BHTD.shape == (1, 1, 2, 64)
    assert inputs.k_BHTD.stride(2) == 576


def test_the_rows_of_a_decoding_step_have_different_positions():
    assert Inputs(make_case(HALF, 3, 1)).positions_BT.tolist() == [[4096], [4193], [4290]]
    assert Inputs(make_case(HALF, 1, 3)).positions_BT.tolist() == [[0, 1, 2]]


def test_q_and_k_are_filled_again_after_many_rotations_in_place():
    inputs = Inputs(make_case(HALF))
    inputs.q_BHTD.zero_()
    inputs.prepare_in_place_rotations(200)
    assert not inputs.q_BHTD.any()
    inputs.prepare_in_place_rotations(200)
    assert inputs.q_BHTD.all()


def test_implementations_that_need_a_gpu_are_unavailable_on_cpus():
    for name in ("flash-attn", "Liger-Kernel", "FlashInfer"):
        assert IMPLEMENTATIONS[name].unavailable_reason(make_case(HALF))


def test_packages_are_not_looked_up_for_cases_that_they_cannot_run(monkeypatch):
    def fail(module):
        raise AssertionError(module)

    monkeypatch.setattr(f"{MODULE}.base.is_installed", fail)
    assert IMPLEMENTATIONS["flash-attn"].unavailable_reason(make_case(HALF)) == "runs on CUDA devices only"
    on_gpu = Case(INTERLEAVED, 1, 5, torch.float32, CUDA)
    assert IMPLEMENTATIONS["Liger-Kernel"].unavailable_reason(on_gpu) == "supports the half layout only"


def test_unsupported_layouts_are_reported(monkeypatch):
    monkeypatch.setattr(f"{MODULE}.base.is_installed", lambda _: True)
    liger, vllm = IMPLEMENTATIONS["Liger-Kernel"], IMPLEMENTATIONS["vLLM"]
    assert liger.unavailable_reason(Case(HALF, 1, 5, torch.float32, CUDA)) is None
    assert liger.unavailable_reason(Case(INTERLEAVED, 1, 5, torch.float32, CUDA)) == "supports the half layout only"
    assert vllm.unavailable_reason(make_case(HALF)) is None
    assert vllm.unavailable_reason(make_case(INTERLEAVED)) is not None
    assert vllm.unavailable_reason(Case(INTERLEAVED, 1, 5, torch.float32, CUDA)) is None


# Stand-ins in plain torch for projects whose kernels need a GPU, with the signatures and shapes that they document.


def _flash_attn(x, cos, sin, seqlen_offsets=0, cu_seqlens=None, max_seqlen=None, interleaved=False, inplace=False):
    batch, seqlen, _, dim = x.shape
    assert cos.shape == sin.shape
    assert cos.shape[1] * 2 == dim
    assert x.dtype == cos.dtype
    offsets = torch.as_tensor(seqlen_offsets).expand(batch)
    positions = offsets[:, None] + torch.arange(seqlen)
    out = _rotate(x, cos[positions][:, :, None], sin[positions][:, :, None], interleaved)
    return x.copy_(out) if inplace else out


def _liger(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
    assert cos.shape[-2:] == (q.shape[2], q.shape[3])
    half = q.shape[3] // 2
    tables = cos[:, None, :, :half], sin[:, None, :, :half]
    return q.copy_(_rotate(q, *tables, False)), k.copy_(_rotate(k, *tables, False))


def _flashinfer(positions, query, key, head_size, cos_sin_cache, is_neox=True):
    assert cos_sin_cache.dtype == torch.float32
    _rotate_from_cache(positions, query, key, head_size, cos_sin_cache, is_neox)


def _vllm(positions, query, key, head_size, cos_sin_cache, is_neox):
    assert cos_sin_cache.dtype == query.dtype
    _rotate_from_cache(positions, query, key, head_size, cos_sin_cache, is_neox)


def _rotate_from_cache(positions, query, key, head_size, cos_sin_cache, is_neox):
    assert positions.ndim == 1
    cos, sin = cos_sin_cache[positions][:, None].to(query.dtype).chunk(2, -1)
    for x in (query, key):
        heads = x.view(len(positions), -1, head_size)
        heads.copy_(_rotate(heads, cos, sin, not is_neox))


def _rotate(x, cos, sin, interleaved):
    a, b = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    parts = (a * cos - b * sin, b * cos + a * sin)
    return torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1)


STAND_INS = {
    "flash-attn": ("flash_attn.ops.triton.rotary", "apply_rotary", _flash_attn),
    "flash-attn in place": ("flash_attn.ops.triton.rotary", "apply_rotary", _flash_attn),
    "Liger-Kernel": ("liger_kernel.transformers.rope", "liger_rotary_pos_emb", _liger),
    "FlashInfer": ("flashinfer.rope", "apply_rope_with_cos_sin_cache_inplace", _flashinfer),
    "vLLM": ("vllm._custom_ops", "rotary_embedding", _vllm),
}


@PHASES
@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, shape) for name in STAND_INS for shape in (HALF, INTERLEAVED)[: 1 if name == "Liger-Kernel" else 2]],
    ids=lambda part: getattr(part, "name", part),
)
def test_other_projects_are_called_as_documented(name, shape, batch, tokens, monkeypatch):
    module, function, stand_in = STAND_INS[name]
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(parts[end - 1]))
    setattr(sys.modules[module], function, stand_in)
    monkeypatch.setattr(f"{MODULE}.flash_attn.is_installed", lambda package: package == "flash_attn")
    implementation = IMPLEMENTATIONS[name]
    monkeypatch.setattr(type(implementation), "unavailable_reason", lambda *_: None)
    for dtype, max_error in MAX_ERROR.items():
        row = measure_rotation(make_case(shape, batch, tokens, dtype), 1, {name: implementation})
        assert row["contestants"][name].get("error", 1.0) < max_error, row["contestants"]


def test_flash_attn_comes_from_vllm_if_it_is_not_installed_itself(monkeypatch):
    imported = []

    def import_empty_module(name):
        imported.append(name)
        return ModuleType("rotary")

    monkeypatch.setattr(f"{MODULE}.flash_attn.is_installed", lambda package: package.startswith("vllm"))
    monkeypatch.setattr(f"{MODULE}.flash_attn.import_module", import_empty_module)
    with pytest.raises(AttributeError):
        FlashAttn().prepare(Inputs(make_case(HALF)))
    assert imported == ["vllm.vllm_flash_attn.ops.triton.rotary"]


def test_limits_come_first_then_ropewalk_then_peers():
    roles = [implementation.role for implementation in IMPLEMENTATIONS.values()]
    assert roles == sorted(roles, key=["limit", "ours", "peer"].index)
    assert all(isinstance(implementation, Implementation) for implementation in IMPLEMENTATIONS.values())
