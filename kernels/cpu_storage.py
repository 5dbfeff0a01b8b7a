# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# Numba compiles these functions: pyright knows neither their types nor how Numba's intrinsics are called.
"""How the CPU's machine code loads and stores elements of each dtype, for Numba to compile."""

import functools

import numba
import numpy as np
import torch
from numba.core import types
from numba.extending import intrinsic

# Contraction into fused multiply-add is what the GPU compiler does too; nothing else is relaxed.
jit = functools.partial(numba.njit, error_model="numpy", fastmath={"contract"})
# What Python never calls goes without the wrappers for it, which take a third of the time to compile.
inner = functools.partial(jit, no_cpython_wrapper=True, no_cfunc_wrapper=True)


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
    torch.int8: (np.int8(0), load_native, store_native),
}
"""How elements of a dtype are stored, loaded and stored from the compute dtype."""
