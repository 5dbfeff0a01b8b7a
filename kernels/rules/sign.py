"""Lion and Signum, which step by a sign."""

from kernels.rule import Rule, tl, triton
from kernels.rules.shared import average

# Lion: Chen et al. 2023, arXiv:2302.06675.


@triton.jit
def lion_coefficients(hyper, step):
    lr, beta1, beta2, weight_decay = hyper
    return 1.0 - lr * weight_decay, lr, 1.0 - beta1, 1.0 - beta2


@triton.jit
def lion_update(p, grad, state, coefficients):
    (exp_avg,) = state
    decay, lr, one_minus_beta1, one_minus_beta2 = coefficients
    direction = average(exp_avg, one_minus_beta1, grad)
    # The sign of NaN is NaN, that of zero is zero.
    sign = tl.where(direction > 0.0, 1.0, tl.where(direction < 0.0, -1.0, direction))
    return decay * p - lr * sign, (average(exp_avg, one_minus_beta2, grad),)


lion = Rule("lion", lion_coefficients, lion_update, ("lr", "beta1", "beta2", "weight_decay"), ("exp_avg",))


# Signum: Bernstein et al. 2018, arXiv:1802.04434.


@triton.jit
def signum_coefficients(hyper, step):
    lr, momentum, weight_decay = hyper
    return 1.0 - lr * weight_decay, lr, 1.0 - momentum


@triton.jit
def signum_update(p, grad, state, coefficients):
    (exp_avg,) = state
    decay, lr, one_minus_momentum = coefficients
    exp_avg = average(exp_avg, one_minus_momentum, grad)
    sign = tl.where(exp_avg > 0.0, 1.0, tl.where(exp_avg < 0.0, -1.0, exp_avg))
    return decay * p - lr * sign, (exp_avg,)


signum = Rule("signum", signum_coefficients, signum_update, ("lr", "momentum", "weight_decay"), ("exp_avg",))
