"""Lion: the sign of an average."""

from kernels import rules
from optim.arguments import Value, check, check_betas, options
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
        check("learning rate", group["lr"], lambda v: v >= 0)
        check_betas(group["betas"])
        check("weight_decay value", group["weight_decay"], lambda v: v >= 0)
        super().check_group(group)
