"""The script that reads the architectures of the engines from their packages."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from benchmarks.engine_tables.__main__ import compare, download, format_table


def write_wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> None:
    """Write a wheel that pip accepts."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    metadata = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in (files | metadata).items():
            archive.writestr(path, text)


@pytest.mark.parametrize(("requested", "found"), [("", "1.2"), ("1.1", "1.1")])
def test_download_unpacks_the_python_files_of_a_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requested: str, found: str
) -> None:
    for version in ("1.1", "1.2"):
        files = {"toy_engine/models/llama.py": f"VERSION = {version!r}", "toy_engine/kernel.so": "binary"}
        write_wheel(tmp_path / "index", "toy_engine", version, files)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    assert download("toy-engine", requested, unpacked) == found
    assert (unpacked / "toy_engine/models/llama.py").read_text() == f"VERSION = {found!r}"
    assert not (unpacked / "toy_engine/kernel.so").exists()


def test_compare_names_each_architecture_and_field_that_differs() -> None:
    old = {"version": "1.1", "architectures": {"llama": {"scaling": "any"}, "gone": {"scaling": "none"}}}
    new = {"version": "1.2", "architectures": {"llama": {"scaling": "none"}, "mamba": {"scaling": "none"}}}
    lines = ["version: 1.1 is now 1.2", "mamba: new", "gone: gone", "llama: scaling was any, is none"]
    assert compare(old, new) == lines
    assert compare(new, new) == []
    assert format_table(new).splitlines()[-3] == '    "mamba": {"scaling": "none"}'
