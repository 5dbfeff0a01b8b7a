"""One launch applies a rule to any list of tensors, each with hyperparameters and a step of its own.

The list is an address table (`table`). Two launches make a step: a prologue of one element a row,
in float64, and the traversal of all elements, in float32. `cpu` is its twin for CPU tensors.
"""

import contextlib

import torch
import triton
import triton.language as tl

from kernels.rounding import bfloat16_nearest
from kernels.rules import Rule
from kernels.table import Table

CHUNK_SIZE = 1024
ELEMENTS_PER_THREAD = 4  # 128 bits of float32
PROLOGUE_BLOCK_SIZE = 128
TRITON_DTYPE = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}
DTYPES = tuple(TRITON_DTYPE)


@triton.jit(do_not_specialize=["n_rows"])
def prologue_kernel(
    rows_ptr,  # int64 [n_rows, N_COLUMNS]
    hyper_ptr,  # float64 [n_rows, N_HYPER]
    coefficients_ptr,  # float32 [n_rows, N_COEFFICIENTS], written
    n_rows,
    coefficients: tl.constexpr,
    N_COLUMNS: tl.constexpr,
    N_HYPER: tl.constexpr,
    N_COEFFICIENTS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """Advance every row's step count and derive its coefficients."""
    row = tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = row < n_rows
    step_ptr = tl.load(rows_ptr + row * N_COLUMNS + 2, mask=mask, other=0).to(tl.pointer_type(tl.float32))
    step = tl.load(step_ptr, mask=mask, other=0.0) + 1.0

    hyper = ()
    for i in tl.static_range(N_HYPER):
        hyper = hyper + (tl.load(hyper_ptr + row * N_HYPER + i, mask=mask, other=0.5),)
    values = coefficients(hyper, step.to(tl.float64))

    tl.store(step_ptr, step, mask=mask)
    for i in tl.static_range(N_COEFFICIENTS):
        tl.store(coefficients_ptr + row * N_COEFFICIENTS + i, values[i].to(tl.float32), mask=mask)


@triton.jit
def block_pointer(address, start, offsets, DTYPE: tl.constexpr):
    """Pointers to `offsets` behind element `start` of the tensor at a 16-byte aligned address."""
    return tl.multiple_of(address.to(tl.pointer_type(DTYPE)), 16) + start + offsets


@triton.jit
def store(pointers, x, mask, DTYPE: tl.constexpr):
    if tl.bfloat16 == DTYPE:
        tl.store(pointers, bfloat16_nearest(x), mask=mask)
    else:
        tl.store(pointers, x.to(DTYPE), mask=mask)


@triton.jit
def multi_tensor_kernel(
    rows_ptr,  # int64 [n_rows, 4 + N_STATES]: p, grad, step, n_elements, states
    chunk_row_ptr,  # int32 [n_chunks]: the row that a program works on
    chunk_index_ptr,  # int32 [n_chunks]: which of the row's blocks
    coefficients_ptr,  # float32 [n_rows, N_COEFFICIENTS]
    update: tl.constexpr,
    N_STATES: tl.constexpr,
    N_COEFFICIENTS: tl.constexpr,
    P_DTYPE: tl.constexpr,
    GRAD_DTYPE: tl.constexpr,
    STATE_DTYPE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """Apply `update` to one block of one row: parameters and states in place."""
    chunk = tl.program_id(0)
    row = tl.load(chunk_row_ptr + chunk)
    start = tl.load(chunk_index_ptr + chunk).to(tl.int64) * BLOCK_SIZE
    row_ptr = rows_ptr + row * (4 + N_STATES)
    p_address = tl.load(row_ptr)
    grad_address = tl.load(row_ptr + 1)
    n_elements = tl.load(row_ptr + 3)

    coefficients = ()
    for i in tl.static_range(N_COEFFICIENTS):
        coefficients = coefficients + (tl.load(coefficients_ptr + row * N_COEFFICIENTS + i),)
    state_addresses = ()
    all_addresses = p_address | grad_address
    for i in tl.static_range(N_STATES):
        address = tl.load(row_ptr + 4 + i)
        all_addresses = all_addresses | address
        state_addresses = state_addresses + (address,)

    offsets = tl.arange(0, BLOCK_SIZE)
    # Without a mask and with every address a multiple of 16, loads and stores are 128 bits wide.
    if (start + BLOCK_SIZE <= n_elements) & (all_addresses % 16 == 0):
        p_ptrs = block_pointer(p_address, start, offsets, P_DTYPE)
        p = tl.load(p_ptrs).to(tl.float32)
        grad = tl.load(block_pointer(grad_address, start, offsets, GRAD_DTYPE)).to(tl.float32)
        state = ()
        for i in tl.static_range(N_STATES):
            state = state + (tl.load(block_pointer(state_addresses[i], start, offsets, STATE_DTYPE)).to(tl.float32),)

        p, state = update(p, grad, state, coefficients)

        store(p_ptrs, p, None, P_DTYPE)
        for i in tl.static_range(N_STATES):
            store(block_pointer(state_addresses[i], start, offsets, STATE_DTYPE), state[i], None, STATE_DTYPE)
    else:
        mask = start + offsets < n_elements
        p_ptrs = p_address.to(tl.pointer_type(P_DTYPE)) + start + offsets
        p = tl.load(p_ptrs, mask=mask, other=0.0).to(tl.float32)
        grad_ptrs = grad_address.to(tl.pointer_type(GRAD_DTYPE)) + start + offsets
        grad = tl.load(grad_ptrs, mask=mask, other=0.0).to(tl.float32)
        state = ()
        for i in tl.static_range(N_STATES):
            state_ptrs = state_addresses[i].to(tl.pointer_type(STATE_DTYPE)) + start + offsets
            state = state + (tl.load(state_ptrs, mask=mask, other=0.0).to(tl.float32),)

        p, state = update(p, grad, state, coefficients)

        store(p_ptrs, p, mask, P_DTYPE)
        for i in tl.static_range(N_STATES):
            state_ptrs = state_addresses[i].to(tl.pointer_type(STATE_DTYPE)) + start + offsets
            store(state_ptrs, state[i], mask, STATE_DTYPE)


def update_constants(rule: Rule, p_dtype: torch.dtype, grad_dtype: torch.dtype, state_dtype: torch.dtype) -> dict:
    """All that `multi_tensor_kernel` is specialised for: each combination compiles once."""
    return {
        "update": rule.update,
        "N_STATES": len(rule.states),
        "N_COEFFICIENTS": rule.n_coefficients,
        "P_DTYPE": TRITON_DTYPE[p_dtype],
        "GRAD_DTYPE": TRITON_DTYPE[grad_dtype],
        "STATE_DTYPE": TRITON_DTYPE[state_dtype],
        "BLOCK_SIZE": CHUNK_SIZE,
    }


def num_warps(warp_size: int) -> int:
    return CHUNK_SIZE // (ELEMENTS_PER_THREAD * warp_size)


def update_(table: Table, grads: list[torch.Tensor]) -> None:
    """Advance every row by one step of the table's rule, in place: parameters, states and step counts.

    Args:
        grads: contiguous, one for each entry of the table.

    Two launches on the current stream, no synchronisation. Nothing about the hyperparameters or
    the sizes is compiled in: a (rule, dtypes) pair compiles once.
    """
    table.point_at(grads)
    n_rows, n_columns = table.rows.shape
    rule, device = table.rule, table.rows.device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        prologue_kernel[(triton.cdiv(n_rows, PROLOGUE_BLOCK_SIZE),)](
            table.rows,
            table.hyper,
            table.coefficients,
            n_rows,
            coefficients=rule.coefficients,
            N_COLUMNS=n_columns,
            N_HYPER=len(rule.hyper),
            N_COEFFICIENTS=rule.n_coefficients,
            BLOCK_SIZE=PROLOGUE_BLOCK_SIZE,
        )
        if len(table.chunk_row) > 0:
            multi_tensor_kernel[(len(table.chunk_row),)](
                table.rows,
                table.chunk_row,
                table.chunk_index,
                table.coefficients,
                **update_constants(rule, table.p_dtype, table.grad_dtype, table.state_dtype),
                num_warps=num_warps(64 if torch.version.hip else 32),
            )
