"""What several rules compute."""

from kernels.rule import tl, triton  # noqa: F401  the interpreter looks for tl beside a rule


@triton.jit
def average(mean, weight, x):
    return mean - weight * mean + weight * x
