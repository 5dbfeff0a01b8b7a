# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportPrivateImportUsage=false
# Numba compiles these functions: pyright knows neither their types nor how Numba's intrinsics are called.
"""The rule on CPU tensors: the same function bodies, compiled by Numba, over the same address table.

One call walks all rows on all threads at memory speed. `multi_tensor` is its twin for the GPU.
"""

import functools
import threading
from collections.abc import Callable
from types import FunctionType, ModuleType

import numba
import numpy as np
import torch
from numba.core import types
from numba.cpython.unsafe.tuple import tuple_setitem
from numba.extending import intrinsic

from kernels import table as tables
from kernels.rule import NUMPY, Rule, check_portable, rebind
from kernels.table import GRAD, N_ELEMENTS, PARAMETER, STATES, STEP, Entry, Launch, P, Table

CHUNK_SIZE = 16384
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Contraction into fused multiply-add is what the GPU compiler does too; nothing else is relaxed.
jit = functools.partial(numba.njit, error_model="numpy", fastmath={"contract"})
# What Python never calls goes without the wrappers for it, which take a third of the time to compile.
inner = functools.partial(jit, no_cpython_wrapper=True, no_cfunc_wrapper=True)
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
def store_native(pointer, i, x, noise):
    pointer[i] = x


@jit
def load_bfloat16(pointer, i):
    return reinterpret(np.uint32(np.uint32(pointer[i]) << np.uint32(16)), np.float32(0))


# The arithmetic of `rounding`, whose bit casts Numba cannot read. Each result is cast: Numba adds uint32 in 64 bits.


@jit
def store_bfloat16(pointer, i, x, noise):
    bits = reinterpret(x, np.uint32(0))
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    nearest = np.uint32(np.uint32(np.uint32(bits + np.uint32(0x7FFF)) + odd) >> np.uint32(16))
    quiet_nan = np.uint32(np.uint32(bits >> np.uint32(16)) | np.uint32(0x40))
    pointer[i] = np.uint16(quiet_nan if x != x else nearest)


@jit
def store_bfloat16_stochastic(pointer, i, x, noise):
    bits = reinterpret(x, np.uint32(0))
    rounded = np.uint32(np.uint32(bits + np.uint32(noise & np.uint32(0xFFFF))) >> np.uint32(16))
    quiet_nan = np.uint32(np.uint32(bits >> np.uint32(16)) | np.uint32(0x40))
    pointer[i] = np.uint16(quiet_nan if x != x else rounded)


@inner
def mix(x):
    x = np.uint32(x ^ np.uint32(x >> np.uint32(16)))
    x = np.uint32(x * np.uint32(0x7FEB352D))
    x = np.uint32(x ^ np.uint32(x >> np.uint32(15)))
    x = np.uint32(x * np.uint32(0x846CA68B))
    return np.uint32(x ^ np.uint32(x >> np.uint32(16)))


@jit
def load_float16(pointer, i):
    half = np.uint32(pointer[i])
    # The exponent moves from bias 15 to 127 by a product, which also normalises subnormal numbers.
    magnitude = reinterpret(np.uint32(np.uint32(half & np.uint32(0x7FFF)) << np.uint32(13)), np.float32(0))
    bits = reinterpret(np.float32(magnitude * np.float32(2.0**112)), np.uint32(0))
    infinite = np.uint32(half & np.uint32(0x7C00)) == np.uint32(0x7C00)
    bits = np.uint32(bits | np.uint32(0x7F800000)) if infinite else bits
    sign = np.uint32(np.uint32(half & np.uint32(0x8000)) << np.uint32(16))
    return reinterpret(np.uint32(bits | sign), np.float32(0))


@jit
def store_float16(pointer, i, x, noise):
    bits = reinterpret(x, np.uint32(0))
    sign = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(0x8000))
    bits = np.uint32(bits & np.uint32(0x7FFFFFFF))
    # To nearest, ties to even: adding one half leaves a subnormal's digits at the end of the sum.
    tiny = np.float32(reinterpret(bits, np.float32(0)) + np.float32(0.5))
    subnormal = np.uint32(reinterpret(tiny, np.uint32(0)) - np.uint32(0x3F000000))
    odd = np.uint32(np.uint32(bits >> np.uint32(13)) & np.uint32(1))
    rebiased = np.uint32(bits - np.uint32(0x38000000 - 0xFFF))
    normal = np.uint32(np.uint32(rebiased + odd) >> np.uint32(13))
    half = subnormal if bits < np.uint32(0x38800000) else normal
    half = np.uint32(0x7C00) if bits >= np.uint32(0x477FF000) else half
    half = np.uint32(0x7E00) if bits > np.uint32(0x7F800000) else half
    pointer[i] = np.uint16(sign | half)


ACCESS = {
    torch.float32: (np.float32(0), load_native, store_native),
    torch.float64: (np.float64(0), load_native, store_native),
    torch.bfloat16: (np.uint16(0), load_bfloat16, store_bfloat16),
    torch.float16: (np.uint16(0), load_float16, store_float16),
}
"""How elements of a dtype are stored, loaded and stored from the compute dtype."""


def _language() -> ModuleType:
    """What `tl` means in a rule that Numba compiles."""
    language = ModuleType("tl")
    vars(language).update(vars(NUMPY))
    language.div_rn = inner(lambda x, y: x / y)
    language.rsqrt = inner(lambda x: 1 / np.sqrt(x))
    language.where = inner(lambda condition, x, y: x if condition else y)
    return language


def single(function: FunctionType):
    """Compile it with its constants in float32: Python's float64 would make float64 of everything they touch."""

    def cast(constant):
        if isinstance(constant, tuple):
            return tuple(map(cast, constant))
        return np.float32(constant) if type(constant) is float else constant

    constants = cast(function.__code__.co_consts)
    return inner(FunctionType(function.__code__.replace(co_consts=constants), function.__globals__, function.__name__))


def casting(n: int, number: type) -> Callable:
    """A function that makes `number`s of the first n elements of a tuple: integers in a rule make float64 of some."""
    if n == 0:
        return inner(lambda values: values)
    others, i = casting(n - 1, number), n - 1
    if n == 1:
        return inner(lambda values: (number(values[0]),))
    return inner(lambda values: (*others(values), number(values[i])))


@functools.cache
def compile_rule(
    rule: Rule, p_dtype: torch.dtype, grad_dtype: torch.dtype, state_dtype: torch.dtype, stochastic: bool
) -> tuple[Callable, Callable]:
    """A rule's step for CPU tensors of these dtypes, on one thread and on several.

    Numba compiles each when it is first called, which takes about a second.
    """
    language, double = _language(), p_dtype == torch.float64
    coefficients = rebind(rule.coefficients, language, inner)
    update = rebind(rule.update, language, inner if double else single)
    p_element, load_p, store_p = ACCESS[p_dtype]
    grad_element, load_grad, _ = ACCESS[grad_dtype]
    state_element, load_state, store_state = ACCESS[state_dtype]
    if stochastic:
        store_p = store_bfloat16_stochastic if p_dtype == torch.bfloat16 else store_p
        store_state = store_bfloat16_stochastic if state_dtype == torch.bfloat16 else store_state
    p_bytes, grad_bytes, state_bytes = p_element.itemsize, grad_element.itemsize, state_element.itemsize
    number = np.float64 if double else np.float32
    n_states, n_scalars, n_hyper = len(rule.states), len(rule.scalars), len(rule.hyper)
    n_coefficients, no_noise = rule.n_coefficients, np.uint32(0)
    # Tuples to be filled by tuple_setitem: Numba needs lengths at compile time, and cannot index an empty one.
    address_tuple, state_tuple = (0,) * max(1, n_states), (number(0),) * max(1, n_states)
    hyper_tuple, scalar_tuple = (0.0,) * n_hyper, (0.0,) * max(1, n_scalars)
    coefficient_tuple, key_tuple = (number(0),) * n_coefficients, (no_noise,) * (1 + n_states)
    if n_scalars:
        coefficients_and_scalars = coefficients
    else:
        coefficients_and_scalars = inner(lambda hyper, step, scalars: (coefficients(hyper, step), scalars))
    # Two bytes are made of the bits of a float32.
    cast_states = casting(n_states, np.float32 if state_bytes == 2 else number)
    if n_states:
        update_and_state = update
    else:
        update_and_state = inner(lambda p, grad, state, coefficients: (update(p, grad, (), coefficients)[0], state))

    @inner
    def prologue(rows, hyper, coefficients_of_row, keys, grad_scale, seed):
        for row in range(rows.shape[0]):
            step = pointer_to(rows[row, STEP], np.float32(0))
            step[0] += np.float32(1)
            values = hyper_tuple
            for i in range(n_hyper):
                values = tuple_setitem(values, i, hyper[row, 1 + i])
            scalars = scalar_tuple
            for i in range(n_scalars):
                pointer = pointer_to(rows[row, STATES + n_states + i], np.float32(0))
                scalars = tuple_setitem(scalars, i, np.float64(pointer[0]))
            results, scalars = coefficients_and_scalars(values, np.float64(step[0]), scalars)
            for i in range(n_scalars):
                pointer_to(rows[row, STATES + n_states + i], np.float32(0))[0] = np.float32(scalars[i])
            coefficients_of_row[row, 0] = hyper[row, 0] / grad_scale
            for i, value in enumerate(results):
                coefficients_of_row[row, 1 + i] = value
            parameter = np.uint32(rows[row, PARAMETER])
            keys[row] = mix(np.uint32(mix(np.uint32(mix(np.uint32(seed)) + parameter)) + np.uint32(step[0])))

    @inner
    def update_element(j, p_ptr, grad_ptr, addresses, factor, c, key, low):
        state = state_tuple
        for i in range(n_states):
            state = tuple_setitem(state, i, number(load_state(pointer_to(addresses[i], state_element), j)))
        p, state = update_and_state(load_p(p_ptr, j), factor * number(load_grad(grad_ptr, j)), state, c)
        state = cast_states(state)
        element = np.uint32(low + np.uint32(j))
        store_p(p_ptr, j, number(p), mix(np.uint32(element ^ key[0])) if stochastic else no_noise)
        for i in range(n_states):
            noise = mix(np.uint32(element ^ key[1 + i])) if stochastic else no_noise
            store_state(pointer_to(addresses[i], state_element), j, state[i], noise)

    # Element and loop are functions of their own: inlined by hand, LLVM peels the first element off, and every
    # vector access after it is misaligned.
    @inner
    def walk(n, p_ptr, grad_ptr, addresses, factor, c, key, low):
        for j in range(n):
            update_element(j, p_ptr, grad_ptr, addresses, factor, c, key, low)

    @inner
    def update_chunk(rows, coefficients_of_row, keys, row, start, chunk_size):
        n = min(chunk_size, rows[row, N_ELEMENTS] - start)
        c = coefficient_tuple
        for i in range(n_coefficients):
            c = tuple_setitem(c, i, coefficients_of_row[row, 1 + i])
        addresses = address_tuple
        for i in range(n_states):
            addresses = tuple_setitem(addresses, i, rows[row, STATES + i] + start * state_bytes)
        key = key_tuple
        if stochastic:
            high = np.uint32(np.uint32(start >> 32) * np.uint32(0x9E3779B9))
            for i in range(1 + n_states):
                key = tuple_setitem(key, i, mix(np.uint32(keys[row] + np.uint32(i) + high)))
        p_ptr = pointer_to(rows[row, P] + start * p_bytes, p_element)
        grad_ptr = pointer_to(rows[row, GRAD] + start * grad_bytes, grad_element)
        walk(n, p_ptr, grad_ptr, addresses, coefficients_of_row[row, 0], c, key, np.uint32(start))

    @inner(parallel=True)
    def traverse(rows, coefficients_of_row, keys, chunk_row, chunk_index, chunk_size):
        for chunk in numba.prange(chunk_row.shape[0]):
            start = np.int64(chunk_index[chunk]) * chunk_size
            update_chunk(rows, coefficients_of_row, keys, chunk_row[chunk], start, chunk_size)

    # Each is compiled when it is first called, and the parallel loop, which small tensors never need, takes longest.
    @jit
    def step(rows, hyper, coefficients_of_row, keys, chunk_row, chunk_index, chunk_size, grad_scale, seed):
        prologue(rows, hyper, coefficients_of_row, keys, grad_scale, seed)
        for chunk in range(chunk_row.shape[0]):
            start = np.int64(chunk_index[chunk]) * chunk_size
            update_chunk(rows, coefficients_of_row, keys, chunk_row[chunk], start, chunk_size)

    @jit
    def step_on_threads(
        rows, hyper, coefficients_of_row, keys, chunk_row, chunk_index, chunk_size, grad_scale, seed, threads
    ):
        prologue(rows, hyper, coefficients_of_row, keys, grad_scale, seed)
        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        traverse(rows, coefficients_of_row, keys, chunk_row, chunk_index, chunk_size)
        numba.set_num_threads(before)

    return step, step_on_threads


def build(rule: Rule, entries: list[Entry], grad_dtype: torch.dtype, seed: int | None = None) -> Table:
    """`table.build` with chunks of this backend's size."""
    return tables.build(rule, entries, grad_dtype, CHUNK_SIZE, seed)


def launcher(table: Table) -> Launch:
    """See `table.Launch`. Raises: NotImplementedError if the rule calls what this backend lacks."""
    check_portable(table.rule)
    dtypes = table.p_dtype, table.grad_dtype, table.state_dtype
    step, step_on_threads = compile_rule(table.rule, *dtypes, table.seed is not None)
    rows, hyper, coefficients = table.rows.numpy(), table.hyper.numpy(), table.coefficients.numpy()
    keys = table.keys.numpy().view(np.uint32)
    chunk_row, chunk_index = table.chunk_row.numpy(), table.chunk_index.numpy()
    chunk_size, seed = table.chunk_size, table.seed or 0
    # Waking a thread costs as much as what a chunk takes.
    most_threads = max(
        1, min(numba.config.NUMBA_NUM_THREADS, int(table.uploads.hosts[0][:, N_ELEMENTS].sum()) // CHUNK_SIZE)
    )

    def launch(grads, grad_scale, found_inf) -> None:
        if found_inf is not None and found_inf.item() != 0:
            return
        table.point_at(grads)
        scale = 1.0 if grad_scale is None else float(grad_scale.item())
        of_torch = torch.get_num_threads()
        threads = min(of_torch, most_threads)
        arguments = rows, hyper, coefficients, keys, chunk_row, chunk_index, chunk_size, scale, seed
        with _LOCK:
            if threads > 1:
                step_on_threads(*arguments, threads)
            else:
                step(*arguments)
        # Numba's thread pool, when it starts, sets how many threads OpenMP has, and torch with it.
        if torch.get_num_threads() != of_torch:
            torch.set_num_threads(of_torch)

    return launch
