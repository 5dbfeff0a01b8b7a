"""float32 to bfloat16, by integer arithmetic.

Triton's interpreter truncates this cast and the GPU rounds it; the bits below are the same on both.
"""

import triton
import triton.language as tl


@triton.jit
def bfloat16_nearest(x):
    """Round a float32 block to bfloat16, to nearest, ties to even. NaN stays NaN, infinities stay."""
    bits = x.to(tl.uint32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # A NaN whose payload sits in the low half would round into an infinity.
    rounded = tl.where(x != x, (bits >> 16) | 0x40, rounded)
    return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
