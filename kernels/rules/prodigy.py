# pyright: reportGeneralTypeIssues=false
# Triton compiles these functions: pyright takes calls of them for calls from Python.
"""Prodigy, which finds its learning rate: Mishchenko & Defazio 2024, arXiv:2306.06101, as the authors' code has it."""

from kernels.rule import Rule, tl, triton
from kernels.rules.shared import average


@triton.jit
def prodigy_coefficients(hyper, step, scalars):
    lr, beta1, beta2, beta3, eps, weight_decay, l2, d0, d_coef, growth_rate, corrects, safeguards = hyper
    d, _, _, k = scalars
    sqrt_correction2 = tl.sqrt(1.0 - corrects * tl.exp((k + 1.0) * tl.log(beta2)))
    step_size = d * lr * sqrt_correction2 / (1.0 - corrects * tl.exp((k + 1.0) * tl.log(beta1)))
    # Without a learning rate a tensor neither moves nor counts.
    counts = tl.where(lr > 0.0, 1.0, 0.0)
    distance_size = counts * d / d0 * step_size
    # s is a sum that decays: the average of what is added to it, divided by 1 - beta3.
    s_size = tl.where(safeguards > 0.0, d, step_size) / (d0 * (1.0 - beta3))
    return (
        tl.where(step == 1.0, 1.0, 0.0),
        l2,
        weight_decay,
        d,
        counts * (1.0 - beta1),
        counts * (1.0 - beta2),
        counts * (1.0 - beta3),
        distance_size,
        s_size,
        step_size,
        eps,
        1.0 - beta3,
        d0,
        d_coef,
        growth_rate,
    ), scalars


@triton.jit
def prodigy_states(p, grad, state, coefficients):
    exp_avg, exp_avg_sq, s, p0 = state
    first, l2, _, d, weight1, weight2, weight3, _, s_size, _, _, _, _, _, _ = coefficients
    # Everything but the distance takes d * grad.
    grad = d * (grad + l2 * p)
    exp_avg = average(exp_avg, weight1, grad)
    exp_avg_sq = average(exp_avg_sq, weight2, grad * grad)
    return exp_avg, exp_avg_sq, average(s, weight3, s_size * grad), tl.where(first > 0.0, p, p0)


@triton.jit
def prodigy_sums(p, grad, state, coefficients):
    _, l2, _, _, _, _, weight3, distance_size, _, _, _, _, _, _, _ = coefficients
    _, _, s, p0 = prodigy_states(p, grad, state, coefficients)
    return distance_size * ((grad + l2 * p) * (p0 - p)), tl.where(weight3 > 0.0, tl.abs(s), 0.0)


@triton.jit
def prodigy_finish(totals, coefficients, scalars):
    added, denominator = totals
    d, d_max, d_numerator, k = scalars
    _, _, _, _, _, _, _, _, _, step_size, eps, one_minus_beta3, d0, d_coef, growth_rate = coefficients
    # No gradient has been more than 0 yet, or no learning rate is.
    moves = tl.where(denominator == 0.0, 0.0, 1.0)
    numerator = d_numerator - one_minus_beta3 * d_numerator + added
    d_hat = d_coef * numerator / tl.where(denominator == 0.0, 1.0, denominator)
    # Equal to d0, which float32 may have rounded: the first estimate is free of growth_rate.
    is_d0 = tl.abs(d - d0) <= 1e-6 * d0
    grown = growth_rate * tl.where(is_d0 & (d_hat > d), d_hat, d)
    largest = tl.where(d_hat > d_max, d_hat, d_max)
    new_d = tl.where(grown < largest, grown, largest)
    kept = moves == 0.0
    new = (
        tl.where(kept, d, new_d),
        tl.where(kept, d_max, largest),
        tl.where(kept, d_numerator, numerator),
        k + moves,
    )
    return (moves * step_size, new_d * eps), new


@triton.jit
def prodigy_update(p, grad, state, coefficients, totals):
    _, _, weight_decay, _, _, _, _, _, _, _, _, _, _, _, _ = coefficients
    step_size, eps = totals
    exp_avg, exp_avg_sq, s, p0 = prodigy_states(p, grad, state, coefficients)
    direction = tl.div_rn(exp_avg, tl.sqrt_rn(exp_avg_sq) + eps) + weight_decay * p
    return p - step_size * direction, (exp_avg, exp_avg_sq, s, p0)


prodigy = Rule(
    name="prodigy",
    coefficients=prodigy_coefficients,
    update=prodigy_update,
    hyper=(
        *("lr", "beta1", "beta2", "beta3", "eps", "weight_decay", "l2"),
        *("d0", "d_coef", "growth_rate", "use_bias_correction", "safeguard_warmup"),
    ),
    states=("exp_avg", "exp_avg_sq", "s", "p0"),
    scalars=("d", "d_max", "d_numerator", "k"),
    sums=prodigy_sums,
    over="lane",
    finish=prodigy_finish,
)
"""p0 is p before its first step; k counts the steps that moved, as the authors' groups do."""
