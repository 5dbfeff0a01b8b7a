"""Launches of the rules' machine code on CPU tensors: a step of a table's tensors on all of torch's threads.

`launch` is its twin for the GPU. `cpu_rule` makes the code, `object_code` keeps it.
"""

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from kernels import lookup, object_code
from kernels import table as tables
from kernels.config import Choice, CpuConfig
from kernels.object_code import ARGUMENTS, Code
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
    if path and (code := object_code.load(path)):
        return code
    # Numba takes half a second to import.
    from kernels import cpu_rule

    image, symbols = cpu_rule.object_code(rule, *kinds)
    code = object_code.link(image, symbols)
    # Functions that only Numba brings are not there in a process without it.
    if path and not symbols:
        object_code.keep(path, image)
    return code


@functools.cache
def fork_join(process: int) -> Callable[[Code, int, int], None]:
    """Return `run(code, arguments, threads)`, by which all threads of a team walk their shares of the chunks.

    The threads are OpenMP's, which torch uses too. They are Python's where the process has no OpenMP with GCC's
    interface, and in a child made by fork, where OpenMP would wait for the threads of its parent.
    """
    team = object_code.exported("GOMP_parallel")
    if team and object_code.has_openmp() and process == PROCESS:
        parallel = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint, ctypes.c_uint)(team)
        return lambda code, arguments, threads: parallel(code.walk_own_share, arguments, threads, 0)
    pool = ThreadPoolExecutor(os.cpu_count())

    def run(code: Code, arguments: int, threads: int) -> None:
        list(pool.map(lambda share: code.walk(arguments, share, threads), range(threads)))

    return run


def configuration(choice: Choice | None) -> CpuConfig:
    """Return what a choice is; where none was made, the default."""
    return choice.config if choice and isinstance(choice.config, CpuConfig) else CpuConfig()


def build(rule: Rule, entries: list[Entry], grad_dtype: torch.dtype, seed: int | None = None) -> Table:
    """`table.build` with chunks of the size that suits the processor and the work; see `lookup`."""
    choice = lookup.choose(tables.work_of(rule, entries, grad_dtype, seed), torch.device("cpu"))
    config = configuration(choice)
    table = tables.build(rule, entries, grad_dtype, config.chunk_size, seed, config.piles)
    table.choice = choice
    return table


def launcher(table: Table) -> Launch:
    """See `table.Launch`. Raises: NotImplementedError if the rule calls what this backend lacks."""
    check_portable(table.rule)
    dtypes = table.p_dtype, table.grad_dtype, table.state_dtype
    code = compile_rule(table.rule, *dtypes, table.seed is not None)
    numbers = {
        **{"n_rows": len(table.rows), "n_chunks": len(table.chunk_row), "chunk_size": table.chunk_size},
        **{"seed": table.seed or 0, "grad_scale": 0},
    }
    arguments = np.array(
        [numbers[name] if name in numbers else getattr(table, name).data_ptr() for name in ARGUMENTS], dtype=np.int64
    )
    address, scale = arguments.ctypes.data, arguments.view(np.float64)[ARGUMENTS.index("grad_scale") :]
    n_elements = int(table.uploads.hosts[0][:, N_ELEMENTS].sum())
    most_threads = configuration(table.choice).threads or max(1, n_elements // ELEMENTS_PER_THREAD)

    def launch(grads, grad_scale, found_inf) -> None:
        if found_inf is not None and found_inf.item() != 0:
            return
        table.point_at(grads)
        scale[0] = 1.0 if grad_scale is None else grad_scale.item()
        threads = min(torch.get_num_threads(), most_threads)
        code.prologue(address)
        if threads > 1:
            fork_join(os.getpid())(code, address, threads)
        else:
            code.walk(address, 0, 1)

    return launch
