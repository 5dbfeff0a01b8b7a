"""Cautious AdamW and Cautious Lion, which move only where the gradient agrees: Liang et al. 2024, arXiv:2411.16085."""

from kernels.rule import Rule, tl, triton
from kernels.rules.shared import average, mean


@triton.jit
def agreement(direction, grad):
    # Not the sign of their product, which may underflow.
    signed = tl.where(grad > 0.0, direction, tl.where(grad < 0.0, -direction, 0.0))
    return tl.where(signed > 0.0, 1.0, 0.0)


@triton.jit
def over_mean(step_size, totals):
    """Return the step divided by the mean of the mask, which counts as 1e-3 or more."""
    agreeing, count = totals
    share = mean(agreeing, count)
    return step_size / tl.where(share > 1e-3, share, 1e-3)


@triton.jit
def cautious_adamw_coefficients(hyper, step):
    lr, beta1, beta2, eps, weight_decay = hyper
    step_size = lr / (1.0 - tl.exp(step * tl.log(beta1)))
    rsqrt_correction2 = 1.0 / tl.sqrt(1.0 - tl.exp(step * tl.log(beta2)))
    return 1.0 - lr * weight_decay, 1.0 - beta1, 1.0 - beta2, step_size, rsqrt_correction2, eps


@triton.jit
def cautious_adamw_sums(p, grad, state, coefficients):
    exp_avg, _ = state
    _, one_minus_beta1, _, _, _, _ = coefficients
    return agreement(average(exp_avg, one_minus_beta1, grad), grad), 1.0


@triton.jit
def cautious_adamw_finish(totals, coefficients, scalars):
    _, _, _, step_size, _, _ = coefficients
    return (over_mean(step_size, totals),), scalars


@triton.jit
def cautious_adamw_update(p, grad, state, coefficients, totals):
    exp_avg, exp_avg_sq = state
    decay, one_minus_beta1, one_minus_beta2, _, rsqrt_correction2, eps = coefficients
    (step_size,) = totals
    exp_avg = average(exp_avg, one_minus_beta1, grad)
    exp_avg_sq = average(exp_avg_sq, one_minus_beta2, grad * grad)
    denom = tl.sqrt_rn(exp_avg_sq) * rsqrt_correction2 + eps
    moved = step_size * agreement(exp_avg, grad) * tl.div_rn(exp_avg, denom)
    return decay * (p - moved), (exp_avg, exp_avg_sq)


cautious_adamw = Rule(
    name="cautious_adamw",
    coefficients=cautious_adamw_coefficients,
    update=cautious_adamw_update,
    hyper=("lr", "beta1", "beta2", "eps", "weight_decay"),
    states=("exp_avg", "exp_avg_sq"),
    sums=cautious_adamw_sums,
    finish=cautious_adamw_finish,
)


@triton.jit
def cautious_lion_coefficients(hyper, step):
    lr, beta1, beta2, weight_decay = hyper
    return 1.0 - lr * weight_decay, lr, 1.0 - beta1, 1.0 - beta2


@triton.jit
def cautious_lion_sums(p, grad, state, coefficients):
    (exp_avg,) = state
    _, _, one_minus_beta1, _ = coefficients
    return agreement(average(exp_avg, one_minus_beta1, grad), grad), 1.0


@triton.jit
def cautious_lion_finish(totals, coefficients, scalars):
    _, lr, _, _ = coefficients
    return (over_mean(lr, totals),), scalars


@triton.jit
def cautious_lion_update(p, grad, state, coefficients, totals):
    (exp_avg,) = state
    decay, _, one_minus_beta1, one_minus_beta2 = coefficients
    (step_size,) = totals
    direction = average(exp_avg, one_minus_beta1, grad)
    # The sign of NaN is NaN, that of zero is zero.
    sign = tl.where(direction > 0.0, 1.0, tl.where(direction < 0.0, -1.0, direction))
    return decay * p - step_size * agreement(direction, grad) * sign, (average(exp_avg, one_minus_beta2, grad),)


cautious_lion = Rule(
    name="cautious_lion",
    coefficients=cautious_lion_coefficients,
    update=cautious_lion_update,
    hyper=("lr", "beta1", "beta2", "weight_decay"),
    states=("exp_avg",),
    sums=cautious_lion_sums,
    finish=cautious_lion_finish,
)
