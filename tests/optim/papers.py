"""Algorithms that torch.optim lacks, in float64, each as its paper writes it: oracles for our classes.

A function takes one step of one tensor: `(p, grad, state, t, **options) -> p`. state is a dict that starts empty and is
changed in place; t counts from 1. Each has the arguments and defaults of our class.
"""

import math
from typing import Any

import torch

Tensor = torch.Tensor
State = dict[str, Any]


def averaged(state: State, name: str, beta: float, x: Tensor) -> Tensor:
    """Return the exponential moving average of x from zeros, which the state keeps."""
    state[name] = beta * state.get(name, torch.zeros_like(x)) + (1 - beta) * x
    return state[name]


def adamw(
    p: Tensor,
    grad: Tensor,
    state: State,
    t: int,
    *,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=1e-2,
    amsgrad=False,
    bias_correction=True,
    cautious_weight_decay=False,
) -> Tensor:
    """AdamW with equation 1 of arXiv:2511.20516 without its corrections, and Algorithm 1 of arXiv:2510.12402."""
    correction1, correction2 = (1 - beta**t if bias_correction else 1.0 for beta in betas)
    m, v = averaged(state, "m", betas[0], grad), averaged(state, "v", betas[1], grad**2)
    if amsgrad:
        v = state["largest"] = torch.maximum(state.get("largest", torch.zeros_like(v)), v)
    update = (m / correction1) / ((v / correction2).sqrt() + eps)
    mask = update * p >= 0 if cautious_weight_decay else 1.0
    return p - lr * (update + weight_decay * mask * p)


def lion(p: Tensor, grad: Tensor, state: State, t: int, *, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0) -> Tensor:
    """Algorithm 2 of arXiv:2302.06675."""
    m = state.get("m", torch.zeros_like(p))
    update = torch.sign(betas[0] * m + (1 - betas[0]) * grad)
    averaged(state, "m", betas[1], grad)
    return p - lr * (update + weight_decay * p)


def signum(p: Tensor, grad: Tensor, state: State, t: int, *, lr=1e-4, momentum=0.9, weight_decay=0.0) -> Tensor:
    """Algorithm 2 of arXiv:1802.04434, with the weight decay of Algorithm 1 of arXiv:1810.05291."""
    return p - lr * (torch.sign(averaged(state, "m", momentum, grad)) + weight_decay * p)


def laprop(
    p: Tensor, grad: Tensor, state: State, t: int, *, lr=4e-4, betas=(0.9, 0.999), eps=1e-15, weight_decay=0.0
) -> Tensor:
    """Algorithm 1 of arXiv:2002.04839, with AdamW's weight decay."""
    n = averaged(state, "n", betas[1], grad**2) / (1 - betas[1] ** t)
    m = averaged(state, "m", betas[0], grad / (n.sqrt() + eps)) / (1 - betas[0] ** t)
    return p - lr * (m + weight_decay * p)


def adopt(
    p: Tensor,
    grad: Tensor,
    state: State,
    t: int,
    *,
    lr=1e-3,
    betas=(0.9, 0.9999),
    eps=1e-6,
    weight_decay=0.0,
    decoupled_weight_decay=False,
    clip=True,
) -> Tensor:
    """Algorithm 2 of arXiv:2411.02853, whose g_0 is the gradient of our first step."""
    if not decoupled_weight_decay:
        grad = grad + weight_decay * p
    if t == 1:
        state["v"] = grad**2
        return p
    normalised = grad / state["v"].sqrt().clamp_min(eps)
    if clip:
        bound = (t - 1) ** 0.25
        normalised = normalised.clamp(-bound, bound)
    m = averaged(state, "m", betas[0], normalised)
    averaged(state, "v", betas[1], grad**2)
    return p - lr * (m + (weight_decay * p if decoupled_weight_decay else 0.0))


def adan(
    p: Tensor, grad: Tensor, state: State, t: int, *, lr=1e-3, betas=(0.98, 0.92, 0.99), eps=1e-8, weight_decay=0.0
) -> Tensor:
    """Algorithm 1 of arXiv:2208.06677 without restarts, with the authors' betas (1 - the paper's) and corrections."""
    difference = grad - state.get("before", grad)
    state["before"] = grad.clone()
    m = averaged(state, "m", betas[0], grad) / (1 - betas[0] ** t)
    v = averaged(state, "v", betas[1], difference) / (1 - betas[1] ** t)
    n = averaged(state, "n", betas[2], (grad + betas[1] * difference) ** 2) / (1 - betas[2] ** t)
    return (p - lr * (m + betas[1] * v) / (n.sqrt() + eps)) / (1 + lr * weight_decay)


def ademamix(
    p: Tensor,
    grad: Tensor,
    state: State,
    t: int,
    *,
    lr=1e-3,
    betas=(0.9, 0.999, 0.9999),
    alpha=5.0,
    eps=1e-8,
    weight_decay=0.0,
    T_alpha_beta3=0,
) -> Tensor:
    """Algorithm 1 of arXiv:2409.03137, with its schedulers of alpha and beta3 from beta_start = beta1."""
    beta1, beta2, beta3 = betas
    if T_alpha_beta3:
        share = t / T_alpha_beta3
        alpha = min(share * alpha, alpha)
        if share < 1:
            start, end = math.log(beta1), math.log(beta3)
            beta3 = min(math.exp(start * end / ((1 - share) * end + share * start)), beta3)
    m1 = averaged(state, "m1", beta1, grad) / (1 - beta1**t)
    m2 = averaged(state, "m2", beta3, grad)
    v = averaged(state, "v", beta2, grad**2) / (1 - beta2**t)
    return p - lr * ((m1 + alpha * m2) / (v.sqrt() + eps) + weight_decay * p)


def schedule_free_adamw(
    p: Tensor,
    grad: Tensor,
    state: State,
    t: int,
    *,
    lr=2.5e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    warmup_steps=0,
    r=0.0,
    weight_lr_power=2.0,
) -> Tensor:
    """Algorithm 1 of arXiv:2405.15682, with the authors' r and weight_lr_power; p is y, and the state keeps x and z."""
    x, z = state.get("x", p), state.get("z", p)
    gamma = lr * math.sqrt(1 - betas[1] ** t) * (min(1.0, t / warmup_steps) if warmup_steps else 1.0)
    state["gamma_max"] = max(gamma, state.get("gamma_max", 0.0))
    weight = t**r * state["gamma_max"] ** weight_lr_power
    state["weights"] = state.get("weights", 0.0) + weight
    c = weight / state["weights"] if state["weights"] else 0.0
    v = averaged(state, "v", betas[1], grad**2)
    z = state["z"] = z - gamma * (grad / (v.sqrt() + eps) + weight_decay * p)
    x = state["x"] = (1 - c) * x + c * z
    return (1 - betas[0]) * z + betas[0] * x


def muon(
    p: Tensor,
    grad: Tensor,
    state: State,
    t: int,
    *,
    lr=1e-3,
    weight_decay=0.1,
    momentum=0.95,
    nesterov=True,
    ns_coefficients=(3.4445, -4.7750, 2.0315),
    eps=1e-7,
    ns_steps=5,
    adjust_lr_fn=None,
) -> Tensor:
    """Muon of https://kellerjordan.github.io/posts/muon, with equation 4 of arXiv:2502.16982, all of it in float64."""
    m = averaged(state, "m", momentum, grad)
    x = momentum * m + (1 - momentum) * grad if nesterov else m
    x = x / x.square().sum().sqrt().clamp_min(eps)
    a, b, c = ns_coefficients
    for _ in range(ns_steps):
        square = x @ x.T
        x = a * x + b * square @ x + c * square @ square @ x
    rows, columns = p.shape
    ratio = 0.2 * max(rows, columns) ** 0.5 if adjust_lr_fn == "match_rms_adamw" else max(1, rows / columns) ** 0.5
    return p - lr * (weight_decay * p + ratio * x)


OF = {
    "AdamW": adamw,
    "Lion": lion,
    "Signum": signum,
    "LaProp": laprop,
    "ADOPT": adopt,
    "Adan": adan,
    "AdEMAMix": ademamix,
    "AdamWScheduleFree": schedule_free_adamw,
    "Muon": muon,
}
"""The oracle of each class, by its name in `optim`."""
