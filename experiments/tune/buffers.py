"""Tensors of a case, on which candidates are timed, and whose updates are compared with the eager formulas'."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch

from experiments.tune.race import LaunchCase, Skipped
from kernels import eager, rules
from kernels import table as tables
from kernels.codegen import VARIANTS
from kernels.table import Entry, Launch, Table

LANE = (784 * 128, 128, 128 * 128, 128, 128 * 10, 10)
"""Numbers of elements of the six tensors of an MNIST MLP, as each lane of a population has."""
SHORT = (64, 256, 1024, 64, 2304, 512, 128, 4096, 9, 64, 16384)
"""Numbers of elements of small tensors, repeated as needed: biases, norms and small convolutions."""
ALIGNMENT = 128
CHECKED = 18
"""Updates are compared on at most 2^18 elements."""


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


def table_of(case: LaunchCase, buffers: Buffers, chunk_size: int, piles: int = tables.N_PILES) -> Table:
    """Build the address table over one set of buffers, ready to be launched."""
    rule, (p_dtype, _, stochastic) = rules.RULES[case.rule], VARIANTS[case.dtype]
    table = tables.build(rule, buffers.entries, p_dtype, chunk_size, 0 if stochastic else None, piles)
    lanes = buffers.entries[0].lanes
    table.set_hyper([tuple(torch.full((lanes,), v, dtype=torch.float64) for v in (1.0, *rule.trial_values))])
    table.point_at(buffers.grads)
    return table


Launcher = Callable[[Table], Launch]


def outcome(case: LaunchCase, device: torch.device, chunk_size: int, launcher: Launcher) -> list[torch.Tensor]:
    """Return parameters and states after one step."""
    buffers = allocate(case, device)
    launcher(table_of(case, buffers, chunk_size))(buffers.grads, None, None)
    return [t for entry in buffers.entries for t in (entry.p, *entry.states)]


@functools.lru_cache(maxsize=1)
def expected(case: LaunchCase, device: torch.device) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return parameters and states before and after one step of the eager formulas."""
    before = [t for entry in allocate(case, device).entries for t in (entry.p, *entry.states)]
    return before, outcome(case, device, eager.CHUNK_SIZE, eager.launcher)


def check_update(case: LaunchCase, device: torch.device, chunk_size: int, launcher: Launcher) -> None:
    """Raise Skipped unless a step updates as the eager formulas do."""
    before, after = expected(case, device)
    for old, right, found in zip(before, after, outcome(case, device, chunk_size, launcher), strict=True):
        update = (right.double() - old.double()).abs().max()
        allowed = tables.TOLERANCE[old.dtype] * (right.double().abs() + update)
        if not ((found.double() - right.double()).abs() <= allowed).all():
            raise Skipped("its updates are wrong")
