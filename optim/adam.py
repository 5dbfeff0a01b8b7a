"""Adam and AdamW."""

import torch

from kernels import rules
from optim.base import RuleOptimizer

Value = float | torch.Tensor


class Adam(RuleOptimizer):
    """Adam with the constructor, groups and `state_dict` of `torch.optim.Adam`, in one launch a step.

    exp_avg    <- beta1 * exp_avg    + (1 - beta1) * grad
    exp_avg_sq <- beta2 * exp_avg_sq + (1 - beta2) * grad^2
    p          <- p - lr / (1 - beta1^t) * exp_avg / (sqrt(exp_avg_sq / (1 - beta2^t)) + eps)

    Args:
        params: parameters or groups; float32, bfloat16 (states in float32) or, on the CPU, float64.
            Updated in place.
        lr, betas, eps, weight_decay: a float, or `[K]` tensors over parameters stacked `[K, ...]`.
        weight_decay: added to the gradient as weight_decay * p; with decoupled_weight_decay the
            parameters shrink by lr * weight_decay instead (AdamW).
        maximize: ascend instead of descend.
        foreach, fused: accepted for compatibility; the step is one launch in any case.
        backend: see `RuleOptimizer`.
    Raises: ValueError if a value is out of range, or lanes and shapes do not fit.
    Reference: Kingma & Ba 2015, Algorithm 1, arXiv:1412.6980; Loshchilov & Hutter 2019, arXiv:1711.05101.
    """

    rule = rules.adam

    def __init__(
        self,
        params,
        lr: Value = 1e-3,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-8,
        weight_decay: Value = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        backend: str | None = None,
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, defaults, backend)

    def hyper(self, group: dict) -> tuple:
        decay, zero = group["weight_decay"], 0.0
        decoupled = group["decoupled_weight_decay"]
        return (
            group["lr"],
            *group["betas"],
            group["eps"],
            decay if decoupled else zero,
            zero if decoupled else decay,
            -1.0 if group["maximize"] else 1.0,
        )

    def check_group(self, group: dict) -> None:
        for option in ("amsgrad", "differentiable"):
            if group[option]:
                raise ValueError(f"{option}=True is not supported by {type(self).__name__} yet")
        beta1, beta2 = group["betas"]
        check("learning rate", group["lr"], lambda v: v >= 0)
        check("beta parameter at index 0", beta1, lambda v: (v >= 0) & (v < 1))
        check("beta parameter at index 1", beta2, lambda v: (v >= 0) & (v < 1))
        check("epsilon value", group["eps"], lambda v: v >= 0)
        check("weight_decay value", group["weight_decay"], lambda v: v >= 0)


class AdamW(Adam):
    """Adam with decoupled weight decay: `torch.optim.AdamW` in one launch a step. See `Adam`."""

    def __init__(
        self,
        params,
        lr: Value = 1e-3,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-8,
        weight_decay: Value = 1e-2,
        amsgrad: bool = False,
        **options,
    ):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, decoupled_weight_decay=True, **options)


def check(name: str, value: Value, accepts) -> None:
    """Raise ValueError unless every value is accepted."""
    values = torch.as_tensor(value, dtype=torch.float64)
    bad = ~accepts(values)
    if bad.any():
        raise ValueError(f"Invalid {name}: {values[bad].flatten()[0].item()}")
