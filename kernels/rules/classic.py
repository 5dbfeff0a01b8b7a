"""SGD, Adagrad, RMSprop and Adadelta, which precede Adam."""

from kernels.rule import Rule, tl, triton
from kernels.rules.shared import average

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
