"""Plan a comparison: which implementations fit into memory, and how many sets of tensors they rotate among."""

import gc
import math
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from experiments.bench import gpu_timing, implementations, networks
from experiments.bench.implementations import IMPLEMENTATIONS, OptimizerCase

FLOAT32 = "ours, all float32"
"""The contender that 16-bit parameters are compared with: ours with parameters and states in float32."""

ADAMW = "our AdamW"
"""The contender that optimizers which torch lacks are compared with."""

MOST_COPY = 2**32
GPU_RESERVE = 2**30


class NotEnoughMemory(Exception):
    """Too little memory is free for what is to be timed."""


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Group(NamedTuple):
    """An optimizer and the shapes of its parameters, over which all implementations are timed together."""

    case: OptimizerCase
    size: str
    shapes: list[networks.Shape]

    @property
    def n_elements(self) -> list[int]:
        return [math.prod(shape) for shape in self.shapes]

    def __str__(self) -> str:
        return f"{self.case.label} {dtype_name(self.case.dtype)} {self.size}"


def footprint(name: str, case: OptimizerCase, n_elements: list[int]) -> float:
    """Return the bytes of parameters, gradients and states."""
    n_states, state_bytes = case.n_states, IMPLEMENTATIONS[name].state_bytes
    return sum(n * (2 * case.dtype.itemsize + n_states * state_bytes(case.dtype, n)) for n in n_elements)


def free_bytes(device: torch.device) -> int:
    """Return the bytes that can be allocated, after everything unused has been freed."""
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
    """A contender to be made: its label, the name of its implementation, and the optimizer."""

    label: str
    implementation: str
    case: OptimizerCase


def needed_bytes(wanted: list[Wanted], n_elements: list[int], sets: int) -> float:
    """Return the bytes that all contenders and the copy need; contenders of a dtype share parameters and gradients."""
    n, needed = sum(n_elements), min(MOST_COPY, largest(wanted, n_elements)) * sets
    needed += sum(2 * sets * n * itemsize for itemsize in {contender.case.dtype.itemsize for contender in wanted})
    for _, name, case in wanted:
        tensors = 2 * n * case.dtype.itemsize
        needed += sets * (footprint(name, case, n_elements) - tensors)
        needed += IMPLEMENTATIONS[name].scratch * n * case.dtype.itemsize
    return needed


def largest(wanted: list[Wanted], n_elements: list[int]) -> float:
    return max(implementations.step_bytes(name, case, n_elements) for _, name, case in wanted)


def plan(group: Group, names: list[str], device: torch.device, compile: bool) -> tuple[list[Wanted], int, dict]:
    """Choose the contenders of a comparison.

    Returns: the contenders, the number of sets of tensors that each step rotates among, and for each implementation
        that is left out the reason.
    Raises: NotEnoughMemory if not even two contenders fit into memory.
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
        if name == "ours" and not hasattr(torch.optim, case.name):
            wanted.append(Wanted(ADAMW, name, OptimizerCase("AdamW", {}, case.dtype)))
    sets = max(
        (gpu_timing.n_sets(int(footprint(name, case, n_elements)), device) for _, name, case in wanted), default=1
    )
    compiling = [contender for contender in wanted if IMPLEMENTATIONS[contender.implementation].compiles]
    for contender in compiling if sets > 1 else []:
        # The step would be compiled once for each set.
        left_out[contender.label] = f"only over sizes of which one set exceeds {gpu_timing.L2_MULTIPLE} times the L2"
        wanted.remove(contender)
    free = free_bytes(device)
    while wanted and needed_bytes(wanted, n_elements, sets) > free:
        needed = needed_bytes(wanted, n_elements, sets)
        if len(wanted) <= 2:
            raise NotEnoughMemory(f"needs {needed / 2**30:.3g} GiB, and {free / 2**30:.3g} GiB are free")
        left_out[wanted.pop().label] = f"memory: with it {needed / 2**30:.3g} GiB, {free / 2**30:.3g} GiB are free"
    return wanted, sets, left_out
