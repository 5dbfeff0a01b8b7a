"""Launch configurations, and the devices and work that they are chosen for."""

import functools
import itertools
import math
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch

EVICTIONS = ("", "evict_first", "evict_last")
ELEMENTS_PER_THREAD = 4  # 128 bits of float32
MOST_PER_WARP = 1024
LIMITS = {"block_size": (32, 2**14), "num_warps": (1, 16), "blocks_per_chunk": (1, 2**10), "num_stages": (1, 4)}


@dataclass(frozen=True)
class Config:
    """The launch configuration of the traversal.

    Attributes:
        block_size: elements that a program holds in registers at once; a power of two.
        num_warps: warps of a program; a power of two.
        blocks_per_chunk: blocks that a program updates, one after the other; a power of two.
        num_stages: blocks of a chunk that are in flight at once.
        eviction: how caches treat the data, one of `EVICTIONS`.
    Raises: ValueError if a value is out of range.
    """

    block_size: int
    num_warps: int
    blocks_per_chunk: int = 1
    num_stages: int = 1
    eviction: str = ""

    def __post_init__(self):
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"{name} accepts whole numbers from {low} to {high}, not {value!r}")
            if name != "num_stages" and value & (value - 1):
                raise ValueError(f"{name} accepts powers of two, not {value}")
        if self.block_size > MOST_PER_WARP * self.num_warps:
            raise ValueError(f"block_size accepts at most {MOST_PER_WARP} for each warp, not {self.block_size}")
        if self.eviction not in EVICTIONS:
            raise ValueError(f"eviction accepts {', '.join(map(repr, EVICTIONS))}, not {self.eviction!r}")
        if self.num_stages > 1 and self.blocks_per_chunk == 1:
            raise ValueError("num_stages accepts only 1 where blocks_per_chunk is 1")

    @property
    def chunk_size(self) -> int:
        """Elements that one program updates."""
        return self.block_size * self.blocks_per_chunk

    @property
    def label(self) -> str:
        """A short name for tables: block size x warps, then the walk if there is one."""
        walk = f" walk {self.blocks_per_chunk}" if self.blocks_per_chunk > 1 else ""
        stages = f" stages {self.num_stages}" if self.num_stages > 1 else ""
        return f"{self.block_size}x{self.num_warps}{walk}{stages}{' ' * bool(self.eviction)}{self.eviction}"

    @property
    def order(self) -> tuple:
        """Sort key: fewest elements per thread, then the smallest block, then the simplest loop."""
        elements_per_lane = self.block_size / self.num_warps
        eviction = EVICTIONS.index(self.eviction)
        return elements_per_lane, self.block_size, self.blocks_per_chunk, self.num_stages, eviction

    def elements_per_thread(self, warp_size: int) -> int:
        return max(1, self.block_size // (self.num_warps * warp_size))


CPU_LIMITS = {"chunk_size": (2**8, 2**24), "piles": (1, 2**12), "threads": (0, 2**12)}


@dataclass(frozen=True)
class CpuConfig:
    """How a step on the CPU is divided among threads.

    Attributes:
        chunk_size: elements of a chunk; a power of two.
        piles: equally loaded stretches into which the chunks are dealt; see `table.build`.
        threads: the most threads that walk them, of torch's; 0 takes one for every 2^14 elements.
    Raises: ValueError if a value is none of these.
    """

    chunk_size: int = 2**14
    piles: int = 64
    threads: int = 0

    def __post_init__(self):
        for name, (low, high) in CPU_LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"{name} accepts whole numbers from {low} to {high}, not {value!r}")
        if self.chunk_size & (self.chunk_size - 1):
            raise ValueError(f"chunk_size accepts powers of two, not {self.chunk_size}")

    @property
    def label(self) -> str:
        """A short name for tables."""
        return f"{self.chunk_size}, {self.piles} piles{f', at most {self.threads} threads' if self.threads else ''}"

    @property
    def order(self) -> tuple:
        """Sort key: the default first, which stays where nothing is faster, then the smallest chunks."""
        return self != CpuConfig(), self.chunk_size, self.piles, self.threads


AnyConfig = Config | CpuConfig


def cpu_candidates(threads: int) -> list[CpuConfig]:
    """Return the configurations worth measuring on a CPU with so many threads, in order."""
    counts = [0, *(2**i for i in range(threads.bit_length()))]
    found = itertools.product((2**12, 2**13, 2**14, 2**15, 2**16, 2**18), (16, 64), counts)
    return sorted((CpuConfig(*values) for values in found), key=lambda config: config.order)


GEOMETRIES = ((256, 512, 1024, 2048, 4096, 8192), (1, 2, 4, 8, 16))
"""Block sizes, and elements per thread."""
WALKS = ((1, 1, ""), (1, 1, "evict_first"), (4, 1, ""), (4, 3, ""), (16, 1, ""))
"""Blocks per chunk, stages, and how caches treat the data."""


def candidates(warp_size: int = 32) -> list[Config]:
    """Return the configurations that are worth compiling and measuring, in `order`."""
    found = []
    for (block_size, elements), walk in itertools.product(itertools.product(*GEOMETRIES), WALKS):
        num_warps = block_size // (elements * warp_size)
        if LIMITS["num_warps"][0] <= num_warps <= LIMITS["num_warps"][1]:
            found.append(Config(block_size, num_warps, *walk))
    return sorted(found, key=lambda config: config.order)


def default(warp_size: int = 32) -> Config:
    """Return the configuration for a GPU without measurements."""
    return Config(1024, 1024 // (ELEMENTS_PER_THREAD * warp_size))


def canonical(configs: Sequence[AnyConfig]) -> AnyConfig:
    """Return the first in `order` of configurations that measurements could not tell apart."""
    return min(configs, key=lambda config: config.order)


@dataclass(frozen=True)
class Device:
    """Facts about a GPU or a CPU; 0 if unknown.

    Attributes:
        name: the driver's name for it; of a CPU the system's, LLVM's and the number of cores.
        arch: sm_NN or gfxNNN, Triton's name of the target, without the letter of sm_90a or the features of gfx942; or
            "cpu".
        multiprocessors: their number; on AMD, of compute units; of a CPU, of cores.
        l2_bytes, memory_bytes: sizes.
        bus_bits, memory_khz: width and clock of the memory's bus.
    """

    name: str
    arch: str
    multiprocessors: int = 0
    l2_bytes: int = 0
    memory_bytes: int = 0
    bus_bits: int = 0
    memory_khz: int = 0

    @property
    def slug(self) -> str:
        """The name in the form of a file name."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-") or "unnamed"

    @property
    def warp_size(self) -> int:
        return 64 if self.arch.startswith("gfx9") else 32

    @property
    def bandwidth_per_multiprocessor(self) -> float:
        """Memory bandwidth per multiprocessor, up to a factor that devices of one architecture share."""
        return self.bus_bits * (self.memory_khz or 1) / (self.multiprocessors or math.inf)


@functools.cache
def cpu_name() -> str:
    """Return the processor's name, as the system has it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cpu_model() -> str:
    """Return what LLVM takes the processor for, in brackets: clouds hide its model. "" where LLVM is not installed."""
    try:
        import llvmlite.binding as llvm
    except ModuleNotFoundError:  # It comes with Numba, without which nothing is launched on the CPU.
        return ""
    return f" ({llvm.get_host_cpu_name()})"


def device_facts(device: torch.device | str) -> Device:
    """Return the facts about a GPU that is present, or about the CPU."""
    if torch.device(device).type == "cpu":
        cores = os.cpu_count() or 1
        return Device(f"{cpu_name()}{cpu_model()}, {cores} cores", "cpu", cores)
    found = torch.cuda.get_device_properties(device)
    # Where torch was built for CUDA, gcnArchName holds the device's name.
    arch = found.gcnArchName.split(":")[0] if torch.version.hip else f"sm_{found.major}{found.minor}"
    fields = {
        "multiprocessors": "multi_processor_count",
        "l2_bytes": "L2_cache_size",
        "memory_bytes": "total_memory",
        "bus_bits": "memory_bus_width",
        "memory_khz": "memory_clock_rate",
    }
    return Device(found.name, arch, **{field: int(getattr(found, name, 0)) for field, name in fields.items()})


def default_for(device: Device) -> AnyConfig:
    """Return what a device gets for which nothing was measured."""
    return CpuConfig() if device.arch == "cpu" else default(device.warp_size)


ROWS = {"short": 2**13, "medium": 2**18, "long": math.inf}
"""Classes of lists, each with an upper bound of the mean number of elements per row."""


Dtypes = tuple[torch.dtype, torch.dtype, torch.dtype]
"""Dtypes of parameters, gradients and states."""


class Work(NamedTuple):
    """The properties of a launch that its speed depends on.

    Attributes:
        rule: name of the update rule.
        n_elements: elements of all rows together.
        dtypes: names of the dtypes of parameters, gradients and states.
        rounding: "nearest" or "stochastic".
        aligned: whether most elements are in rows that take the path of 128-bit accesses.
        rows: how long rows are on average, one of `ROWS`: many small tensors, lanes of networks, large tensors.
    """

    rule: str
    n_elements: int
    dtypes: tuple[str, str, str] = ("float32", "float32", "float32")
    rounding: str = "nearest"
    aligned: bool = True
    rows: str = "long"

    @property
    def kind(self) -> str:
        """All but the size, as in the keys of registry entries."""
        return "/".join((self.rule, *self.dtypes, self.rounding, "aligned" if self.aligned else "unaligned", self.rows))

    @property
    def bucket(self) -> int:
        """The integer part of log2 of the number of elements."""
        return max(1, self.n_elements).bit_length() - 1

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.bucket}"


def rows_class(n_elements: int, n_rows: int) -> str:
    """Return which of `ROWS` so many elements in so many rows are."""
    return next(name for name, below in ROWS.items() if n_elements < below * max(1, n_rows))


class Choice(NamedTuple):
    """A launch configuration and where it comes from.

    Attributes:
        level: the fallback level that provided it; see `lookup`.
        why: the reason, in words.
        entry: the registry entry with the measurements; None if nothing was measured.
    """

    config: AnyConfig
    level: str
    why: str
    entry: dict | None = None

    def __str__(self) -> str:
        values = ", ".join(f"{name} {value}" for name, value in asdict(self.config).items() if value != "")
        return f"{self.level}: {self.why} ({values})"
