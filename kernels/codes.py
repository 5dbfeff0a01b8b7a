"""Codes of one byte for the states of an optimizer: a block of 256 elements shares a scale, its largest magnitude.

    exp_avg      int8    scale * (code / 127)^4, with the code's sign
    exp_avg_sq   uint8   scale * (code / 255)^4

The numbers that a code can hold reach from the scale down to 3.8e-9 and 2.4e-10 of it, and the steps between them grow
with them: a number is off by 1.6 % and 0.8 % near the scale, by 5 % and 2.5 % at a hundredth of it. A linear code would
make 0 of an exp_avg_sq below 0.2 % of the scale, and Adam would divide by eps: training diverges. For the same reason
no positive exp_avg_sq becomes 0. Powers need neither tables nor searches, unlike the dynamic codes of Dettmers et al.
2022, arXiv:2110.02861, whose blocks these are.

Like a rule, `encode` and `decode` are one text for all backends: `compressed` runs it in torch, `compressed_kernel` in
Triton, `cpu_compressed` in Numba.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from kernels import rules
from kernels.rule import Rule, tl, triton

BLOCK = 256
"""Elements that share a scale, which follow each other in memory. The last block of a lane may be shorter."""
DTYPE = torch.int8
"""What stands for compressed states where a table or a kernel asks for their dtype."""


@triton.jit
def decode_signed(code, scale):
    """Return the numbers that codes stand for; code: float32, whole numbers from -127 to 127."""
    root = code * (1 / 127)
    square = root * tl.abs(root)
    return square * tl.abs(square) * scale


@triton.jit
def decode_unsigned(code, scale):
    """Return the numbers that codes stand for; code: float32, whole numbers from 0 to 255."""
    root = code * (1 / 255)
    square = root * root
    return square * square * scale


@triton.jit
def fourth_root(x):
    """Return the fourth root of |x| with the sign of x, to 2.9e-4 of itself, by products alone; x: 0 or normal."""
    # The bits of |x| are about its logarithm: a constant less a quarter of them makes |x|^(-1/4) to 3 %.
    guess = tl.cast(0x4F580000 - (tl.cast(tl.abs(x), tl.int32, bitcast=True) >> 2), tl.float32, bitcast=True)
    root = x * guess * guess * guess
    # What lacks is (1 - h)^(-3/4), here the best parabola for |h| < 0.125.
    h = 1.0 - tl.abs(root) * guess
    return root * (1.0 + h * (0.7569 + h * 0.6673))


@triton.jit
def roots(x, scale, largest):
    """Return fourth roots of x, in units in which that of the scale is `largest`; 0 if the scale is no normal number.

    So is it also if it is infinite or NaN: decoded, the block is NaN then.
    """
    is_normal = (scale >= 1.1754943508222875e-38) & (scale - scale == 0.0)
    unit = tl.div_rn(largest, fourth_root(tl.where(is_normal, scale, 1.0)))
    return tl.where(is_normal, fourth_root(x) * unit, 0.0)


@triton.jit
def nearest(x):
    """Return integers whose lowest bytes are the whole numbers nearest to x, from -128 to 255."""
    # 1.5 * 2^23 leaves no digits for fractions.
    return tl.cast(x + 12582912.0, tl.int32, bitcast=True)


@triton.jit
def encode_signed(x, scale):
    """Return the nearest codes, in the lowest bytes; scale: the largest |x| of each x's block."""
    return nearest(roots(x, scale, 127.0))


@triton.jit
def encode_unsigned(x, scale):
    """Return the nearest codes, in the lowest bytes, but 1 for positive x that are nearest to 0; scale: see above."""
    return nearest(tl.where(x > 0.0, tl.maximum(roots(x, scale, 255.0), 1.0), 0.0))


class Code(NamedTuple):
    """How a state is stored.

    Attributes:
        dtype: of its codes.
        encode: `(x, scale) -> code`, int32, of which the lowest byte counts; x and scale float32.
        decode: `(code, scale) -> x`; float32, codes whole numbers.
    """

    dtype: torch.dtype
    encode: Callable
    decode: Callable


CODES = {
    "exp_avg": Code(torch.int8, encode_signed, decode_signed),
    "exp_avg_sq": Code(torch.uint8, encode_unsigned, decode_unsigned),
}
"""Codes by the name of the state."""
UPDATES = frozenset(
    rule.update for rule in (rules.adam, rules.adam_uncorrected, rules.adam_cautious, rules.lion, rules.signum)
)
"""The updates of rules whose states can be compressed. Signed states come first in them."""


def takes(rule: Rule) -> bool:
    """Return whether a rule's states can be compressed."""
    return rule.update in UPDATES


def codes_of(rule: Rule) -> tuple[Code, ...]:
    """Return the codes of a rule's states, in their order."""
    return tuple(CODES[name] for name in rule.states)
