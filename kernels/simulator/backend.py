"""The backend that simulates the launches of a step, compiled for a GPU that need not be present: slow, never timed."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch

from kernels import codegen, codes, multi_tensor
from kernels import table as tables
from kernels.config import Config, Dtypes, default
from kernels.rule import Rule
from kernels.simulator.program import Program
from kernels.table import Launch, Table


def program(compiled, warp_size: int) -> Program:
    """Return the simulated program of a kernel from `codegen.compile_kernel`."""
    metadata = compiled.metadata
    n_threads = metadata.num_warps * warp_size
    return Program(compiled.asm["llir"], n_threads=n_threads, n_shared=metadata.shared, warp_size=warp_size)


@functools.cache
def programs(rule: Rule, target: str, dtypes: Dtypes, stochastic: bool, config: Config) -> tuple[Program, Program]:
    """Compile the prologue and the traversal of a rule."""
    warp_size = codegen.parse_target(target).warp_size
    traversal = codegen.traversal(rule, target, dtypes, stochastic, config)
    return program(codegen.prologue(rule, target), warp_size), program(traversal, warp_size)


@functools.cache
def sums_program(rule: Rule, stage: int, target: str, dtypes: Dtypes) -> Program:
    """Compile the kernel that adds up the terms of a stage."""
    return program(codegen.sums(rule, stage, target, dtypes), codegen.parse_target(target).warp_size)


@functools.cache
def totals_program(rule: Rule, stage: int, target: str, reduce: bool, finish: bool) -> Program:
    """Compile the kernel that makes totals of a stage's sums of pieces."""
    compiled = codegen.totals(rule, stage, target, reduce, finish)
    return program(compiled, codegen.parse_target(target).warp_size)


def launcher(table: Table, target: str, config: Config | None = None) -> Launch:
    """Return the `Launch` of a table of CPU tensors that simulates what `launch.launcher` does on a GPU.

    Args:
        table: its chunks have the size of the configuration.
        target: sm_NN or gfx9NN.
        config: the default configuration if None.
    Raises: ValueError for an unknown target, or for chunks of another size. A launch raises `Fault` for what a GPU
        would trap or get wrong.
    """
    config = config or default(codegen.parse_target(target).warp_size)
    table.check_config(config)
    rule, dtypes = table.rule, (table.p_dtype, table.grad_dtype, table.state_dtype)
    prologue, traversal = programs(rule, target, dtypes, table.seed is not None, config)
    n_rows, n_chunks = len(table.rows), len(table.chunk_row)
    one, zero = torch.ones(1), torch.zeros(1)
    scalars = [t for entry in table.entries for t in entry.scalars]
    counts = [*scalars, *(entry.step for entry in table.entries)]
    updated = [t for entry in table.entries for t in (entry.p, *entry.states, *entry.scales)]
    gradients = []

    def begin(grads, grad_scale, found_inf) -> None:
        table.point_at(grads)
        gradients[:] = grads
        scaler = one if grad_scale is None else grad_scale, zero if found_inf is None else found_inf
        prologue.launch(
            -(-n_rows // multi_tensor.PROLOGUE_BLOCK_SIZE),
            (table.rows, table.hyper, table.coefficients, table.keys, *scaler, n_rows, table.seed or 0),
            read=(table.rows, table.hyper, *scaler),
            written=(table.coefficients, table.keys, *counts),
        )

    def update() -> None:
        if n_chunks:
            pointers = table.rows, table.chunk_row, table.chunk_index, table.coefficients, table.keys
            last = table.scales if dtypes[2] == codes.DTYPE else table.values
            arguments = given(*pointers, table.clip, last)
            traversal.launch(n_chunks, arguments, read=(*arguments, *gradients), written=updated)

    def measure(stage: int) -> None:
        totals = table.stages[stage]
        if len(totals.partials):
            pointers = table.rows, totals.piece_row, totals.piece_index, table.coefficients
            read = given(*pointers, table.clip if stage else None)
            sums_program(rule, stage, target, dtypes).launch(
                len(totals.partials),
                (*read, totals.partials),
                read=(*read, *gradients, *updated),
                written=[totals.partials],
            )
        if totals.combined:
            reduce_and_finish(stage, reduce=True, finish=False)

    def conclude(stage: int) -> None:
        reduce_and_finish(stage, reduce=not table.stages[stage].combined, finish=True)

    def reduce_and_finish(stage: int, reduce: bool, finish: bool) -> None:
        totals = table.stages[stage]
        read = table.rows, table.hyper, table.coefficients, totals.first_piece, totals.slot_rows, totals.first_row
        written = [totals.totals] if reduce else []
        written += [totals.values, *scalars] if finish else []
        totals_program(rule, stage, target, reduce, finish).launch(
            totals.n_slots,
            (*read, totals.partials, totals.totals, totals.values),
            read=(*read, totals.partials, totals.totals),
            written=written,
        )

    return Launch(begin, update, measure, conclude, len(rule.stages))


def given(*arguments: torch.Tensor | None) -> list[torch.Tensor]:
    """Return the arguments that a compiled kernel has: those that are None it has not."""
    return [argument for argument in arguments if argument is not None]


class Backend(NamedTuple):
    """The interface of a backend, the same as that of the module `launch`."""

    DTYPES: tuple
    build: Callable
    launcher: Callable


@functools.cache
def for_target(target: str) -> Backend:
    """Return the backend `compiled:TARGET`. Raises: ValueError for an unknown target."""
    chunk_size = default(codegen.parse_target(target).warp_size).chunk_size

    def build(rule, entries, grad_dtype, seed=None) -> Table:
        return tables.build(rule, entries, grad_dtype, chunk_size, seed)

    return Backend(multi_tensor.DTYPES, build, functools.partial(launcher, target=target))
