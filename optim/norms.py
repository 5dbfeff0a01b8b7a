"""LAMB, LARS, StableAdamW and Adam-mini, whose steps depend on the norm of a whole tensor."""

from kernels import rules
from optim.arguments import Value, check, check_betas, check_non_negative, options
from optim.base import RuleOptimizer


class AdamWLike(RuleOptimizer):
    """Base of classes with AdamW's hyperparameters: lr, betas, eps and a weight decay of one kind."""

    def hyper(self, group: dict) -> tuple:
        return group["lr"], *group["betas"], group["eps"], group["weight_decay"]

    def check_group(self, group: dict) -> None:
        check_non_negative(group, "lr", "eps", "weight_decay")
        check_betas(group["betas"], 2)
        super().check_group(group)


class LAMB(AdamWLike):
    """LAMB, AdamW whose step is as long for each tensor as lr times the tensor's norm. torch has none.

    exp_avg    <- beta1 * exp_avg    + (1 - beta1) * grad
    exp_avg_sq <- beta2 * exp_avg_sq + (1 - beta2) * grad^2
    u           = exp_avg / (1 - beta1^t) / (sqrt(exp_avg_sq / (1 - beta2^t)) + eps) + weight_decay * p
    p          <- p - lr * |p| / |u| * u                        |.| is the norm of a tensor, with lanes of each lane

    The ratio |p| / |u| is 1 where either norm is 0, and neither norm is clamped: phi of the paper is the identity.

    Args:
        lr, betas, eps, weight_decay: a float, or `[K]` tensors over stacked parameters.
        bias_correction: False leaves out 1 - beta1^t and 1 - beta2^t, as the authors' code for BERT does.
        For all else see `optim.Adam`.
    Reference: You et al. 2020, Algorithm 2, arXiv:1904.00962.
    """

    state_names = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params,
        lr: Value = 1e-3,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-6,
        weight_decay: Value = 0.01,
        bias_correction: bool = True,
        *,
        maximize: bool = False,
        **own,
    ):
        super().__init__(params, options(locals()), **own)

    def rule(self, group: dict) -> rules.Rule:
        return rules.lamb

    def hyper(self, group: dict) -> tuple:
        return *super().hyper(group), float(group["bias_correction"])


class LARS(RuleOptimizer):
    """LARS, SGD with momentum whose step is as long for each tensor as the tensor's norm says. torch has none.

    ratio            = trust_coefficient * |p| / (|grad| + weight_decay * |p| + eps)
    momentum_buffer <- momentum * momentum_buffer + lr * ratio * (grad + weight_decay * p)
    p               <- p - momentum_buffer

    |.| is the norm of a tensor, with lanes of each lane; the ratio is 1 where |p| or |grad| is 0. eps is not in the
    paper.

    Args:
        lr, momentum, weight_decay, trust_coefficient, eps: a float, or `[K]` tensors over stacked parameters.
        For all else see `optim.Adam`.
    Reference: You et al. 2017, Algorithm 1 and equation 6, arXiv:1708.03888.
    """

    state_names = ("momentum_buffer",)

    def __init__(
        self,
        params,
        lr: Value = 1.0,
        momentum: Value = 0.9,
        weight_decay: Value = 0.0,
        trust_coefficient: Value = 1e-3,
        eps: Value = 1e-8,
        *,
        maximize: bool = False,
        **own,
    ):
        super().__init__(params, options(locals()), **own)

    def rule(self, group: dict) -> rules.Rule:
        return rules.lars

    def hyper(self, group: dict) -> tuple:
        return group["lr"], group["momentum"], group["weight_decay"], group["trust_coefficient"], group["eps"]

    def check_group(self, group: dict) -> None:
        check_non_negative(group, "lr", "weight_decay", "trust_coefficient", "eps")
        check("momentum value", group["momentum"], lambda v: (v >= 0) & (v < 1))
        super().check_group(group)


class StableAdamW(AdamWLike):
    """StableAdamW, AdamW with Adafactor's update clipping. torch has none.

    exp_avg    <- b1 * exp_avg    + (1 - b1) * grad                b = beta * (1 - beta^(t - 1)) / (1 - beta^t)
    exp_avg_sq <- b2 * exp_avg_sq + (1 - b2) * grad^2
    rms         = sqrt(mean(grad^2 / max(exp_avg_sq, eps^2)))      over a tensor, with lanes over each lane
    p          <- p - lr / max(1, rms) * (exp_avg / (sqrt(exp_avg_sq) + eps) + weight_decay * p)

    Args:
        lr, betas, eps, weight_decay: a float, or `[K]` tensors over stacked parameters.
        For all else see `optim.Adam`.
    Reference: Wortsman et al. 2023, Algorithm 2, arXiv:2304.13013.
    """

    state_names = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params,
        lr: Value = 1e-3,
        betas: tuple[Value, Value] = (0.9, 0.99),
        eps: Value = 1e-6,
        weight_decay: Value = 0.01,
        *,
        maximize: bool = False,
        **own,
    ):
        super().__init__(params, options(locals()), **own)

    def rule(self, group: dict) -> rules.Rule:
        return rules.stable_adamw


class AdamMini(AdamWLike):
    """Adam-mini, AdamW with one second moment for each tensor instead of each element. torch has none.

    exp_avg    <- beta1 * exp_avg    + (1 - beta1) * grad
    exp_avg_sq <- beta2 * exp_avg_sq + (1 - beta2) * mean(grad^2)          one number
    p          <- (1 - lr * weight_decay) * p
                  - lr / (1 - beta1^t) * exp_avg / (sqrt(exp_avg_sq / (1 - beta2^t)) + eps)

    A block of the paper is a tensor here; with lanes, each lane of a tensor. The paper takes an attention head or an
    output neuron for a block, and AdamW for embeddings: for such blocks make a parameter of each, and give embeddings
    to another optimizer.

    Args:
        lr, betas, eps, weight_decay: a float, or `[K]` tensors over stacked parameters.
        For all else see `optim.Adam`.
    Reference: Zhang et al. 2024, Algorithm 1, arXiv:2406.16793.
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
        return rules.adam_mini
