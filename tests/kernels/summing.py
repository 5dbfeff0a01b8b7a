# pyright: reportGeneralTypeIssues=false
# Triton compiles these functions: a call of one gives a tuple there.
"""Rules with sums that tests make up, in a file because Triton reads the source of what it compiles."""

from kernels import rules
from kernels.rule import Rule, clipping, tl, triton
from kernels.rules.shared import average


@triton.jit
def lamb_coefficients(hyper, step):
    lr, beta1, beta2, eps, weight_decay = hyper
    correction1 = 1.0 - tl.exp(step * tl.log(beta1))
    correction2 = 1.0 - tl.exp(step * tl.log(beta2))
    return lr, 1.0 - beta1, 1.0 - beta2, 1.0 / correction1, 1.0 / tl.sqrt(correction2), eps, weight_decay


@triton.jit
def lamb_direction(p, grad, state, coefficients):
    exp_avg, exp_avg_sq = state
    _, weight1, weight2, scale1, scale2, eps, weight_decay = coefficients
    exp_avg = average(exp_avg, weight1, grad)
    exp_avg_sq = average(exp_avg_sq, weight2, grad * grad)
    direction = tl.div_rn(exp_avg * scale1, tl.sqrt_rn(exp_avg_sq) * scale2 + eps) + weight_decay * p
    return direction, (exp_avg, exp_avg_sq)


@triton.jit
def lamb_sums(p, grad, state, coefficients):
    direction, state = lamb_direction(p, grad, state, coefficients)
    return p * p, direction * direction


@triton.jit
def lamb_finish(totals, coefficients, scalars):
    of_p, of_direction = totals
    ratio = tl.sqrt(of_p) / tl.sqrt(of_direction)
    return (tl.where((of_p > 0.0) & (of_direction > 0.0), ratio, 1.0),), scalars


@triton.jit
def lamb_update(p, grad, state, coefficients, totals):
    direction, state = lamb_direction(p, grad, state, coefficients)
    return p - coefficients[0] * totals[0] * direction, state


@triton.jit
def mean_coefficients(hyper, step):
    return hyper


@triton.jit
def mean_sums(p, grad, state, coefficients):
    return grad * grad, 1.0


@triton.jit
def mean_update(p, grad, state, coefficients, totals):
    squares, count = totals
    return p - coefficients[0] * tl.div_rn(grad, tl.sqrt_rn(squares / count)), state


@triton.jit
def peak_coefficients(hyper, step, scalars):
    return hyper, scalars


@triton.jit
def peak_sums(p, grad, state, coefficients):
    return (grad * grad,)


@triton.jit
def peak_finish(totals, coefficients, scalars):
    decay = coefficients[1]
    norm = tl.sqrt(totals[0])
    peak = tl.where(norm > decay * scalars[0], norm, decay * scalars[0])
    return (peak,), (peak,)


@triton.jit
def peak_update(p, grad, state, coefficients, totals):
    return p - coefficients[0] * tl.div_rn(grad, totals[0]), state


LAMB = ("lr", "beta1", "beta2", "eps", "weight_decay"), ("exp_avg", "exp_avg_sq")
lamb = Rule("lamb", lamb_coefficients, lamb_update, *LAMB, sums=lamb_sums, finish=lamb_finish)
mean = Rule("mean", mean_coefficients, mean_update, ("lr",), (), sums=mean_sums, over="lane")
peak = Rule("peak", peak_coefficients, peak_update, ("lr", "decay"), (), ("peak",), peak_sums, finish=peak_finish)

RULES = {
    "lamb": lamb,
    # Divides gradients by their root mean square over all tensors of a lane.
    "mean": mean,
    # Divides them by the largest norm that they have had, which fades.
    "peak": peak,
    "adam, clipped": clipping(rules.adam),
    "lamb, clipped": clipping(lamb),
}
