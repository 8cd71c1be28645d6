"""The Triton backend against complex numbers in float64: on a GPU where there is one, else in Triton's interpreter.

What the interpreter cannot show, that the kernel compiles for a GPU into wide accesses, is tested by compiling it.
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

from ropewalk.ops.backends.triton import Triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH, TOKENS = 2, 5
LAYOUTS = pytest.mark.parametrize("interleaved", [False, True], ids=["half", "interleaved"])
FORMS = pytest.mark.parametrize("formed", [False, True], ids=["tables", "positions"])
IN_PLACE = pytest.mark.parametrize("in_place", [False, True], ids=["out of place", "in place"])


@pytest.fixture(scope="module")
def backend() -> Iterator[Triton]:
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":
            patch.setenv("TRITON_INTERPRET", "1")  # read when the kernel is first imported, by the first turn
        yield Triton()


@pytest.fixture
def draw(request):
    """Fresh numbers on every run; the seed is shown where a test fails."""
    seed = int.from_bytes(os.urandom(4))
    print("seed", seed)
    return torch.Generator().manual_seed(seed)


def numbers(draw, *shape, dtype=torch.float32):
    return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype).to(DEVICE)


def angles_of(draw, formed, rows, tokens, pairs, dtype=torch.float32):
    """Either form: with positions of either sign and turns of all sizes, or tables of anything."""
    if not formed:
        real = torch.float64 if dtype == torch.float64 else torch.float32
        return [numbers(draw, rows, tokens, pairs, dtype=real) for _ in range(2)]
    positions_BT = torch.randint(-(2**31), 2**31, (rows, tokens), generator=draw)
    turns_BP = torch.randint(-(2**63), 2**63 - 1, (rows, pairs), generator=draw)
    factors_B = torch.rand(rows, generator=draw) + 0.5
    return [part.to(DEVICE) for part in (positions_BT, turns_BP, factors_B)]


def reduced(positions_BT, turns_BP):
    """Signed units of 2^-64 turn, with Python's own integers, [B, T, P]."""
    rows = max(len(positions_BT), len(turns_BP))
    return [
        [
            [(position * turn + 2**63) % 2**64 - 2**63 for turn in turns_BP[row % len(turns_BP)].tolist()]
            for position in positions_BT[row % len(positions_BT)].tolist()
        ]
        for row in range(rows)
    ]


def complex_turns(angles):
    """cos + i sin, [B, T, P] complex128."""
    if len(angles) == 2:
        cos_BTP, sin_BTP = (part.double().cpu().numpy() for part in angles)
        return cos_BTP + 1j * sin_BTP
    positions_BT, turns_BP, factors_B = angles
    angle_BTP = np.array(reduced(positions_BT, turns_BP), dtype=np.float64) * (2 * np.pi / 2**64)
    return factors_B.double().cpu().numpy()[:, None, None] * np.exp(1j * angle_BTP)


def by_hand(x_BHTD, angles, start, interleaved, inverse):
    """Pair by pair, a complex number times a complex number; and the size of what was summed."""
    x, turn_BTP = x_BHTD.double().cpu().numpy(), complex_turns(angles)
    turn_BTP = turn_BTP.conj() if inverse else turn_BTP
    turned, size, pairs = x.copy(), np.zeros_like(x), turn_BTP.shape[-1]
    for pair in range(pairs):
        one, other = (start + 2 * pair, start + 2 * pair + 1) if interleaved else (start + pair, start + pairs + pair)
        number, turn = x[..., one] + 1j * x[..., other], turn_BTP[:, None, :, pair]
        turned[..., one], turned[..., other] = (number * turn).real, (number * turn).imag
        size[..., one] = size[..., other] = np.abs(number) * np.abs(turn)
    return turned, size


def check(backend, xs, angles, start=0, interleaved=False, inverse=False, in_place=False):
    """Turn and compare with what was worked out by hand; channels that do not turn keep their bits."""
    before = [x.clone() for x in xs]
    outs = xs if in_place else [torch.full_like(x, float("nan")) for x in xs]
    backend.turn(xs, outs, angles, start, interleaved, inverse)
    dtype, end = xs[0].dtype, start + 2 * angles[1].shape[-1]
    computed = 4 * torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    # Half a unit of the last place; the interpreter cuts float32 to bfloat16 instead of rounding it.
    rounded = torch.finfo(dtype).eps * (1 if dtype == torch.bfloat16 and DEVICE == "cpu" else 0.5)
    for x_BHTD, out_BHTD in zip(before, outs, strict=True):
        want, size = by_hand(x_BHTD, angles, start, interleaved, inverse)
        error = np.abs(out_BHTD.double().cpu().numpy() - want)
        assert (error <= rounded * np.abs(want) + computed * size + torch.finfo(dtype).smallest_normal).all()
        assert torch.equal(out_BHTD[..., :start], x_BHTD[..., :start])
        assert torch.equal(out_BHTD[..., end:], x_BHTD[..., end:])
    assert in_place or all(torch.equal(x, was) for x, was in zip(xs, before, strict=True))


@LAYOUTS
@FORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(backend, draw, interleaved, formed, dtype):
    xs = [numbers(draw, BATCH, heads, TOKENS, 20, dtype=dtype) for heads in (4, 2)]
    check(backend, xs, angles_of(draw, formed, BATCH, TOKENS, 8, dtype), 2, interleaved)


@LAYOUTS
@FORMS
@IN_PLACE
def test_inverse_turns_by_the_opposite_angle(backend, draw, interleaved, formed, in_place):
    xs = [numbers(draw, BATCH, heads, TOKENS, 8) for heads in (4, 2)]
    angles = angles_of(draw, formed, 1, TOKENS, 4)
    check(backend, xs, angles, 0, interleaved, inverse=True, in_place=in_place)


MEMORIES = {"contiguous": (BATCH, 6, TOKENS, 12), "fused": (BATCH, TOKENS, 87), "padded": (BATCH, 6, TOKENS + 2, 17)}


def q_and_k(memory, strides):
    """Views of four and of two heads, [B, H, T, 12]."""
    if strides == "fused":  # one projection gives q, k and v, with something else on either side
        heads_BHTD = memory[..., 1:-2].unflatten(-1, (7, 12)).transpose(1, 2)
    else:
        heads_BHTD = memory if strides == "contiguous" else memory[:, :, 1:-1, 3:15]
    return [heads_BHTD[:, :4], heads_BHTD[:, 4:6]]


@LAYOUTS
@FORMS
@IN_PLACE
@pytest.mark.parametrize("strides", list(MEMORIES))
def test_strides(backend, draw, interleaved, formed, in_place, strides):
    memory = numbers(draw, *MEMORIES[strides], dtype=torch.bfloat16)
    left = memory.clone()
    angles = angles_of(draw, formed, BATCH, TOKENS, 5)
    check(backend, q_and_k(memory, strides), angles, 1, interleaved, in_place=in_place)
    for view in q_and_k(memory, strides) + q_and_k(left, strides):
        view.zero_()
    assert torch.equal(memory, left), "written to outside q and k"


@LAYOUTS
def test_tables_of_any_strides(backend, draw, interleaved):
    """As rotary modules hand them out: every pair twice, or the row of a longer table; cos and sin need not agree."""
    cos_BTP = numbers(draw, BATCH, TOKENS, 14)[..., ::2]
    sin_BTP = numbers(draw, 1, 7, TOKENS + 3)[..., 1 : TOKENS + 1].transpose(1, 2)
    check(backend, [numbers(draw, BATCH, 3, TOKENS, 16)], [cos_BTP, sin_BTP], 1, interleaved)


@pytest.mark.parametrize("own", [(1, 1, 1), (BATCH, 1, 1), (1, BATCH, 1), (1, BATCH, BATCH), (1, 1, BATCH)], ids=str)
def test_rows_share_angles_or_have_their_own(backend, draw, own):
    full = angles_of(draw, True, BATCH, TOKENS, 4)
    check(backend, [numbers(draw, BATCH, 3, TOKENS, 8)], [part[:rows] for part, rows in zip(full, own, strict=True)])


@LAYOUTS
@pytest.mark.parametrize(
    ("heads", "tokens", "pairs", "start", "channels"),
    [
        ((9, 3), 1, 20, 0, 40),  # a decoding step
        ((9, 3), 3, 3, 2, 80),
        ((17, 1), 2, 48, 0, 96),
        ((1,), 37, 1, 0, 2),  # more tokens than a tile
        ((2, 20), 9, 16, 64, 96),  # as of latent attention: more copied than turned; more heads in k than in q
        ((1, 1), 2, 1500, 0, 3000),  # a head larger than a tile
    ],
)
def test_sizes(backend, draw, interleaved, heads, tokens, pairs, start, channels):
    xs = [numbers(draw, 1, each, tokens, channels, dtype=torch.float16) for each in heads]
    check(backend, xs, angles_of(draw, True, 1, tokens, pairs), start, interleaved)


@pytest.mark.parametrize("shape", [(0, 2, 3, 8), (2, 2, 0, 8)], ids=["no rows", "no tokens"])
def test_nothing_to_turn(backend, draw, shape):
    xs = [numbers(draw, *shape), numbers(draw, *shape)]
    check(backend, xs, angles_of(draw, True, 1, shape[2], 4))
    check(backend, xs, angles_of(draw, False, 1, shape[2], 4))


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 3e-7), (torch.float64, 5e-16)], ids=["float32", "float64"]
)
def test_cos_and_sin_at_large_positions(backend, draw, dtype, error):
    """Relative to their own size, however small that is: next to quarters of a turn, at the ends of the range."""
    positions = [2**31 - 1, -(2**31), 2**31 - 12345, 1, 0, -1, 99_999_989]
    quarters = [sign * (quarter * 2**62 + step) for quarter in range(3) for sign in (1, -1) for step in (0, 1, 12345)]
    anything = torch.randint(-(2**63), 2**63 - 1, (40,), generator=draw).tolist()
    turns_BP = torch.tensor([[min(max(each, -(2**63)), 2**63 - 1) for each in quarters + anything]])
    positions_BT = torch.tensor([positions])
    pairs = turns_BP.shape[-1]
    x = torch.zeros(1, 1, len(positions), 2 * pairs, dtype=dtype, device=DEVICE)
    x[..., :pairs] = 1
    angles = [part.to(DEVICE) for part in (positions_BT, turns_BP, torch.ones(1))]
    backend.turn([x], [x], angles, 0, False, False)
    cos_TP, sin_TP = x[0, 0].double().cpu().split(pairs, -1)
    with mpmath.workdps(50):
        for token, row in enumerate(reduced(positions_BT, turns_BP)[0]):
            for pair, units in enumerate(row):
                angle = 2 * mpmath.pi * units / mpmath.mpf(2) ** 64
                for got, want in ((cos_TP, mpmath.cos(angle)), (sin_TP, mpmath.sin(angle))):
                    assert abs(float(got[token, pair]) - want) <= error * abs(want) + mpmath.mpf(10) ** -45


def in_a_process(script, interpreted, cache):
    """What a script prints, as JSON, where Triton was told or not told to interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache)} | ({"TRITON_INTERPRET": "1"} if interpreted else {})
    ran = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_interpreted_it_serves_when_asked_for(tmp_path):
    said = in_a_process(ASKED_FOR, interpreted=True, cache=tmp_path)
    assert said == {"unasked": DEVICE == "cuda", "asked": "triton", "variant": "triton, interpreted", "close": True}


ASKED_FOR = """
import json, torch
from ropewalk.ops.backends import BACKENDS, serving, use
unasked = serving("cpu").name == "triton"
use("triton")
q, angles = torch.randn(1, 3, 4, 8), [torch.randn(1, 4, 4), torch.randn(1, 4, 4)]
outs = torch.empty_like(q), torch.empty_like(q)
serving("cpu").turn([q], outs[:1], angles, 0, False, False)
BACKENDS["reference"].turn([q], outs[1:], angles, 0, False, False)
close = torch.allclose(*outs, atol=1e-6)
print(json.dumps({"unasked": unasked, "asked": serving("cpu").name, "variant": serving("cpu").variant, "close": close}))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return in_a_process(COMPILED, interpreted=False, cache=tmp_path_factory.mktemp("triton"))


@LAYOUTS
@FORMS
@pytest.mark.parametrize("tokens", [1, 64])
def test_compiles_for_a_gpu_to_wide_accesses_without_spills(compiled, interleaved, formed, tokens):
    kernel = compiled["kernels"][f"{interleaved} {formed} {tokens}"]
    assert set(kernel["stores"]) == {"v4.b32"}  # 16 bytes
    assert kernel["loads"].count("v4.b32") == len(kernel["stores"])
    assert not any("16" in kind for kind in kernel["loads"])
    assert kernel["resources"].count("STACK:0 ") == kernel["resources"].count("LOCAL:0 ") == 1


@pytest.mark.parametrize(
    ("lacks", "says"),
    [
        ("importlib.util.find_spec", "triton is not installed"),
        ("torch.cuda.is_available", "triton has no CUDA device"),
        ("shutil.which", "triton finds no C compiler"),
        ("pathlib.Path.exists", "triton finds no Python.h"),
        (None, None),
    ],
)
def test_says_what_is_missing(monkeypatch, lacks, says):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr("pathlib.Path.exists", lambda path: True)
    monkeypatch.delenv("CC", raising=False)
    if lacks is not None:
        monkeypatch.setattr(lacks, lambda *_: None)
    assert Triton().missing() == says


def test_what_was_compiled_is_launched_with_the_tensors_of_the_call(compiled):
    (where, *first), (its_where, *again), (other_where, *other) = compiled["launches"]
    assert first == again == other
    assert where == its_where == compiled["tensors"][0]
    assert other_where == compiled["tensors"][1] != where


# Compiling needs no device, only a driver that says for which; what it would launch is written down.
COMPILED = """
import itertools, json, re, subprocess, tempfile
import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from ropewalk.ops.backends.triton import Triton, plan, tensors_of

class Driver:
    launches = []
    utils = property(lambda self: self)

    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_device_properties(self, device): return {"max_shared_mem": 2**17}
    def load_binary(self, *kernel): return 1, 1, 64, 0, 1024
    def launcher_cls(self, source, metadata):
        return lambda x, y, z, stream, function, packed, about, enter, leave, *arguments: self.launches.append(
            [[each.data_ptr() for each in arguments[:7]], x, y, z, packed, arguments[7:]]
        )

driver.set_active(Driver())
from ropewalk.ops.kernels_triton import rotate

def example(formed, tokens):
    xs = [torch.empty(1, tokens, heads, 128, dtype=torch.bfloat16).transpose(1, 2) for heads in (32, 8)]
    if formed:
        whole = torch.int64
        return xs, (torch.zeros(1, tokens, dtype=whole), torch.zeros(1, 64, dtype=whole), torch.ones(1))
    return xs, (torch.zeros(1, tokens, 64), torch.zeros(1, tokens, 64))

kernels = {}
for interleaved, formed, tokens in itertools.product((False, True), (False, True), (1, 64)):
    xs, angles = example(formed, tokens)
    programs, rest, options = plan(xs, xs, angles, 0, interleaved, False)
    kernel = rotate.warmup(*tensors_of(xs, xs, angles), *rest, grid=(programs,), **options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        resources = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    accesses = [re.findall(rf"\\b{kind}\\.global\\.([\\w.]+)", kernel.asm["ptx"]) for kind in ("ld", "st")]
    kernels[f"{interleaved} {formed} {tokens}"] = dict(zip(("loads", "stores"), accesses), resources=resources)

backend, calls = Triton(), [example(True, 1), example(True, 1)]
for xs, angles in (calls[0], calls[0], calls[1]):
    backend.turn(xs, xs, angles, 0, False, False)
tensors = [[each.data_ptr() for each in tensors_of(xs, xs, angles)] for xs, angles in calls]
print(json.dumps({"kernels": kernels, "launches": Driver.launches, "tensors": tensors}))
"""
