# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# Numba compiles these functions: pyright knows neither their types nor how Numba's intrinsics are called.
"""The rule as machine code for the CPU: the same function bodies, compiled by Numba, over the same address table.

`multi_tensor` is its twin for the GPU. Only what this machine has not kept needs this module, and Numba.
"""

from collections.abc import Callable

import llvmlite.binding as llvm
import numpy as np
import torch
from numba.core import types
from numba.core.dispatcher import Dispatcher
from numba.core.registry import cpu_target
from numba.cpython.unsafe.tuple import tuple_setitem

from kernels import codes, cpu_compressed, cpu_sums
from kernels.cpu_language import casting, language, single
from kernels.cpu_storage import ACCESS, inner, mix, pointer_to, reinterpret, store_bfloat16_stochastic
from kernels.object_code import ARGUMENTS, has_openmp
from kernels.rule import Rule, rebind
from kernels.table import GRAD, N_ELEMENTS, PARAMETER, STATES, STEP, P
from kernels.table import n_columns as n_columns_of

(ROWS, HYPER, COEFFICIENTS, KEYS, CHUNK_ROW, CHUNK_INDEX, N_ROWS, N_CHUNKS, CHUNK_SIZE, SEED, GRAD_SCALE) = range(11)
CLIP, VALUES, _ = range(11, len(ARGUMENTS))


def functions(
    rule: Rule, p_dtype: torch.dtype, grad_dtype: torch.dtype, state_dtype: torch.dtype, stochastic: bool
) -> tuple[Callable, Callable]:
    """The two halves of a step, to be compiled for int64; see `object_code`."""
    tl, double = language(), p_dtype == torch.float64
    coefficients = rebind(rule.coefficients, tl, inner)
    update = rebind(rule.update, tl, inner if double else single)
    p_element, load_p, store_p = ACCESS[p_dtype]
    grad_element, load_grad, _ = ACCESS[grad_dtype]
    state_element, load_state, store_state = ACCESS[state_dtype]
    if stochastic:
        store_p = store_bfloat16_stochastic if p_dtype == torch.bfloat16 else store_p
        store_state = store_bfloat16_stochastic if state_dtype == torch.bfloat16 else store_state
    p_bytes, grad_bytes, state_bytes = p_element.itemsize, grad_element.itemsize, state_element.itemsize
    number, number_bytes = (np.float64, 8) if double else (np.float32, 4)
    n_states, n_scalars, n_hyper, n_totals = len(rule.states), len(rule.scalars), rule.n_hyper, rule.n_totals
    n_columns, n_coefficients, no_noise, clips = n_columns_of(rule), rule.n_coefficients, np.uint32(0), rule.clips
    hyper_width = 1 + len(rule.hyper)
    # Tuples to be filled by tuple_setitem: Numba needs lengths at compile time, and cannot index an empty one.
    address_tuple, state_tuple = (0,) * max(1, n_states), (number(0),) * max(1, n_states)
    hyper_tuple, scalar_tuple = (0.0,) * n_hyper, (0.0,) * max(1, n_scalars)
    coefficient_tuple, key_tuple = (number(0),) * n_coefficients, (no_noise,) * (1 + n_states)
    total_tuple = (number(0),) * max(1, n_totals)
    if n_scalars:
        coefficients_and_scalars = coefficients
    else:
        coefficients_and_scalars = inner(lambda hyper, step, scalars: (coefficients(hyper, step), scalars))
    # Two bytes are made of the bits of a float32.
    cast_states = casting(n_states, np.float32 if state_bytes == 2 else number)
    # Numba cannot index an empty tuple.
    if n_totals and n_states:
        update_and_state = update
    elif n_totals:
        update_and_state = inner(lambda p, grad, state, c, totals: (update(p, grad, (), c, totals)[0], state))
    elif n_states:
        update_and_state = inner(lambda p, grad, state, c, totals: update(p, grad, state, c))
    else:
        update_and_state = inner(lambda p, grad, state, c, totals: (update(p, grad, (), c)[0], state))

    @inner
    def prologue(arguments):
        arguments = pointer_to(arguments, np.int64(0))
        rows, hyper = pointer_to(arguments[ROWS], np.int64(0)), pointer_to(arguments[HYPER], np.float64(0))
        c, keys = pointer_to(arguments[COEFFICIENTS], number(0)), pointer_to(arguments[KEYS], no_noise)
        seed, grad_scale = np.uint32(arguments[SEED]), reinterpret(arguments[GRAD_SCALE], np.float64(0))
        for row in range(arguments[N_ROWS]):
            step = pointer_to(rows[row * n_columns + STEP], np.float32(0))
            step[0] += np.float32(1)
            values = hyper_tuple
            for i in range(n_hyper):
                values = tuple_setitem(values, i, hyper[row * hyper_width + 1 + i])
            scalars = scalar_tuple
            for i in range(n_scalars):
                pointer = pointer_to(rows[row * n_columns + STATES + n_states + i], np.float32(0))
                scalars = tuple_setitem(scalars, i, np.float64(pointer[0]))
            results, scalars = coefficients_and_scalars(values, np.float64(step[0]), scalars)
            for i in range(n_scalars):
                pointer_to(rows[row * n_columns + STATES + n_states + i], np.float32(0))[0] = np.float32(scalars[i])
            c[row * (1 + n_coefficients)] = number(hyper[row * hyper_width] / grad_scale)
            for i, value in enumerate(results):
                c[row * (1 + n_coefficients) + 1 + i] = number(value)
            parameter = np.uint32(rows[row * n_columns + PARAMETER])
            keys[row] = mix(np.uint32(mix(np.uint32(mix(seed) + parameter)) + np.uint32(step[0])))

    @inner
    def update_element(j, p_ptr, grad_ptr, addresses, factor, c, totals, key, low):
        state = state_tuple
        for i in range(n_states):
            state = tuple_setitem(state, i, number(load_state(pointer_to(addresses[i], state_element), j)))
        p, state = update_and_state(load_p(p_ptr, j), factor * number(load_grad(grad_ptr, j)), state, c, totals)
        state = cast_states(state)
        element = np.uint32(low + np.uint32(j))
        store_p(p_ptr, j, number(p), mix(np.uint32(element ^ key[0])) if stochastic else no_noise)
        for i in range(n_states):
            noise = mix(np.uint32(element ^ key[1 + i])) if stochastic else no_noise
            store_state(pointer_to(addresses[i], state_element), j, state[i], noise)

    # Element and loop are functions of their own: inlined by hand, LLVM peels the first element off, and every
    # vector access after it is misaligned.
    @inner
    def update_elements(n, p_ptr, grad_ptr, addresses, factor, c, totals, key, low):
        for j in range(n):
            update_element(j, p_ptr, grad_ptr, addresses, factor, c, totals, key, low)

    @inner
    def update_chunk(row, coefficients, factor, totals, key_of_row, start, chunk_size):
        n = min(chunk_size, row[N_ELEMENTS] - start)
        c = coefficient_tuple
        for i in range(n_coefficients):
            c = tuple_setitem(c, i, coefficients[1 + i])
        addresses = address_tuple
        for i in range(n_states):
            addresses = tuple_setitem(addresses, i, row[STATES + i] + start * state_bytes)
        key = key_tuple
        if stochastic:
            high = np.uint32(np.uint32(start >> 32) * np.uint32(0x9E3779B9))
            for i in range(1 + n_states):
                key = tuple_setitem(key, i, mix(np.uint32(key_of_row + np.uint32(i) + high)))
        p_ptr = pointer_to(row[P] + start * p_bytes, p_element)
        grad_ptr = pointer_to(row[GRAD] + start * grad_bytes, grad_element)
        update_elements(n, p_ptr, grad_ptr, addresses, factor, c, totals, key, np.uint32(start))

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
            c_ptr = pointer_to(arguments[COEFFICIENTS] + row * (1 + n_coefficients) * number_bytes, number(0))
            factor, totals = c_ptr[0], total_tuple
            if clips:
                factor *= pointer_to(arguments[CLIP], number(0))[row]
            for i in range(n_totals):
                totals = tuple_setitem(totals, i, pointer_to(arguments[VALUES], number(0))[row * n_totals + i])
            update_chunk(row_ptr, c_ptr, factor, totals, keys[row], start, chunk_size)

    if state_dtype == codes.DTYPE:
        walk = cpu_compressed.walk_of(rule, p_dtype, grad_dtype, stochastic, update)
    return prologue, walk


SERIAL = """
define void @{name}(i64 %arguments) {{
  %result = alloca ptr
  %error = alloca ptr
  call i32 @"{function}"(ptr %result, ptr %error, i64 %arguments)
  ret void
}}
declare i32 @"{function}"(ptr, ptr, i64)
"""
SHARED = """
define void @{name}(i64 %arguments, i64 %share, i64 %shares) {{
  %result = alloca ptr
  %error = alloca ptr
  call i32 @"{function}"(ptr %result, ptr %error, i64 %arguments, i64 %share, i64 %shares)
  ret void
}}
define void @{name}_own_share(i64 %arguments) {{
  %thread = {thread}
  %threads = {threads}
  %share = zext i32 %thread to i64
  %shares = zext i32 %threads to i64
  call void @{name}(i64 %arguments, i64 %share, i64 %shares)
  ret void
}}
declare i32 @"{function}"(ptr, ptr, i64, i64, i64)
declare i32 @omp_get_thread_num()
declare i32 @omp_get_num_threads()
"""
"""Functions that C can call, which call Numba's: by one thread, or by each for its share. Those return a status: always
0, as nothing in a rule raises."""
OPENMP = {"thread": "call i32 @omp_get_thread_num()", "threads": "call i32 @omp_get_num_threads()"}
ALONE = {"thread": "add i32 0, 0", "threads": "add i32 0, 1"}
LIBRARY = {"fabs", "exp", "exp2", "log", "log2", "sin", "cos", "sqrt", "floor", "ceil", "fmin", "fmax", "pow", "fma"}
"""Functions of the C library, which every process has."""


def compiled(name: str, function: Dispatcher, is_shared: bool) -> llvm.ModuleRef:
    """Compile a function of one int64, or of three if threads share its work; return its optimised LLVM IR."""
    signature = (types.int64,) * (3 if is_shared else 1)
    function.compile(signature)
    module = llvm.parse_assembly(function.inspect_llvm(signature))
    (own,) = (f.name for f in module.functions if not f.is_declaration and f.linkage == llvm.Linkage.external)
    entry = (SHARED if is_shared else SERIAL).format(name=name, function=own, **(OPENMP if has_openmp() else ALONE))
    module.link_in(llvm.parse_assembly(entry))
    return module


def object_code(
    rule: Rule, p_dtype: torch.dtype, grad_dtype: torch.dtype, state_dtype: torch.dtype, stochastic: bool
) -> tuple[bytes, dict[str, int]]:
    """Compile a rule's step for CPU tensors of these dtypes, which takes about a second.

    Returns:
        An object file with the functions of `object_code.Code`, and the addresses of what only Numba brings and it
        calls.

    Raises:
        numba.core.errors.NumbaError: Numba cannot compile the rule.
    """
    prologue, walk = functions(rule, p_dtype, grad_dtype, state_dtype, stochastic)
    module = compiled("prologue", prologue, is_shared=False)
    module.link_in(compiled("walk", walk, is_shared=True))
    for i, stage in enumerate(rule.stages):
        measure, reduce, finish = cpu_sums.functions(rule, stage, p_dtype, grad_dtype, state_dtype)
        module.link_in(compiled(f"measure{i}", measure, is_shared=True))
        module.link_in(compiled(f"reduce{i}", reduce, is_shared=False))
        module.link_in(compiled(f"finish{i}", finish, is_shared=False))
    triple, cpu, features = cpu_target.target_context.codegen().magic_tuple()
    machine = llvm.Target.from_triple(triple).create_target_machine(
        cpu=cpu, features=features, opt=3, codemodel="jitdefault", jit=True
    )
    declared = {f.name for f in module.functions if f.is_declaration and not f.name.startswith(("llvm.", "omp_"))}
    others = {name: llvm.address_of_symbol(name) for name in declared if name.removesuffix("f") not in LIBRARY}
    return machine.emit_object(module), {name: address for name, address in others.items() if address}
