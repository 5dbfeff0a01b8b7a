"""Rounding of float32 to bfloat16 by integer arithmetic, to nearest or stochastically.

For this cast, Triton's interpreter truncates and the GPU rounds; the functions below give the same bits on both.
`cpu` repeats the arithmetic for Numba, which does not know Triton's bit casts.

The noise of stochastic rounding is a hash of seed, parameter, step, which of the parameter's tensors, and element.
Therefore it does not depend on block sizes or the grid, the lanes of a population share it, and a resumed run continues
as if it had not stopped.
"""

from kernels.rule import tl, triton


@triton.jit
def bfloat16_nearest(x):
    """Round a float32 block to nearest bfloat16, ties to even. NaN stays NaN; infinities stay."""
    bits = x.to(tl.uint32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # A NaN whose payload sits in the low half would round into an infinity.
    rounded = tl.where(x != x, (bits >> 16) | 0x40, rounded)
    return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def bfloat16_stochastic(x, noise):
    """Round a float32 block to bfloat16, up or down at random, without bias. NaN and infinities stay.

    noise: uint32, of which the low 16 bits are used.
    """
    bits = x.to(tl.uint32, bitcast=True)
    rounded = (bits + (noise & 0xFFFF)) >> 16
    rounded = tl.where(x != x, (bits >> 16) | 0x40, rounded)
    return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def mix(x):
    """Hash uint32 numbers, bijectively, by lowbias32 of Wellons' hash-prospector."""
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def row_key(seed, parameter, step):
    """Return the key of a row's noise in a step; all uint32."""
    return mix(mix(mix(seed) + parameter) + step)


@triton.jit
def noise(key, which, start, offsets):
    """Return uint32 noise for the elements `start + offsets` of one of a row's tensors; start is int64.

    which: 0 for the parameter, 1, 2, ... for its states. A block must not cross a multiple of 2^32.
    """
    high, low = (start >> 32).to(tl.uint32), start.to(tl.uint32)
    return mix((low + offsets.to(tl.uint32)) ^ mix(key + which + high * 0x9E3779B9))
