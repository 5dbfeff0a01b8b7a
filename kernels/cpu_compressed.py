# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# Numba compiles these functions: pyright knows neither their types nor how Numba's intrinsics are called.
"""The CPU's traversal of tensors whose states are compressed: the part of `cpu_rule` that differs for them.

A block is walked three times while the cache holds it: states are decoded and updated into a buffer, their largest
magnitudes are found, and the buffer is encoded. Each of these loops compiles to vector instructions.
"""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.cpython.unsafe.tuple import tuple_setitem
from numba.extending import intrinsic

from kernels.codes import BLOCK, Code, codes_of
from kernels.cpu_language import single
from kernels.cpu_storage import ACCESS, inner, mix, pointer_to, reinterpret, store_bfloat16_stochastic
from kernels.object_code import ARGUMENTS
from kernels.rule import Rule, rebind
from kernels.table import GRAD, N_ELEMENTS, STATES, P
from kernels.table import n_columns as n_columns_of

ROWS, COEFFICIENTS, KEYS, CHUNK_ROW, CHUNK_INDEX, N_CHUNKS, CHUNK_SIZE, CLIP, SCALES = map(
    ARGUMENTS.index,
    ("rows", "coefficients", "keys", "chunk_row", "chunk_index", "n_chunks", "chunk_size", "clip", "scales"),
)

NUMBER = {torch.int8: np.int8, torch.uint8: np.uint8}


@intrinsic
def stack(typingctx, like, size):
    """A pointer to so many numbers of the type of `like`, in the frame of the function."""

    def codegen(context, builder, signature, args):
        space = cgutils.alloca_once(builder, context.get_value_type(like), size=signature.args[1].literal_value)
        space.align = 64
        return space

    return (types.CPointer(like)(like, size), codegen) if isinstance(size, types.IntegerLiteral) else None


@intrinsic
def cast(typingctx, value, like, bitcast):
    """`tl.cast` between float32 and integers; Numba has computed these in 64 bits."""

    def codegen(context, builder, signature, args):
        is_wide = isinstance(value, types.Integer) and value.bitwidth == 64
        bits = builder.trunc(args[0], ir.IntType(32)) if is_wide else args[0]
        return builder.bitcast(bits, context.get_value_type(like))

    return like(value, like, bitcast), codegen


LANGUAGE = ModuleType("tl")
"""What `tl` means in the functions of `codes`."""
vars(LANGUAGE).update(int32=np.int32(0), float32=np.float32(0), cast=cast, abs=np.abs)
LANGUAGE.maximum = inner(lambda x, y: x if x > y else y)
LANGUAGE.div_rn = inner(lambda x, y: x / y)
LANGUAGE.where = inner(lambda condition, x, y: x if condition else y)


def access(code: Code, first: int) -> tuple[Callable, Callable]:
    """Return functions that load an element of a state, and that store a block of it from `values[first]` on."""
    number = NUMBER[code.dtype]
    encode, decode = (rebind(f, LANGUAGE, single) for f in (code.encode, code.decode))
    element = number(0)

    @inner
    def load(address, j, scale):
        return decode(np.float32(pointer_to(address, element)[j]), scale)

    @inner
    def store(address, scale, values, n):
        codes = pointer_to(address, element)
        for j in range(n):
            codes[j] = number(encode(values[first + j], scale))

    return load, store


def walk_of(rule: Rule, p_dtype: torch.dtype, grad_dtype: torch.dtype, stochastic: bool, update: Callable) -> Callable:
    """Return the second half of a step of which `cpu_rule.functions` returns both, for states of one byte.

    Args:
        update: `rule.update`, compiled.
    """
    p_element, load_p, store_p = ACCESS[p_dtype]
    grad_element, load_grad, _ = ACCESS[grad_dtype]
    if stochastic and p_dtype == torch.bfloat16:
        store_p = store_bfloat16_stochastic
    p_bytes, grad_bytes, n_states = p_element.itemsize, grad_element.itemsize, len(rule.states)
    n_columns, n_coefficients, clips, no_noise = n_columns_of(rule), rule.n_coefficients, rule.clips, np.uint32(0)
    coefficient_tuple, scale_tuple = (np.float32(0),) * n_coefficients, (np.float32(0),) * n_states
    address_tuple, zero = (0,) * n_states, np.int32(0)
    n_values = n_states * BLOCK
    accesses = [access(code, i * BLOCK) for i, code in enumerate(codes_of(rule))]

    # States differ in type, so that a loop over them is unrolled here.
    def loading(n: int) -> Callable:
        if n == 0:
            return inner(lambda addresses, j, scales: ())
        others, load, i = loading(n - 1), accesses[n - 1][0], n - 1
        return inner(lambda addresses, j, scales: (*others(addresses, j, scales), load(addresses[i], j, scales[i])))

    def storing(n: int) -> Callable:
        if n == 0:
            return inner(lambda addresses, scales, values, count: None)
        others, store, i = storing(n - 1), accesses[n - 1][1], n - 1

        @inner
        def stored(addresses, scales, values, count):
            others(addresses, scales, values, count)
            store(addresses[i], scales[i], values, count)

        return stored

    load_states, store_states = loading(n_states), storing(n_states)

    @inner
    def update_element(j, p_ptr, grad_ptr, addresses, scales, values, factor, c, key, low):
        state = load_states(addresses, j, scales)
        p, state = update(load_p(p_ptr, j), factor * np.float32(load_grad(grad_ptr, j)), state, c)
        noise = mix(np.uint32(np.uint32(low + np.uint32(j)) ^ key)) if stochastic else no_noise
        store_p(p_ptr, j, np.float32(p), noise)
        for i in range(n_states):
            values[i * BLOCK + j] = np.float32(state[i])

    # Functions of their own, for the reason that `cpu_rule` gives.
    @inner
    def update_elements(n, p_ptr, grad_ptr, addresses, scales, values, factor, c, key, low):
        for j in range(n):
            update_element(j, p_ptr, grad_ptr, addresses, scales, values, factor, c, key, low)

    @inner
    def largest_of(n, values, first):
        largest = zero
        for j in range(n):
            # As integers, so that a NaN is the largest on all backends.
            largest = max(largest, np.int32(reinterpret(values[first + j], zero) & np.int32(0x7FFFFFFF)))
        return reinterpret(largest, np.float32(0))

    @inner
    def update_block(n, start, row, scale_row, factor, c, key, values):
        block = start // BLOCK
        scales, addresses = scale_tuple, address_tuple
        for i in range(n_states):
            scales = tuple_setitem(scales, i, pointer_to(scale_row[i], np.float32(0))[block])
            addresses = tuple_setitem(addresses, i, row[STATES + i] + start)
        p_ptr = pointer_to(row[P] + start * p_bytes, p_element)
        grad_ptr = pointer_to(row[GRAD] + start * grad_bytes, grad_element)
        low = np.uint32(start)
        update_elements(n, p_ptr, grad_ptr, addresses, scales, values, factor, c, key, low)
        for i in range(n_states):
            scale = largest_of(n, values, i * BLOCK)
            scales = tuple_setitem(scales, i, scale)
            pointer_to(scale_row[i], np.float32(0))[block] = scale
        store_states(addresses, scales, values, n)

    @inner
    def update_chunk(row, scale_row, coefficients, factor, key_of_row, start, chunk_size):
        end = min(start + chunk_size, row[N_ELEMENTS])
        c = coefficient_tuple
        for i in range(n_coefficients):
            c = tuple_setitem(c, i, coefficients[1 + i])
        high = np.uint32(np.uint32(start >> 32) * np.uint32(0x9E3779B9))
        key = mix(np.uint32(key_of_row + high)) if stochastic else no_noise
        values = stack(np.float32(0), n_values)
        full = end - (end - start) % BLOCK
        for first in range(start, full, BLOCK):
            update_block(BLOCK, first, row, scale_row, factor, c, key, values)
        if full < end:
            update_block(end - full, full, row, scale_row, factor, c, key, values)

    @inner
    def walk(arguments, share, shares):
        arguments = pointer_to(arguments, np.int64(0))
        chunk_row = pointer_to(arguments[CHUNK_ROW], np.int32(0))
        chunk_index = pointer_to(arguments[CHUNK_INDEX], np.int32(0))
        keys = pointer_to(arguments[KEYS], no_noise)
        n_chunks, chunk_size = arguments[N_CHUNKS], arguments[CHUNK_SIZE]
        for chunk in range(n_chunks * share // shares, n_chunks * (share + 1) // shares):
            row, start = np.int64(chunk_row[chunk]), chunk_index[chunk] * chunk_size
            row_ptr = pointer_to(arguments[ROWS] + row * n_columns * 8, np.int64(0))
            scale_row = pointer_to(arguments[SCALES] + row * n_states * 8, np.int64(0))
            c_ptr = pointer_to(arguments[COEFFICIENTS] + row * (1 + n_coefficients) * 4, np.float32(0))
            factor = c_ptr[0]
            if clips:
                factor *= pointer_to(arguments[CLIP], np.float32(0))[row]
            update_chunk(row_ptr, scale_row, c_ptr, factor, keys[row], start, chunk_size)

    return walk
