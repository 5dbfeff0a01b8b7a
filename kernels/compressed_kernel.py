# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportIndexIssue=false
# Triton compiles these functions: `tl.constexpr` arguments are plain values there.
"""The Triton kernel that applies a rule to tensors whose states are compressed: `multi_tensor` with codes and scales.

A block of the traversal is a whole number of blocks of codes: `[BLOCK_SIZE / CODE_BLOCK, CODE_BLOCK]` elements, so that
a scale is the maximum of a row.
"""

import torch
import triton
import triton.language as tl

from kernels import codes
from kernels import table as tables
from kernels.codes import decode_signed, decode_unsigned, encode_signed, encode_unsigned
from kernels.config import Config
from kernels.multi_tensor import TRITON_DTYPE, block_pointers, store
from kernels.rule import Rule

CODE_BLOCK = tl.constexpr(codes.BLOCK)
P, GRAD, N_ELEMENTS = tl.constexpr(tables.P), tl.constexpr(tables.GRAD), tl.constexpr(tables.N_ELEMENTS)
STATES = tl.constexpr(tables.STATES)


@triton.jit
def load_state(address, scales, start, offsets, mask, SIGNED: tl.constexpr, EVICTION: tl.constexpr, FULL: tl.constexpr):
    """Return a block of a state; scales: float32 [rows, 1]."""
    other = None if FULL else 0
    if SIGNED:
        pointers = block_pointers(address, start, offsets, tl.int8, FULL)
        code = tl.load(pointers, mask=mask, other=other, eviction_policy=EVICTION)
        return decode_signed(code.to(tl.float32), scales)
    pointers = block_pointers(address, start, offsets, tl.uint8, FULL)
    code = tl.load(pointers, mask=mask, other=other, eviction_policy=EVICTION)
    return decode_unsigned(code.to(tl.float32), scales)


@triton.jit
def store_state(
    address, x, scales, start, offsets, mask, SIGNED: tl.constexpr, EVICTION: tl.constexpr, FULL: tl.constexpr
):
    """Store a block of a state; scales: the largest magnitudes of its rows, float32 [rows, 1]."""
    if SIGNED:
        pointers = block_pointers(address, start, offsets, tl.int8, FULL)
        tl.store(pointers, encode_signed(x, scales).to(tl.int8), mask=mask, eviction_policy=EVICTION)
    else:
        pointers = block_pointers(address, start, offsets, tl.uint8, FULL)
        tl.store(pointers, encode_unsigned(x, scales).to(tl.uint8), mask=mask, eviction_policy=EVICTION)


@triton.jit
def update_block(
    start,
    offsets,
    p_address,
    grad_address,
    state_addresses,
    scale_addresses,
    factor,
    coefficients,
    key,
    n_elements,
    update: tl.constexpr,
    P_DTYPE: tl.constexpr,
    GRAD_DTYPE: tl.constexpr,
    N_SIGNED: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    EVICTION: tl.constexpr,
    FULL: tl.constexpr,  # the row fills the block, and every address is a multiple of 16
):
    """Apply `update` to a row's elements in the block from element `start` on, in place. offsets: int32 [rows, 256]."""
    mask = None if FULL else start + offsets < n_elements
    other = None if FULL else 0.0
    block = start // CODE_BLOCK + tl.arange(0, offsets.shape[0])[:, None]
    block_mask = block * CODE_BLOCK < n_elements
    p_ptrs = block_pointers(p_address, start, offsets, P_DTYPE, FULL)
    p = tl.load(p_ptrs, mask=mask, other=other, eviction_policy=EVICTION).to(tl.float32)
    grad_ptrs = block_pointers(grad_address, start, offsets, GRAD_DTYPE, FULL)
    grad = factor * tl.load(grad_ptrs, mask=mask, other=other, eviction_policy=EVICTION).to(tl.float32)
    state = ()
    for i in tl.static_range(len(state_addresses)):
        scale_ptrs = scale_addresses[i].to(tl.pointer_type(tl.float32)) + block
        scales = tl.load(scale_ptrs, mask=block_mask, other=0.0)
        values = load_state(state_addresses[i], scales, start, offsets, mask, i < N_SIGNED, EVICTION, FULL)
        state = state + (values,)

    p, state = update(p, grad, state, coefficients)

    store(p_ptrs, p, mask, key, 0, start, offsets, P_DTYPE, STOCHASTIC, EVICTION)
    for i in tl.static_range(len(state_addresses)):
        # As integers, so that a NaN is the largest on all backends.
        bits = state[i].to(tl.int32, bitcast=True) & 0x7FFFFFFF
        largest = tl.max(bits if FULL else tl.where(mask, bits, 0), axis=1, keep_dims=True)
        scales = largest.to(tl.float32, bitcast=True)
        tl.store(scale_addresses[i].to(tl.pointer_type(tl.float32)) + block, scales, mask=block_mask)
        store_state(state_addresses[i], state[i], scales, start, offsets, mask, i < N_SIGNED, EVICTION, FULL)


@triton.jit
def compressed_kernel(
    rows_ptr,  # int64 [n_rows, N_COLUMNS]: p, grad, step, n_elements, parameter, states, scalars
    chunk_row_ptr,  # int32 [n_chunks]: the row that a program works on
    chunk_index_ptr,  # int32 [n_chunks]: which of the row's chunks
    coefficients_ptr,  # float32 [n_rows, 1 + N_COEFFICIENTS]
    keys_ptr,  # int32 [n_rows]
    clip_ptr,  # float32 [n_rows]: what gradients are multiplied by; None if they are not clipped
    scales_ptr,  # int64 [n_rows, N_STATES]: addresses of the states' scales
    update: tl.constexpr,
    N_COLUMNS: tl.constexpr,
    N_STATES: tl.constexpr,
    N_SIGNED: tl.constexpr,  # how many of the states, the first ones, are signed
    N_COEFFICIENTS: tl.constexpr,
    P_DTYPE: tl.constexpr,
    GRAD_DTYPE: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCKS_PER_CHUNK: tl.constexpr,
    LOOP_STAGES: tl.constexpr,
    EVICTION: tl.constexpr,
):
    """Apply `update` to a chunk of a row; parameters, codes and scales change in place."""
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
    scale_addresses = ()
    all_addresses = p_address | grad_address
    for i in tl.static_range(N_STATES):
        address = tl.load(row_ptr + STATES + i)
        all_addresses = all_addresses | address
        state_addresses = state_addresses + (address,)
        scale_addresses = scale_addresses + (tl.load(scales_ptr + row * N_STATES + i),)

    offsets = tl.arange(0, BLOCK_SIZE // CODE_BLOCK)[:, None] * CODE_BLOCK + tl.arange(0, CODE_BLOCK)[None, :]
    values = (offsets, p_address, grad_address, state_addresses, scale_addresses, factor, coefficients, key, n_elements)
    if BLOCKS_PER_CHUNK == 1:
        if (start + BLOCK_SIZE <= n_elements) & (all_addresses % 16 == 0):
            update_block(start, *values, update, P_DTYPE, GRAD_DTYPE, N_SIGNED, STOCHASTIC, EVICTION, FULL=True)
        else:
            update_block(start, *values, update, P_DTYPE, GRAD_DTYPE, N_SIGNED, STOCHASTIC, EVICTION, FULL=False)
    else:
        # As in `multi_tensor`.
        left = tl.minimum(tl.maximum(n_elements - start, 0), BLOCK_SIZE * BLOCKS_PER_CHUNK).to(tl.int32)
        n_blocks = (left + BLOCK_SIZE - 1) // BLOCK_SIZE
        n_full = tl.where(all_addresses % 16 == 0, left // BLOCK_SIZE, 0)
        for block in tl.range(0, n_full, num_stages=LOOP_STAGES):
            at = start + block * BLOCK_SIZE
            update_block(at, *values, update, P_DTYPE, GRAD_DTYPE, N_SIGNED, STOCHASTIC, EVICTION, FULL=True)
        for block in tl.range(n_full, n_blocks, num_stages=1):
            at = start + block * BLOCK_SIZE
            update_block(at, *values, update, P_DTYPE, GRAD_DTYPE, N_SIGNED, STOCHASTIC, EVICTION, FULL=False)


def update_constants(
    rule: Rule, p_dtype: torch.dtype, grad_dtype: torch.dtype, stochastic: bool, config: Config
) -> dict:
    """Return the constants that `compressed_kernel` is compiled for."""
    found = codes.codes_of(rule)
    return {
        "update": rule.update,
        "N_COLUMNS": tables.n_columns(rule),
        "N_STATES": len(rule.states),
        "N_SIGNED": sum(code.dtype == torch.int8 for code in found),
        "N_COEFFICIENTS": rule.n_coefficients,
        "P_DTYPE": TRITON_DTYPE[p_dtype],
        "GRAD_DTYPE": TRITON_DTYPE[grad_dtype],
        "STOCHASTIC": stochastic,
        "BLOCK_SIZE": config.block_size,
        "BLOCKS_PER_CHUNK": config.blocks_per_chunk,
        "LOOP_STAGES": config.num_stages,
        "EVICTION": config.eviction,
    }
