"""Comparison of a compiled step, simulated, with the rule's eager formulas."""

import math
from typing import NamedTuple

import torch

from kernels import codegen, eager
from kernels import table as tables
from kernels.config import Config, default
from kernels.pieces import PIECE
from kernels.rule import Rule
from kernels.simulator import backend
from kernels.table import Entry, Launch, Table

ALIGNMENT = 16


class Trial(NamedTuple):
    """The result of a comparison.

    Attributes:
        elements: the number of elements that the step updated.
        deviation: the largest deviation, divided by the tolerance.
        left_out: whether a step that found an infinity changed nothing.
    """

    elements: int
    deviation: float
    left_out: bool

    @property
    def passed(self) -> bool:
        return self.deviation <= 1 and self.left_out


def sizes(rule: Rule, config: Config) -> list[tuple[int, int, int]]:
    """Return (lanes, elements per lane, misalignment in elements) for whole and partial chunks, blocks and pieces."""
    block, chunk = config.block_size, config.chunk_size
    if rule.stages:
        # Sums over lanes want as many lanes in every tensor.
        return [(3, chunk + 2 * PIECE + 16, 0), (3, PIECE + 3, 1), (3, 48, 0), (3, 41, 1), (3, 1, 1), (3, 0, 0)]
    return [(1, 2 * chunk + block + 3, 0), (1, chunk + 3, 1), (3, 48, 0), (3, 41, 1), (1, 1, 1), (1, 0, 0)]


def entries(rule: Rule, dtype: str, config: Config) -> tuple[list[Entry], list[torch.Tensor]]:
    """Return entries that steps change much, and gradients, of which one element is infinite and one NaN."""
    p_dtype, state_dtype, _ = codegen.VARIANTS[dtype]
    generator = torch.Generator().manual_seed(0)

    def tensor(lanes: int, n: int, off: int, dtype: torch.dtype, low: float, high: float) -> torch.Tensor:
        flat = torch.empty(lanes * n + ALIGNMENT, dtype=dtype).uniform_(low, high, generator=generator)
        start = (-flat.data_ptr() % ALIGNMENT) // dtype.itemsize + off
        return flat[start : start + lanes * n].view(lanes, n)

    made, grads = [], []
    for i, (count, n, off) in enumerate(sizes(rule, config)):
        states = tuple(tensor(count, n, off, state_dtype, 0.25, 0.5) for _ in rule.states)
        scalars = tuple(torch.full((count,), 0.5) for _ in rule.scalars)
        step = torch.arange(3.0, 3.0 + count)
        made.append(Entry(tensor(count, n, off, p_dtype, -1, 1), states, step, scalars, count, group=i, parameter=i))
        grads.append(tensor(count, n, off, p_dtype, -1, 1))
    # In the last lane alone: totals over it are NaN then.
    grads[1][-1, 1], grads[1][-1, 2] = math.nan, math.inf
    return made, grads


def values(made: list[Entry]) -> list[torch.Tensor]:
    return [t for entry in made for t in entry.tensors]


def table_of(rule: Rule, dtype: str, made: list[Entry], chunk_size: int) -> Table:
    p_dtype, _, stochastic = codegen.VARIANTS[dtype]
    table = tables.build(rule, made, p_dtype, chunk_size, seed=7 if stochastic else None)
    rows = []
    for entry in made:
        # Each lane has values of its own.
        factor = torch.linspace(1.0, 0.5, entry.lanes, dtype=torch.float64)
        rows.append((1.0, *(value * factor for value in rule.trial_values)))
    table.set_hyper(rows)
    return table


def steps(launch: Launch, grads: list[torch.Tensor], made: list[Entry]) -> list[list[torch.Tensor]]:
    """Take two steps, the second with a gradient scale; return the values before them and after each."""
    seen = [[t.clone() for t in values(made)]]
    for scale in (None, torch.full((1,), 2.0)):
        launch(grads, scale, torch.zeros(1))
        seen.append([t.clone() for t in values(made)])
    return seen


def compare(rule: Rule, target: str, dtype: str = "float32", config: Config | None = None) -> Trial:
    """Take steps on tensors of various alignments, lengths and lanes, and compare everything that they update.

    Args:
        target: sm_NN or gfx9NN.
        dtype: one of `codegen.VARIANTS`.
        config: the default configuration if None.
    Raises: `Fault` for what a GPU would trap or get wrong; NotImplementedError for what cannot be simulated.
    """
    config = config or default(codegen.parse_target(target).warp_size)
    (wanted, grads), (found, _) = (entries(rule, dtype, config) for _ in range(2))
    eager_launch = eager.launcher(table_of(rule, dtype, wanted, eager.CHUNK_SIZE))
    launch = backend.launcher(table_of(rule, dtype, found, config.chunk_size), target, config)
    before, *rights = steps(eager_launch, grads, wanted)
    _, *gots = steps(launch, grads, found)
    deviation = 0.0
    for right, got in zip(rights, gots, strict=True):
        for old, r, g in zip(before, right, got, strict=True):
            if not r.numel():
                continue
            r, g, update = r.double(), g.double(), (r.double() - old.double()).abs().nan_to_num(0, 0, 0).max()
            # A value that is NaN or infinite in one result alone deviates infinitely.
            off = ((g - r).abs() / (tables.TOLERANCE[old.dtype] * (r.abs() + update))).nan_to_num(math.inf)
            off = off.where((r != g) & ~(r.isnan() & g.isnan()), 0.0)
            deviation = max(deviation, off.max().item())
        before = right
    launch(grads, None, torch.ones(1))
    kept = all(same_bits(a, b) for a, b in zip(gots[-1], values(found), strict=True))
    return Trial(sum(entry.p.numel() for entry in found), deviation, kept)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
