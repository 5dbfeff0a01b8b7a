"""Adam and its variants AdamW, AMSGrad, NAdam and RAdam."""

from kernels.rule import Rule, tl, triton
from kernels.rules.shared import average

# Adam, AdamW, AMSGrad: Kingma & Ba 2015, arXiv:1412.6980; Loshchilov & Hutter 2019, arXiv:1711.05101;
# Reddi et al. 2018, arXiv:1904.09237.


@triton.jit
def adam_coefficients(hyper, step):
    lr, beta1, beta2, eps, weight_decay, l2 = hyper
    bias_correction1 = 1.0 - tl.exp(step * tl.log(beta1))
    bias_correction2 = 1.0 - tl.exp(step * tl.log(beta2))
    decay, step_size = 1.0 - lr * weight_decay, lr / bias_correction1
    return l2, decay, 1.0 - beta1, 1.0 - beta2, step_size, 1.0 / tl.sqrt(bias_correction2), eps


@triton.jit
def adam_update(p, grad, state, coefficients):
    exp_avg, exp_avg_sq = state
    l2, decay, one_minus_beta1, one_minus_beta2, step_size, rsqrt_correction2, eps = coefficients
    grad = grad + l2 * p
    exp_avg = average(exp_avg, one_minus_beta1, grad)
    exp_avg_sq = average(exp_avg_sq, one_minus_beta2, grad * grad)
    denom = tl.sqrt_rn(exp_avg_sq) * rsqrt_correction2 + eps
    return decay * p - step_size * tl.div_rn(exp_avg, denom), (exp_avg, exp_avg_sq)


@triton.jit
def amsgrad_update(p, grad, state, coefficients):
    exp_avg, exp_avg_sq, max_exp_avg_sq = state
    l2, decay, one_minus_beta1, one_minus_beta2, step_size, rsqrt_correction2, eps = coefficients
    grad = grad + l2 * p
    exp_avg = average(exp_avg, one_minus_beta1, grad)
    exp_avg_sq = average(exp_avg_sq, one_minus_beta2, grad * grad)
    # Not tl.maximum, which drops a NaN.
    max_exp_avg_sq = tl.where(exp_avg_sq <= max_exp_avg_sq, max_exp_avg_sq, exp_avg_sq)
    denom = tl.sqrt_rn(max_exp_avg_sq) * rsqrt_correction2 + eps
    return decay * p - step_size * tl.div_rn(exp_avg, denom), (exp_avg, exp_avg_sq, max_exp_avg_sq)


ADAM_HYPER = ("lr", "beta1", "beta2", "eps", "weight_decay", "l2")
adam = Rule("adam", adam_coefficients, adam_update, ADAM_HYPER, ("exp_avg", "exp_avg_sq"))
"""Adam and AdamW.

    grad       <- grad + l2 * p                     l2 is Adam's weight decay
    exp_avg    <- beta1 * exp_avg    + (1 - beta1) * grad
    exp_avg_sq <- beta2 * exp_avg_sq + (1 - beta2) * grad^2
    p          <- (1 - lr * weight_decay) * p       AdamW's, decoupled
                  - lr / (1 - beta1^t) * exp_avg / (sqrt(exp_avg_sq / (1 - beta2^t)) + eps)
"""
amsgrad = Rule("amsgrad", adam_coefficients, amsgrad_update, ADAM_HYPER, ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))
"""Adam with the largest exp_avg_sq so far, max_exp_avg_sq, in the denominator."""


# Adam without bias correction, or with cautious weight decay: Laing & Orvieto 2025, arXiv:2511.20516; Chen et al. 2025,
# arXiv:2510.12402.


@triton.jit
def adam_option_coefficients(hyper, step):
    lr, beta1, beta2, eps, weight_decay, l2, bias_correction = hyper
    bias_correction1 = 1.0 - bias_correction * tl.exp(step * tl.log(beta1))
    bias_correction2 = 1.0 - bias_correction * tl.exp(step * tl.log(beta2))
    decay, step_size = 1.0 - lr * weight_decay, lr / bias_correction1
    return l2, decay, 1.0 - beta1, 1.0 - beta2, step_size, 1.0 / tl.sqrt(bias_correction2), eps


@triton.jit
def cautious(decay, p, direction):
    # Not the sign of their product, which may underflow.
    differ = tl.where(p >= 0.0, direction, -direction) < 0.0
    return tl.where(differ, 1.0, decay) * p


@triton.jit
def adam_cautious_update(p, grad, state, coefficients):
    exp_avg, exp_avg_sq = state
    l2, decay, one_minus_beta1, one_minus_beta2, step_size, rsqrt_correction2, eps = coefficients
    grad = grad + l2 * p
    exp_avg = average(exp_avg, one_minus_beta1, grad)
    exp_avg_sq = average(exp_avg_sq, one_minus_beta2, grad * grad)
    denom = tl.sqrt_rn(exp_avg_sq) * rsqrt_correction2 + eps
    return cautious(decay, p, exp_avg) - step_size * tl.div_rn(exp_avg, denom), (exp_avg, exp_avg_sq)


@triton.jit
def amsgrad_cautious_update(p, grad, state, coefficients):
    exp_avg, exp_avg_sq, max_exp_avg_sq = state
    l2, decay, one_minus_beta1, one_minus_beta2, step_size, rsqrt_correction2, eps = coefficients
    grad = grad + l2 * p
    exp_avg = average(exp_avg, one_minus_beta1, grad)
    exp_avg_sq = average(exp_avg_sq, one_minus_beta2, grad * grad)
    max_exp_avg_sq = tl.where(exp_avg_sq <= max_exp_avg_sq, max_exp_avg_sq, exp_avg_sq)
    denom = tl.sqrt_rn(max_exp_avg_sq) * rsqrt_correction2 + eps
    states = exp_avg, exp_avg_sq, max_exp_avg_sq
    return cautious(decay, p, exp_avg) - step_size * tl.div_rn(exp_avg, denom), states


OPTION_HYPER = (*ADAM_HYPER, "bias_correction")
ADAM_STATES, AMSGRAD_STATES = adam.states, amsgrad.states
adam_uncorrected = Rule("adam_uncorrected", adam_option_coefficients, adam_update, OPTION_HYPER, ADAM_STATES)
amsgrad_uncorrected = Rule(
    "amsgrad_uncorrected", adam_option_coefficients, amsgrad_update, OPTION_HYPER, AMSGRAD_STATES
)
adam_cautious = Rule("adam_cautious", adam_option_coefficients, adam_cautious_update, OPTION_HYPER, ADAM_STATES)
amsgrad_cautious = Rule(
    "amsgrad_cautious", adam_option_coefficients, amsgrad_cautious_update, OPTION_HYPER, AMSGRAD_STATES
)
"""Weights decay where the signs of p and of exp_avg agree, or one of them is 0.

With bias_correction = 0, 1 - beta1^t and 1 - beta2^t are left out.
"""


# NAdam: Dozat 2016, with the momentum schedule 1 - 0.96^(t * momentum_decay) / 2.


@triton.jit
def nadam_coefficients(hyper, step, scalars):
    lr, beta1, beta2, eps, weight_decay, l2, momentum_decay = hyper
    (mu_product,) = scalars
    log_schedule = momentum_decay * -0.040821994520255166  # log(0.96)
    mu = beta1 * (1.0 - 0.5 * tl.exp(step * log_schedule))
    mu_next = beta1 * (1.0 - 0.5 * tl.exp((step + 1.0) * log_schedule))
    mu_product = mu_product * mu
    grad_size = lr * (1.0 - mu) / (1.0 - mu_product)
    step_size = lr * mu_next / (1.0 - mu_product * mu_next)
    rsqrt_correction2 = 1.0 / tl.sqrt(1.0 - tl.exp(step * tl.log(beta2)))
    decay = 1.0 - lr * weight_decay
    return (l2, decay, 1.0 - beta1, 1.0 - beta2, grad_size, step_size, rsqrt_correction2, eps), (mu_product,)


@triton.jit
def nadam_update(p, grad, state, coefficients):
    exp_avg, exp_avg_sq = state
    l2, decay, one_minus_beta1, one_minus_beta2, grad_size, step_size, rsqrt_correction2, eps = coefficients
    grad = grad + l2 * p
    exp_avg = average(exp_avg, one_minus_beta1, grad)
    exp_avg_sq = average(exp_avg_sq, one_minus_beta2, grad * grad)
    denom = tl.sqrt_rn(exp_avg_sq) * rsqrt_correction2 + eps
    return decay * p - tl.div_rn(grad_size * grad + step_size * exp_avg, denom), (exp_avg, exp_avg_sq)


nadam = Rule(
    name="nadam",
    coefficients=nadam_coefficients,
    update=nadam_update,
    hyper=(*ADAM_HYPER, "momentum_decay"),
    states=("exp_avg", "exp_avg_sq"),
    scalars=("mu_product",),
)


# RAdam: Liu et al. 2020, arXiv:1908.03265.


@triton.jit
def radam_coefficients(hyper, step):
    lr, beta1, beta2, eps, weight_decay, l2 = hyper
    beta2_power = tl.exp(step * tl.log(beta2))
    bias_correction2 = 1.0 - beta2_power
    rho_inf = 2.0 / (1.0 - beta2) - 1.0
    rho = rho_inf - 2.0 * step * beta2_power / bias_correction2
    adaptive = tl.where(rho > 5.0, 1.0, 0.0)
    rectified = (rho - 4.0) * (rho - 2.0) * rho_inf / ((rho_inf - 4.0) * (rho_inf - 2.0) * rho)
    step_size = lr / (1.0 - tl.exp(step * tl.log(beta1)))
    step_size = step_size * tl.where(rho > 5.0, tl.sqrt(tl.where(rho > 5.0, rectified, 1.0) * bias_correction2), 1.0)
    return l2, 1.0 - lr * weight_decay, 1.0 - beta1, 1.0 - beta2, step_size, adaptive, eps


@triton.jit
def radam_update(p, grad, state, coefficients):
    exp_avg, exp_avg_sq = state
    l2, decay, one_minus_beta1, one_minus_beta2, step_size, adaptive, eps = coefficients
    grad = grad + l2 * p
    exp_avg = average(exp_avg, one_minus_beta1, grad)
    exp_avg_sq = average(exp_avg_sq, one_minus_beta2, grad * grad)
    denom = tl.where(adaptive > 0.0, tl.sqrt_rn(exp_avg_sq) + eps, 1.0)
    return decay * p - step_size * tl.div_rn(exp_avg, denom), (exp_avg, exp_avg_sq)


radam = Rule("radam", radam_coefficients, radam_update, ADAM_HYPER, ("exp_avg", "exp_avg_sq"))
"""Adam without the denominator until its variance can be estimated (rho > 5)."""
