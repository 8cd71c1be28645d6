from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch
from benchmarks.speed.environment import (
    current_device,
    file_name_for,
    find_device,
    package_versions,
    system_settings,
)

import ropewalk
from ropewalk.errors import InputError


def test_system_settings_record_what_affects_timings(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    settings = system_settings()
    assert (settings["system"], settings["threads"]) == (platform.platform(), torch.get_num_threads())
    assert settings["environment"]["OMP_NUM_THREADS"] == "7"
    assert "CUDA_VISIBLE_DEVICES" not in settings["environment"]
    assert settings["large_pages"] in ("always", "madvise", "never", None)


@pytest.mark.parametrize(("content", "mode"), [("always [madvise] never\n", "madvise"), ("", None)])
def test_the_mode_of_large_pages(content, mode, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: content)
    assert system_settings()["large_pages"] == mode


def test_only_cuda_devices_are_made_current(monkeypatch):
    made_current = []
    monkeypatch.setattr(torch.cuda, "device", made_current.append)
    current_device(torch.device("cuda:1"))
    current_device(torch.device("cpu"))
    assert made_current == [torch.device("cuda:1")]


@pytest.mark.parametrize(
    ("description", "file_name"),
    [
        ("Intel(R) Xeon(R) Processor, 2 threads", "intel-xeon-processor-2-threads"),
        ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"),
        ("AMD EPYC 7763 64-Core Processor, 1 thread", "amd-epyc-7763-64-core-processor-1-thread"),
    ],
)
def test_file_names(description, file_name):
    assert file_name_for(description) == file_name


def test_versions_of_installed_packages():
    versions = package_versions(["torch", "no-such-package"])
    assert versions["torch"] == torch.__version__
    assert versions["ropewalk"] == ropewalk.__version__
    assert "no-such-package" not in versions
    assert versions["python"] == platform.python_version()


@pytest.mark.parametrize("name", ["cuda:99", "nothing", "cpu:x", "meta", "hpu"])
def test_a_device_that_does_not_exist_is_refused(name):
    with pytest.raises(InputError, match="device"):
        find_device(name)
