"""Schedule-Free AdamW, which averages its iterates instead of lowering the learning rate."""

import torch

from kernels import rules
from optim.arguments import Value, check, check_betas, check_non_negative, options
from optim.base import RuleOptimizer


class AdamWScheduleFree(RuleOptimizer):
    """Schedule-Free AdamW, in one launch a step. torch has none; arguments and methods are those of `schedulefree`.

    g           = lr * min(1, t / warmup_steps) * sqrt(1 - beta2^t);    g_max is the largest so far
    exp_avg_sq <- beta2 * exp_avg_sq + (1 - beta2) * grad^2
    z          <- z - g * (grad / (sqrt(exp_avg_sq) + eps) + weight_decay * y)
    x          <- (1 - c) * x + c * z                      c = w / (sum of all w), w = t^r * g_max^weight_lr_power
    y          <- beta1 * x + (1 - beta1) * z

    z and x start from the parameters. While training these are y, at which gradients are taken; `eval` makes them x,
    which is to be evaluated and saved, and `train` makes them y again, to rounding. A new optimizer is in training.
    Each parameter counts its own steps and has its own sum of weights.

    Args:
        lr, betas, eps, weight_decay, warmup_steps, r, weight_lr_power: a float, or `[K]` tensors over stacked
            parameters. beta1 is more than 0.
        For all else see `optim.Adam`.
    Raises: RuntimeError by `step` between `eval` and `train`.
    Reference: Defazio et al. 2024, Algorithm 1, arXiv:2405.15682.
    """

    state_names = ("z", "exp_avg_sq", "weight_sum", "lr_max")

    def __init__(
        self,
        params,
        lr: Value = 2.5e-3,
        betas: tuple[Value, Value] = (0.9, 0.999),
        eps: Value = 1e-8,
        weight_decay: Value = 0.0,
        warmup_steps: Value = 0,
        r: Value = 0.0,
        weight_lr_power: Value = 2.0,
        *,
        maximize: bool = False,
        **own,
    ):
        super().__init__(params, {**options(locals()), "train_mode": True}, **own)

    def rule(self, group: dict) -> rules.Rule:
        return rules.schedule_free_adamw

    def hyper(self, group: dict) -> tuple:
        weights = group["warmup_steps"], group["r"], group["weight_lr_power"]
        return group["lr"], *group["betas"], group["eps"], group["weight_decay"], *weights

    def check_group(self, group: dict) -> None:
        check_non_negative(group, "lr", "eps", "weight_decay", "warmup_steps", "r", "weight_lr_power")
        check_betas(group["betas"])
        check("beta parameter at index 0", group["betas"][0], lambda v: v > 0)
        super().check_group(group)

    def eval(self) -> None:
        """Make the parameters x, in place."""
        self._switch(training=False)

    def train(self) -> None:
        """Make the parameters y, in place."""
        self._switch(training=True)

    @torch.no_grad()
    def _switch(self, training: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] == training:
                continue
            beta1 = group["betas"][0]
            weight = 1 - beta1 if training else 1 - 1 / beta1
            for p in group["params"]:
                # Not by self.state[p], after which every step would look for changes of the states.
                state = dict.get(self.state, p) or {}
                if "z" in state:
                    moved = p + of_lanes(weight, p) * (state["z"] - p)
                    # z is there before the first step too, if a GradScaler has skipped it.
                    p.copy_(moved.where(of_lanes(state["step"], p) > 0, p))
            group["train_mode"] = training

    def _step(self) -> None:
        if not all(group["train_mode"] for group in self.param_groups):
            raise RuntimeError("The parameters are those to be evaluated: call train() before step()")
        super()._step()


def of_lanes(value: Value, p: torch.Tensor) -> Value:
    """Return a number, or `[K]` values in a shape that fits p `[K, ...]`, on p's device."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(p.device).reshape((-1, *[1] * (p.ndim - 1)) if value.numel() > 1 else ())
