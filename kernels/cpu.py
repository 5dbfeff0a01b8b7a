"""Launches of the rules' machine code on CPU tensors: a step of a table's tensors on all of torch's threads.

`launch` is its twin for the GPU. `cpu_rule` makes the code, `object_code` keeps it.
"""

import ctypes
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from kernels import lookup, object_code
from kernels import table as tables
from kernels.config import Choice, CpuConfig
from kernels.object_code import ARGUMENTS, STAGE_ARGUMENTS, Code, Shared
from kernels.rule import Rule, check_portable
from kernels.table import N_ELEMENTS, Entry, Launch, Table

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ELEMENTS_PER_THREAD = 2**14
"""Waking a thread costs about as much as the update of so many elements."""
PROCESS = os.getpid()


@functools.cache
def compile_rule(
    rule: Rule, p_dtype: torch.dtype, grad_dtype: torch.dtype, state_dtype: torch.dtype, stochastic: bool
) -> Code:
    """Return a rule's step for CPU tensors of these dtypes. It takes a second where this machine has not kept it."""
    kinds = p_dtype, grad_dtype, state_dtype, stochastic
    path = object_code.path_of(rule, *kinds)
    if path and (code := object_code.load(path, len(rule.stages))):
        return code
    # Numba takes half a second to import.
    from kernels import cpu_rule

    image, symbols = cpu_rule.object_code(rule, *kinds)
    code = object_code.link(image, symbols, len(rule.stages))
    # Functions that only Numba brings are not there in a process without it.
    if path and not symbols:
        object_code.keep(path, image)
    return code


@functools.cache
def fork_join(process: int) -> Callable[[Shared, int, int], None]:
    """Return `run(function, arguments, threads)`, by which all threads of a team do their shares.

    The threads are OpenMP's, which torch uses too. They are Python's where the process has no OpenMP with GCC's
    interface, and in a child made by fork, where OpenMP would wait for the threads of its parent.
    """
    team = object_code.exported("GOMP_parallel")
    if team and object_code.has_openmp() and process == PROCESS:
        parallel = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint, ctypes.c_uint)(team)
        return lambda function, arguments, threads: parallel(function.own_share, arguments, threads, 0)
    pool = ThreadPoolExecutor(os.cpu_count())

    def run(function: Shared, arguments: int, threads: int) -> None:
        list(pool.map(lambda share: function.share(arguments, share, threads), range(threads)))

    return run


def configuration(choice: Choice | None) -> CpuConfig:
    """Return what a choice is; where none was made, the default."""
    return choice.config if choice and isinstance(choice.config, CpuConfig) else CpuConfig()


def build(rule: Rule, entries: list[Entry], grad_dtype: torch.dtype, seed: int | None = None) -> Table:
    """`table.build` with chunks of the size that suits the processor and the work; see `lookup`."""
    choice = lookup.choose_on_cpu(tables.work_of(rule, entries, grad_dtype, seed))
    config = configuration(choice)
    table = tables.build(rule, entries, grad_dtype, config.chunk_size, seed, config.piles)
    table.choice = choice
    return table


def launcher(table: Table) -> Launch:
    """See `table.Launch`. Raises: NotImplementedError if the rule calls what this backend lacks."""
    check_portable(table.rule)
    dtypes = table.p_dtype, table.grad_dtype, table.state_dtype
    code = compile_rule(table.rule, *dtypes, table.seed is not None)
    arguments = packed(
        ARGUMENTS,
        {"n_rows": len(table.rows), "n_chunks": len(table.chunk_row), "chunk_size": table.chunk_size},
        {"seed": table.seed or 0, "grad_scale": 0},
        table,
    )
    of_stages = [
        packed(
            STAGE_ARGUMENTS,
            {"n_pieces": len(totals.partials), "n_slots": totals.n_slots},
            {"clip": None} if stage.clips else {},
            totals,
            table,
        )
        for stage, totals in zip(table.rule.stages, table.stages, strict=True)
    ]
    address, scale = arguments.ctypes.data, arguments.view(np.float64)[ARGUMENTS.index("grad_scale") :]
    n_elements = int(table.uploads.hosts[0][:, N_ELEMENTS].sum())
    most_threads = configuration(table.choice).threads or max(1, n_elements // ELEMENTS_PER_THREAD)
    skipped = False

    def share(function: Shared, address: int) -> None:
        threads = min(torch.get_num_threads(), most_threads)
        if threads > 1:
            fork_join(os.getpid())(function, address, threads)
        else:
            function.share(address, 0, 1)

    def begin(grads, grad_scale, found_inf) -> None:
        nonlocal skipped
        skipped = found_inf is not None and found_inf.item() != 0
        if not skipped:
            table.point_at(grads)
            scale[0] = 1.0 if grad_scale is None else grad_scale.item()
            code.prologue(address)

    def measure(stage: int) -> None:
        if not skipped:
            share(code.stages[stage].measure, of_stages[stage].ctypes.data)
            code.stages[stage].reduce(of_stages[stage].ctypes.data)

    def conclude(stage: int) -> None:
        if not skipped:
            code.stages[stage].finish(of_stages[stage].ctypes.data)

    def update() -> None:
        if not skipped:
            share(code.walk, address)

    return Launch(begin, update, measure, conclude, len(code.stages))


def packed(names: Sequence[str], *sources: Mapping | object) -> np.ndarray:
    """Return numbers and the addresses of tensors as int64; each name is taken from the first source that has it."""

    def find(name: str):
        for source in sources:
            if isinstance(source, Mapping):
                if name in source:
                    return source[name]
            elif hasattr(source, name):
                return getattr(source, name)
        raise KeyError(name)

    found = map(find, names)
    return np.array([x.data_ptr() if isinstance(x, torch.Tensor) else x or 0 for x in found], dtype=np.int64)
