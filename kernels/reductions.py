# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# Triton compiles these functions: `tl.constexpr` arguments are plain values there.
"""Triton kernels that form the sums of a rule: one adds up pieces of rows, the other the sums of pieces.

Neither depends on a launch configuration, so that totals have the same bits in every one; see `pieces`.
"""

import torch
import triton
import triton.language as tl

from kernels.multi_tensor import GRAD, N_ELEMENTS, STATES, TRITON_DTYPE, P
from kernels.pieces import PIECE
from kernels.rule import Rule, Stage, clip_factor
from kernels.table import n_columns

BLOCK_SIZE = 1024
"""Sums of pieces, or rows, that a program of `totals_kernel` takes at a time."""


@triton.jit
def load_piece(address, start, offsets, mask, full, DTYPE: tl.constexpr):
    """Return elements `start + offsets` of a tensor in float32: 128 bits at a time if `full`, else under the mask."""
    pointer = address.to(tl.pointer_type(DTYPE))
    # Both branches give one value, so that whatever follows is done in one order.
    if full:
        x = tl.load(tl.multiple_of(pointer, 16) + start + offsets)
    else:
        x = tl.load(pointer + start + offsets, mask=mask, other=0.0)
    return x.to(tl.float32)


@triton.jit
def sums_kernel(
    rows_ptr,  # int64 [n_rows, N_COLUMNS]
    piece_row_ptr,  # int32 [n_pieces]
    piece_index_ptr,  # int32 [n_pieces]
    coefficients_ptr,  # float32 [n_rows, 1 + N_COEFFICIENTS]
    clip_ptr,  # float32 [n_rows]: what gradients are multiplied by; None if they are not clipped
    partials_ptr,  # float64 [n_pieces, N_SUMS], written
    sums: tl.constexpr,
    N_COLUMNS: tl.constexpr,
    N_STATES: tl.constexpr,
    N_COEFFICIENTS: tl.constexpr,
    N_SUMS: tl.constexpr,
    P_DTYPE: tl.constexpr,
    GRAD_DTYPE: tl.constexpr,
    STATE_DTYPE: tl.constexpr,
    PIECE: tl.constexpr,
):
    """Add up the terms of a piece. Launched with as many warps as the default configuration has: 256 threads."""
    piece = tl.program_id(0)
    row = tl.load(piece_row_ptr + piece)
    start = tl.load(piece_index_ptr + piece).to(tl.int64) * PIECE
    row_ptr = rows_ptr + row * N_COLUMNS
    n_elements = tl.load(row_ptr + N_ELEMENTS)
    factor = tl.load(coefficients_ptr + row * (1 + N_COEFFICIENTS))
    if clip_ptr is not None:
        factor *= tl.load(clip_ptr + row)
    coefficients = ()
    for i in tl.static_range(N_COEFFICIENTS):
        coefficients = coefficients + (tl.load(coefficients_ptr + row * (1 + N_COEFFICIENTS) + 1 + i),)
    p_address = tl.load(row_ptr + P)
    grad_address = tl.load(row_ptr + GRAD)
    all_addresses = p_address | grad_address
    for i in tl.static_range(N_STATES):
        all_addresses = all_addresses | tl.load(row_ptr + STATES + i)

    offsets = tl.arange(0, PIECE)
    mask = start + offsets < n_elements
    full = (start + PIECE <= n_elements) & (all_addresses % 16 == 0)
    p = load_piece(p_address, start, offsets, mask, full, P_DTYPE)
    grad = factor * load_piece(grad_address, start, offsets, mask, full, GRAD_DTYPE)
    state = ()
    for i in tl.static_range(N_STATES):
        state = state + (load_piece(tl.load(row_ptr + STATES + i), start, offsets, mask, full, STATE_DTYPE),)

    terms = sums(p, grad, state, coefficients)

    for i in tl.static_range(N_SUMS):
        term = tl.where(mask, terms[i] + tl.zeros([PIECE], tl.float32), 0.0)
        tl.store(partials_ptr + piece * N_SUMS + i, tl.sum(term.to(tl.float64)))


@triton.jit
def totals_kernel(
    rows_ptr,  # int64 [n_rows, N_COLUMNS]
    hyper_ptr,  # float64 [n_rows, N_HYPER]: a factor, and with CLIPS the largest norm last
    coefficients_ptr,  # float32 [n_rows, 1 + N_COEFFICIENTS]
    first_piece_ptr,  # int32 [n_slots + 1]
    slot_rows_ptr,  # int32 [n_rows]
    first_row_ptr,  # int32 [n_slots + 1]
    partials_ptr,  # float64 [n_pieces, N_SUMS]
    totals_ptr,  # float64 [n_slots, N_SUMS], written if REDUCE
    values_ptr,  # float32 [n_rows, N_TOTALS], written if FINISH
    finish: tl.constexpr,
    N_COLUMNS: tl.constexpr,
    N_STATES: tl.constexpr,
    N_SCALARS: tl.constexpr,
    N_HYPER: tl.constexpr,
    N_COEFFICIENTS: tl.constexpr,
    N_SUMS: tl.constexpr,
    N_TOTALS: tl.constexpr,
    CLIPS: tl.constexpr,
    REDUCE: tl.constexpr,
    FINISH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """Add up the pieces of a slot, and give its rows what the update takes."""
    slot = tl.program_id(0)
    offsets = tl.arange(0, BLOCK_SIZE)
    totals = ()
    for i in tl.static_range(N_SUMS):
        if REDUCE:
            last = tl.load(first_piece_ptr + slot + 1)
            found = tl.zeros([BLOCK_SIZE], tl.float64)
            for start in range(tl.load(first_piece_ptr + slot), last, BLOCK_SIZE):
                piece = start + offsets
                found += tl.load(partials_ptr + piece.to(tl.int64) * N_SUMS + i, mask=piece < last, other=0.0)
            total = tl.sum(found)
            tl.store(totals_ptr + slot * N_SUMS + i, total)
        else:
            total = tl.load(totals_ptr + slot * N_SUMS + i)
        totals = totals + (total,)
    if FINISH:
        last = tl.load(first_row_ptr + slot + 1)
        for start in range(tl.load(first_row_ptr + slot), last, BLOCK_SIZE):
            here = start + offsets
            mask = here < last
            row = tl.load(slot_rows_ptr + here, mask=mask, other=0)
            row_coefficients_ptr = coefficients_ptr + row * (1 + N_COEFFICIENTS)
            if CLIPS:
                max_norm = tl.load(hyper_ptr + row * N_HYPER + N_HYPER - 1, mask=mask, other=1.0)
                values = (clip_factor(totals[0], max_norm),)
            elif finish is None:
                values = totals
            else:
                coefficients = ()
                for i in tl.static_range(N_COEFFICIENTS):
                    coefficient = tl.load(row_coefficients_ptr + 1 + i, mask=mask, other=0.5)
                    coefficients = coefficients + (coefficient.to(tl.float64),)
                scalar_ptrs = ()
                scalars = ()
                for i in tl.static_range(N_SCALARS):
                    address = tl.load(rows_ptr + row * N_COLUMNS + STATES + N_STATES + i, mask=mask, other=0)
                    scalar_ptrs = scalar_ptrs + (address.to(tl.pointer_type(tl.float32)),)
                    scalars = scalars + (tl.load(scalar_ptrs[i], mask=mask, other=0.5).to(tl.float64),)
                values, scalars = finish(totals, coefficients, scalars)
                # A row whose step is skipped keeps its scalars.
                applies = mask & (tl.load(row_coefficients_ptr, mask=mask, other=0.0) != 0.0)
                for i in tl.static_range(N_SCALARS):
                    scalar = scalars[i] + tl.zeros([BLOCK_SIZE], tl.float64)
                    tl.store(scalar_ptrs[i], scalar.to(tl.float32), mask=applies)
            for i in tl.static_range(N_TOTALS):
                value = values[i] + tl.zeros([BLOCK_SIZE], tl.float64)
                tl.store(values_ptr + row * N_TOTALS + i, value.to(tl.float32), mask=mask)


def sums_constants(rule: Rule, stage: Stage, p_dtype: torch.dtype, grad_dtype: torch.dtype, state_dtype: torch.dtype):
    """Return the constants that `sums_kernel` is compiled for."""
    return {
        "sums": stage.sums,
        "N_COLUMNS": n_columns(rule),
        "N_STATES": len(rule.states),
        "N_COEFFICIENTS": rule.n_coefficients,
        "N_SUMS": stage.n_sums,
        "P_DTYPE": TRITON_DTYPE[p_dtype],
        "GRAD_DTYPE": TRITON_DTYPE[grad_dtype],
        "STATE_DTYPE": TRITON_DTYPE.get(state_dtype, tl.int8),  # Only clipping does without states' values.
        "PIECE": PIECE,
    }


def totals_constants(rule: Rule, stage: Stage, reduce: bool, finish: bool) -> dict:
    """Return the constants that `totals_kernel` is compiled for."""
    return {
        "finish": stage.finish,
        "N_COLUMNS": n_columns(rule),
        "N_STATES": len(rule.states),
        "N_SCALARS": len(rule.scalars),
        "N_HYPER": 1 + len(rule.hyper),
        "N_COEFFICIENTS": rule.n_coefficients,
        "N_SUMS": stage.n_sums,
        "N_TOTALS": stage.n_totals,
        "CLIPS": stage.clips,
        "REDUCE": reduce,
        "FINISH": finish,
        "BLOCK_SIZE": BLOCK_SIZE,
    }
