"""The primitives of measuring on a GPU: what can be known without one, and, with one, that they measure."""

import os
import sys
import time
import warnings
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments.bench import gpu_info, gpu_timing
from tests import pretended
from tests.conftest import sync_debug_mode

UUID = str(pretended.H100.uuid)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 3.35e12),
        ("NVIDIA H100 PCIe", 2.0e12),
        ("NVIDIA H200", 4.8e12),
        ("NVIDIA A100-SXM4-80GB", 2.039e12),
        ("NVIDIA A100-SXM4-40GB", 1.555e12),
        ("NVIDIA L4", 3.0e11),
        ("NVIDIA L40S", 8.64e11),
        ("NVIDIA GeForce RTX 4090", 1.008e12),
        ("Tesla T4", 3.2e11),
        ("AMD Instinct MI300X", 5.3e12),
        # A slice has a part of the bandwidth, and a laptop's model another memory.
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("", None),
    ],
)
def test_datasheet_bandwidth_goes_by_the_whole_name(name, expected):
    assert gpu_info.datasheet_bandwidth(name) == expected


@pytest.mark.parametrize(
    ("n_bytes", "sets"),
    [
        # Four times the L2 are 200 MiB: one set has to be larger than that.
        (200 * 2**20 + 1, 1),
        (200 * 2**20, 2),
        (100 * 2**20 - 1, 3),
        (2**20, 201),
        # More of them would take too long to prepare.
        (2**20 - 1, 201),
        (0, 201),
    ],
)
def test_sets_together_exceed_four_times_the_l2(n_bytes, sets, h100):
    assert gpu_timing.n_sets(n_bytes, "cuda") == sets


@pytest.mark.parametrize("n_bytes", [2**30 + 1, 2**30, 28 * 2**20, 2**20])
def test_sets_exceed_the_infinity_cache_that_torch_does_not_report(n_bytes, monkeypatch):
    pretended.put_in(monkeypatch, pretended.MI300X)
    assert pretended.MI300X.L2_cache_size == 4 * 2**20
    sets = gpu_timing.n_sets(n_bytes, "cuda")
    # Four times 256 MiB, and not one set more than that takes.
    assert (sets - 1) * n_bytes <= 2**30 < sets * n_bytes


def test_a_gpu_without_a_cache_behind_the_l2_rotates_by_its_l2(monkeypatch):
    mi250x = pretended.MI300X._replace(name="AMD Instinct MI250X", gcnArchName="gfx90a", L2_cache_size=8 * 2**20)
    pretended.put_in(monkeypatch, mi250x)
    assert gpu_timing.n_sets(2**20, "cuda") == 33
    # A GPU may report more than the table has of its architecture.
    pretended.put_in(monkeypatch, pretended.MI300X._replace(L2_cache_size=2**30))
    assert gpu_timing.n_sets(2**30, "cuda") == 5


def test_one_set_is_enough_on_a_cpu():
    assert gpu_timing.n_sets(1, "cpu") == gpu_timing.n_sets(1, torch.device("cpu")) == 1


def test_state_of_a_device_that_cannot_be_asked_is_empty(h100, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", "")
    assert gpu_info.state("cuda") == {}


def test_state_of_a_cpu_is_empty():
    assert gpu_info.state("cpu") == {}


def test_state_is_asked_of_nvml_by_the_uuid(h100, monkeypatch):
    nvml = SimpleNamespace(
        NVML_CLOCK_SM="sm",
        NVML_CLOCK_MEM="memory",
        NVML_TEMPERATURE_GPU="gpu",
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByUUID={f"GPU-{UUID}": "the handle"}.get,
        nvmlDeviceGetClockInfo=lambda handle, which: {"sm": 1980, "memory": 2619}[which],
        nvmlDeviceGetTemperature=lambda handle, which: 41,
        nvmlDeviceGetPowerUsage={"the handle": 123456}.get,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: 0x4 | 0x20,
        nvmlSystemGetDriverVersion=lambda: b"580.159.04",
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert gpu_info.state("cuda") == {
        "sm_mhz": 1980,
        "memory_mhz": 2619,
        "temperature_c": 41,
        "power_w": 123.456,
        "throttle": ["software power cap", "software thermal slowdown"],
        "driver": "580.159.04",
    }


@pytest.fixture
def nvidia_smi(h100, monkeypatch, tmp_path):
    """Puts a shell script in the place of nvidia-smi, and returns what says how that was called; NVML is missing."""
    asked = tmp_path / "asked"

    def put(script: str) -> Callable[[], list[str]]:
        program = tmp_path / "nvidia-smi"
        program.write_text(f'#!/bin/sh\necho "$*" >> {asked}\n{script}\n')
        program.chmod(0o755)
        return lambda: asked.read_text().splitlines()

    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(gpu_info, "HUNG", [])
    return put


def test_an_nvidia_smi_that_does_not_answer_is_asked_once(nvidia_smi, monkeypatch):
    asked = nvidia_smi("exec sleep 60")
    monkeypatch.setattr(gpu_info, "SMI_LIMIT", 0.5)
    assert [gpu_info.state("cuda") for _ in range(3)] == [{}] * 3
    assert len(asked()) == 1
    (process,) = gpu_info.HUNG
    assert process.wait(10) < 0


def test_state_is_asked_of_nvidia_smi_where_nvml_is_missing(nvidia_smi):
    answer = "echo 345, 2619, 31, 70.53, 525.85.12, 0x0000000000000001"
    asked = nvidia_smi(f'case "$*" in *clocks_event_reasons*) exit 2; esac; {answer}')
    assert gpu_info.state("cuda") == {
        "sm_mhz": 345,
        "memory_mhz": 2619,
        "temperature_c": 31,
        "power_w": 70.53,
        "throttle": ["idle"],
        "driver": "525.85.12",
    }
    assert [f"--id=GPU-{UUID}" in command for command in asked()] == [True, True]


def test_copies_are_of_the_size_that_was_asked_for():
    (copy,) = gpu_timing.copies("cpu", 4096)
    target = copy()
    assert isinstance(target, torch.Tensor)
    assert target.nbytes == 2048


@pytest.mark.gpu
def test_events_measure_a_spin_of_known_length():
    def spin():
        torch.cuda._sleep(10**8)

    seconds = [gpu_timing.event_seconds(spin, "cuda") for _ in range(5)]
    # 1e8 cycles at 0.3 to 3 GHz.
    assert 0.03 < np.median(seconds) < 0.4


@pytest.mark.gpu
def test_queued_work_does_not_count_the_host():
    x = torch.zeros(16, device="cuda")

    def call():
        time.sleep(0.002)
        x.add_(1)

    call()
    found = gpu_timing.queued_seconds([call] * 10, "cuda", host_seconds=0.05)
    assert x[0].item() == 11
    assert found is not None
    assert 0 < found < 0.002


@pytest.mark.gpu
def test_queued_work_that_the_device_was_early_for_has_no_time():
    assert gpu_timing.queued_seconds([lambda: time.sleep(0.1)], "cuda", host_seconds=0.0) is None


@pytest.mark.gpu
def test_a_graph_replays_every_call_in_turn():
    x = torch.zeros(1, device="cuda")
    replay = gpu_timing.graph_of([lambda: x.add_(1), lambda: x.mul_(2)], "cuda")
    assert x.item() == 2  # warmed up once, and captured without effect
    replay()
    assert x.item() == 6


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning")
def test_a_call_that_refuses_to_be_captured_is_heard():
    def refuse():
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("not here")

    with pytest.raises(RuntimeError, match="not here"):
        gpu_timing.graph_of([refuse], "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("n_bytes", [2**20, 2**30])
def test_copy_bandwidth_of_what_no_cache_holds_lies_below_the_datasheet(n_bytes):
    median, low, high = gpu_timing.copy_bandwidth("cuda", n_bytes, rounds=10)
    assert 0 < low <= median <= high
    datasheet = gpu_info.datasheet_bandwidth(torch.cuda.get_device_name())
    if datasheet is not None and n_bytes == 2**30:
        assert 0.5 * datasheet < median < datasheet


@pytest.mark.gpu
def test_state_names_clocks_temperature_and_driver():
    found = gpu_info.state("cuda")
    assert set(found) in (set(), {"sm_mhz", "memory_mhz", "temperature_c", "power_w", "throttle", "driver"})


def test_the_mode_that_forbids_waiting_may_warn_once(monkeypatch):
    """As torch does, in the first call of a process; here warnings are errors."""
    modes, words = [], "Synchronization debug mode is a prototype feature and does not yet detect all operations"

    def warn(mode: str) -> None:
        modes.append(mode)
        warnings.warn(words, UserWarning, stacklevel=1)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", warn)
    sync_debug_mode("error")
    assert modes == ["error"]
