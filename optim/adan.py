"""Adan and AdEMAMix, which keep a third average beside Adam's two."""

from kernels import rules
from optim.arguments import Value, check_betas, check_non_negative, options
from optim.base import RuleOptimizer


class Adan(RuleOptimizer):
    """Adan, Adam with Nesterov's momentum of gradient differences, in one launch a step. torch has none.

    d             = grad - previous_grad                                       0 at the first step
    exp_avg      <- beta1 * exp_avg      + (1 - beta1) * grad
    exp_avg_diff <- beta2 * exp_avg_diff + (1 - beta2) * d
    exp_avg_sq   <- beta3 * exp_avg_sq   + (1 - beta3) * (grad + beta2 * d)^2
    p            <- (p - lr * (exp_avg / (1 - beta1^t) + beta2 * exp_avg_diff / (1 - beta2^t))
                    / (sqrt(exp_avg_sq / (1 - beta3^t)) + eps)) / (1 + lr * weight_decay)

    Args:
        lr, betas, eps, weight_decay: a float, or `[K]` tensors over stacked parameters.
        betas: three, as in the authors' code: 1 minus those of the paper.
        For all else see `optim.Adam`.
    Reference: Xie et al. 2022, Algorithm 1 without restarts, arXiv:2208.06677.
    """

    state_names = ("exp_avg", "exp_avg_diff", "exp_avg_sq", "previous_grad")

    def __init__(
        self,
        params,
        lr: Value = 1e-3,
        betas: tuple[Value, Value, Value] = (0.98, 0.92, 0.99),
        eps: Value = 1e-8,
        weight_decay: Value = 0.0,
        *,
        maximize: bool = False,
        **own,
    ):
        super().__init__(params, options(locals()), **own)

    def rule(self, group: dict) -> rules.Rule:
        return rules.adan

    def hyper(self, group: dict) -> tuple:
        return group["lr"], *group["betas"], group["eps"], group["weight_decay"]

    def check_group(self, group: dict) -> None:
        check_non_negative(group, "lr", "eps", "weight_decay")
        check_betas(group["betas"], 3)
        super().check_group(group)


class AdEMAMix(RuleOptimizer):
    """AdEMAMix, AdamW with a second, slower average of gradients, in one launch a step. torch has none.

    exp_avg      <- beta1 * exp_avg      + (1 - beta1) * grad
    exp_avg_slow <- beta3 * exp_avg_slow + (1 - beta3) * grad
    exp_avg_sq   <- beta2 * exp_avg_sq   + (1 - beta2) * grad^2
    p            <- (1 - lr * weight_decay) * p - lr * (exp_avg / (1 - beta1^t) + alpha * exp_avg_slow)
                    / (sqrt(exp_avg_sq / (1 - beta2^t)) + eps)

    Args:
        lr, betas, alpha, eps, weight_decay, T_alpha_beta3: a float, or `[K]` tensors over stacked parameters.
        betas: three; the last is that of the slow average.
        T_alpha_beta3: number of steps, usually all of a run, over which alpha grows linearly from 0, and the half-life
            of the slow average from that of beta1; 0 for neither.
        For all else see `optim.Adam`.
    Reference: Pagliardini et al. 2024, Algorithm 1, arXiv:2409.03137.
    """

    state_names = ("exp_avg", "exp_avg_slow", "exp_avg_sq")

    def __init__(
        self,
        params,
        lr: Value = 1e-3,
        betas: tuple[Value, Value, Value] = (0.9, 0.999, 0.9999),
        alpha: Value = 5.0,
        eps: Value = 1e-8,
        weight_decay: Value = 0.0,
        T_alpha_beta3: Value = 0,
        *,
        maximize: bool = False,
        **own,
    ):
        super().__init__(params, options(locals()), **own)

    def rule(self, group: dict) -> rules.Rule:
        return rules.ademamix

    def hyper(self, group: dict) -> tuple:
        others = group["alpha"], group["eps"], group["weight_decay"], group["T_alpha_beta3"]
        return group["lr"], *group["betas"], *others

    def check_group(self, group: dict) -> None:
        check_non_negative(group, "lr", "alpha", "eps", "weight_decay", "T_alpha_beta3")
        check_betas(group["betas"], 3)
        super().check_group(group)
