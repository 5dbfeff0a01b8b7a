"""Adam and its variants AdamW, NAdam and RAdam."""

from collections.abc import Mapping

import torch

from kernels import rules
from optim.arguments import Value, check_betas, check_non_negative, options
from optim.base import RuleOptimizer

OURS = {"bias_correction": True, "cautious_weight_decay": False}
"""Arguments of Adam and AdamW that torch's classes lack, with the values at which the steps are torch's."""


class AdamLike(RuleOptimizer):
    """Base of Adam, NAdam and RAdam: lr, betas, eps, and coupled or decoupled weight decay."""

    def hyper(self, group: dict) -> tuple:
        decay, decoupled = group["weight_decay"], group["decoupled_weight_decay"]
        decays = (decay, 0.0) if decoupled else (0.0, decay)
        return group["lr"], *group["betas"], group["eps"], *decays

    def check_group(self, group: dict) -> None:
        super().check_group(group)
        check_non_negative(group, "lr", "eps")
        check_betas(group["betas"])
        check_non_negative(group, "weight_decay")


class Adam(AdamLike):
    """Adam with the constructor, groups and `state_dict` of `torch.optim.Adam`, in one launch a step.

    exp_avg    <- beta1 * exp_avg    + (1 - beta1) * grad
    exp_avg_sq <- beta2 * exp_avg_sq + (1 - beta2) * grad^2
    p          <- p - lr / (1 - beta1^t) * exp_avg / (sqrt(exp_avg_sq / (1 - beta2^t)) + eps)

    Args:
        params: parameters or groups; float32, bfloat16, float16 or float64, complex too. Updated in place.
        lr, betas, eps, weight_decay: a float, or `[K]` tensors over parameters stacked `[K, ...]`.
        weight_decay: added to the gradient as weight_decay * p; with decoupled_weight_decay the
            parameters shrink by lr * weight_decay instead (AdamW).
        amsgrad: divide by the largest exp_avg_sq so far (Reddi et al. 2018, arXiv:1904.09237).
        maximize: ascend instead of descend.
        capturable: accepted; on a GPU every step can be captured into a CUDA graph.
        differentiable: refused.
        foreach, fused: accepted; the step is one launch in any case.
        bias_correction: False leaves out 1 - beta1^t and 1 - beta2^t (Laing & Orvieto 2025, arXiv:2511.20516).
        cautious_weight_decay: decoupled weight decay only where p and exp_avg have the same sign, or one of them is 0
            (Chen et al. 2025, Algorithm 1, arXiv:2510.12402). torch has neither of these two arguments.
        own: backend, state_dtype, rounding, seed; see `RuleOptimizer`.
    Raises: ValueError if a value is out of range, or lanes and shapes do not fit.
    Reference: Kingma & Ba 2015, Algorithm 1, arXiv:1412.6980.
    """

    state_names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    late_states = ("max_exp_avg_sq",)

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
        bias_correction: bool = True,
        cautious_weight_decay: bool = False,
        **own,
    ):
        given = options(locals())
        # Groups have them only where they differ from what torch does, whose checkpoints lack them.
        defaults = {name: value for name, value in given.items() if name not in OURS or value != OURS[name]}
        super().__init__(params, defaults, **own)

    def rule(self, group: dict) -> rules.Rule:
        if group.get("cautious_weight_decay"):
            return rules.amsgrad_cautious if group["amsgrad"] else rules.adam_cautious
        if not group.get("bias_correction", True):
            return rules.amsgrad_uncorrected if group["amsgrad"] else rules.adam_uncorrected
        return rules.amsgrad if group["amsgrad"] else rules.adam

    def hyper(self, group: dict) -> tuple:
        bias_correction = group.get("bias_correction", True)
        if bias_correction and not group.get("cautious_weight_decay"):
            return super().hyper(group)
        return *super().hyper(group), float(bias_correction)

    def check_group(self, group: dict) -> None:
        super().check_group(group)
        if group.get("cautious_weight_decay") and not group["decoupled_weight_decay"]:
            raise ValueError("cautious_weight_decay takes decoupled_weight_decay=True, as AdamW has it")
        one = [isinstance(v, torch.Tensor) and v.numel() == 1 for v in group["betas"]]
        if group["foreach"] and not group["capturable"]:
            for name, value in (("lr", group["lr"]), *((f"betas[{i}]", v) for i, v in enumerate(group["betas"]))):
                if isinstance(value, torch.Tensor):
                    raise ValueError(f"{name} as a Tensor is not supported for capturable=False and foreach=True")
        if (any(one) and not all(one)) or any(type(v) is int for v in group["betas"]):
            raise ValueError("betas must be either both floats or both Tensors")


class AdamW(Adam):
    """Adam with decoupled weight decay: `torch.optim.AdamW` in one launch a step. See `Adam`.

    Reference: Loshchilov & Hutter 2019, arXiv:1711.05101.
    """

    def __init__(
        self,
        params,
        lr: Value = 1e-3,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-8,
        weight_decay: Value = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        bias_correction: bool = True,
        cautious_weight_decay: bool = False,
        **own,
    ):
        super().__init__(params, **options(locals()), decoupled_weight_decay=True, **own)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        # Loaded groups decay as AdamW's do, whatever they say.
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True


class NAdam(AdamLike):
    """Adam with Nesterov momentum: `torch.optim.NAdam` in one launch a step. Arguments as of `Adam`, and

    momentum_decay: psi in the momentum mu_t = beta1 * (1 - 0.96^(t * psi) / 2); the state mu_product is the product
        of all mu_t.

        p <- p - lr * ((1 - mu_t) / (1 - mu_product_t) * grad + mu_(t+1) / (1 - mu_product_(t+1)) * exp_avg)
               / (sqrt(exp_avg_sq / (1 - beta2^t)) + eps)

    Reference: Dozat 2016, Incorporating Nesterov Momentum into Adam.
    """

    state_names = ("exp_avg", "exp_avg_sq", "mu_product")

    def __init__(
        self,
        params,
        lr: Value = 2e-3,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-8,
        weight_decay: Value = 0,
        momentum_decay: Value = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        **own,
    ):
        super().__init__(params, options(locals()), **own)

    def rule(self, group: dict) -> rules.Rule:
        return rules.nadam

    def hyper(self, group: dict) -> tuple:
        return *super().hyper(group), group["momentum_decay"]

    def initial(self, group: dict) -> Mapping[str, Value]:
        return {"mu_product": 1.0}

    def check_group(self, group: dict) -> None:
        super().check_group(group)
        check_non_negative(group, "momentum_decay")


class RAdam(AdamLike):
    """Rectified Adam: `torch.optim.RAdam` in one launch a step. Arguments as of `Adam`.

    The denominator is left out while its variance is unbounded, in the first steps:

        rho_t = rho_inf - 2 t beta2^t / (1 - beta2^t),    rho_inf = 2 / (1 - beta2) - 1
        p <- p - lr / (1 - beta1^t) * exp_avg * r_t sqrt(1 - beta2^t) / (sqrt(exp_avg_sq) + eps)    if rho_t > 5
        p <- p - lr / (1 - beta1^t) * exp_avg                                                       otherwise

    Reference: Liu et al. 2020, arXiv:1908.03265.
    """

    state_names = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params,
        lr: Value = 1e-3,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-8,
        weight_decay: Value = 0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        **own,
    ):
        super().__init__(params, options(locals()), **own)

    def rule(self, group: dict) -> rules.Rule:
        return rules.radam
