"""What several rules compute."""

from kernels.rule import tl, triton


@triton.jit
def average(mean, weight, x):
    return mean - weight * mean + weight * x


@triton.jit
def mean(total, count):
    """Return 0 for an empty tensor."""
    return total / tl.where(count > 0.0, count, 1.0)
