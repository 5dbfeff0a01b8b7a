"""float32 to bfloat16 by integer arithmetic, to nearest or stochastically.

Triton's interpreter truncates this cast and the GPU rounds it; the bits below are the same on both.
`cpu` has the same arithmetic for Numba, which cannot read bit casts of Triton's.

The noise of stochastic rounding is a hash of what is rounded, not of who rounds it: seed, parameter, step, which of
the parameter's tensors, and element. So it depends neither on block sizes nor on the device's grid, lanes of a
population share it, and a resumed run goes on as if it had not stopped.
"""

from kernels.rule import tl, triton


@triton.jit
def bfloat16_nearest(x):
    """Round a float32 block to bfloat16, to nearest, ties to even. NaN stays NaN, infinities stay."""
    bits = x.to(tl.uint32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # A NaN whose payload sits in the low half would round into an infinity.
    rounded = tl.where(x != x, (bits >> 16) | 0x40, rounded)
    return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def bfloat16_stochastic(x, noise):
    """Round a float32 block up with the probability of its distance from below; unbiased. NaN and infinities stay.

    noise: uint32, of which the low 16 bits are used.
    """
    bits = x.to(tl.uint32, bitcast=True)
    rounded = (bits + (noise & 0xFFFF)) >> 16
    rounded = tl.where(x != x, (bits >> 16) | 0x40, rounded)
    return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def mix(x):
    """A bijection of uint32 that leaves no pattern: lowbias32 of Wellons' hash-prospector."""
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def row_key(seed, parameter, step):
    """The part of the noise that a tensor's elements share in a step; all uint32."""
    return mix(mix(mix(seed) + parameter) + step)


@triton.jit
def noise(key, which, start, offsets):
    """uint32 noise of the elements `offsets` behind element `start` (int64) of one of a row's tensors.

    which: 0 for the parameter, 1, 2, ... for its states. A block must not cross a multiple of 2^32.
    """
    high, low = (start >> 32).to(tl.uint32), start.to(tl.uint32)
    return mix((low + offsets.to(tl.uint32)) ^ mix(key + which + high * 0x9E3779B9))
