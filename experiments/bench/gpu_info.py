"""Facts about a GPU and its current state: bandwidth, caches, clocks, temperature."""

import contextlib
import importlib
import subprocess

import torch

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
"""Memory bandwidth by the driver's name of the model, without the maker and the product line."""

CACHE_BYTES = {"gfx942": 256 * 2**20, "gfx950": 256 * 2**20}
"""The Infinity Cache of MI300 and MI350, by architecture. It lies behind the L2, the only cache that torch reports.

AMD's table of GPU specifications calls it L3 (rocm.docs.amd.com/en/latest/reference/gpu-specs.html). NVIDIA's GPUs,
B200 and RTX 5090 included, and MI200 have no cache behind the L2.
"""

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
"""Meaning of the bits of NVML's nvmlClocksEventReasons."""

SMI_FIELDS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "driver_version")

SMI_LIMIT = 5.0
"""Seconds after which nvidia-smi counts as hanging."""
HUNG: list[subprocess.Popen] = []
"""Processes of nvidia-smi that did not answer; no further one is started. A driver can block them even when killed."""


def datasheet_bandwidth(name: str) -> float | None:
    """Return the memory bandwidth of a GPU in bytes/s, by its driver's name; None if the model is not known.

    The numbers are rounded ones from the makers' data sheets and product pages (nvidia.com/data-center,
    nvidia.com/geforce, amd.com/instinct). A MIG slice or a laptop's model has another name, and so no known bandwidth.
    """
    for words in ("NVIDIA", "GeForce", "Tesla", "AMD", "Instinct"):
        name = name.removeprefix(words).strip()
    known = GB_PER_SECOND.get(name)
    return None if known is None else known * 1e9


def state(device: Device) -> dict:
    """Return the GPU's state: sm_mhz, memory_mhz, temperature_c, power_w, throttle (list of words), driver.

    Asks nvidia-ml-py if it is installed, else nvidia-smi. Returns {} if neither works; never raises.
    """
    for look in (nvml_state, smi_state):
        # Drivers, containers and virtual machines fail here in more ways than can be listed.
        with contextlib.suppress(Exception):
            return look(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    return {}


def nvml_state(uuid: str) -> dict:
    """Return `state` by nvidia-ml-py. Raises: whatever nvidia-ml-py raises."""
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
            "driver": decoded(nvml.nvmlSystemGetDriverVersion()),
        }
    finally:
        nvml.nvmlShutdown()


def decoded(value: str | bytes) -> str:
    """Return a string, for which older versions of nvidia-ml-py give bytes."""
    return value.decode() if isinstance(value, bytes) else value


def smi_state(uuid: str) -> dict:
    """Return `state` by nvidia-smi. Raises: OSError, CalledProcessError, TimeoutExpired or ValueError."""
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
    """Return what nvidia-smi prints for each field. Raises as `smi_state` does, at once if nvidia-smi hung before."""
    command = ["nvidia-smi", f"--id={uuid}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    if HUNG:
        raise subprocess.TimeoutExpired(command, SMI_LIMIT)
    # `subprocess.run` would wait forever for a process that cannot be killed.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        printed, _ = process.communicate(timeout=SMI_LIMIT)
    except subprocess.TimeoutExpired:
        HUNG.append(process)
        process.kill()
        if process.stdout:
            process.stdout.close()
        raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return [value.strip() for value in printed.split(",")]


def reasons(bits: int) -> list[str]:
    """Return why the clocks are not higher, as words."""
    return [word for bit, word in THROTTLE_REASONS.items() if bits & bit]


def cache_bytes(device: Device) -> int:
    """Return the size of a GPU's last-level cache in bytes: its L2, or the cache behind it that `CACHE_BYTES` knows."""
    facts = device_facts(device)
    return max(facts.l2_bytes, CACHE_BYTES.get(facts.arch, 0))
