"""Adagrad, RMSprop and Adadelta, which adapt each element's learning rate and precede Adam."""

from collections.abc import Mapping

import torch

from kernels import rules
from optim import launches
from optim.arguments import Value, check, check_non_negative, options
from optim.base import RuleOptimizer


class Adagrad(RuleOptimizer):
    """Adagrad with the constructor, groups and `state_dict` of `torch.optim.Adagrad`, in one launch a step.

    sum <- sum + grad^2                               from initial_accumulator_value; grad includes weight_decay * p
    p   <- p - lr / (1 + (t - 1) * lr_decay) * grad / (sqrt(sum) + eps)

    Args:
        lr, lr_decay, weight_decay, initial_accumulator_value, eps: a float, or `[K]` tensors over stacked parameters.
        For all else see `optim.Adam`.
    Reference: Duchi et al. 2011, Adaptive Subgradient Methods.
    """

    state_names = ("sum",)

    def __init__(
        self,
        params,
        lr: Value = 1e-2,
        lr_decay: Value = 0,
        weight_decay: Value = 0,
        initial_accumulator_value: Value = 0,
        eps: Value = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **own,
    ):
        super().__init__(params, options(locals()), **own)
        # Like torch's class, which makes its states at once.
        launches.make_states(self)

    def share_memory(self) -> None:
        """Move the states to memory that other processes can share, in place."""
        for state in self.state.values():
            state["sum"].share_memory_()
            state["step"].share_memory_()

    def rule(self, group: dict) -> rules.Rule:
        return rules.adagrad

    def hyper(self, group: dict) -> tuple:
        return group["lr"], group["lr_decay"], group["eps"], group["weight_decay"]

    def initial(self, group: dict) -> Mapping[str, Value]:
        return {"sum": group["initial_accumulator_value"]}

    def check_group(self, group: dict) -> None:
        check_non_negative(group, "lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps")
        super().check_group(group)


class RMSprop(RuleOptimizer):
    """RMSprop with the constructor, groups and `state_dict` of `torch.optim.RMSprop`, in one launch a step.

    square_avg <- alpha * square_avg + (1 - alpha) * grad^2               grad includes weight_decay * p
    denom       = sqrt(square_avg) + eps
               or sqrt(square_avg - grad_avg^2) + eps                     centered; grad_avg averages grad likewise
    p          <- p - lr * grad / denom
               or p - lr * momentum_buffer                                with momentum, where
    momentum_buffer <- momentum * momentum_buffer + grad / denom

    Args:
        lr, alpha, eps, weight_decay, momentum: a float, or `[K]` tensors over stacked parameters.
        For all else see `optim.Adam`.
    Reference: Hinton 2012, lecture 6e; centered: Graves 2013, arXiv:1308.0850.
    """

    state_names = ("square_avg", "momentum_buffer", "grad_avg")
    late_states = ("momentum_buffer", "grad_avg")

    def __init__(
        self,
        params,
        lr: Value = 1e-2,
        alpha: Value = 0.99,
        eps: Value = 1e-8,
        weight_decay: Value = 0,
        momentum: Value = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        **own,
    ):
        super().__init__(params, options(locals()), **own)

    def rule(self, group: dict) -> rules.Rule:
        momentum = isinstance(group["momentum"], torch.Tensor) or group["momentum"] > 0
        if group["centered"]:
            return rules.rmsprop_centered_momentum if momentum else rules.rmsprop_centered
        return rules.rmsprop_momentum if momentum else rules.rmsprop

    def hyper(self, group: dict) -> tuple:
        return group["lr"], group["alpha"], group["eps"], group["weight_decay"], group["momentum"]

    def check_group(self, group: dict) -> None:
        check_non_negative(group, "lr", "eps", "momentum", "weight_decay", "alpha")
        super().check_group(group)


class Adadelta(RuleOptimizer):
    """Adadelta with the constructor, groups and `state_dict` of `torch.optim.Adadelta`, in one launch a step.

    square_avg <- rho * square_avg + (1 - rho) * grad^2                   grad includes weight_decay * p
    delta       = sqrt(acc_delta + eps) / sqrt(square_avg + eps) * grad
    acc_delta  <- rho * acc_delta + (1 - rho) * delta^2
    p          <- p - lr * delta

    Args:
        lr, rho, eps, weight_decay: a float, or `[K]` tensors over stacked parameters.
        For all else see `optim.Adam`.
    Reference: Zeiler 2012, arXiv:1212.5701.
    """

    state_names = ("square_avg", "acc_delta")

    def __init__(
        self,
        params,
        lr: Value = 1.0,
        rho: Value = 0.9,
        eps: Value = 1e-6,
        weight_decay: Value = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
        **own,
    ):
        super().__init__(params, options(locals()), **own)

    def rule(self, group: dict) -> rules.Rule:
        return rules.adadelta

    def hyper(self, group: dict) -> tuple:
        return group["lr"], group["rho"], group["eps"], group["weight_decay"]

    def check_group(self, group: dict) -> None:
        check_non_negative(group, "lr")
        check("rho value", group["rho"], lambda v: (v >= 0) & (v <= 1))
        check_non_negative(group, "eps", "weight_decay")
        super().check_group(group)
