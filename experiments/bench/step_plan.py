"""What fits: which implementations are timed over which tensors, and how many sets of them."""

import gc
import math
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from experiments.bench import gpu_timing, implementations, networks
from experiments.bench.implementations import IMPLEMENTATIONS, Case

FLOAT32 = "ours, all float32"
"""The side that 16-bit parameters are compared with: the same elements in float32, states too."""

MOST_COPY = 2**32
GPU_RESERVE = 2**30


class TooLarge(Exception):
    """What is to be timed does not fit into memory."""


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Group(NamedTuple):
    """What is timed together: a case over tensors of some shapes."""

    case: Case
    size: str
    shapes: list[networks.Shape]

    @property
    def n_elements(self) -> list[int]:
        return [math.prod(shape) for shape in self.shapes]

    def __str__(self) -> str:
        return f"{self.case.label} {dtype_name(self.case.dtype)} {self.size}"


def footprint(name: str, case: Case, n_elements: list[int]) -> float:
    """Bytes of parameters, gradients and states."""
    n_states, state_bytes = case.n_states, IMPLEMENTATIONS[name].state_bytes
    return sum(n * (2 * case.dtype.itemsize + n_states * state_bytes(case.dtype, n)) for n in n_elements)


def free_bytes(device: torch.device) -> int:
    """Memory that can be allocated, after everything unused has been given back."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0] - GPU_RESERVE
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return sys.maxsize
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), sys.maxsize)


class Wanted(NamedTuple):
    """A side that is to be made: what it is called, whose implementation it is, and of what case."""

    label: str
    implementation: str
    case: Case


def needed_bytes(wanted: list[Wanted], n_elements: list[int], sets: int) -> float:
    """Memory of all sides together, with the copy, which share parameters and gradients of one dtype."""
    n, needed = sum(n_elements), min(MOST_COPY, largest(wanted, n_elements)) * sets
    needed += sum(2 * sets * n * itemsize for itemsize in {side.case.dtype.itemsize for side in wanted})
    for _, name, case in wanted:
        tensors = 2 * n * case.dtype.itemsize
        needed += sets * (footprint(name, case, n_elements) - tensors)
        needed += IMPLEMENTATIONS[name].scratch * n * case.dtype.itemsize
    return needed


def largest(wanted: list[Wanted], n_elements: list[int]) -> float:
    return max(implementations.step_bytes(name, case, n_elements) for _, name, case in wanted)


def plan(group: Group, names: list[str], device: torch.device, compile: bool) -> tuple[list[Wanted], int, dict]:
    """Which sides are to be made, over how many sets of tensors; and why others are not, by implementation.

    Raises: TooLarge if not even two sides fit into memory.
    """
    case, n_elements = group.case, group.n_elements
    wanted, left_out = [], {}
    for name in names:
        if reason := implementations.missing(name, case, device, compile):
            left_out[name] = reason
        else:
            wanted.append(Wanted(name, name, case))
        if name == "ours" and case.dtype.itemsize == 2:
            wanted.append(Wanted(FLOAT32, name, case._replace(dtype=torch.float32)))
    sets = max(
        (gpu_timing.n_sets(int(footprint(name, case, n_elements)), device) for _, name, case in wanted), default=1
    )
    for side in [side for side in wanted if sets > 1 and IMPLEMENTATIONS[side.implementation].compiles]:
        # Each set would be compiled for.
        left_out[side.label] = f"only over sizes of which one set exceeds {gpu_timing.L2_MULTIPLE} times the L2"
        wanted.remove(side)
    free = free_bytes(device)
    while wanted and needed_bytes(wanted, n_elements, sets) > free:
        needed = needed_bytes(wanted, n_elements, sets)
        if len(wanted) <= 2:
            raise TooLarge(f"needs {needed / 2**30:.3g} GiB, and {free / 2**30:.3g} GiB are free")
        left_out[wanted.pop().label] = f"memory: with it {needed / 2**30:.3g} GiB, {free / 2**30:.3g} GiB are free"
    return wanted, sets, left_out
