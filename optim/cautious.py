"""Cautious AdamW and Cautious Lion, which move only the elements whose gradient agrees."""

from kernels import rules
from optim.arguments import Value, options
from optim.lion import Lion
from optim.norms import AdamWLike


class CautiousAdamW(AdamWLike):
    """Cautious AdamW, which moves an element only where exp_avg and grad have the same sign. torch has none.

    exp_avg    <- beta1 * exp_avg    + (1 - beta1) * grad
    exp_avg_sq <- beta2 * exp_avg_sq + (1 - beta2) * grad^2
    mask        = 1 where exp_avg * grad > 0, else 0
    mask       <- mask / max(mean(mask), 1e-3)                     the mean of a tensor, with lanes of each lane
    p          <- p - lr * mask * exp_avg / (1 - beta1^t) / (sqrt(exp_avg_sq / (1 - beta2^t)) + eps)
    p          <- (1 - lr * weight_decay) * p

    This is the paper's algorithm with the mask of the authors' code. For cautious weight decay see `optim.AdamW`.

    Args:
        lr, betas, eps, weight_decay: a float, or `[K]` tensors over stacked parameters.
        For all else see `optim.Adam`.
    Reference: Liang et al. 2024, arXiv:2411.16085.
    """

    state_names = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params,
        lr: Value = 1e-3,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-8,
        weight_decay: Value = 0.0,
        *,
        maximize: bool = False,
        **own,
    ):
        super().__init__(params, options(locals()), **own)

    def rule(self, group: dict) -> rules.Rule:
        return rules.cautious_adamw


class CautiousLion(Lion):
    """Cautious Lion, which moves an element only where Lion's direction and grad have the same sign. torch has none.

    u       = sign(beta1 * exp_avg + (1 - beta1) * grad);     mask = 1 where u * grad > 0, else 0
    p       <- (1 - lr * weight_decay) * p - lr * mask / max(mean(mask), 1e-3) * u
    exp_avg <- beta2 * exp_avg + (1 - beta2) * grad

    The mean is that of a tensor, with lanes of each lane. Arguments as of `optim.Lion`.
    Reference: Liang et al. 2024, arXiv:2411.16085.
    """

    def rule(self, group: dict) -> rules.Rule:
        return rules.cautious_lion
