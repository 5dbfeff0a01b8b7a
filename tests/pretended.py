"""GPUs that need not be there, as torch describes them: every property that a real device has, and no other."""

from typing import NamedTuple

import torch


class Uuid:
    """torch's `_CUuuid`: no text, and one without the prefix by which nvidia-smi and NVML know a GPU."""

    def __init__(self, value: str):
        self.value = value

    def __str__(self) -> str:
        return self.value


class Properties(NamedTuple):
    """What `torch.cuda.get_device_properties` returns, as torch/csrc/cuda/Module.cpp makes it.

    Attributes:
        gcnArchName: the architecture and its features, but the device's name where torch was built for CUDA.
        total_memory, L2_cache_size, shared_memory_per_*: bytes.
        clock_rate, memory_clock_rate: kHz.
        memory_bus_width: bits.
    """

    name: str
    major: int
    minor: int
    gcnArchName: str
    multi_processor_count: int
    total_memory: int
    L2_cache_size: int
    memory_bus_width: int
    memory_clock_rate: int
    clock_rate: int
    warp_size: int
    shared_memory_per_block: int
    shared_memory_per_block_optin: int
    shared_memory_per_multiprocessor: int
    uuid: Uuid = Uuid("6d0ab6b4-9ef2-4f0c-8a6f-0123456789ab")
    max_threads_per_multi_processor: int = 2048
    max_threads_per_block: int = 1024
    regs_per_multiprocessor: int = 65536
    is_integrated: int = 0
    is_multi_gpu_board: int = 0
    pci_bus_id: int = 24
    pci_device_id: int = 0
    pci_domain_id: int = 0


H100 = Properties(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    gcnArchName="NVIDIA H100 80GB HBM3",
    multi_processor_count=132,
    total_memory=85_017_755_648,
    L2_cache_size=50 * 2**20,
    memory_bus_width=5120,
    memory_clock_rate=2_619_000,
    clock_rate=1_980_000,
    warp_size=32,
    shared_memory_per_block=48 * 2**10,
    shared_memory_per_block_optin=227 * 2**10,
    shared_memory_per_multiprocessor=228 * 2**10,
)
MI300X = Properties(
    name="AMD Instinct MI300X",
    major=9,
    minor=4,
    gcnArchName="gfx942:sramecc+:xnack-",
    multi_processor_count=304,
    total_memory=206_141_652_992,
    L2_cache_size=4 * 2**20,
    memory_bus_width=8192,
    memory_clock_rate=1_300_000,
    clock_rate=2_100_000,
    warp_size=64,
    shared_memory_per_block=64 * 2**10,
    shared_memory_per_block_optin=64 * 2**10,
    shared_memory_per_multiprocessor=64 * 2**10,
)


def put_in(monkeypatch, properties: Properties) -> None:
    """Let torch describe such a GPU for the rest of a test, on the build of torch that knows it."""
    monkeypatch.setattr(torch.version, "hip", "6.4.0" if properties.gcnArchName.startswith("gfx") else None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: properties)
