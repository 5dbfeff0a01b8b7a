# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# Triton compiles these functions: `tl.constexpr` arguments are plain values there, and `tl.range` a loop.
"""Triton kernels that apply a rule to a list of tensors, each with its own hyperparameters and step count.

The list is an address table (`table`). A step is two launches: a prologue over rows, in float64, and the traversal of
all elements, in float32. `cpu` is the counterpart for CPU tensors.
"""

import torch
import triton
import triton.language as tl

from kernels import table as tables
from kernels.config import Config, default
from kernels.rounding import bfloat16_nearest, bfloat16_stochastic, noise, row_key
from kernels.rule import Rule

CHUNK_SIZE = default().chunk_size
PROLOGUE_BLOCK_SIZE = 128
TRITON_DTYPE = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
DTYPES = tuple(TRITON_DTYPE)
P, GRAD, STEP = tl.constexpr(tables.P), tl.constexpr(tables.GRAD), tl.constexpr(tables.STEP)
N_ELEMENTS, PARAMETER = tl.constexpr(tables.N_ELEMENTS), tl.constexpr(tables.PARAMETER)
STATES = tl.constexpr(tables.STATES)


@triton.jit(do_not_specialize=["n_rows", "seed", "grad_scale_ptr", "found_inf_ptr"])
def prologue_kernel(
    rows_ptr,  # int64 [n_rows, N_COLUMNS]
    hyper_ptr,  # float64 [n_rows, 1 + N_HYPER + CLIPS]: the gradient's factor, the rule's, its largest norm
    coefficients_ptr,  # float32 [n_rows, 1 + N_COEFFICIENTS], written: the gradient's factor, then the rule's
    keys_ptr,  # int32 [n_rows], written: keys of this step's stochastic rounding
    grad_scale_ptr,  # float32: gradients are divided by it
    found_inf_ptr,  # float32: if it is not 0, the step is skipped and not counted
    n_rows,
    seed,
    coefficients: tl.constexpr,
    N_COLUMNS: tl.constexpr,
    N_STATES: tl.constexpr,
    N_SCALARS: tl.constexpr,
    N_HYPER: tl.constexpr,
    N_COEFFICIENTS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CLIPS: tl.constexpr,
):
    """Advance every row's step count and scalars, and compute its coefficients."""
    row = tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = row < n_rows
    apply = tl.load(found_inf_ptr) == 0.0
    row_ptr, hyper_ptr = rows_ptr + row * N_COLUMNS, hyper_ptr + row * (1 + N_HYPER + CLIPS)
    coefficients_ptr = coefficients_ptr + row * (1 + N_COEFFICIENTS)
    step_ptr = tl.load(row_ptr + STEP, mask=mask, other=0).to(tl.pointer_type(tl.float32))
    step = tl.load(step_ptr, mask=mask, other=0.0) + 1.0
    scalar_ptrs = ()
    scalars = ()
    for i in tl.static_range(N_SCALARS):
        address = tl.load(row_ptr + STATES + N_STATES + i, mask=mask, other=0)
        scalar_ptrs = scalar_ptrs + (address.to(tl.pointer_type(tl.float32)),)
        scalars = scalars + (tl.load(scalar_ptrs[i], mask=mask, other=0.5).to(tl.float64),)
    before = scalars
    hyper = ()
    for i in tl.static_range(N_HYPER):
        hyper = hyper + (tl.load(hyper_ptr + 1 + i, mask=mask, other=0.5),)

    if N_SCALARS == 0:
        values = coefficients(hyper, step.to(tl.float64))
    else:
        values, scalars = coefficients(hyper, step.to(tl.float64), scalars)

    factor = tl.load(hyper_ptr, mask=mask, other=0.0) / tl.load(grad_scale_ptr).to(tl.float64)
    tl.store(coefficients_ptr, tl.where(apply, factor, 0.0).to(tl.float32), mask=mask)
    for i in tl.static_range(N_COEFFICIENTS):
        tl.store(coefficients_ptr + 1 + i, values[i].to(tl.float32), mask=mask)
    for i in tl.static_range(N_SCALARS):
        tl.store(scalar_ptrs[i], tl.where(apply, scalars[i], before[i]).to(tl.float32), mask=mask)
    tl.store(step_ptr, tl.where(apply, step, step - 1.0), mask=mask)
    parameter = tl.load(row_ptr + PARAMETER, mask=mask, other=0).to(tl.uint32)
    key = row_key(seed.to(tl.uint32), parameter, step.to(tl.uint32))
    tl.store(keys_ptr + row, key.to(tl.int32, bitcast=True), mask=mask)


@triton.jit
def block_pointers(address, start, offsets, DTYPE: tl.constexpr, FULL: tl.constexpr):
    """Return pointers to the elements `start + offsets` of a tensor, whose address is a multiple of 16 if FULL."""
    pointer = address.to(tl.pointer_type(DTYPE))
    if FULL:
        pointer = tl.multiple_of(pointer, 16)
    return pointer + start + offsets


@triton.jit
def store(
    pointers, x, mask, key, which, start, offsets, DTYPE: tl.constexpr, STOCHASTIC: tl.constexpr, EVICTION: tl.constexpr
):
    if tl.bfloat16 != DTYPE:
        x = x.to(DTYPE)
    elif STOCHASTIC:
        x = bfloat16_stochastic(x, noise(key, which, start, offsets))
    else:
        x = bfloat16_nearest(x)
    tl.store(pointers, x, mask=mask, eviction_policy=EVICTION)


@triton.jit
def update_block(
    start,
    offsets,
    p_address,
    grad_address,
    state_addresses,
    factor,
    coefficients,
    key,
    n_elements,
    update: tl.constexpr,
    P_DTYPE: tl.constexpr,
    GRAD_DTYPE: tl.constexpr,
    STATE_DTYPE: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    EVICTION: tl.constexpr,
    FULL: tl.constexpr,  # the row fills the block, and every address is a multiple of 16
    totals,
):
    """Apply `update` to a row's elements in the block from element `start` on, in place."""
    # Without a mask and with every address a multiple of 16, loads and stores are 128 bits wide.
    mask = None if FULL else start + offsets < n_elements
    other = None if FULL else 0.0
    p_ptrs = block_pointers(p_address, start, offsets, P_DTYPE, FULL)
    p = tl.load(p_ptrs, mask=mask, other=other, eviction_policy=EVICTION).to(tl.float32)
    grad_ptrs = block_pointers(grad_address, start, offsets, GRAD_DTYPE, FULL)
    grad = factor * tl.load(grad_ptrs, mask=mask, other=other, eviction_policy=EVICTION).to(tl.float32)
    state = ()
    for i in tl.static_range(len(state_addresses)):
        state_ptrs = block_pointers(state_addresses[i], start, offsets, STATE_DTYPE, FULL)
        state = state + (tl.load(state_ptrs, mask=mask, other=other, eviction_policy=EVICTION).to(tl.float32),)

    if len(totals) == 0:
        p, state = update(p, grad, state, coefficients)
    else:
        p, state = update(p, grad, state, coefficients, totals)

    store(p_ptrs, p, mask, key, 0, start, offsets, P_DTYPE, STOCHASTIC, EVICTION)
    for i in tl.static_range(len(state_addresses)):
        state_ptrs = block_pointers(state_addresses[i], start, offsets, STATE_DTYPE, FULL)
        store(state_ptrs, state[i], mask, key, 1 + i, start, offsets, STATE_DTYPE, STOCHASTIC, EVICTION)


@triton.jit
def multi_tensor_kernel(
    rows_ptr,  # int64 [n_rows, N_COLUMNS]: p, grad, step, n_elements, parameter, states, scalars
    chunk_row_ptr,  # int32 [n_chunks]: the row that a program works on
    chunk_index_ptr,  # int32 [n_chunks]: which of the row's chunks
    coefficients_ptr,  # float32 [n_rows, 1 + N_COEFFICIENTS]
    keys_ptr,  # int32 [n_rows]
    clip_ptr,  # float32 [n_rows]: what gradients are multiplied by; None if they are not clipped
    totals_ptr,  # float32 [n_rows, N_TOTALS]; None if the rule has no sums
    update: tl.constexpr,
    N_COLUMNS: tl.constexpr,
    N_STATES: tl.constexpr,
    N_COEFFICIENTS: tl.constexpr,
    P_DTYPE: tl.constexpr,
    GRAD_DTYPE: tl.constexpr,
    STATE_DTYPE: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCKS_PER_CHUNK: tl.constexpr,
    LOOP_STAGES: tl.constexpr,
    EVICTION: tl.constexpr,
    N_TOTALS: tl.constexpr,
):
    """Apply `update` to a chunk of a row; parameters and states change in place."""
    chunk = tl.program_id(0)
    row = tl.load(chunk_row_ptr + chunk)
    start = tl.load(chunk_index_ptr + chunk).to(tl.int64) * (BLOCK_SIZE * BLOCKS_PER_CHUNK)
    row_ptr = rows_ptr + row * N_COLUMNS
    p_address = tl.load(row_ptr + P)
    grad_address = tl.load(row_ptr + GRAD)
    factor = tl.load(coefficients_ptr + row * (1 + N_COEFFICIENTS))
    # A row whose step is skipped counts as empty.
    n_elements = tl.where(factor == 0.0, 0, tl.load(row_ptr + N_ELEMENTS))
    if clip_ptr is not None:
        factor *= tl.load(clip_ptr + row)
    key = tl.load(keys_ptr + row).to(tl.uint32, bitcast=True) if STOCHASTIC else 0

    coefficients = ()
    for i in tl.static_range(N_COEFFICIENTS):
        coefficients = coefficients + (tl.load(coefficients_ptr + row * (1 + N_COEFFICIENTS) + 1 + i),)
    state_addresses = ()
    all_addresses = p_address | grad_address
    for i in tl.static_range(N_STATES):
        address = tl.load(row_ptr + STATES + i)
        all_addresses = all_addresses | address
        state_addresses = state_addresses + (address,)
    totals = ()
    for i in tl.static_range(N_TOTALS):
        totals = totals + (tl.load(totals_ptr + row * N_TOTALS + i),)

    offsets = tl.arange(0, BLOCK_SIZE)
    values = (offsets, p_address, grad_address, state_addresses, factor, coefficients, key, n_elements)
    if BLOCKS_PER_CHUNK == 1:
        if (start + BLOCK_SIZE <= n_elements) & (all_addresses % 16 == 0):
            update_block(start, *values, update, P_DTYPE, GRAD_DTYPE, STATE_DTYPE, STOCHASTIC, EVICTION, True, totals)
        else:
            update_block(start, *values, update, P_DTYPE, GRAD_DTYPE, STATE_DTYPE, STOCHASTIC, EVICTION, False, totals)
    else:
        # Clamped before the cast: in late chunks of an empty row the difference is below the range of 32 bits.
        left = tl.minimum(tl.maximum(n_elements - start, 0), BLOCK_SIZE * BLOCKS_PER_CHUNK).to(tl.int32)
        n_blocks = (left + BLOCK_SIZE - 1) // BLOCK_SIZE
        n_full = tl.where(all_addresses % 16 == 0, left // BLOCK_SIZE, 0)
        # Two loops, because the compiler loads blocks ahead only where no branch surrounds the loads.
        for block in tl.range(0, n_full, num_stages=LOOP_STAGES):
            at = start + block * BLOCK_SIZE
            update_block(at, *values, update, P_DTYPE, GRAD_DTYPE, STATE_DTYPE, STOCHASTIC, EVICTION, True, totals)
        for block in tl.range(n_full, n_blocks, num_stages=1):
            at = start + block * BLOCK_SIZE
            update_block(at, *values, update, P_DTYPE, GRAD_DTYPE, STATE_DTYPE, STOCHASTIC, EVICTION, False, totals)


def prologue_constants(rule: Rule) -> dict:
    """Return the constants that `prologue_kernel` is compiled for."""
    return {
        "coefficients": rule.coefficients,
        "N_COLUMNS": tables.n_columns(rule),
        "N_STATES": len(rule.states),
        "N_SCALARS": len(rule.scalars),
        "N_HYPER": rule.n_hyper,
        "N_COEFFICIENTS": rule.n_coefficients,
        "BLOCK_SIZE": PROLOGUE_BLOCK_SIZE,
        "CLIPS": int(rule.clips),
    }


def update_constants(
    rule: Rule,
    p_dtype: torch.dtype,
    grad_dtype: torch.dtype,
    state_dtype: torch.dtype,
    stochastic: bool,
    config: Config,
) -> dict:
    """Return the constants that `multi_tensor_kernel` is compiled for."""
    return {
        "update": rule.update,
        "N_COLUMNS": tables.n_columns(rule),
        "N_STATES": len(rule.states),
        "N_COEFFICIENTS": rule.n_coefficients,
        "P_DTYPE": TRITON_DTYPE[p_dtype],
        "GRAD_DTYPE": TRITON_DTYPE[grad_dtype],
        "STATE_DTYPE": TRITON_DTYPE[state_dtype],
        "STOCHASTIC": stochastic,
        "BLOCK_SIZE": config.block_size,
        "BLOCKS_PER_CHUNK": config.blocks_per_chunk,
        "LOOP_STAGES": config.num_stages,
        "EVICTION": config.eviction,
        "N_TOTALS": rule.n_totals,
    }
