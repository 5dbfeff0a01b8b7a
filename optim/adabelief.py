"""A rule of your own, as an example: AdaBelief (Zhuang et al. 2020, arXiv:2010.07468).

python -m experiments.sweep mnist --optimizer adam optim.adabelief:AdaBelief --lr 1e-4..1e-1:7 --out results/belief
"""

import optim
from kernels.rule import tl  # triton.language where Triton is installed


def coefficients(hyper, step):
    lr, beta1, beta2, eps = hyper
    return 1 - beta1, 1 - beta2, lr / (1 - tl.exp(step * tl.log(beta1))), 1 / (1 - tl.exp(step * tl.log(beta2))), eps


def update(p, grad, state, coefficients):
    """Adam that divides by how far gradients are from their average, instead of by how large they are."""
    exp_avg, exp_avg_var = state
    weight1, weight2, step_size, correction2, eps = coefficients
    exp_avg = exp_avg + weight1 * (grad - exp_avg)
    surprise = grad - exp_avg
    exp_avg_var = exp_avg_var + weight2 * (surprise * surprise - exp_avg_var) + eps
    return p - step_size * exp_avg / (tl.sqrt(exp_avg_var * correction2) + eps), (exp_avg, exp_avg_var)


AdaBelief = optim.from_rule(
    update,
    coefficients,
    states=("exp_avg", "exp_avg_var"),
    defaults={"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-16},
    name="AdaBelief",
)
