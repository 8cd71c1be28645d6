"""How long is the host busy with one call of `rotate`, compared with an earlier version of ropewalk?

    git archive 806a74d src | tar -x -C /tmp/before
    python -m benchmarks.rotation_host --before /tmp/before/src [--device cuda] [--rounds 20]

One decoding step of Llama 3 8B (32 heads of q, 8 of k, 128 channels, bfloat16) at batch 1, where the rotation itself
takes 1 to 3 us. Each version runs in a process of its own; the two take turns, round by round. Each also times a plain
copy of q and k. On a CUDA device the clock stops when a call returns, before the device is done. On a CPU, compile the
earlier version first, as hatch_build.py does. Writes results/rotation_host.json.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

BATCHES, CALLS = 25, 20  # timed at a time; short batches, because other programs interrupt long ones
COPY = "copy of q and k"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", help="the folder `src` of the earlier version")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--name", default="rotation_host", help="of the results file")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(args.device)
        return
    from benchmarks.common import save_result
    from benchmarks.speed.environment import describe_device

    folders = {"before": args.before, "now": str(Path(__file__).parents[1] / "src")}
    if args.before is None:
        del folders["before"]
    workers = {version: start_worker(folder, args.device) for version, folder in folders.items()}
    variants = {version: json.loads(worker.stdout.readline()) for version, worker in workers.items()}
    taken: dict[str, dict[str, list[float]]] = {version: {} for version in workers}
    for index in range(args.rounds):
        for version in list(workers) if index % 2 == 0 else list(reversed(workers)):
            for call, seconds in measure(workers[version]).items():
                taken[version].setdefault(call, []).append(seconds)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    rows = [summarize(call, {version: taken[version][call] for version in workers}) for call in taken["now"]]
    for row in rows:
        columns = [f"{version} {row[version] * 1e6:6.1f} us" for version in workers]
        ratio = f"   {row['speedup']:.2f} times as fast" if "speedup" in row else ""
        print(f"{row['call']:32s} {'   '.join(columns)}{ratio}")
    device = describe_device(torch.device(args.device))
    save_result(args.name, {"device": device, "backends": variants, "rounds": args.rounds, "rows": rows})


def summarize(call: str, taken: dict[str, list[float]]) -> dict[str, Any]:
    """Return the median seconds of each version, and the median of the ratios within the rounds."""
    row: dict[str, Any] = {"call": call, **{version: statistics.median(values) for version, values in taken.items()}}
    if "before" in taken:
        ratios = [before / now for before, now in zip(taken["before"], taken["now"], strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        row |= {"speedup": median, "speedup_quartiles": [low, high]}
    return row


def start_worker(source_folder: str, device: str) -> Any:
    """Start a process that imports ropewalk from this folder and measures once per line of its standard input."""
    paths = [source_folder, str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, __file__, "--worker", "--device", device],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def measure(worker: Any) -> dict[str, float]:
    worker.stdin.write("\n")
    worker.stdin.flush()
    seconds: dict[str, float] = json.loads(worker.stdout.readline())
    return seconds


def serve(device: str) -> None:
    """Print the backend, and for each line of standard input the seconds per call of every kind of call."""
    torch.set_num_threads(1)
    with torch.inference_mode():
        backend, calls = make_calls(torch.device(device))
        print(json.dumps(backend), flush=True)
        for _ in sys.stdin:
            print(json.dumps({name: time_call(call, device) for name, call in calls.items()}), flush=True)


def make_calls(device: torch.device) -> tuple[str, dict[str, Callable[[], object]]]:
    """Return the name of the backend, and functions that make one call each."""
    from ropewalk import NoScaling, Rope
    from ropewalk.ops import backend_for, rotate, to_fixed_point

    q, k = (torch.randn(1, 1, heads, 128).bfloat16().to(device).transpose(1, 2) for heads in (32, 8))
    frequencies = NoScaling().frequencies(Rope(128, 500_000.0))
    cos, sin = (torch.from_numpy(part).to(device) for part in frequencies.cos_sin([[4096]]))
    positions, fixed_point = torch.tensor([[4096]], device=device), to_fixed_point(frequencies, device)
    return backend_for(device.type).variant, {
        "from tables": lambda: rotate(q, k, tables=(cos, sin)),
        "from tables, in place": lambda: rotate(q, k, tables=(cos, sin), in_place=True),
        "from positions": lambda: rotate(q, k, positions, fixed_point),
        "from positions, in place": lambda: rotate(q, k, positions, fixed_point, in_place=True),
        COPY: lambda: (q.clone(), k.clone()),
    }


def time_call(call: Callable[[], object], device: str) -> float:
    """Return the seconds until a call returns: the median of the batches."""
    gc.disable()
    taken = []
    for _ in range(BATCHES):
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(CALLS):
            call()
        taken.append((time.perf_counter() - started) / CALLS)
    gc.enable()
    return statistics.median(taken)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
