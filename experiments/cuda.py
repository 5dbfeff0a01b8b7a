"""What it takes to measure on a GPU: events, graphs, a full queue, copies, and what state the GPU is in."""

import contextlib
import importlib
import subprocess
import time
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch

from experiments import capture
from experiments.timing import median_interval
from kernels.config import device_facts

Device = torch.device | str

GB_PER_SECOND = {
    "V100-SXM2-16GB": 900,
    "V100-SXM2-32GB": 900,
    "T4": 320,
    "A10": 600,
    "A40": 696,
    "A100-SXM4-40GB": 1555,
    "A100-PCIE-40GB": 1555,
    "A100-SXM4-80GB": 2039,
    "A100 80GB PCIe": 1935,
    "RTX 3090": 936,
    "RTX 3090 Ti": 1008,
    "RTX A6000": 768,
    "L4": 300,
    "L40": 864,
    "L40S": 864,
    "RTX 4090": 1008,
    "RTX 6000 Ada Generation": 960,
    "H100 80GB HBM3": 3350,
    "H100 PCIe": 2000,
    "H100 NVL": 3900,
    "H200": 4800,
    "H200 NVL": 4800,
    "GH200 480GB": 4000,
    "B200": 8000,
    "RTX 5090": 1792,
    "MI210": 1600,
    "MI250X": 3200,
    "MI300X": 5300,
    "MI325X": 6000,
}
"""Memory bandwidth by the name that the driver gives, without the maker and the product line."""

CACHE_BYTES = {"gfx942": 256 * 2**20, "gfx950": 256 * 2**20}
"""The Infinity Cache of MI300 and MI350 between the L2, which is all that torch reports, and the memory.

It is the L3 in AMD's table of GPU specifications (rocm.docs.amd.com/en/latest/reference/gpu-specs.html). NVIDIA's GPUs,
B200 and RTX 5090 among them, and MI200 have none behind the L2.
"""
L2_MULTIPLE = 4
SMALLEST_SET = 2**20
"""Bytes of one set of buffers: that many such sets as exceed the caches are enough for smaller ones."""

CLOCK_HZ = 3e9
"""No GPU's clock is faster, so that a spin of so many cycles a second lasts at least a second."""
LEAD = 2
"""How much longer than the host has needed so far the device spins."""

THROTTLE_REASONS = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clocks",
}
"""Bits of NVML's nvmlClocksEventReasons."""

SMI_LIMIT = 5.0
"""Seconds in which nvidia-smi answers, if it ever does."""
HUNG: list[subprocess.Popen] = []
"""The nvidia-smi that has not answered, for no other is asked then; a driver can hold it even after it was killed."""
SMI_FIELDS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "driver_version")


def datasheet_bandwidth(name: str) -> float | None:
    """Memory bandwidth in bytes/s of a GPU by the name that its driver gives; None if it is not known.

    From the makers' data sheets and product pages of each model (nvidia.com/data-center, nvidia.com/geforce,
    amd.com/instinct), which round. A MIG slice or a laptop's model has another name, and so none.
    """
    for words in ("NVIDIA", "GeForce", "Tesla", "AMD", "Instinct"):
        name = name.removeprefix(words).strip()
    known = GB_PER_SECOND.get(name)
    return None if known is None else known * 1e9


def state(device: Device) -> dict:
    """What the GPU is doing: sm_mhz, memory_mhz, temperature_c, power_w, throttle (words), driver.

    By nvidia-ml-py if it is installed, else by nvidia-smi; {} if neither works. Raises nothing.
    """
    for look in (nvml_state, smi_state):
        # Drivers, containers and virtual machines fail here in more ways than can be listed.
        with contextlib.suppress(Exception):
            return look(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    return {}


def nvml_state(uuid: str) -> dict:
    """`state` by nvidia-ml-py. Raises what that raises."""
    nvml = importlib.import_module("pynvml")
    nvml.nvmlInit()
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        return {
            "sm_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "temperature_c": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "power_w": nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            "throttle": reasons(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
            "driver": text(nvml.nvmlSystemGetDriverVersion()),
        }
    finally:
        nvml.nvmlShutdown()


def text(value: str | bytes) -> str:
    """Older versions of nvidia-ml-py return bytes."""
    return value.decode() if isinstance(value, bytes) else value


def smi_state(uuid: str) -> dict:
    """`state` by nvidia-smi. Raises: OSError, CalledProcessError, TimeoutExpired or ValueError."""
    try:
        *values, bits = smi(uuid, (*SMI_FIELDS, "clocks_event_reasons.active"))
    except subprocess.CalledProcessError:  # drivers before 535
        *values, bits = smi(uuid, (*SMI_FIELDS, "clocks_throttle_reasons.active"))
    return {
        "sm_mhz": int(values[0]),
        "memory_mhz": int(values[1]),
        "temperature_c": int(values[2]),
        "power_w": float(values[3]),
        "throttle": reasons(int(bits, 16)),
        "driver": values[4],
    }


def smi(uuid: str, fields: tuple[str, ...]) -> list[str]:
    """What nvidia-smi prints for each field. Errors as of `smi_state`, at once if it has not answered before."""
    command = ["nvidia-smi", f"--id={uuid}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    if HUNG:
        raise subprocess.TimeoutExpired(command, SMI_LIMIT)
    # `subprocess.run` would wait without end for one that cannot be killed.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        printed, _ = process.communicate(timeout=SMI_LIMIT)
    except subprocess.TimeoutExpired:
        HUNG.append(process)
        process.kill()
        process.stdout.close()
        raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return [value.strip() for value in printed.split(",")]


def reasons(bits: int) -> list[str]:
    """Why the clocks are not higher, as words."""
    return [word for bit, word in THROTTLE_REASONS.items() if bits & bit]


def event_seconds(call: Callable[[], object], device: Device) -> float:
    """Seconds of one call between two CUDA events on the current stream, on a device that was idle before."""
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        end.synchronize()
    return start.elapsed_time(end) / 1e3


def queued_seconds(calls: Sequence[Callable[[], object]], device: Device, host_seconds: float) -> float | None:
    """Seconds that the device works on the calls, one after the other, if their launches wait in its queue already.

    The device spins while the host launches, so that the host's time does not count.

    Args:
        host_seconds: how long the host takes to launch all of the calls, about.
    Returns: None if the device was done spinning before the host had launched everything: too many launches for the
        queue, a call that waits for the device, or a host that was held up.
    """
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(int(LEAD * host_seconds * CLOCK_HZ))
        start.record()
        for call in calls:
            call()
        late = start.query()
        end.record()
        end.synchronize()
    return None if late else start.elapsed_time(end) / 1e3


def graph_of(calls: Sequence[Callable[[], object]], device: Device) -> Callable[[], None]:
    """Capture the calls, one after the other, into one CUDA graph, and return its replay.

    Every call runs once before, on a side stream. What the calls use has to outlive the graph.
    Raises: what a call raises, or the capture; see `capture.record`.
    """

    def run() -> None:
        for call in calls:
            call()

    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        capture.aside(run, side)
        return capture.record(run, side).replay


def cache_bytes(device: Device) -> int:
    """Size of the last cache before a GPU's memory: its L2, or what `CACHE_BYTES` knows behind it."""
    facts = device_facts(device)
    return max(facts.l2_bytes, CACHE_BYTES.get(facts.arch, 0))


def n_sets(bytes_of_one: int, device: Device) -> int:
    """How many sets of buffers together exceed four times the last cache; 1 on a CPU.

    Sets below 1 MiB are as many as sets of 1 MiB, and may all lie in the cache: more of them take too long to prepare.
    """
    if torch.device(device).type == "cpu":
        return 1
    return L2_MULTIPLE * cache_bytes(device) // max(SMALLEST_SET, bytes_of_one) + 1


def copies(device: Device, n_bytes: int) -> list[Callable[[], object]]:
    """Calls of `torch.Tensor.copy_`, each reading n_bytes / 2 and writing as many, over `n_sets` pairs of buffers."""
    n_elements = max(1, n_bytes // 2 // torch.float32.itemsize)
    pairs = [
        (torch.empty(n_elements, device=device), torch.rand(n_elements, device=device))
        for _ in range(n_sets(n_bytes, device))
    ]
    return [lambda target=target, source=source: target.copy_(source) for target, source in pairs]


def copy_seconds(device: Device, n_bytes: int, rounds: int) -> np.ndarray:
    """Device seconds of one copy that reads and writes n_bytes altogether, one value a round, float64 [rounds]."""
    calls = copies(device, n_bytes)
    seconds = []
    for _ in range(rounds + 1):  # one more, that warms up
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        for call in calls:
            call()
        host = time.perf_counter() - started
        found = queued_seconds(calls, device, host)
        # A host that was held up makes a copy seem slower; events then say no more than that.
        seconds.append(event_seconds(lambda: [call() for call in calls], device) if found is None else found)
    return np.array(seconds[1:]) / len(calls)


def copy_bandwidth(device: Device, n_bytes: int, rounds: int) -> tuple[float, float, float]:
    """Bytes/s, read and written, of a copy whose working set is n_bytes: `timing.median_interval`.

    Small copies rotate among buffers that together exceed four times the last cache (see `n_sets`).
    """
    moved = max(1, n_bytes // 2 // torch.float32.itemsize) * 2 * torch.float32.itemsize
    return median_interval(pd.Series(moved / copy_seconds(device, n_bytes, rounds)))
