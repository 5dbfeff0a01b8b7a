"""LaProp, ADOPT, Adan, AdEMAMix and Schedule-Free AdamW, newer relatives of Adam."""

from kernels.rule import Rule, tl, triton
from kernels.rules.shared import average

# LaProp: Ziyin et al. 2020, arXiv:2002.04839.


@triton.jit
def laprop_coefficients(hyper, step):
    lr, beta1, beta2, eps, weight_decay = hyper
    step_size = lr / (1.0 - tl.exp(step * tl.log(beta1)))
    rsqrt_correction2 = 1.0 / tl.sqrt(1.0 - tl.exp(step * tl.log(beta2)))
    return 1.0 - lr * weight_decay, 1.0 - beta1, 1.0 - beta2, step_size, rsqrt_correction2, eps


@triton.jit
def laprop_update(p, grad, state, coefficients):
    exp_avg, exp_avg_sq = state
    decay, one_minus_beta1, one_minus_beta2, step_size, rsqrt_correction2, eps = coefficients
    exp_avg_sq = average(exp_avg_sq, one_minus_beta2, grad * grad)
    denom = tl.sqrt_rn(exp_avg_sq) * rsqrt_correction2 + eps
    exp_avg = average(exp_avg, one_minus_beta1, tl.div_rn(grad, denom))
    return decay * p - step_size * exp_avg, (exp_avg, exp_avg_sq)


laprop = Rule(
    name="laprop",
    coefficients=laprop_coefficients,
    update=laprop_update,
    hyper=("lr", "beta1", "beta2", "eps", "weight_decay"),
    states=("exp_avg", "exp_avg_sq"),
)


# ADOPT: Taniguchi et al. 2024, arXiv:2411.02853, with clipping.


@triton.jit
def adopt_coefficients(hyper, step):
    lr, beta1, beta2, eps, weight_decay, l2, clip = hyper
    # The first gradient goes into exp_avg_sq, and a bound of 0 keeps it out of everything else.
    first = step == 1.0
    bound = clip * tl.exp(0.25 * tl.log(tl.maximum(step - 1.0, 1.0)))
    return (
        l2,
        tl.where(first, 1.0, 1.0 - lr * weight_decay),
        1.0 - beta1,
        tl.where(first, 1.0, 1.0 - beta2),
        lr,
        tl.where(first, 0.0, bound),
        tl.where(first, 1.0, eps),
    )


@triton.jit
def adopt_update(p, grad, state, coefficients):
    exp_avg, exp_avg_sq = state
    l2, decay, one_minus_beta1, weight2, lr, bound, eps = coefficients
    grad = grad + l2 * p
    denom = tl.sqrt_rn(exp_avg_sq)
    # Not tl.maximum and tl.minimum, which drop a NaN.
    normalised = tl.div_rn(grad, tl.where(denom < eps, eps, denom))
    normalised = tl.where(normalised > bound, bound, tl.where(normalised < -bound, -bound, normalised))
    exp_avg = average(exp_avg, one_minus_beta1, normalised)
    return decay * p - lr * exp_avg, (exp_avg, average(exp_avg_sq, weight2, grad * grad))


adopt = Rule(
    name="adopt",
    coefficients=adopt_coefficients,
    update=adopt_update,
    hyper=("lr", "beta1", "beta2", "eps", "weight_decay", "l2", "clip"),
    states=("exp_avg", "exp_avg_sq"),
)
"""clip is 1, or infinite for none."""


# Adan: Xie et al. 2022, arXiv:2208.06677.


@triton.jit
def adan_coefficients(hyper, step):
    lr, beta1, beta2, beta3, eps, weight_decay = hyper
    step_size = lr / (1.0 - tl.exp(step * tl.log(beta1)))
    diff_size = lr * beta2 / (1.0 - tl.exp(step * tl.log(beta2)))
    rsqrt_correction3 = 1.0 / tl.sqrt(1.0 - tl.exp(step * tl.log(beta3)))
    shrink = 1.0 / (1.0 + lr * weight_decay)
    has_previous, weight1, weight2, weight3 = tl.where(step == 1.0, 0.0, 1.0), 1.0 - beta1, 1.0 - beta2, 1.0 - beta3
    return has_previous, weight1, weight2, weight3, beta2, step_size, diff_size, rsqrt_correction3, eps, shrink


@triton.jit
def adan_update(p, grad, state, coefficients):
    exp_avg, exp_avg_diff, exp_avg_sq, previous_grad = state
    has_previous, weight1, weight2, weight3, beta2, step_size, diff_size, rsqrt_correction3, eps, shrink = coefficients
    difference = tl.where(has_previous > 0.0, grad - previous_grad, 0.0)
    exp_avg = average(exp_avg, weight1, grad)
    exp_avg_diff = average(exp_avg_diff, weight2, difference)
    ahead = grad + beta2 * difference
    exp_avg_sq = average(exp_avg_sq, weight3, ahead * ahead)
    denom = tl.sqrt_rn(exp_avg_sq) * rsqrt_correction3 + eps
    p = shrink * (p - tl.div_rn(step_size * exp_avg + diff_size * exp_avg_diff, denom))
    return p, (exp_avg, exp_avg_diff, exp_avg_sq, grad)


adan = Rule(
    name="adan",
    coefficients=adan_coefficients,
    update=adan_update,
    hyper=("lr", "beta1", "beta2", "beta3", "eps", "weight_decay"),
    states=("exp_avg", "exp_avg_diff", "exp_avg_sq", "previous_grad"),
)


# AdEMAMix: Pagliardini et al. 2024, arXiv:2409.03137.


@triton.jit
def ademamix_coefficients(hyper, step):
    lr, beta1, beta2, beta3, alpha, eps, weight_decay, warmup = hyper
    share = tl.minimum(step / tl.maximum(warmup, 1.0), 1.0)
    # The half-life of the slow average grows linearly from that of beta1. Logarithms are below 0, also of beta1 = 0.
    log_beta1, log_beta3 = tl.log(tl.maximum(beta1, 1e-300)), tl.log(tl.maximum(beta3, 1e-300))
    log_slow = 1.0 / ((1.0 - share) / log_beta1 + share / log_beta3)
    slow = tl.where(share < 1.0, tl.minimum(tl.exp(log_slow), beta3), beta3)
    step_size = lr / (1.0 - tl.exp(step * tl.log(beta1)))
    rsqrt_correction2 = 1.0 / tl.sqrt(1.0 - tl.exp(step * tl.log(beta2)))
    decay, slow_size = 1.0 - lr * weight_decay, lr * share * alpha
    return decay, 1.0 - beta1, 1.0 - slow, 1.0 - beta2, step_size, slow_size, rsqrt_correction2, eps


@triton.jit
def ademamix_update(p, grad, state, coefficients):
    exp_avg, exp_avg_slow, exp_avg_sq = state
    decay, one_minus_beta1, one_minus_slow, one_minus_beta2, step_size, slow_size, rsqrt_correction2, eps = coefficients
    exp_avg = average(exp_avg, one_minus_beta1, grad)
    exp_avg_slow = average(exp_avg_slow, one_minus_slow, grad)
    exp_avg_sq = average(exp_avg_sq, one_minus_beta2, grad * grad)
    denom = tl.sqrt_rn(exp_avg_sq) * rsqrt_correction2 + eps
    p = decay * p - tl.div_rn(step_size * exp_avg + slow_size * exp_avg_slow, denom)
    return p, (exp_avg, exp_avg_slow, exp_avg_sq)


ademamix = Rule(
    name="ademamix",
    coefficients=ademamix_coefficients,
    update=ademamix_update,
    hyper=("lr", "beta1", "beta2", "beta3", "alpha", "eps", "weight_decay", "T_alpha_beta3"),
    states=("exp_avg", "exp_avg_slow", "exp_avg_sq"),
)


# Schedule-Free AdamW: Defazio et al. 2024, arXiv:2405.15682.


@triton.jit
def schedule_free_coefficients(hyper, step, scalars):
    lr, beta1, beta2, eps, weight_decay, warmup_steps, r, weight_lr_power = hyper
    weight_sum, lr_max = scalars
    lr = lr * tl.minimum(step / tl.maximum(warmup_steps, 1.0), 1.0) * tl.sqrt(1.0 - tl.exp(step * tl.log(beta2)))
    lr_max = tl.maximum(lr, lr_max)
    # 1e-300 instead of 0, whose logarithm times a power of 0 would be NaN.
    weight = tl.exp(r * tl.log(step) + weight_lr_power * tl.log(tl.maximum(lr_max, 1e-300)))
    weight_sum = weight_sum + weight
    share = tl.where(weight_sum > 0.0, weight / tl.where(weight_sum > 0.0, weight_sum, 1.0), 0.0)
    p_size = lr * (1.0 - beta1 * (1.0 - share))
    return (tl.where(step == 1.0, 1.0, 0.0), weight_decay, 1.0 - beta2, share, p_size, lr, eps), (weight_sum, lr_max)


@triton.jit
def schedule_free_update(p, grad, state, coefficients):
    z, exp_avg_sq = state
    first, weight_decay, one_minus_beta2, share, p_size, lr, eps = coefficients
    z = tl.where(first > 0.0, p, z)
    exp_avg_sq = average(exp_avg_sq, one_minus_beta2, grad * grad)
    direction = tl.div_rn(grad, tl.sqrt_rn(exp_avg_sq) + eps) + weight_decay * p
    return average(p, share, z) - p_size * direction, (z - lr * direction, exp_avg_sq)


schedule_free_adamw = Rule(
    name="schedule_free_adamw",
    coefficients=schedule_free_coefficients,
    update=schedule_free_update,
    hyper=("lr", "beta1", "beta2", "eps", "weight_decay", "warmup_steps", "r", "weight_lr_power"),
    states=("z", "exp_avg_sq"),
    scalars=("weight_sum", "lr_max"),
)
"""p is y = beta1 x + (1 - beta1) z. x, the weighted mean of all z, is kept in no place of its own."""
