# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# Numba compiles these functions: pyright knows neither their types nor how Numba's intrinsics are called.
"""The sums of a rule as machine code for the CPU. `reductions` is its twin for the GPU."""

from collections.abc import Callable

import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.cpython.unsafe.tuple import tuple_setitem
from numba.extending import intrinsic

from kernels.cpu_language import casting, language, single
from kernels.cpu_storage import ACCESS, inner, pointer_to
from kernels.object_code import STAGE_ARGUMENTS
from kernels.pieces import PIECE
from kernels.rule import Rule, Stage, clip_factor, rebind
from kernels.table import GRAD, N_ELEMENTS, STATES, P
from kernels.table import n_columns as n_columns_of

(ROWS, HYPER, COEFFICIENTS, CLIP, PIECE_ROW, PIECE_INDEX, FIRST_PIECE, SLOT_ROWS, FIRST_ROW) = range(9)
(PARTIALS, TOTALS, VALUES, N_PIECES, N_SLOTS) = range(9, len(STAGE_ARGUMENTS))
WIDTH = 64
"""Terms that are added up side by side; a power of two."""


def scratch(n_bytes: int) -> Callable:
    """Return a function that returns the address of so much memory of the function that calls it."""

    @intrinsic
    def allocate(typingctx):
        def codegen(context, builder, signature, args):
            memory = cgutils.alloca_once(builder, ir.IntType(64), size=-(-n_bytes // 8))
            return builder.ptrtoint(memory, ir.IntType(64))

        return types.int64(), codegen

    return allocate


def functions(
    rule: Rule, stage: Stage, p_dtype: torch.dtype, grad_dtype: torch.dtype, state_dtype: torch.dtype
) -> tuple[Callable, Callable, Callable]:
    """A stage's functions, to be compiled for int64; see `object_code.StageCode`."""
    tl, double = language(), p_dtype == torch.float64
    sums = rebind(stage.sums, tl, inner if double else single)
    p_element, load_p, _ = ACCESS[p_dtype]
    grad_element, load_grad, _ = ACCESS[grad_dtype]
    state_element, load_state, _ = ACCESS[state_dtype]
    p_bytes, grad_bytes, state_bytes = p_element.itemsize, grad_element.itemsize, state_element.itemsize
    number = np.float64 if double else np.float32
    n_states, n_scalars, n_sums, n_totals = len(rule.states), len(rule.scalars), stage.n_sums, stage.n_totals
    n_columns, n_coefficients, n_hyper = n_columns_of(rule), rule.n_coefficients, 1 + len(rule.hyper)
    clips, is_clipped, has_finish = stage.clips, rule.clips and not stage.clips, stage.finish is not None
    address_tuple, state_tuple = (0,) * max(1, n_states), (number(0),) * max(1, n_states)
    coefficient_tuple, total_tuple = (number(0),) * n_coefficients, (0.0,) * n_sums
    double_tuple, scalar_tuple = (0.0,) * n_coefficients, (0.0,) * max(1, n_scalars)
    cast_terms, term_bytes = casting(n_sums, number), np.dtype(number).itemsize
    terms_of_a_piece, sums_of_a_piece = scratch(n_sums * PIECE * term_bytes), scratch(WIDTH * 8)
    terms_of = sums if n_states else inner(lambda p, grad, state, c: sums(p, grad, (), c))
    factor_of = rebind(clip_factor, tl, inner)
    if clips:
        values_of = inner(lambda totals, max_norm, c, scalars: ((factor_of(totals[0], max_norm),), scalars))
    elif not has_finish:
        values_of = inner(lambda totals, max_norm, c, scalars: (totals, scalars))
    elif n_scalars:
        own_finish = rebind(stage.finish, tl, inner)
        values_of = inner(lambda totals, max_norm, c, scalars: own_finish(totals, c, scalars))
    else:
        own_finish = rebind(stage.finish, tl, inner)
        values_of = inner(lambda totals, max_norm, c, scalars: (own_finish(totals, c, ())[0], scalars))

    @inner
    def element(j, p_ptr, grad_ptr, addresses, factor, c, terms):
        state = state_tuple
        for i in range(n_states):
            state = tuple_setitem(state, i, number(load_state(pointer_to(addresses[i], state_element), j)))
        found = cast_terms(terms_of(number(load_p(p_ptr, j)), factor * number(load_grad(grad_ptr, j)), state, c))
        for i, term in enumerate(found):
            terms[i * PIECE + j] = term

    @inner
    def elements(n, p_ptr, grad_ptr, addresses, factor, c, terms):
        for j in range(n):
            element(j, p_ptr, grad_ptr, addresses, factor, c, terms)

    @inner
    def fold(terms, sums, width):
        for j in range(width):
            sums[j] += np.float64(terms[j])

    @inner
    def halve(sums, half):
        for j in range(half):
            sums[j] += sums[half + j]

    @inner
    def added(terms, n, sums):
        # Sum j is that of terms j, j + WIDTH, ...; then the second half is added to the first, until one is left.
        for j in range(WIDTH):
            sums[j] = 0.0
        for start in range(0, n, WIDTH):
            fold(pointer_to(terms + start * term_bytes, number(0)), sums, min(WIDTH, n - start))
        half = WIDTH // 2
        while half:
            halve(sums, half)
            half //= 2
        return sums[0]

    @inner
    def measure_piece(row, coefficients, factor, start, partials, terms, sums):
        n = min(PIECE, row[N_ELEMENTS] - start)
        c = coefficient_tuple
        for i in range(n_coefficients):
            c = tuple_setitem(c, i, coefficients[1 + i])
        addresses = address_tuple
        for i in range(n_states):
            addresses = tuple_setitem(addresses, i, row[STATES + i] + start * state_bytes)
        p_ptr = pointer_to(row[P] + start * p_bytes, p_element)
        grad_ptr = pointer_to(row[GRAD] + start * grad_bytes, grad_element)
        elements(n, p_ptr, grad_ptr, addresses, factor, c, pointer_to(terms, number(0)))
        for i in range(n_sums):
            partials[i] = added(terms + i * PIECE * term_bytes, n, sums)

    @inner
    def measure(arguments, share, shares):
        arguments = pointer_to(arguments, np.int64(0))
        piece_row = pointer_to(arguments[PIECE_ROW], np.int32(0))
        piece_index = pointer_to(arguments[PIECE_INDEX], np.int32(0))
        n_pieces = arguments[N_PIECES]
        terms, sums = terms_of_a_piece(), pointer_to(sums_of_a_piece(), 0.0)
        for piece in range(n_pieces * share // shares, n_pieces * (share + 1) // shares):
            row, start = np.int64(piece_row[piece]), np.int64(piece_index[piece]) * PIECE
            row_ptr = pointer_to(arguments[ROWS] + row * n_columns * 8, np.int64(0))
            c_ptr = pointer_to(arguments[COEFFICIENTS] + row * (1 + n_coefficients) * term_bytes, number(0))
            factor = c_ptr[0]
            if is_clipped:
                factor *= pointer_to(arguments[CLIP], number(0))[row]
            partials = pointer_to(arguments[PARTIALS] + piece * n_sums * 8, 0.0)
            measure_piece(row_ptr, c_ptr, factor, start, partials, terms, sums)

    @inner
    def reduce(arguments):
        arguments = pointer_to(arguments, np.int64(0))
        first, partials = pointer_to(arguments[FIRST_PIECE], np.int32(0)), pointer_to(arguments[PARTIALS], 0.0)
        totals = pointer_to(arguments[TOTALS], 0.0)
        for slot in range(arguments[N_SLOTS]):
            for i in range(n_sums):
                total = 0.0
                for piece in range(np.int64(first[slot]), np.int64(first[slot + 1])):
                    total += partials[piece * n_sums + i]
                totals[slot * n_sums + i] = total

    @inner
    def finish_row(row, slot, arguments):
        rows, hyper = pointer_to(arguments[ROWS], np.int64(0)), pointer_to(arguments[HYPER], 0.0)
        c_ptr = pointer_to(arguments[COEFFICIENTS], number(0))
        totals, c, scalars = total_tuple, double_tuple, scalar_tuple
        for i in range(n_sums):
            totals = tuple_setitem(totals, i, pointer_to(arguments[TOTALS], 0.0)[slot * n_sums + i])
        for i in range(n_coefficients):
            c = tuple_setitem(c, i, np.float64(c_ptr[row * (1 + n_coefficients) + 1 + i]))
        for i in range(n_scalars):
            pointer = pointer_to(rows[row * n_columns + STATES + n_states + i], np.float32(0))
            scalars = tuple_setitem(scalars, i, np.float64(pointer[0]))
        results, scalars = values_of(totals, hyper[row * n_hyper + n_hyper - 1], c, scalars)
        if has_finish:
            for i in range(n_scalars):
                pointer_to(rows[row * n_columns + STATES + n_states + i], np.float32(0))[0] = np.float32(scalars[i])
        values = pointer_to(arguments[VALUES], number(0))
        for i, value in enumerate(results):
            values[row * n_totals + i] = number(value)

    @inner
    def finish(arguments):
        arguments = pointer_to(arguments, np.int64(0))
        first, rows = pointer_to(arguments[FIRST_ROW], np.int32(0)), pointer_to(arguments[SLOT_ROWS], np.int32(0))
        for slot in range(arguments[N_SLOTS]):
            for at in range(np.int64(first[slot]), np.int64(first[slot + 1])):
                finish_row(np.int64(rows[at]), slot, arguments)

    return measure, reduce, finish
