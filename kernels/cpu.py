"""The rule on CPU tensors: the same function bodies, compiled by Numba, over the same address table.

One call walks all rows on all threads at memory speed. `multi_tensor` is its twin for the GPU.
"""

import functools
import threading
from types import ModuleType

import numba
import numpy as np
import torch
from numba.core import types
from numba.cpython.unsafe.tuple import tuple_setitem
from numba.extending import intrinsic

from kernels.rules import Rule, rebind
from kernels.table import GRAD, N_ELEMENTS, STATES, STEP, P, Table

CHUNK_SIZE = 16384
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
# Contraction into fused multiply-add is what the GPU compiler does too; nothing else is relaxed.
jit = functools.partial(numba.njit, error_model="numpy", fastmath={"contract"})
# Numba's fallback thread pool, where there is no OpenMP, ends the process when entered twice.
_LOCK = threading.Lock()


@intrinsic
def pointer_to(typingctx, address, element):
    """The integer address as a pointer to elements of the type of `element`."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(element)(address, element), codegen


@intrinsic
def reinterpret(typingctx, value, like):
    """The bits of `value` as a number of the type of `like`, which is as wide."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(signature.return_type))

    return like(value, like), codegen


@jit
def load_native(pointer, i):
    return pointer[i]


@jit
def store_native(pointer, i, x):
    pointer[i] = x


@jit
def load_bfloat16(pointer, i):
    return reinterpret(np.uint32(np.uint32(pointer[i]) << np.uint32(16)), np.float32(0))


@jit
def store_bfloat16(pointer, i, x):
    # The arithmetic of rounding.bfloat16_nearest, whose bit casts Numba cannot read.
    bits = reinterpret(x, np.uint32(0))
    nearest = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet_nan = (bits >> np.uint32(16)) | np.uint32(0x40)
    pointer[i] = np.uint16(quiet_nan if x != x else nearest)


ACCESS = {
    torch.float32: (np.float32(0), load_native, store_native),
    torch.float64: (np.float64(0), load_native, store_native),
    torch.bfloat16: (np.uint16(0), load_bfloat16, store_bfloat16),
}
"""How elements of a dtype are stored, loaded and stored from the compute dtype."""


def _language() -> ModuleType:
    """What `tl` means in a rule that Numba compiles."""
    language = ModuleType("tl")
    for name in ("exp", "log", "sqrt", "abs", "minimum", "maximum", "where"):
        setattr(language, name, getattr(np, name))
    language.sqrt_rn = np.sqrt
    language.div_rn = jit(lambda x, y: x / y)
    return language


@functools.cache
def compile_rule(rule: Rule, p_dtype: torch.dtype, grad_dtype: torch.dtype, state_dtype: torch.dtype):
    """Compile a rule for CPU tensors of these dtypes: about two seconds, once a process."""
    coefficients, update = (jit(rebind(f, _language())) for f in (rule.coefficients, rule.update))
    p_element, load_p, store_p = ACCESS[p_dtype]
    grad_element, load_grad, _ = ACCESS[grad_dtype]
    state_element, load_state, store_state = ACCESS[state_dtype]
    p_bytes, grad_bytes, state_bytes = p_element.itemsize, grad_element.itemsize, state_element.itemsize
    zero = np.float64(0) if p_dtype == torch.float64 else np.float32(0)
    n_states, n_hyper, n_coefficients = len(rule.states), len(rule.hyper), rule.n_coefficients
    # Tuples of the right length, to be filled by tuple_setitem: Numba needs lengths at compile time.
    address_tuple, state_tuple = (0,) * n_states, (zero,) * n_states
    hyper_tuple, coefficient_tuple = (0.0,) * n_hyper, (zero,) * n_coefficients

    @jit(parallel=True)
    def update_rows(rows, hyper, coefficients_of_row, chunk_row, chunk_index, chunk_size):
        for row in range(rows.shape[0]):
            step = pointer_to(rows[row, STEP], np.float32(0))
            step[0] += np.float32(1)
            values = hyper_tuple
            for i in range(n_hyper):
                values = tuple_setitem(values, i, hyper[row, i])
            for i, value in enumerate(coefficients(values, np.float64(step[0]))):
                coefficients_of_row[row, i] = value

        for chunk in numba.prange(chunk_row.shape[0]):
            row = chunk_row[chunk]
            start = np.int64(chunk_index[chunk]) * chunk_size
            n = min(chunk_size, rows[row, N_ELEMENTS] - start)
            c = coefficient_tuple
            for i in range(n_coefficients):
                c = tuple_setitem(c, i, coefficients_of_row[row, i])
            p_ptr = pointer_to(rows[row, P] + start * p_bytes, p_element)
            grad_ptr = pointer_to(rows[row, GRAD] + start * grad_bytes, grad_element)
            addresses = address_tuple
            for i in range(n_states):
                addresses = tuple_setitem(addresses, i, rows[row, STATES + i] + start * state_bytes)
            for j in range(n):
                state = state_tuple
                for i in range(n_states):
                    state = tuple_setitem(state, i, load_state(pointer_to(addresses[i], state_element), j))
                p, state = update(load_p(p_ptr, j), load_grad(grad_ptr, j), state, c)
                store_p(p_ptr, j, p)
                for i in range(n_states):
                    store_state(pointer_to(addresses[i], state_element), j, state[i])

    return update_rows


def update_(table: Table, grads: list[torch.Tensor]) -> None:
    """Advance every row by one step of the table's rule, in place: parameters, states and step counts.

    Args:
        grads: contiguous, one for each entry of the table.
    """
    table.point_at(grads)
    update_rows = compile_rule(table.rule, table.p_dtype, table.grad_dtype, table.state_dtype)
    with _LOCK:
        numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
        update_rows(
            table.rows.numpy(),
            table.hyper.numpy(),
            table.coefficients.numpy(),
            table.chunk_row.numpy(),
            table.chunk_index.numpy(),
            table.chunk_size,
        )
