"""The rules of all optimizers, a dozen lines each; see `rule` for what a rule is."""

from kernels.rule import Rule, tl, triton


@triton.jit
def average(mean, weight, x):
    return mean - weight * mean + weight * x


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


# SGD, with momentum (Polyak) or Nesterov's: Sutskever et al. 2013.


@triton.jit
def sgd_coefficients(hyper, step):
    lr, l2 = hyper
    return lr, l2


@triton.jit
def sgd_update(p, grad, state, coefficients):
    lr, l2 = coefficients
    return p - lr * (grad + l2 * p), state


@triton.jit
def momentum_coefficients(hyper, step):
    lr, l2, momentum, dampening, nesterov = hyper
    # The first gradient enters the buffer undampened, and so does every one without momentum.
    whole = (step == 1.0) | (momentum == 0.0)
    return (
        l2,
        momentum,
        tl.where(whole, 1.0, 1.0 - dampening),
        lr * nesterov,
        lr * (1.0 - nesterov + nesterov * momentum),
    )


@triton.jit
def momentum_update(p, grad, state, coefficients):
    (momentum_buffer,) = state
    l2, momentum, weight, grad_size, step_size = coefficients
    grad = grad + l2 * p
    momentum_buffer = momentum * momentum_buffer + weight * grad
    return p - (grad_size * grad + step_size * momentum_buffer), (momentum_buffer,)


sgd = Rule("sgd", sgd_coefficients, sgd_update, ("lr", "l2"), ())
"""p <- p - lr * (grad + l2 * p)"""
momentum = Rule(
    name="momentum",
    coefficients=momentum_coefficients,
    update=momentum_update,
    hyper=("lr", "l2", "momentum", "dampening", "nesterov"),
    states=("momentum_buffer",),
)
"""
    grad            <- grad + l2 * p
    momentum_buffer <- momentum * momentum_buffer + (1 - dampening) * grad     grad itself at t = 1
    p               <- p - lr * momentum_buffer
                    or p - lr * (grad + momentum * momentum_buffer)            with nesterov = 1
"""


# Adagrad: Duchi et al. 2011.


@triton.jit
def adagrad_coefficients(hyper, step):
    lr, lr_decay, eps, l2 = hyper
    return l2, lr / (1.0 + (step - 1.0) * lr_decay), eps


@triton.jit
def adagrad_update(p, grad, state, coefficients):
    (total,) = state
    l2, lr, eps = coefficients
    grad = grad + l2 * p
    total = total + grad * grad
    return p - lr * tl.div_rn(grad, tl.sqrt_rn(total) + eps), (total,)


adagrad = Rule("adagrad", adagrad_coefficients, adagrad_update, ("lr", "lr_decay", "eps", "l2"), ("sum",))


# RMSprop: Hinton 2012, lecture 6e; centred: Graves 2013, arXiv:1308.0850.


@triton.jit
def rmsprop_coefficients(hyper, step):
    lr, alpha, eps, l2, momentum = hyper
    return l2, 1.0 - alpha, lr, eps, momentum


@triton.jit
def rmsprop_update(p, grad, state, coefficients):
    (square_avg,) = state
    l2, one_minus_alpha, lr, eps, _ = coefficients
    grad = grad + l2 * p
    square_avg = average(square_avg, one_minus_alpha, grad * grad)
    return p - lr * tl.div_rn(grad, tl.sqrt_rn(square_avg) + eps), (square_avg,)


@triton.jit
def rmsprop_momentum_update(p, grad, state, coefficients):
    square_avg, momentum_buffer = state
    l2, one_minus_alpha, lr, eps, momentum = coefficients
    grad = grad + l2 * p
    square_avg = average(square_avg, one_minus_alpha, grad * grad)
    momentum_buffer = momentum * momentum_buffer + tl.div_rn(grad, tl.sqrt_rn(square_avg) + eps)
    return p - lr * momentum_buffer, (square_avg, momentum_buffer)


@triton.jit
def rmsprop_centered_update(p, grad, state, coefficients):
    square_avg, grad_avg = state
    l2, one_minus_alpha, lr, eps, _ = coefficients
    grad = grad + l2 * p
    square_avg = average(square_avg, one_minus_alpha, grad * grad)
    grad_avg = average(grad_avg, one_minus_alpha, grad)
    denom = tl.sqrt_rn(square_avg - grad_avg * grad_avg) + eps
    return p - lr * tl.div_rn(grad, denom), (square_avg, grad_avg)


@triton.jit
def rmsprop_centered_momentum_update(p, grad, state, coefficients):
    square_avg, momentum_buffer, grad_avg = state
    l2, one_minus_alpha, lr, eps, momentum = coefficients
    grad = grad + l2 * p
    square_avg = average(square_avg, one_minus_alpha, grad * grad)
    grad_avg = average(grad_avg, one_minus_alpha, grad)
    denom = tl.sqrt_rn(square_avg - grad_avg * grad_avg) + eps
    momentum_buffer = momentum * momentum_buffer + tl.div_rn(grad, denom)
    return p - lr * momentum_buffer, (square_avg, momentum_buffer, grad_avg)


RMSPROP_HYPER = ("lr", "alpha", "eps", "l2", "momentum")
rmsprop = Rule("rmsprop", rmsprop_coefficients, rmsprop_update, RMSPROP_HYPER, ("square_avg",))
rmsprop_momentum = Rule(
    "rmsprop_momentum",
    rmsprop_coefficients,
    rmsprop_momentum_update,
    RMSPROP_HYPER,
    ("square_avg", "momentum_buffer"),
)
rmsprop_centered = Rule(
    "rmsprop_centered", rmsprop_coefficients, rmsprop_centered_update, RMSPROP_HYPER, ("square_avg", "grad_avg")
)
rmsprop_centered_momentum = Rule(
    "rmsprop_centered_momentum",
    rmsprop_coefficients,
    rmsprop_centered_momentum_update,
    RMSPROP_HYPER,
    ("square_avg", "momentum_buffer", "grad_avg"),
)


# Adadelta: Zeiler 2012, arXiv:1212.5701.


@triton.jit
def adadelta_coefficients(hyper, step):
    lr, rho, eps, l2 = hyper
    return l2, 1.0 - rho, lr, eps


@triton.jit
def adadelta_update(p, grad, state, coefficients):
    square_avg, acc_delta = state
    l2, one_minus_rho, lr, eps = coefficients
    grad = grad + l2 * p
    square_avg = average(square_avg, one_minus_rho, grad * grad)
    delta = tl.div_rn(tl.sqrt_rn(acc_delta + eps), tl.sqrt_rn(square_avg + eps)) * grad
    return p - lr * delta, (square_avg, average(acc_delta, one_minus_rho, delta * delta))


adadelta = Rule(
    "adadelta", adadelta_coefficients, adadelta_update, ("lr", "rho", "eps", "l2"), ("square_avg", "acc_delta")
)


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

RULES = {
    rule.name: rule
    for rule in (
        *(adam, amsgrad, nadam, radam, sgd, momentum, adagrad, adadelta, lion),
        *(rmsprop, rmsprop_momentum, rmsprop_centered, rmsprop_centered_momentum),
    )
}
