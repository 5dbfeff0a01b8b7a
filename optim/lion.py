"""Lion and Signum, which step by the sign of an average of gradients."""

from kernels import rules
from optim.arguments import Value, check, check_betas, check_non_negative, options
from optim.base import RuleOptimizer


class Lion(RuleOptimizer):
    """Lion, in one launch a step. torch has none; the constructor is that of lion-pytorch.

    p       <- (1 - lr * weight_decay) * p - lr * sign(beta1 * exp_avg + (1 - beta1) * grad)
    exp_avg <- beta2 * exp_avg + (1 - beta2) * grad

    Args:
        lr, betas, weight_decay: a float, or `[K]` tensors over stacked parameters.
        For all else see `optim.Adam`.
    Reference: Chen et al. 2023, Algorithm 2, arXiv:2302.06675.
    """

    state_names = ("exp_avg",)

    def __init__(
        self,
        params,
        lr: Value = 1e-4,
        betas: tuple[Value, Value] = (0.9, 0.99),
        weight_decay: Value = 0.0,
        *,
        maximize: bool = False,
        **own,
    ):
        super().__init__(params, options(locals()), **own)

    def rule(self, group: dict) -> rules.Rule:
        return rules.lion

    def hyper(self, group: dict) -> tuple:
        return group["lr"], *group["betas"], group["weight_decay"]

    def check_group(self, group: dict) -> None:
        check_non_negative(group, "lr")
        check_betas(group["betas"])
        check_non_negative(group, "weight_decay")
        super().check_group(group)


class Signum(RuleOptimizer):
    """Signum, signSGD with momentum, in one launch a step. torch has none.

    exp_avg <- momentum * exp_avg + (1 - momentum) * grad
    p       <- (1 - lr * weight_decay) * p - lr * sign(exp_avg)

    Args:
        lr, momentum, weight_decay: a float, or `[K]` tensors over stacked parameters.
        For all else see `optim.Adam`.
    Reference: Bernstein et al. 2018, Algorithm 2, arXiv:1802.04434; weight decay as in arXiv:1810.05291.
    """

    state_names = ("exp_avg",)

    def __init__(
        self,
        params,
        lr: Value = 1e-4,
        momentum: Value = 0.9,
        weight_decay: Value = 0.0,
        *,
        maximize: bool = False,
        **own,
    ):
        super().__init__(params, options(locals()), **own)

    def rule(self, group: dict) -> rules.Rule:
        return rules.signum

    def hyper(self, group: dict) -> tuple:
        return group["lr"], group["momentum"], group["weight_decay"]

    def check_group(self, group: dict) -> None:
        check_non_negative(group, "lr", "weight_decay")
        check("momentum value", group["momentum"], lambda v: (v >= 0) & (v < 1))
        super().check_group(group)
