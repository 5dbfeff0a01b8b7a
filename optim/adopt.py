"""ADOPT and LaProp, which divide gradients by their size before they average them."""

import math

from kernels import rules
from optim.adam import AdamLike
from optim.arguments import Value, check_betas, check_non_negative, options
from optim.base import RuleOptimizer


class ADOPT(AdamLike):
    """ADOPT, which converges for any beta2, in one launch a step. torch has none.

    exp_avg_sq <- grad^2, and nothing else changes                          at the first step
    exp_avg    <- beta1 * exp_avg + (1 - beta1) * clip(grad / max(sqrt(exp_avg_sq), eps), (t - 1)^(1/4))
    p          <- p - lr * exp_avg
    exp_avg_sq <- beta2 * exp_avg_sq + (1 - beta2) * grad^2

    Args:
        lr, betas, eps, weight_decay: a float, or `[K]` tensors over stacked parameters.
        weight_decay: added to the gradient as weight_decay * p; with decoupled_weight_decay the parameters shrink by
            lr * weight_decay instead, from the second step on.
        clip: bound normalised gradients, as the authors have since November 2024.
        For all else see `optim.Adam`.
    Reference: Taniguchi et al. 2024, Algorithm 2, arXiv:2411.02853.
    """

    state_names = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params,
        lr: Value = 1e-3,
        betas: tuple[Value, Value] = (0.9, 0.9999),
        eps: Value = 1e-6,
        weight_decay: Value = 0.0,
        decoupled_weight_decay: bool = False,
        clip: bool = True,
        *,
        maximize: bool = False,
        **own,
    ):
        super().__init__(params, options(locals()), **own)

    def rule(self, group: dict) -> rules.Rule:
        return rules.adopt

    def hyper(self, group: dict) -> tuple:
        return *super().hyper(group), 1.0 if group["clip"] else math.inf


class LaProp(RuleOptimizer):
    """LaProp, in one launch a step. torch has none.

    exp_avg_sq <- beta2 * exp_avg_sq + (1 - beta2) * grad^2
    exp_avg    <- beta1 * exp_avg    + (1 - beta1) * grad / (sqrt(exp_avg_sq / (1 - beta2^t)) + eps)
    p          <- (1 - lr * weight_decay) * p - lr / (1 - beta1^t) * exp_avg

    Args:
        lr, betas, eps, weight_decay: a float, or `[K]` tensors over stacked parameters.
        weight_decay: AdamW's; the authors' code does not multiply it by lr.
        For all else see `optim.Adam`.
    Reference: Ziyin et al. 2020, Algorithm 1, arXiv:2002.04839.
    """

    state_names = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params,
        lr: Value = 4e-4,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-15,
        weight_decay: Value = 0.0,
        *,
        maximize: bool = False,
        **own,
    ):
        super().__init__(params, options(locals()), **own)

    def rule(self, group: dict) -> rules.Rule:
        return rules.laprop

    def hyper(self, group: dict) -> tuple:
        return group["lr"], *group["betas"], group["eps"], group["weight_decay"]

    def check_group(self, group: dict) -> None:
        check_non_negative(group, "lr", "eps", "weight_decay")
        check_betas(group["betas"])
        super().check_group(group)
