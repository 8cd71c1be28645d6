"""The Triton backend against complex multiplication in float64: on a GPU, or else in Triton's interpreter on the CPU.

The interpreter cannot show that the kernel compiles for a GPU into wide memory accesses without register spills.
Compiling it for an H100 shows that, and needs no GPU.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import mpmath
import numpy as np
import pytest
import torch
from tests.helpers.rotation import expected_rotation, split_pairs

from ropewalk.ops.backends import RotationTask
from ropewalk.ops.backends.triton import Triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH, TOKENS = 2, 5
LAYOUTS = pytest.mark.parametrize("interleaved", [False, True], ids=["half", "interleaved"])
REPRESENTATIONS = pytest.mark.parametrize("is_fixed_point", [False, True], ids=["tables", "fixed point"])
IN_PLACE = pytest.mark.parametrize("in_place", [False, True], ids=["out of place", "in place"])


@pytest.fixture(scope="module")
def backend() -> Iterator[Triton]:
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":
            patch.setenv("TRITON_INTERPRET", "1")  # read when the first rotation imports the kernel
        yield Triton()


@pytest.fixture
def generator():
    """Return a generator with a new seed on every run; pytest shows the seed if a test fails."""
    seed = int.from_bytes(os.urandom(4))
    print("seed", seed)
    return torch.Generator().manual_seed(seed)


def random_normal(generator, *shape, dtype=torch.float32):
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(DEVICE)


def random_angles(generator, is_fixed_point, rows, tokens, pairs, dtype=torch.float32):
    """Return angles in either representation: positions of both signs and frequencies of all sizes, or any tables."""
    if not is_fixed_point:
        table_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        return [random_normal(generator, rows, tokens, pairs, dtype=table_dtype) for _ in range(2)]
    positions_BT = torch.randint(-(2**31), 2**31, (rows, tokens), generator=generator)
    frequency_BP = torch.randint(-(2**63), 2**63 - 1, (rows, pairs), generator=generator)
    factors_B = torch.rand(rows, generator=generator) + 0.5
    return [part.to(DEVICE) for part in (positions_BT, frequency_BP, factors_B)]


def fixed_point_angles(positions_T, frequency_P):
    """Return position x frequency as a signed int64 would wrap, computed with Python's unbounded integers, [T][P]."""
    return [
        [(position * frequency + 2**63) % 2**64 - 2**63 for frequency in frequency_P.tolist()]
        for position in positions_T.tolist()
    ]


def cis_of(angles):
    """Return cos + i sin, [B, T, P] complex128."""
    if len(angles) == 2:
        cos_BTP, sin_BTP = (part.double().cpu().numpy() for part in angles)
        return cos_BTP + 1j * sin_BTP
    positions_BT, frequency_BP, factors_B = angles
    rows = max(len(positions_BT), len(frequency_BP))
    units_BTP = [
        fixed_point_angles(positions_BT[row % len(positions_BT)], frequency_BP[row % len(frequency_BP)])
        for row in range(rows)
    ]
    angle_BTP = np.array(units_BTP, dtype=np.float64) * (2 * np.pi / 2**64)
    return factors_B.double().cpu().numpy()[:, None, None] * np.exp(1j * angle_BTP)


def expected_and_scale(x_BHTD, angles, start, interleaved, inverse):
    """Return the rotation by complex multiplication, and the length of each rotated pair, which scales its error."""
    cis_BTP = cis_of(angles).conj() if inverse else cis_of(angles)
    pairs = cis_BTP.shape[-1]
    expected = expected_rotation(x_BHTD, cis_BTP, start, interleaved)
    lengths = np.hypot(*split_pairs(expected[..., start : start + 2 * pairs], interleaved))
    scale = np.zeros_like(expected)
    scale[..., start : start + 2 * pairs] = (
        lengths.repeat(2, -1) if interleaved else np.concatenate([lengths, lengths], -1)
    )
    return expected, scale


def check(backend, xs, angles, start=0, interleaved=False, inverse=False, in_place=False):
    """Rotate, compare with the expected values, and check that all other channels keep their bits."""
    before = [x.clone() for x in xs]
    outputs = xs if in_place else [torch.full_like(x, float("nan")) for x in xs]
    backend.rotate(RotationTask(xs, outputs, angles, start, interleaved, inverse))
    dtype, end = xs[0].dtype, start + 2 * angles[1].shape[-1]
    compute_error = 4 * torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    # Half a unit in the last place; the interpreter truncates float32 to bfloat16 instead of rounding it.
    rounding_error = torch.finfo(dtype).eps * (1 if dtype == torch.bfloat16 and DEVICE == "cpu" else 0.5)
    for x_BHTD, out_BHTD in zip(before, outputs, strict=True):
        expected, scale = expected_and_scale(x_BHTD, angles, start, interleaved, inverse)
        error = np.abs(out_BHTD.double().cpu().numpy() - expected)
        allowed = rounding_error * np.abs(expected) + compute_error * scale + torch.finfo(dtype).smallest_normal
        assert (error <= allowed).all()
        assert torch.equal(out_BHTD[..., :start], x_BHTD[..., :start])
        assert torch.equal(out_BHTD[..., end:], x_BHTD[..., end:])
    assert in_place or all(torch.equal(x, original) for x, original in zip(xs, before, strict=True))


@LAYOUTS
@REPRESENTATIONS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(backend, generator, interleaved, is_fixed_point, dtype):
    xs = [random_normal(generator, BATCH, heads, TOKENS, 20, dtype=dtype) for heads in (4, 2)]
    check(backend, xs, random_angles(generator, is_fixed_point, BATCH, TOKENS, 8, dtype), 2, interleaved)


@LAYOUTS
@REPRESENTATIONS
@IN_PLACE
def test_inverse_rotates_by_the_opposite_angle(backend, generator, interleaved, is_fixed_point, in_place):
    xs = [random_normal(generator, BATCH, heads, TOKENS, 8) for heads in (4, 2)]
    angles = random_angles(generator, is_fixed_point, 1, TOKENS, 4)
    check(backend, xs, angles, 0, interleaved, inverse=True, in_place=in_place)


# Shapes of memory in which q and k are views.
MEMORY_SHAPES = {
    "contiguous": (BATCH, 6, TOKENS, 12),
    "fused": (BATCH, TOKENS, 87),
    "padded": (BATCH, 6, TOKENS + 2, 17),
}


def q_and_k(memory, strides):
    """Return views of four and of two heads, [B, H, T, 12]."""
    if strides == "fused":  # a projection to q, k and v, with other channels on both sides
        heads_BHTD = memory[..., 1:-2].unflatten(-1, (7, 12)).transpose(1, 2)
    else:
        heads_BHTD = memory if strides == "contiguous" else memory[:, :, 1:-1, 3:15]
    return [heads_BHTD[:, :4], heads_BHTD[:, 4:6]]


@LAYOUTS
@REPRESENTATIONS
@IN_PLACE
@pytest.mark.parametrize("strides", list(MEMORY_SHAPES))
def test_strides(backend, generator, interleaved, is_fixed_point, in_place, strides):
    memory = random_normal(generator, *MEMORY_SHAPES[strides], dtype=torch.bfloat16)
    untouched = memory.clone()
    angles = random_angles(generator, is_fixed_point, BATCH, TOKENS, 5)
    check(backend, q_and_k(memory, strides), angles, 1, interleaved, in_place=in_place)
    for view in q_and_k(memory, strides) + q_and_k(untouched, strides):
        view.zero_()
    assert torch.equal(memory, untouched), "memory outside of q and k was written"


@LAYOUTS
def test_tables_of_any_strides(backend, generator, interleaved):
    """Every second value of a table, as rotary modules return them, or a transposed slice; cos and sin may differ."""
    cos_BTP = random_normal(generator, BATCH, TOKENS, 14)[..., ::2]
    sin_BTP = random_normal(generator, 1, 7, TOKENS + 3)[..., 1 : TOKENS + 1].transpose(1, 2)
    check(backend, [random_normal(generator, BATCH, 3, TOKENS, 16)], [cos_BTP, sin_BTP], 1, interleaved)


@pytest.mark.parametrize("rows", [(1, 1, 1), (BATCH, 1, 1), (1, BATCH, 1), (1, BATCH, BATCH), (1, 1, BATCH)], ids=str)
def test_rows_that_share_positions_frequencies_or_factors(backend, generator, rows):
    angles = random_angles(generator, True, BATCH, TOKENS, 4)
    angles = [part[:count] for part, count in zip(angles, rows, strict=True)]
    check(backend, [random_normal(generator, BATCH, 3, TOKENS, 8)], angles)


@LAYOUTS
@pytest.mark.parametrize(
    ("heads", "tokens", "pairs", "start", "channels"),
    [
        ((9, 3), 1, 20, 0, 40),  # a decoding step
        ((9, 3), 3, 3, 2, 80),
        ((17, 1), 2, 48, 0, 96),
        ((1,), 37, 1, 0, 2),  # more tokens than a tile
        (
            (2, 20),
            9,
            16,
            64,
            96,
        ),  # more channels copied than rotated, as in latent attention; more heads of k than of q
        ((1, 1), 2, 1500, 0, 3000),  # a head larger than a tile
    ],
)
def test_sizes(backend, generator, interleaved, heads, tokens, pairs, start, channels):
    xs = [random_normal(generator, 1, each, tokens, channels, dtype=torch.float16) for each in heads]
    check(backend, xs, random_angles(generator, True, 1, tokens, pairs), start, interleaved)


@pytest.mark.parametrize("shape", [(0, 2, 3, 8), (2, 2, 0, 8)], ids=["no rows", "no tokens"])
def test_empty_tensors(backend, generator, shape):
    xs = [random_normal(generator, *shape), random_normal(generator, *shape)]
    check(backend, xs, random_angles(generator, True, 1, shape[2], 4))
    check(backend, xs, random_angles(generator, False, 1, shape[2], 4))


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 3e-7), (torch.float64, 5e-16)], ids=["float32", "float64"]
)
def test_cos_and_sin_have_a_small_relative_error_at_all_positions(backend, generator, dtype, error):
    """Also where they are close to zero, near quarters of a rotation, and at the ends of the range of positions."""
    positions = [2**31 - 1, -(2**31), 2**31 - 12345, 1, 0, -1, 99_999_989]
    quarters = [sign * (quarter * 2**62 + step) for quarter in range(3) for sign in (1, -1) for step in (0, 1, 12345)]
    others = torch.randint(-(2**63), 2**63 - 1, (40,), generator=generator).tolist()
    frequency_BP = torch.tensor([[min(max(value, -(2**63)), 2**63 - 1) for value in quarters + others]])
    positions_BT = torch.tensor([positions])
    pairs = frequency_BP.shape[-1]
    x = torch.zeros(1, 1, len(positions), 2 * pairs, dtype=dtype, device=DEVICE)
    x[..., :pairs] = 1
    angles = [part.to(DEVICE) for part in (positions_BT, frequency_BP, torch.ones(1))]
    backend.rotate(RotationTask([x], [x], angles, 0, False, False))
    cos_TP, sin_TP = x[0, 0].double().cpu().split(pairs, -1)
    with mpmath.workdps(50):
        for token, row in enumerate(fixed_point_angles(positions_BT[0], frequency_BP[0])):
            for pair, units in enumerate(row):
                angle = 2 * mpmath.pi * units / mpmath.mpf(2) ** 64
                for result, expected in ((cos_TP, mpmath.cos(angle)), (sin_TP, mpmath.sin(angle))):
                    assert abs(float(result[token, pair]) - expected) <= error * abs(expected) + mpmath.mpf(10) ** -45


def run_script(script, interpreted, cache_folder):
    """Run a script in a new process, with or without Triton's interpreter, and return the JSON that it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache_folder)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    if interpreted:
        environment["TRITON_INTERPRET"] = "1"
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_the_interpreter_serves_cpu_tensors_only_if_selected(tmp_path):
    result = run_script(SELECT_INTERPRETER, interpreted=True, cache_folder=tmp_path)
    assert result == {"is_default": False, "selected": "triton", "variant": "triton, interpreted", "is_close": True}


# As on a machine with a GPU, where another choice would be possible.
SELECT_INTERPRETER = """
import json, torch
torch.cuda.is_available = lambda: True
from ropewalk.ops.backends import BACKENDS, RotationTask, backend_for, use_backend
is_default = backend_for("cpu").name == "triton"
use_backend("triton")
q, angles = torch.randn(1, 3, 4, 8), [torch.randn(1, 4, 4), torch.randn(1, 4, 4)]
result, expected = torch.empty_like(q), torch.empty_like(q)
backend_for("cpu").rotate(RotationTask([q], [result], angles, 0, False, False))
BACKENDS["reference"].rotate(RotationTask([q], [expected], angles, 0, False, False))
print(json.dumps({
    "is_default": is_default,
    "selected": backend_for("cpu").name,
    "variant": backend_for("cpu").variant,
    "is_close": torch.allclose(result, expected, atol=1e-6),
}))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return run_script(COMPILE, interpreted=False, cache_folder=tmp_path_factory.mktemp("triton"))


@LAYOUTS
@REPRESENTATIONS
@pytest.mark.parametrize("tokens", [1, 64])
def test_the_kernel_compiles_to_wide_accesses_without_spills(compiled, interleaved, is_fixed_point, tokens):
    kernel = compiled["kernels"][f"{interleaved} {is_fixed_point} {tokens}"]
    assert set(kernel["stores"]) == {"v4.b32"}  # 16 bytes
    assert kernel["loads"].count("v4.b32") == len(kernel["stores"])
    assert not any("16" in kind for kind in kernel["loads"])
    assert kernel["resources"].count("STACK:0 ") == kernel["resources"].count("LOCAL:0 ") == 1


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("importlib.util.find_spec", "triton is not installed"),
        ("torch.cuda.is_available", "triton has no CUDA device"),
        ("shutil.which", "triton finds no C compiler"),
        ("pathlib.Path.exists", "triton finds no Python.h"),
        (None, None),
    ],
)
def test_unavailable_reasons(monkeypatch, missing, reason):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr("pathlib.Path.exists", lambda path: True)
    monkeypatch.delenv("CC", raising=False)
    if missing is not None:
        monkeypatch.setattr(missing, lambda *_: None)
    assert Triton().unavailable_reason() == reason


def test_a_prepared_launch_rotates_the_tensors_of_each_call(compiled):
    whole_call, same_tensors, other_tensors = compiled["launches"]
    assert whole_call["settings"] == same_tensors["settings"] == other_tensors["settings"]
    assert whole_call["addresses"] == same_tensors["addresses"] == compiled["addresses"][0]
    assert other_tensors["addresses"] == compiled["addresses"][1] != same_tensors["addresses"]


def test_preparing_launches_nothing(compiled):
    assert compiled["launches_of_prepare"] == 0


# Triton compiles without a GPU if a driver names the target. This driver records launches instead of running them.
COMPILE = """
import itertools, json, re, subprocess, tempfile
import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from ropewalk.ops.backends import RotationTask
from ropewalk.ops.backends.triton import Triton, plan_launch

class Driver:
    launches = []
    utils = property(lambda self: self)

    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_device_properties(self, device): return {"max_shared_mem": 2**17}
    def load_binary(self, *kernel): return 1, 1, 64, 0, 1024
    def launcher_cls(self, source, metadata):
        def launch(x, y, z, stream, function, packed, about, enter, leave, *arguments):
            self.launches.append({"addresses": arguments[:7], "settings": [x, y, z, packed, arguments[7:]]})
        return launch

driver.set_active(Driver())
from ropewalk.ops.triton_kernel import rotate

def example(interleaved, is_fixed_point, tokens):
    xs = [torch.empty(1, tokens, heads, 128, dtype=torch.bfloat16).transpose(1, 2) for heads in (32, 8)]
    if is_fixed_point:
        positions = torch.zeros(1, tokens, dtype=torch.int64)
        angles = (positions, torch.zeros(1, 64, dtype=torch.int64), torch.ones(1))
    else:
        angles = (torch.zeros(1, tokens, 64), torch.zeros(1, tokens, 64))
    return RotationTask(xs, xs, angles, 0, interleaved, False)

kernels = {}
for interleaved, is_fixed_point, tokens in itertools.product((False, True), (False, True), (1, 64)):
    task = example(interleaved, is_fixed_point, tokens)
    launch = plan_launch(task)
    kernel = rotate.warmup(*task.tensors(), *launch.arguments, grid=(launch.programs,), **launch.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        resources = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    accesses = [re.findall(rf"\\b{kind}\\.global\\.([\\w.]+)", kernel.asm["ptx"]) for kind in ("ld", "st")]
    kernels[f"{interleaved} {is_fixed_point} {tokens}"] = dict(zip(("loads", "stores"), accesses), resources=resources)

backend, calls = Triton(), [example(False, True, 1), example(False, True, 1)]
prepared = backend.prepare(calls[0])
launches_of_prepare = len(Driver.launches)
backend.rotate(calls[0])
for task in calls:
    prepared(*task.addresses())
print(json.dumps({
    "kernels": kernels,
    "launches_of_prepare": launches_of_prepare,
    "launches": Driver.launches,
    "addresses": [task.addresses() for task in calls],
}))
"""
