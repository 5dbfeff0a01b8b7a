"""Race configurations on a GPU: check each kernel's result, then time CUDA graphs between events."""

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
import triton
from triton.runtime.errors import OutOfResources

from experiments.bench import gpu_info, gpu_timing
from experiments.tune import buffers, static_analysis
from experiments.tune.race import LaunchCase, Machine, Skipped
from kernels import launch
from kernels.config import Choice, Config, default, device_facts
from kernels.table import Launch, Table

HOST_SECONDS, HOST_SECONDS_OF_NODE = 100e-6, 2e-6
"""Upper bounds on the host's time to launch a graph, and on the time for each of its kernels."""
COPY_ROUNDS = 20


def launcher(table: Table, config: Config) -> Launch:
    return launch.launcher(replace(table, choice=Choice(config, "search", "a candidate")))


@functools.cache
def check_update(case: LaunchCase, device: torch.device, config: Config) -> None:
    """Raise Skipped unless the kernel, launched with this configuration, updates as the eager formulas do."""
    buffers.check_update(case, device, config.chunk_size, functools.partial(launcher, config=config))


def sampler(case: LaunchCase, device: torch.device) -> tuple[int, Callable[[Config], float]]:
    """Return the sampler of `race.Machine`: one graph updates all sets of buffers, which exceed four times the L2."""
    n_elements = sum(lanes * size for lanes, size in buffers.shapes(case.rows, case.bucket))
    n_bytes = n_elements * case.bytes_per_element
    try:
        sets = [buffers.allocate(case, device, seed) for seed in range(gpu_timing.n_sets(n_bytes, device))]
    except torch.OutOfMemoryError:
        raise MemoryError(f"{n_bytes / 1e9:.1f} GB do not fit into the memory that is free") from None

    @functools.cache
    def tables_of(chunk_size: int) -> list[Table]:
        return [buffers.table_of(case, one, chunk_size) for one in sets]

    @functools.cache
    def replay_of(config: Config) -> Callable[[], None]:
        check_update(case._replace(bucket=min(case.bucket, buffers.CHECKED)), device, config)
        launches = [launcher(table, config) for table in tables_of(config.chunk_size)]
        calls = [functools.partial(step, one.grads, None, None) for step, one in zip(launches, sets, strict=True)]
        return gpu_timing.graph_of(calls, device)

    def sample(config: Config) -> float:
        try:
            replay = replay_of(config)
        except torch.OutOfMemoryError:
            raise Skipped("out of memory") from None
        except OutOfResources as error:
            raise Skipped(str(error)) from None
        # A step launches two kernels.
        host_seconds = HOST_SECONDS + 2 * len(sets) * HOST_SECONDS_OF_NODE
        seconds = gpu_timing.queued_seconds([replay], device, host_seconds)
        return (gpu_timing.event_seconds(replay, device) if seconds is None else seconds) / len(sets)

    return n_elements, sample


def copy_seconds(n_bytes: int, device: torch.device) -> float:
    """Return the seconds of a copy that reads and writes n_bytes altogether. Raises: MemoryError."""
    try:
        return n_bytes / gpu_timing.copy_bandwidth(device, n_bytes, COPY_ROUNDS)[0]
    except torch.OutOfMemoryError:
        raise MemoryError(f"a copy of {n_bytes / 1e9:.1f} GB does not fit into the memory that is left") from None


def machine(device: torch.device) -> Machine:
    """Return a machine that measures on a GPU."""
    facts = device_facts(device)
    return Machine(
        facts=facts,
        candidates=functools.cache(functools.partial(static_analysis.sift, target=facts.arch)),
        sampler=functools.partial(sampler, device=device),
        copy_seconds=functools.partial(copy_seconds, device=device),
        state=lambda: gpu_info.state(device),
        default=default(facts.warp_size),
        compiler={"triton": triton.__version__},
    )
