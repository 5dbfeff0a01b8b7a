# pyright: reportGeneralTypeIssues=false
# Triton compiles these functions: pyright takes calls of them for calls from Python.
"""LAMB, LARS, StableAdamW and Adam-mini, which look at the norm of a whole tensor."""

from kernels.rule import Rule, tl, triton
from kernels.rules.shared import average, mean

# LAMB: You et al. 2020, arXiv:1904.00962.


@triton.jit
def lamb_coefficients(hyper, step):
    lr, beta1, beta2, eps, weight_decay, bias_correction = hyper
    correction1 = 1.0 / (1.0 - bias_correction * tl.exp(step * tl.log(beta1)))
    rsqrt_correction2 = 1.0 / tl.sqrt(1.0 - bias_correction * tl.exp(step * tl.log(beta2)))
    return 1.0 - beta1, 1.0 - beta2, correction1, rsqrt_correction2, eps, weight_decay, lr


@triton.jit
def lamb_direction(p, grad, state, coefficients):
    exp_avg, exp_avg_sq = state
    one_minus_beta1, one_minus_beta2, correction1, rsqrt_correction2, eps, weight_decay, _ = coefficients
    exp_avg = average(exp_avg, one_minus_beta1, grad)
    exp_avg_sq = average(exp_avg_sq, one_minus_beta2, grad * grad)
    denom = tl.sqrt_rn(exp_avg_sq) * rsqrt_correction2 + eps
    return tl.div_rn(correction1 * exp_avg, denom) + weight_decay * p, (exp_avg, exp_avg_sq)


@triton.jit
def lamb_sums(p, grad, state, coefficients):
    direction, _ = lamb_direction(p, grad, state, coefficients)
    return p * p, direction * direction


@triton.jit
def lamb_finish(totals, coefficients, scalars):
    p_sq, direction_sq = totals
    _, _, _, _, _, _, lr = coefficients
    trust_ratio = tl.sqrt(p_sq / tl.where(direction_sq == 0.0, 1.0, direction_sq))
    return (lr * tl.where((p_sq > 0.0) & (direction_sq > 0.0), trust_ratio, 1.0),), scalars


@triton.jit
def lamb_update(p, grad, state, coefficients, totals):
    (step_size,) = totals
    direction, state = lamb_direction(p, grad, state, coefficients)
    return p - step_size * direction, state


lamb = Rule(
    name="lamb",
    coefficients=lamb_coefficients,
    update=lamb_update,
    hyper=("lr", "beta1", "beta2", "eps", "weight_decay", "bias_correction"),
    states=("exp_avg", "exp_avg_sq"),
    sums=lamb_sums,
    finish=lamb_finish,
)


# LARS: You et al. 2017, arXiv:1708.03888.


@triton.jit
def lars_coefficients(hyper, step):
    lr, momentum, weight_decay, trust_coefficient, eps = hyper
    return lr, momentum, weight_decay, trust_coefficient, eps


@triton.jit
def lars_sums(p, grad, state, coefficients):
    return p * p, grad * grad


@triton.jit
def lars_finish(totals, coefficients, scalars):
    p_sq, grad_sq = totals
    lr, _, weight_decay, trust_coefficient, eps = coefficients
    p_norm, grad_norm = tl.sqrt(p_sq), tl.sqrt(grad_sq)
    trust_ratio = trust_coefficient * p_norm / (grad_norm + weight_decay * p_norm + eps)
    return (lr * tl.where((p_sq > 0.0) & (grad_sq > 0.0), trust_ratio, 1.0),), scalars


@triton.jit
def lars_update(p, grad, state, coefficients, totals):
    (momentum_buffer,) = state
    _, momentum, weight_decay, _, _ = coefficients
    (step_size,) = totals
    momentum_buffer = momentum * momentum_buffer + step_size * (grad + weight_decay * p)
    return p - momentum_buffer, (momentum_buffer,)


lars = Rule(
    name="lars",
    coefficients=lars_coefficients,
    update=lars_update,
    hyper=("lr", "momentum", "weight_decay", "trust_coefficient", "eps"),
    states=("momentum_buffer",),
    sums=lars_sums,
    finish=lars_finish,
)


# StableAdamW: Wortsman et al. 2023, arXiv:2304.13013.


@triton.jit
def stable_adamw_coefficients(hyper, step):
    lr, beta1, beta2, eps, weight_decay = hyper
    # The averages themselves are without bias.
    weight1 = (1.0 - beta1) / (1.0 - tl.exp(step * tl.log(beta1)))
    weight2 = (1.0 - beta2) / (1.0 - tl.exp(step * tl.log(beta2)))
    return weight1, weight2, eps, eps * eps, weight_decay, lr


@triton.jit
def stable_adamw_sums(p, grad, state, coefficients):
    _, exp_avg_sq = state
    _, weight2, _, eps_sq, _, _ = coefficients
    exp_avg_sq = average(exp_avg_sq, weight2, grad * grad)
    # Not tl.maximum, which drops a NaN.
    return tl.div_rn(grad * grad, tl.where(exp_avg_sq < eps_sq, eps_sq, exp_avg_sq)), 1.0


@triton.jit
def stable_adamw_finish(totals, coefficients, scalars):
    total, count = totals
    _, _, _, _, _, lr = coefficients
    rms = tl.sqrt(mean(total, count))
    return (lr / tl.where(rms > 1.0, rms, 1.0),), scalars


@triton.jit
def stable_adamw_update(p, grad, state, coefficients, totals):
    exp_avg, exp_avg_sq = state
    weight1, weight2, eps, _, weight_decay, _ = coefficients
    (step_size,) = totals
    exp_avg = average(exp_avg, weight1, grad)
    exp_avg_sq = average(exp_avg_sq, weight2, grad * grad)
    direction = tl.div_rn(exp_avg, tl.sqrt_rn(exp_avg_sq) + eps) + weight_decay * p
    return p - step_size * direction, (exp_avg, exp_avg_sq)


stable_adamw = Rule(
    name="stable_adamw",
    coefficients=stable_adamw_coefficients,
    update=stable_adamw_update,
    hyper=("lr", "beta1", "beta2", "eps", "weight_decay"),
    states=("exp_avg", "exp_avg_sq"),
    sums=stable_adamw_sums,
    finish=stable_adamw_finish,
)


# Adam-mini: Zhang et al. 2024, arXiv:2406.16793.


@triton.jit
def adam_mini_coefficients(hyper, step, scalars):
    lr, beta1, beta2, eps, weight_decay = hyper
    step_size = lr / (1.0 - tl.exp(step * tl.log(beta1)))
    rsqrt_correction2 = 1.0 / tl.sqrt(1.0 - tl.exp(step * tl.log(beta2)))
    return (1.0 - lr * weight_decay, 1.0 - beta1, 1.0 - beta2, step_size, rsqrt_correction2, eps), scalars


@triton.jit
def adam_mini_sums(p, grad, state, coefficients):
    return grad * grad, 1.0


@triton.jit
def adam_mini_finish(totals, coefficients, scalars):
    total, count = totals
    (exp_avg_sq,) = scalars
    _, _, one_minus_beta2, step_size, rsqrt_correction2, eps = coefficients
    exp_avg_sq = average(exp_avg_sq, one_minus_beta2, mean(total, count))
    return (step_size / (tl.sqrt(exp_avg_sq) * rsqrt_correction2 + eps),), (exp_avg_sq,)


@triton.jit
def adam_mini_update(p, grad, state, coefficients, totals):
    (exp_avg,) = state
    decay, one_minus_beta1, _, _, _, _ = coefficients
    (step_size,) = totals
    exp_avg = average(exp_avg, one_minus_beta1, grad)
    return decay * p - step_size * exp_avg, (exp_avg,)


adam_mini = Rule(
    name="adam_mini",
    coefficients=adam_mini_coefficients,
    update=adam_mini_update,
    hyper=("lr", "beta1", "beta2", "eps", "weight_decay"),
    states=("exp_avg",),
    scalars=("exp_avg_sq",),
    sums=adam_mini_sums,
    finish=adam_mini_finish,
)
