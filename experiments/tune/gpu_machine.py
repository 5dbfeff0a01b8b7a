"""Race configurations on a GPU: allocate buffers, check each kernel's result, then time CUDA graphs between events."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from triton.runtime.errors import OutOfResources

from experiments.bench import gpu_info, gpu_timing
from experiments.tune import static_analysis
from experiments.tune.race import LaunchCase, Machine, Skipped
from kernels import eager, launch, rules
from kernels import table as tables
from kernels.codegen import VARIANTS
from kernels.config import Choice, Config, device_facts
from kernels.table import Entry, Table

LANE = (784 * 128, 128, 128 * 128, 128, 128 * 10, 10)
"""Numbers of elements of the six tensors of an MNIST MLP, as each lane of a population has."""
SHORT = (64, 256, 1024, 64, 2304, 512, 128, 4096, 9, 64, 16384)
"""Numbers of elements of small tensors, repeated as needed: biases, norms and small convolutions."""
ALIGNMENT = 128
CHECKED = 18
"""Updates are compared on at most 2^18 elements."""
HOST_SECONDS, HOST_SECONDS_OF_NODE = 100e-6, 2e-6
"""Upper bounds on the host's time to launch a graph, and on the time for each of its kernels."""
COPY_ROUNDS = 20


class Buffers(NamedTuple):
    """The tensors that one step reads and writes."""

    entries: list[Entry]
    grads: list[torch.Tensor]


def shapes(rows: str, bucket: int) -> list[tuple[int, int]]:
    """Return (lanes, elements of a lane) of each tensor; together they have 2^bucket elements or slightly more."""
    n = 2**bucket
    if rows == "long":
        return [(1, n)]
    if rows == "medium":
        return [(-(-n // sum(LANE)), size) for size in LANE]
    found, total = [], 0
    while total < n:
        size = min(SHORT[len(found) % len(SHORT)], n - total)
        found.append((1, size))
        total += size
    return found


def allocate(case: LaunchCase, device: torch.device, seed: int = 0) -> Buffers:
    """Allocate random tensors of a case, shifted by one element if it is not aligned; a seed gives the same values."""
    rule, (p_dtype, state_dtype, _) = rules.RULES[case.rule], VARIANTS[case.dtype]
    sizes = shapes(case.rows, case.bucket)
    generator = torch.Generator(device).manual_seed(seed)
    padded = [-(-lanes * size // ALIGNMENT) * ALIGNMENT for lanes, size in sizes]

    def views(dtype: torch.dtype, low: float, high: float = 1) -> list[torch.Tensor]:
        flat = torch.empty(sum(padded) + ALIGNMENT, dtype=dtype, device=device)
        flat.uniform_(low, high, generator=generator)
        start, found = 0 if case.aligned else 1, []
        for (lanes, size), space in zip(sizes, padded, strict=True):
            found.append(flat[start : start + lanes * size].view(lanes, size))
            start += space
        return found

    params, grads = views(p_dtype, -1), views(p_dtype, -1)
    # Far enough from 0 that dividing by a root keeps updates small, and no state exceeds the root of another.
    states = [views(state_dtype, 0.25, 0.5) for _ in rule.states]
    entries = []
    for i, (p, (lanes, _)) in enumerate(zip(params, sizes, strict=True)):
        scalars = tuple(torch.full((lanes,), 0.5, device=device) for _ in rule.scalars)
        step = torch.full((lanes,), 3.0, device=device)
        entries.append(Entry(p, tuple(state[i] for state in states), step, scalars, lanes=lanes, parameter=i))
    return Buffers(entries, grads)


def table_of(case: LaunchCase, buffers: Buffers, chunk_size: int) -> Table:
    """Build the address table over one set of buffers, ready to be launched."""
    rule, (p_dtype, _, stochastic) = rules.RULES[case.rule], VARIANTS[case.dtype]
    table = tables.build(rule, buffers.entries, p_dtype, chunk_size, seed=0 if stochastic else None)
    lanes = buffers.entries[0].lanes
    table.set_hyper([tuple(torch.full((lanes,), v, dtype=torch.float64) for v in (1.0, *rule.trial_values))])
    table.point_at(buffers.grads)
    return table


def outcome(case: LaunchCase, device: torch.device, config: Config | None) -> list[torch.Tensor]:
    """Return parameters and states after one step: of the eager formulas if config is None, else of the kernel."""
    buffers = allocate(case, device)
    table = table_of(case, buffers, config.chunk_size if config else eager.CHUNK_SIZE)
    if config:
        launch.launcher(replace(table, choice=Choice(config, "search", "a candidate")))(buffers.grads, None, None)
    else:
        eager.launcher(table)(buffers.grads, None, None)
    return [t for entry in buffers.entries for t in (entry.p, *entry.states)]


@functools.lru_cache(maxsize=1)
def expected(case: LaunchCase, device: torch.device) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return parameters and states before and after one step of the eager formulas."""
    before = [t for entry in allocate(case, device).entries for t in (entry.p, *entry.states)]
    return before, outcome(case, device, None)


@functools.cache
def check_update(case: LaunchCase, device: torch.device, config: Config) -> None:
    """Raise Skipped unless the kernel, launched with this configuration, updates as the eager formulas do."""
    before, after = expected(case, device)
    for old, right, found in zip(before, after, outcome(case, device, config), strict=True):
        update = (right.double() - old.double()).abs().max()
        allowed = tables.TOLERANCE[old.dtype] * (right.double().abs() + update)
        if not ((found.double() - right.double()).abs() <= allowed).all():
            raise Skipped("its updates are wrong")


def sampler(case: LaunchCase, device: torch.device) -> tuple[int, Callable[[Config], float]]:
    """Return the sampler of `race.Machine`: one graph updates all sets of buffers, which exceed four times the L2."""
    n_elements = sum(lanes * size for lanes, size in shapes(case.rows, case.bucket))
    n_bytes = n_elements * case.bytes_per_element
    try:
        sets = [allocate(case, device, seed) for seed in range(gpu_timing.n_sets(n_bytes, device))]
    except torch.OutOfMemoryError:
        raise MemoryError(f"{n_bytes / 1e9:.1f} GB do not fit into the memory that is free") from None

    @functools.cache
    def tables_of(chunk_size: int) -> list[Table]:
        return [table_of(case, buffers, chunk_size) for buffers in sets]

    @functools.cache
    def replay_of(config: Config) -> Callable[[], None]:
        check_update(case._replace(bucket=min(case.bucket, CHECKED)), device, config)
        choice = Choice(config, "search", "a candidate")
        launches = [launch.launcher(replace(table, choice=choice)) for table in tables_of(config.chunk_size)]
        calls = [
            functools.partial(step, buffers.grads, None, None) for step, buffers in zip(launches, sets, strict=True)
        ]
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
    )
