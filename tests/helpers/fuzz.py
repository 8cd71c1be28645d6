"""Fuzz config, doctor, engines and export with corrupt configurations and GGUF files; results; and server answers.

Every case must complete or raise an InputError with one line, within `SECONDS` and `MEMORY`. (A server that does not
respond is a RuntimeError with one line.)

    python -m tests.helpers.fuzz configs=10000 ggufs=2000 results=2000 servers=2000 [--seed 7]

tests/test_fuzz.py runs a few hundred of each.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

SECONDS = 10  # limit for one case
MEMORY = 2**30  # limit for the whole process, bytes

VALID_CONFIGS = [
    {
        "model_type": "llama",
        "hidden_size": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "rope_theta": 1e4,
        "max_position_embeddings": 8192,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    },
    {
        "model_type": "gemma3_text",
        "head_dim": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 6,
        "sliding_window": 99,
        "max_position_embeddings": 131_072,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    {
        "model_type": "some_vl",
        "text_config": {
            "model_type": "qwen2",
            "hidden_size": 128,
            "num_attention_heads": 2,
            "max_position_embeddings": 4096,
            "rope_theta": 1e6,
            "rope_scaling": {"type": "mrope", "mrope_section": [8, 8, 16]},
        },
    },
    {
        "model_type": "gpt_neox",
        "hidden_size": 256,
        "num_attention_heads": 4,
        "rotary_pct": 0.25,
        "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
        "max_position_embeddings": 2048,
    },
    {
        "model_type": "gemma4_text",
        "head_dim": 64,
        "global_head_dim": 128,
        "num_attention_heads": 4,
        "layer_types": ["sliding_attention", "full_attention"],
        "max_position_embeddings": 8192,
        "num_hidden_layers": 2,
        "rope_parameters": {
            "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
]
JUNK = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    3.5,
    1e308,
    -1e308,
    math.nan,
    math.inf,
    -math.inf,
    10**30,
    2**63,
    5e-324,
    "",
    "4",
    "yarn",
    "su",
    "default",
    "\x00",
    "ü" * 50,
    "9" * 5000,
    [],
    [1],
    [None],
    [1.0] * 32,
    [-1.0] * 32,
    ["a"],
    {},
    {"a": 1},
    {"factor": 2},
    {"rope_type": "yarn"},
    {"full_attention": {"rope_type": "yarn", "factor": 4.0}},
    [[[[]]]],
    {"": {"": {}}},
    [0] * 70_000,
]
KEYS = [
    "rope_type",
    "type",
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "attention_factor",
    "short_factor",
    "long_factor",
    "low_freq_factor",
    "high_freq_factor",
    "truncate",
    "alpha",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "max_position_embeddings",
    "head_dim",
    "hidden_size",
    "num_attention_heads",
    "num_hidden_layers",
    "partial_rotary_factor",
    "layer_types",
    "text_config",
    "model_type",
    "sliding_window",
    "use_sliding_window",
    "qk_rope_head_dim",
    "rope_local_base_freq",
    "model_max_length",
    "per_layer_config",
    "kv_lora_rank",
]
SPECS = [
    "none",
    "linear:factor=2",
    "yarn:factor=4",
    "ntk-by-parts:factor=2,ramp=rotations",
    "dynamic-yarn",
    "ntk:factor=3",
]


def paths_of_dicts(value, path=()):
    """Return the path of every dict in a nested value."""
    paths = [path] if isinstance(value, dict) else []
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(children)[:50]:
        paths += paths_of_dicts(child, (*path, key))
    return paths


def mutate(config, draw):
    """Return a copy with one to four random fields deleted, replaced or added."""
    config = copy.deepcopy(config)
    for _ in range(draw.randint(1, 4)):
        target = config
        for key in draw.choice(paths_of_dicts(config)):
            target = target[key]
        action = draw.random()
        if action < 0.25 and target:
            del target[draw.choice(list(target))]
        elif action < 0.75 and target:
            target[draw.choice(list(target))] = copy.deepcopy(draw.choice(JUNK))
        else:
            target[draw.choice(KEYS)] = copy.deepcopy(draw.choice(JUNK))
    return config


def random_config(draw):
    """Return a configuration of random keys and values."""
    return {draw.choice(KEYS): copy.deepcopy(draw.choice(JUNK)) for _ in range(draw.randint(0, 12))}


def corrupt(data, draw, within=4096):
    """Return the bytes of a file with a few of the first `within` changed, removed or repeated."""
    content = bytearray(data)
    for _ in range(draw.randint(1, 6)):
        if not content:
            break
        position = draw.randrange(min(len(content), within))
        action = draw.random()
        if action < 0.5:
            content[position] = draw.randrange(256)
        elif action < 0.8:
            content[position : position + 8] = draw.choice(
                [0, 1, 2**31, 2**62, 2**64 - 1, draw.randrange(2**16)]
            ).to_bytes(8, "little")
        elif action < 0.9:
            del content[position : position + draw.randint(1, 64)]
        else:
            content[position:position] = content[position : position + draw.randint(1, 64)]
    return bytes(content[: draw.randrange(len(content) + 1)] if draw.random() < 0.1 else content)


class Tally:
    """Counts the cases that completed and those that raised an InputError, and collects all other failures.

    `allow_runtime_errors`: whether a RuntimeError with one line counts like an InputError.
    """

    def __init__(self, *, allow_runtime_errors=False):
        self.counts, self.failures = Counter(), []
        self.allow_runtime_errors = allow_runtime_errors

    def run(self, name, case, function, *arguments):
        from ropewalk.errors import InputError

        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            function(*arguments)
            self.counts[name, "completed"] += 1
        except BaseException as error:
            is_expected = isinstance(error, InputError) or (self.allow_runtime_errors and type(error) is RuntimeError)
            if is_expected and "\n" not in str(error) and len(str(error)) <= 1000:
                self.counts[name, "one line"] += 1
                return
            self.failures.append((name, traceback.format_exc(limit=-4), repr(case)[:2000]))
            if len(self.failures) > 20:
                raise
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def fuzz_configs(count, seed):
    import ropewalk as rw
    from ropewalk.config import from_dict
    from ropewalk.config.installed_class import fill_from_installed_class
    from ropewalk.serving.doctor import ExaminedConfig, examine
    from ropewalk.serving.engines import ENGINES
    from ropewalk.serving.engines.encode import encode
    from ropewalk.serving.engines.trained_config import interpret_as_trained

    def export_config(engine, case, spec, length):
        return encode(engine, case, interpret_as_trained(case), spec, length)

    # Import transformers before the first case: a timeout in the middle of this import can crash the interpreter.
    fill_from_installed_class({"model_type": "llama"})
    draw, tally = random.Random(seed), Tally()
    published = Path(rw.__file__).parent / "config" / "published"
    models = [json.loads(file.read_text())["config"] for file in sorted(published.glob("*.json"))] + VALID_CONFIGS
    engines = [engine for engine in ENGINES.values() if engine.checkpoint_format == "folder"]
    for _ in range(count):
        case = random_config(draw) if draw.random() < 0.2 else mutate(draw.choice(models), draw)
        engine, spec = draw.choice(engines), rw.parse(draw.choice(SPECS))
        length = draw.choice([1, 8192, 32_768, 1_000_000])
        tally.run("config", case, from_dict, case)
        tally.run("doctor", case, examine, ExaminedConfig(case))
        tally.run("read", (engine.name, case), engine.interpret, case, length)
        tally.run("export", (engine.name, case), export_config, engine, case, spec, length)
    return tally


def fuzz_ggufs(count, seed):
    from tests.helpers.gguf_model import small_gguf

    from ropewalk.config.gguf import from_gguf
    from ropewalk.serving.doctor import ExaminedConfig, examine
    from ropewalk.serving.export import export_model

    def examine_file(path):
        return examine(ExaminedConfig.from_model(path))

    draw, tally = random.Random(seed), Tally()
    with tempfile.TemporaryDirectory() as folder:
        valid_file = small_gguf(Path(folder) / "valid.gguf").read_bytes()
        path = Path(folder) / "corrupt.gguf"
        for index in range(count):
            case = corrupt(valid_file, draw)
            path.write_bytes(case)
            spec = draw.choice(SPECS)
            tally.run("config", case, from_gguf, path)
            tally.run("doctor", case, examine_file, str(path))
            out = Path(folder) / f"out{index}"
            tally.run("export", case, export_model, str(path), spec, "llama.cpp", out, 12_000)
    return tally


def peak_memory():
    """Return the peak memory of this process in bytes (getrusage would include the memory of the parent)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def raise_timeout(*_):
    raise TimeoutError(f"longer than {SECONDS} s")


def main():
    from tests.helpers.fuzz_results import fuzz_results
    from tests.helpers.fuzz_servers import fuzz_servers

    parser = argparse.ArgumentParser()
    parser.add_argument("counts", nargs="+", metavar="KIND=COUNT")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    signal.signal(signal.SIGALRM, raise_timeout)
    started = time.perf_counter()
    kinds = {"configs": fuzz_configs, "ggufs": fuzz_ggufs, "results": fuzz_results, "servers": fuzz_servers}
    failures = []
    for kind, count in (each.split("=") for each in args.counts):
        tally = kinds[kind](int(count), args.seed)
        for (name, outcome), number in sorted(tally.counts.items()):
            print(f"{kind} {name}: {outcome} {number}")
        failures += tally.failures
    peak = peak_memory()
    print(f"{time.perf_counter() - started:.0f} s, at most {peak / 2**20:.0f} MiB")
    for name, failure, case in failures:
        print(f"--- {name}\n{failure}\n{case}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    # Without the shutdown of the interpreter: CPython 3.11 has crashed there (SIGSEGV while it frees objects, in about
    # one of a hundred runs), after everything had been reported.
    os._exit(bool(failures) or peak > MEMORY)


if __name__ == "__main__":
    main()
