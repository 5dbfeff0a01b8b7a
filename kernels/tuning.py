"""How the traversal is launched: block size, warps and the rest, as data, and which of them a table gets.

What was measured on a GPU lies in a file of its own (`registry`); without one the default holds. The choice is made
when a table is built, from what the files say about the likes of it, on this rung or the next:

    exact     this device, with as many elements to a factor of two
    bucket    this device, with up to four times as many, or as few
    relative  another device of the same architecture, the one whose bandwidth per multiprocessor is nearest
    default   nothing of all this was measured
"""

import functools
import itertools
import math
import re
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch

EVICTIONS = ("", "evict_first", "evict_last")
ELEMENTS_PER_THREAD = 4  # 128 bits of float32
MOST_OCTAVES = 2
MOST_PER_WARP = 1024
LIMITS = {"block_size": (32, 2**14), "num_warps": (1, 16), "blocks_per_chunk": (1, 2**10), "num_stages": (1, 4)}


@dataclass(frozen=True)
class Config:
    """How one program of the traversal works.

    Attributes:
        block_size: elements that it holds in registers at once; a power of two.
        num_warps: warps it consists of; a power of two.
        blocks_per_chunk: blocks that it walks, one after the other; a power of two.
        num_stages: how many blocks of a walk are on their way at once.
        eviction: how caches treat what is loaded and stored: one of `EVICTIONS`.
    Raises: ValueError if a value is none of these.
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
        """Elements of one program."""
        return self.block_size * self.blocks_per_chunk

    @property
    def order(self) -> tuple:
        """Sorts: fewest elements per thread first, then the smallest block, then the plainest walk."""
        elements_per_lane = self.block_size / self.num_warps
        eviction = EVICTIONS.index(self.eviction)
        return elements_per_lane, self.block_size, self.blocks_per_chunk, self.num_stages, eviction

    def elements_per_thread(self, warp_size: int) -> int:
        return max(1, self.block_size // (self.num_warps * warp_size))


GEOMETRIES = ((256, 512, 1024, 2048, 4096, 8192), (1, 2, 4, 8, 16))
"""Block sizes, and elements per thread."""
WALKS = ((1, 1, ""), (1, 1, "evict_first"), (4, 1, ""), (4, 3, ""), (16, 1, ""))
"""Blocks per chunk, stages, and how caches treat the data."""


def candidates(warp_size: int = 32) -> list[Config]:
    """What is worth compiling, and measuring, in order."""
    found = []
    for (block_size, elements), walk in itertools.product(itertools.product(*GEOMETRIES), WALKS):
        num_warps = block_size // (elements * warp_size)
        if LIMITS["num_warps"][0] <= num_warps <= LIMITS["num_warps"][1]:
            found.append(Config(block_size, num_warps, *walk))
    return sorted(found, key=lambda config: config.order)


def default(warp_size: int = 32) -> Config:
    """What a GPU of which nothing is known gets."""
    return Config(1024, 1024 // (ELEMENTS_PER_THREAD * warp_size))


def canonical(configs: list[Config]) -> Config:
    """Of configurations between which no measurement could tell: the first in order."""
    return min(configs, key=lambda config: config.order)


@dataclass(frozen=True)
class Device:
    """What is known of a GPU; 0 where it is not.

    Attributes:
        name: as its driver has it.
        arch: sm_NN or gfxNNN.
        multiprocessors: or compute units.
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
        """The name as a file's."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-") or "unnamed"

    @property
    def bandwidth_per_multiprocessor(self) -> float:
        """Of the memory's bus, up to a factor that devices of one architecture share."""
        return self.bus_bits * (self.memory_khz or 1) / (self.multiprocessors or math.inf)


@functools.cache
def device_facts(device: torch.device) -> Device:
    """Of a GPU that is present."""
    found = torch.cuda.get_device_properties(device)
    arch = getattr(found, "gcnArchName", "").split(":")[0] or f"sm_{found.major}{found.minor}"
    fields = {
        "multiprocessors": "multi_processor_count",
        "l2_bytes": "L2_cache_size",
        "memory_bytes": "total_memory",
        "bus_bits": "memory_bus_width",
        "memory_khz": "memory_clock_rate",
    }
    return Device(found.name, arch, **{field: int(getattr(found, name, 0)) for field, name in fields.items()})


class Work(NamedTuple):
    """What a launch does, as far as its speed depends on it.

    Attributes:
        rule: name of the update rule.
        dtypes: of parameters, gradients and states.
        rounding: "nearest" or "stochastic".
        aligned: whether most elements lie in rows that take the path of 128-bit accesses.
        n_elements: of all rows together.
    """

    rule: str
    dtypes: tuple[str, str, str]
    rounding: str
    aligned: bool
    n_elements: int

    @property
    def kind(self) -> str:
        """All but the size, as registry entries have it."""
        return "/".join((self.rule, *self.dtypes, self.rounding, "aligned" if self.aligned else "unaligned"))

    @property
    def bucket(self) -> int:
        """The whole part of log2 of the number of elements."""
        return max(1, self.n_elements).bit_length() - 1

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.bucket}"


class Choice(NamedTuple):
    """A configuration, the rung of the ladder that it comes from, and why."""

    config: Config
    rung: str
    why: str

    def __str__(self) -> str:
        values = ", ".join(f"{name} {value}" for name, value in asdict(self.config).items() if value != "")
        return f"{self.rung}: {self.why} ({values})"


def nearest(entries: dict, work: Work) -> tuple[int, dict] | None:
    """Of a device's entries the one of the same kind whose size is nearest; (octaves away, entry)."""
    found = []
    for key, entry in entries.items():
        kind, _, bucket = key.rpartition("/")
        if kind == work.kind and abs(int(bucket) - work.bucket) <= MOST_OCTAVES:
            found.append((abs(int(bucket) - work.bucket), int(bucket), entry))
    if not found:
        return None
    # Two as near as each other: the smaller size, which no order of entries can change.
    octaves, _, entry = min(found, key=lambda item: item[:2])
    return octaves, entry


def choose(work: Work, device: Device, files: dict[str, tuple[Device, dict]], warp_size: int = 32) -> Choice:
    """Climb down the ladder.

    Args:
        files: for each slug the device and its entries, as `registry.load` returns them.
    """
    _, own = files.get(device.slug, (device, {}))
    if found := nearest(own, work):
        octaves, entry = found
        size = "this size" if octaves == 0 else f"{octaves} octave{'s' * (octaves > 1)} from this size"
        return Choice(entry["config"], "bucket" if octaves else "exact", f"measured on {device.name} at {size}")
    relatives = []
    for slug, (other, entries) in sorted(files.items()):
        if slug != device.slug and other.arch == device.arch and (found := nearest(entries, work)):
            bandwidths = device.bandwidth_per_multiprocessor, other.bandwidth_per_multiprocessor
            apart = abs(math.log(bandwidths[0] / bandwidths[1])) if all(bandwidths) else math.inf
            relatives.append((apart, slug, other, found[1]))
    if relatives:
        _, _, other, entry = min(relatives, key=lambda item: item[:2])
        return Choice(
            entry["config"],
            "relative",
            f"nothing like it was measured on {device.name}; {other.name} is the {device.arch} whose bandwidth per "
            "multiprocessor is nearest",
        )
    return Choice(
        default(warp_size), "default", f"nothing like {work.key} was measured on {device.name} or another {device.arch}"
    )
