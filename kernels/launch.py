"""The backend that launches the Triton kernels, in the configuration that suits the work."""

import contextlib
import functools
import subprocess
from typing import Any

import torch
import triton
from triton.compiler.compiler import max_shared_mem

from kernels import codegen, codes, compressed_kernel, lookup, registry
from kernels import table as tables
from kernels.config import Choice, Config, Work
from kernels.multi_tensor import (
    DTYPES,
    PROLOGUE_BLOCK_SIZE,
    multi_tensor_kernel,
    prologue_constants,
    prologue_kernel,
    update_constants,
)
from kernels.rule import Rule
from kernels.table import Entry, Launch, Table

__all__ = ["DTYPES", "build", "launcher"]


def fits(config: Config, work: Work, n_states: int, device: torch.device) -> bool:
    """Return whether the blocks in flight fit into the device's shared memory, and blocks of codes into them."""
    if work.dtypes[2] == "int8" and config.block_size < codes.BLOCK:
        return False
    if config.num_stages == 1 or device.type != "cuda":
        return True
    p_bytes, grad_bytes, state_bytes = (getattr(torch, name).itemsize for name in work.dtypes)
    needed = config.num_stages * config.block_size * (p_bytes + grad_bytes + n_states * state_bytes)
    return needed <= shared_bytes(device.index or 0)


def shared_bytes(index: int) -> int:
    """Return the shared memory of a program on a GPU, at most, in bytes."""
    return max_shared_mem(index)


def build(rule: Rule, entries: list[Entry], grad_dtype: torch.dtype, seed: int | None = None) -> Table:
    """Build a table with chunks of the size that suits device and work; see `lookup`, `table.build`."""
    device, work = entries[0].p.device, tables.work_of(rule, entries, grad_dtype, seed)
    choice = lookup.choose(work, device)
    if not isinstance(choice.config, Config) or not fits(choice.config, work, len(rule.states), device):
        why = f"what is known for {work.key} needs more shared memory than there is, or has blocks of less than 256"
        choice = Choice(lookup.default_of(device), "default", why)
    table = tables.build(rule, entries, grad_dtype, choice.config.chunk_size, seed)
    table.choice = choice
    return table


def check_code(compiled, choice: Choice) -> None:
    """Warn once if a configuration was measured with other machine code than this Triton compiles it to."""
    entry = choice.entry or {}
    try:
        same = codegen.facts(compiled.asm)["digest"] == entry.get("machine_code")
    except (OSError, subprocess.SubprocessError):  # Triton came without its tools
        same = False
    if not same:
        registry.warn_once(
            f"A launch configuration was measured with Triton {entry.get('triton', 'of an unknown version')}, and "
            f"Triton {triton.__version__} compiles it to other machine code: it is used, and "
            "`python -m experiments.autotune tune` measures anew"
        )


@functools.cache
def constant(value: float, device: torch.device) -> torch.Tensor:
    """Return a float32 tensor of one value on the device."""
    return torch.tensor(value, dtype=torch.float32, device=device)


def launcher(table: Table) -> Launch:
    """Return the table's `Launch`: kernels on the current stream, without synchronisation.

    Hyperparameters and sizes are not compiled in: each (rule, dtypes, rounding, configuration) compiles once.
    """
    rule, device = table.rule, table.rows.device
    n_rows, n_chunks, seed = len(table.rows), len(table.chunk_row), table.seed
    one, zero = constant(1.0, device), constant(0.0, device)
    first_constants = prologue_constants(rule)
    choice = table.choice
    config = choice.config if choice and isinstance(choice.config, Config) else lookup.default_of(device)
    table.check_config(config)
    dtypes = table.p_dtype, table.grad_dtype, table.state_dtype
    if table.state_dtype == codes.DTYPE:
        traversal, last = compressed_kernel.compressed_kernel, table.scales
        constants = compressed_kernel.update_constants(rule, *dtypes[:2], seed is not None, config)
    else:
        traversal, last = multi_tensor_kernel, table.values
        constants = update_constants(rule, *dtypes, seed is not None, config)
    constants["num_warps"] = config.num_warps
    entry = choice.entry if choice else None
    was_measured_with_another = entry is not None and entry.get("triton") != triton.__version__
    unchecked = choice if was_measured_with_another and device.type == "cuda" else None

    def on_device() -> contextlib.AbstractContextManager:
        return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()

    def begin(grads, grad_scale, found_inf) -> None:
        table.point_at(grads)
        with on_device():
            prologue_kernel[(triton.cdiv(n_rows, PROLOGUE_BLOCK_SIZE),)](
                table.rows,
                table.hyper,
                table.coefficients,
                table.keys,
                one if grad_scale is None else grad_scale,
                zero if found_inf is None else found_inf,
                n_rows,
                seed or 0,
                **first_constants,
            )

    def update() -> None:
        nonlocal unchecked
        if n_chunks > 0:
            with on_device():
                compiled = traversal[(n_chunks,)](
                    table.rows,
                    table.chunk_row,
                    table.chunk_index,
                    table.coefficients,
                    table.keys,
                    table.clip,
                    last,
                    **constants,
                )
            if unchecked:
                check_code(compiled, unchecked)
                unchecked = None

    if not rule.stages:
        return Launch(begin, update)

    # What only rules with sums need.
    from kernels.reductions import sums_constants, sums_kernel, totals_constants, totals_kernel

    num_warps = lookup.default_of(device).num_warps
    of_sums: list[dict[str, Any]] = [
        sums_constants(rule, stage, *dtypes) | {"num_warps": num_warps} for stage in rule.stages
    ]
    of_totals = {
        (i, reduce, finish): totals_constants(rule, stage, reduce, finish)
        for i, stage in enumerate(rule.stages)
        for reduce, finish in ((True, False), (False, True), (True, True))
    }

    def reduce_and_finish(stage: int, reduce: bool, finish: bool) -> None:
        totals = table.stages[stage]
        with on_device():
            totals_kernel[(totals.n_slots,)](
                table.rows,
                table.hyper,
                table.coefficients,
                totals.first_piece,
                totals.slot_rows,
                totals.first_row,
                totals.partials,
                totals.totals,
                totals.values,
                **of_totals[stage % len(rule.stages), reduce, finish],
            )

    def measure(stage: int) -> None:
        totals = table.stages[stage]
        if len(totals.partials):
            with on_device():
                sums_kernel[(len(totals.partials),)](
                    table.rows,
                    totals.piece_row,
                    totals.piece_index,
                    table.coefficients,
                    table.clip if stage else None,
                    totals.partials,
                    **of_sums[stage],
                )
        if totals.combined:
            reduce_and_finish(stage, reduce=True, finish=False)

    def conclude(stage: int) -> None:
        reduce_and_finish(stage, reduce=not table.stages[stage].combined, finish=True)

    return Launch(begin, update, measure, conclude, len(rule.stages))
