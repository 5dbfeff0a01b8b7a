"""The update rules: each optimizer's maths, written once.

A rule is two small functions that know nothing of launches, lists or devices:

    coefficients(hyper, step) -> tuple    once per tensor, in float64
    update(p, grad, state, coefficients) -> (p, state)    once per element, in float32

Both are ordinary Python arithmetic plus a few `tl` functions, so that one text serves every
backend: Triton compiles it for the GPU (`multi_tensor`), Numba for the CPU (`cpu`), and where
Numba is missing torch runs it as it stands (`eager`).

What is subtracted from 1 is formed in `coefficients`: in float32, 1 - beta2 at
beta2 = 0.9999 is already off by 1.7e-4 of itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType, SimpleNamespace

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError:  # macOS and Windows: the rules still serve the CPU backends.
    triton, tl = SimpleNamespace(jit=lambda function: function), None


@dataclass(frozen=True)
class Rule:
    """An update rule and the names of what it works on.

    Attributes:
        name: what messages and tables call it.
        coefficients: `@triton.jit` function `(hyper, step) -> tuple`; hyper is a tuple of float64
            in the order of `hyper`, step a float64 that counts from 1.
        update: `@triton.jit` function `(p, grad, state, coefficients) -> (p, state)`; all float32,
            state a tuple in the order of `states`.
        hyper: names of the hyperparameters.
        states: names of the per-element states, all zero before the first step.
        n_coefficients: length of the tuple that `coefficients` returns.
    """

    name: str
    coefficients: Callable
    update: Callable
    hyper: tuple[str, ...]
    states: tuple[str, ...]
    n_coefficients: int


def rebind(function: Callable, language) -> Callable:
    """The body of a `@triton.jit` function as plain Python in which `tl` means `language`."""
    plain = getattr(function, "fn", function)
    return FunctionType(plain.__code__, {**plain.__globals__, "tl": language}, plain.__name__)


@triton.jit
def adam_coefficients(hyper, step):
    lr, beta1, beta2, eps, weight_decay, l2, sign = hyper
    bias_correction1 = 1.0 - tl.exp(step * tl.log(beta1))
    bias_correction2 = 1.0 - tl.exp(step * tl.log(beta2))
    return (
        sign,
        l2,
        1.0 - lr * weight_decay,
        1.0 - beta1,
        1.0 - beta2,
        lr / bias_correction1,
        1.0 / tl.sqrt(bias_correction2),
        eps,
    )


@triton.jit
def adam_update(p, grad, state, coefficients):
    exp_avg, exp_avg_sq = state
    sign, l2, decay, one_minus_beta1, one_minus_beta2, step_size, rsqrt_correction2, eps = coefficients
    grad = sign * grad + l2 * p
    # m - w m + w g, not beta m + w g: beta and w = 1 - beta, both rounded, no longer add up to 1.
    exp_avg = exp_avg - one_minus_beta1 * exp_avg + one_minus_beta1 * grad
    exp_avg_sq = exp_avg_sq - one_minus_beta2 * exp_avg_sq + one_minus_beta2 * (grad * grad)
    denom = tl.sqrt_rn(exp_avg_sq) * rsqrt_correction2 + eps
    p = decay * p - step_size * tl.div_rn(exp_avg, denom)
    return p, (exp_avg, exp_avg_sq)


adam = Rule(
    name="adam",
    coefficients=adam_coefficients,
    update=adam_update,
    hyper=("lr", "beta1", "beta2", "eps", "weight_decay", "l2", "sign"),
    states=("exp_avg", "exp_avg_sq"),
    n_coefficients=8,
)
"""Adam and AdamW (Kingma & Ba 2015, arXiv:1412.6980; Loshchilov & Hutter 2019, arXiv:1711.05101).

    grad       <- sign * grad + l2 * p              sign = -1 maximizes; l2 is Adam's weight decay
    exp_avg    <- beta1 * exp_avg    + (1 - beta1) * grad
    exp_avg_sq <- beta2 * exp_avg_sq + (1 - beta2) * grad^2
    p          <- (1 - lr * weight_decay) * p       AdamW's, decoupled
                  - lr / (1 - beta1^t) * exp_avg / (sqrt(exp_avg_sq / (1 - beta2^t)) + eps)
"""
