"""Stochastic gradient descent: plain, with momentum, or with Nesterov's momentum."""

import torch

from kernels import rules
from optim.arguments import Value, check_non_negative, options, refused
from optim.base import RuleOptimizer


class SGD(RuleOptimizer):
    """SGD with the constructor, groups and `state_dict` of `torch.optim.SGD`, in one launch a step.

    grad            <- grad + weight_decay * p
    momentum_buffer <- momentum * momentum_buffer + (1 - dampening) * grad     grad itself at the first step
    p               <- p - lr * momentum_buffer
                    or p - lr * (grad + momentum * momentum_buffer)            with nesterov
                    or p - lr * grad                                           without momentum

    Args:
        params: parameters or groups; float32, bfloat16, float16 or float64, complex too. Updated in place.
        lr, momentum, dampening, weight_decay: a float, or `[K]` tensors over parameters stacked `[K, ...]`.
        maximize: ascend instead of descend.
        differentiable: refused.
        foreach, fused: accepted; the step is one launch in any case.
        own: backend, state_dtype, rounding, seed; see `RuleOptimizer`.
    Raises: ValueError if a value is out of range, or lanes and shapes do not fit.
    The state has a step beside torch's momentum_buffer, which torch.optim.SGD ignores when it is loaded there.
    """

    state_names = late_states = ("momentum_buffer",)

    def __init__(
        self,
        params,
        lr: Value = 1e-3,
        momentum: Value = 0,
        dampening: Value = 0,
        weight_decay: Value = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        **own,
    ):
        super().__init__(params, options(locals()), **own)

    def rule(self, group: dict) -> rules.Rule:
        momentum = group["momentum"]
        return rules.momentum if isinstance(momentum, torch.Tensor) or momentum != 0 else rules.sgd

    def hyper(self, group: dict) -> tuple:
        lr, l2, momentum = group["lr"], group["weight_decay"], group["momentum"]
        if self.rule(group) is rules.sgd:
            return lr, l2
        return lr, l2, momentum, group["dampening"], float(group["nesterov"])

    def check_group(self, group: dict) -> None:
        check_non_negative(group, "lr", "momentum", "weight_decay")
        if group["nesterov"]:
            message = "Nesterov momentum requires a momentum and zero dampening"
            if refused(group["momentum"], lambda v: v > 0) or refused(group["dampening"], lambda v: v == 0):
                raise ValueError(message)
        super().check_group(group)
