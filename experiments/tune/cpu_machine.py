"""Race configurations on the CPU: compare each one's update, then time whole launches as they are."""

import functools
import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import torch

from experiments.bench.step_plan import free_bytes
from experiments.tune import buffers
from experiments.tune.race import LaunchCase, Machine
from kernels import cpu, object_code, rules
from kernels.codegen import VARIANTS
from kernels.config import Choice, CpuConfig, cpu_candidates, device_facts
from kernels.table import Launch, Table

CPU = torch.device("cpu")
COPY_ROUNDS = 20


def candidates(rule: str, dtype: str) -> tuple[dict[CpuConfig, str], dict[CpuConfig, str]]:
    """Return the candidates, all with the key of the code that they call, and none that is left out."""
    p_dtype, state_dtype, stochastic = VARIANTS[dtype]
    kept_at = object_code.path_of(rules.RULES[rule], p_dtype, p_dtype, state_dtype, stochastic)
    digest = kept_at.stem.rpartition("-")[2] if kept_at else ""
    return dict.fromkeys(cpu_candidates(torch.get_num_threads()), digest), {}


def launcher(table: Table, config: CpuConfig) -> Launch:
    table.choice = Choice(config, "search", "a candidate")
    return cpu.launcher(table)


def check_memory(n_bytes: int) -> None:
    if n_bytes > free_bytes(CPU):
        raise MemoryError(f"{n_bytes / 1e9:.1f} GB do not fit into the memory that is free")


def sampler(case: LaunchCase) -> tuple[int, Callable[[CpuConfig], float]]:
    """Return the sampler of `race.Machine`: one set of buffers, which small cases find in the caches again."""
    n_elements = sum(lanes * size for lanes, size in buffers.shapes(case.rows, case.bucket))
    check_memory(n_elements * case.bytes_per_element)
    one = buffers.allocate(case, CPU)

    @functools.cache
    def step_of(config: CpuConfig) -> Launch:
        small = case._replace(bucket=min(case.bucket, buffers.CHECKED))
        buffers.check_update(small, CPU, config.chunk_size, functools.partial(launcher, config=config))
        return launcher(buffers.table_of(case, one, config.chunk_size, config.piles), config)

    def sample(config: CpuConfig) -> float:
        step = step_of(config)
        started = time.perf_counter()
        step(one.grads, None, None)
        return time.perf_counter() - started

    return n_elements, sample


def copy_seconds(n_bytes: int) -> float:
    """Return the median seconds of a copy that reads and writes n_bytes altogether. Raises: MemoryError."""
    check_memory(n_bytes)
    source = torch.rand(max(1, n_bytes // 2 // torch.float32.itemsize))
    target, seconds = torch.empty_like(source), []
    for _ in range(COPY_ROUNDS):
        started = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


def machine() -> Machine:
    """Return a machine that measures on this CPU, with as many threads as torch has."""
    return Machine(
        facts=device_facts(CPU),
        candidates=candidates,
        sampler=sampler,
        copy_seconds=copy_seconds,
        state=dict,
        default=CpuConfig(),
        compiler={"numba": version("numba")},
    )
