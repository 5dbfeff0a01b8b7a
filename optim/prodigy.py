"""Prodigy, Adam that finds its learning rate."""

import math
from collections.abc import Mapping

import torch

from kernels import rules
from optim import watch
from optim.arguments import Value, check, check_betas, check_non_negative, options
from optim.base import RuleOptimizer

SCALARS = rules.prodigy.scalars
SHARED = ("betas", "beta3", "d0", "d_coef", "growth_rate", "use_bias_correction")
"""Options on which d depends, which all groups therefore share."""


class Prodigy(RuleOptimizer):
    """Prodigy, Adam that estimates by d how far the solution is. torch has none; arguments as of `prodigyopt`.

    g           = d * lr, times sqrt(1 - beta2^k) / (1 - beta1^k) with use_bias_correction
    exp_avg    <- beta1 * exp_avg    + (1 - beta1) * d * grad
    exp_avg_sq <- beta2 * exp_avg_sq + (1 - beta2) * d^2 * grad^2
    s          <- beta3 * s + d / d0 * g * grad                           d in place of g with safeguard_warmup
    numerator  <- beta3 * numerator + sum(d / d0 * g * grad * (p0 - p))   sums go over all tensors, with lanes over
    d_hat       = d_coef * numerator / sum(|s|)                           those of each lane
    d_max      <- max(d_max, d_hat)
    d          <- min(d_max, growth_rate * d)                             growth_rate * max(d, d_hat) while d is d0
    p          <- (1 - g * weight_decay) * p - g * exp_avg / (sqrt(exp_avg_sq) + d * eps)

    p0 is p before the first step, and g that of the old d. While sum(|s|) is 0, only the averages change; k counts all
    other steps. Every parameter's state holds the same d of its lane. State p0 needs the digits of p: with float32
    parameters leave state_dtype at float32.

    Args:
        lr: factor of d, usually 1 and a schedule; a tensor of a group with lr 0 stays where it is.
        beta3: sqrt(beta2) if None.
        decouple: weight decay as AdamW's; False adds weight_decay * p to the gradient.
        d0: the first d. d_coef: a factor of the estimate, the one to tune. growth_rate: bounds d's growth per step.
        safeguard_warmup: keep lr out of the estimate, for schedules that begin with a low one.
        lr, betas, beta3, eps, weight_decay, d0, d_coef, growth_rate: a float, or `[K]` tensors over stacked parameters.
        For all else see `optim.Adam`.
    Raises: ValueError if groups differ in what d depends on; they may differ in lr, which multiplies their g.
    Reference: Mishchenko & Defazio 2024, arXiv:2306.06101, as in the authors' code without slice_p.
    """

    state_names = (*rules.prodigy.states, *SCALARS)

    def __init__(
        self,
        params,
        lr: Value = 1.0,
        betas: tuple[Value, Value] = (0.9, 0.999),
        beta3: Value | None = None,
        eps: Value = 1e-8,
        weight_decay: Value = 0.0,
        decouple: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: Value = 1e-6,
        d_coef: Value = 1.0,
        growth_rate: Value = math.inf,
        *,
        maximize: bool = False,
        **own,
    ):
        super().__init__(params, options(locals()), **own)

    def rule(self, group: dict) -> rules.Rule:
        return rules.prodigy

    def hyper(self, group: dict) -> tuple:
        beta2, decay = group["betas"][1], group["weight_decay"]
        beta3 = beta2**0.5 if group["beta3"] is None else group["beta3"]
        decays = (decay, 0.0) if group["decouple"] else (0.0, decay)
        estimate = group["d0"], group["d_coef"], group["growth_rate"]
        flags = float(group["use_bias_correction"]), float(group["safeguard_warmup"])
        return group["lr"], *group["betas"], beta3, group["eps"], *decays, *estimate, *flags

    def initial(self, group: dict) -> Mapping[str, Value]:
        return {"d": group["d0"], "d_max": group["d0"]}

    def check_group(self, group: dict) -> None:
        check_non_negative(group, "lr", "weight_decay", "d_coef", "growth_rate")
        check("epsilon value", group["eps"], lambda v: v > 0)
        check("d0 value", group["d0"], lambda v: v > 0)
        check_betas(group["betas"], 2)
        if group["beta3"] is not None:
            check("beta3 value", group["beta3"], lambda v: (v >= 0) & (v < 1))
        first = next(iter(vars(self).get("param_groups", [])), group)
        if differing := [name for name in SHARED if not same(first[name], group[name])]:
            raise ValueError(
                f"{', '.join(differing)} of Prodigy must be the same in all groups, because d is: "
                f"{differing[0]} is {first[differing[0]]} and {group[differing[0]]}"
            )
        super().check_group(group)

    def _lay_out(self, params: list, grads: list) -> None:
        super()._lay_out(params, grads)
        # A parameter that has its first gradient, or had none for a while, has missed steps of d.
        states = [dict.get(self.state, p) or {} for p in params]
        states = [state for state in states if "k" in state]
        latest = max(states, key=lambda state: float(state["k"].sum()), default={})
        for name in latest.keys() & SCALARS:
            for state in states:
                if state[name].shape == latest[name].shape:  # otherwise loaded with other lanes, and without gradient
                    state[name].copy_(latest[name])


def same(a, b) -> bool:
    """Return whether two options have the same values; so have those whose values cannot be read."""
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if a is None or b is None:
        return a is b
    tensors = [value for value in (a, b) if isinstance(value, torch.Tensor)]
    if tensors and (watch.in_a_mode() or not all(map(watch.is_plain, tensors))):
        return True
    a, b = (torch.as_tensor(value, dtype=torch.float64, device="cpu").reshape(-1) for value in (a, b))
    return (1 in (len(a), len(b)) or len(a) == len(b)) and bool((a == b).all())
