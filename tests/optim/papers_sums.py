"""Algorithms with sums over whole tensors, in float64, as their papers or authors write them; see `papers`.

All but `prodigy` take a step of one tensor. `prodigy` takes one of all tensors of an optimizer.
"""

import math
from collections.abc import Sequence

import torch

from tests.optim.papers import State, Tensor, averaged


def lamb(
    p: Tensor,
    grad: Tensor,
    state: State,
    t: int,
    *,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-6,
    weight_decay=0.01,
    bias_correction=True,
) -> Tensor:
    """Algorithm 2 of arXiv:1904.00962 with phi(z) = z."""
    correction1, correction2 = (1 - beta**t if bias_correction else 1.0 for beta in betas)
    m, v = averaged(state, "m", betas[0], grad) / correction1, averaged(state, "v", betas[1], grad**2) / correction2
    update = m / (v.sqrt() + eps) + weight_decay * p
    norms = p.norm(), update.norm()
    return p - lr * (norms[0] / norms[1] if all(norms) else 1.0) * update


def lars(
    p: Tensor,
    grad: Tensor,
    state: State,
    t: int,
    *,
    lr=1.0,
    momentum=0.9,
    weight_decay=0.0,
    trust_coefficient=1e-3,
    eps=1e-8,
) -> Tensor:
    """Algorithm 1 of arXiv:1708.03888, with the trust coefficient of its equation 6."""
    ratio = trust_coefficient * p.norm() / (grad.norm() + weight_decay * p.norm() + eps)
    ratio = ratio if p.norm() > 0 and grad.norm() > 0 else 1.0
    v = state["v"] = momentum * state.get("v", torch.zeros_like(p)) + lr * ratio * (grad + weight_decay * p)
    return p - v


def stable_adamw(
    p: Tensor, grad: Tensor, state: State, t: int, *, lr=1e-3, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.01
) -> Tensor:
    """Algorithm 2 of arXiv:2304.13013."""
    beta1, beta2 = (beta * (1 - beta ** (t - 1)) / (1 - beta**t) for beta in betas)
    v, u = averaged(state, "v", beta1, grad), averaged(state, "u", beta2, grad**2)
    rms = (grad**2 / u.clamp_min(eps**2)).mean().sqrt()
    eta = lr / max(1.0, rms.item())
    return p - eta * weight_decay * p - eta * v / (u.sqrt() + eps)


def adam_mini(
    p: Tensor, grad: Tensor, state: State, t: int, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0
) -> Tensor:
    """Algorithm 1 of arXiv:2406.16793 for one block."""
    p = p - lr * weight_decay * p
    m = averaged(state, "m", betas[0], grad) / (1 - betas[0] ** t)
    v = averaged(state, "v", betas[1], (grad * grad).mean()) / (1 - betas[1] ** t)
    return p - lr * m / (v.sqrt() + eps)


def cautious_mask(update: Tensor, grad: Tensor) -> Tensor:
    """Return the mask of the authors of arXiv:2411.16085."""
    mask = (update * grad > 0).double()
    return mask / mask.mean().clamp_min(1e-3)


def cautious_adamw(
    p: Tensor, grad: Tensor, state: State, t: int, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0
) -> Tensor:
    """AdamW as in Algorithm 2 of arXiv:2411.16085."""
    m = averaged(state, "m", betas[0], grad) / (1 - betas[0] ** t)
    v = averaged(state, "v", betas[1], grad**2) / (1 - betas[1] ** t)
    update = m / (v.sqrt() + eps)
    p = p - lr * cautious_mask(update, grad) * update
    return p - lr * weight_decay * p


def cautious_lion(
    p: Tensor, grad: Tensor, state: State, t: int, *, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0
) -> Tensor:
    """Lion with the same mask."""
    m = state.get("m", torch.zeros_like(p))
    update = torch.sign(betas[0] * m + (1 - betas[0]) * grad)
    averaged(state, "m", betas[1], grad)
    return p - lr * weight_decay * p - lr * cautious_mask(update, grad) * update


def prodigy(
    params: list[Tensor],
    grads: Sequence[Tensor | None],
    state: State,
    *,
    lr: float | list[float] = 1.0,
    betas=(0.9, 0.999),
    beta3=None,
    eps=1e-8,
    weight_decay: float | list[float] = 0.0,
    decouple=True,
    use_bias_correction=False,
    safeguard_warmup=False,
    d0=1e-6,
    d_coef=1.0,
    growth_rate=math.inf,
) -> list[Tensor]:
    """The step of github.com/konstmish/prodigy; lr and weight_decay may be lists with a value for each tensor."""
    beta1, beta2 = betas
    beta3 = math.sqrt(beta2) if beta3 is None else beta3
    d, d_max, k = state.get("d", d0), state.get("d_max", d0), state.get("k", 0)
    correction = math.sqrt(1 - beta2 ** (k + 1)) / (1 - beta1 ** (k + 1)) if use_bias_correction else 1.0
    lrs, decays = (x if isinstance(x, list) else [x] * len(params) for x in (lr, weight_decay))
    numerator, denominator = beta3 * state.get("numerator", 0.0), 0.0
    own = state.setdefault("own", [{} for _ in params])
    grads = [g if g is None or decouple else g + decay * p for p, g, decay in zip(params, grads, decays, strict=True)]
    for p, grad, of, rate in zip(params, grads, own, lrs, strict=True):
        if grad is None:
            continue
        p0 = of.setdefault("p0", p.clone())
        if rate > 0:
            dlr = d * rate * correction
            numerator += (d / d0) * dlr * (grad * (p0 - p)).sum().item()
            averaged(of, "m", beta1, d * grad)
            averaged(of, "v", beta2, d * d * grad**2)
            added = d / d0 * (d if safeguard_warmup else dlr) * grad
            of["s"] = beta3 * of.get("s", torch.zeros_like(p)) + added
            denominator += of["s"].abs().sum().item()
    if denominator == 0:
        return params
    d_hat, old_d = d_coef * numerator / denominator, d
    if d == d0:
        d = max(d, d_hat)
    d_max = max(d_max, d_hat)
    d = min(d_max, d * growth_rate)
    state.update(d=d, d_max=d_max, numerator=numerator, k=k + 1)
    moved = []
    for p, grad, of, rate, decay in zip(params, grads, own, lrs, decays, strict=True):
        if grad is not None and rate > 0:
            dlr = old_d * rate * correction
            p = p - dlr * (decay if decouple else 0.0) * p - dlr * of["m"] / (of["v"].sqrt() + d * eps)
        moved.append(p)
    return moved


def prodigy_of_one(p: Tensor, grad: Tensor, state: State, t: int, **options) -> Tensor:
    """The step of an optimizer that has one tensor."""
    (p,) = prodigy([p], [grad], state, **options)
    return p


OF = {
    "LAMB": lamb,
    "LARS": lars,
    "StableAdamW": stable_adamw,
    "AdamMini": adam_mini,
    "CautiousAdamW": cautious_adamw,
    "CautiousLion": cautious_lion,
    "Prodigy": prodigy_of_one,
}
"""The oracle of each class, by its name in `optim`."""
