"""Muon, which orthogonalises the momentum of matrices; other parameters go to AdamW, in the same optimizer."""

import math
import weakref
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from types import ModuleType

import torch

from kernels import eager, rules
from kernels import table as tables
from optim import checks, memory
from optim.arguments import Value, accepted, check_betas, check_non_negative, options, refused
from optim.base import RuleOptimizer

ADAMW = {"betas": (0.9, 0.999), "eps": 1e-8}
"""Values of groups with use_muon=False that set none; lr and weight_decay are those of the optimizer."""
ADJUST_LR = ("original", "match_rms_adamw", None)
NS_DTYPES = (torch.bfloat16, torch.float32, torch.float64)
CPU_BATCH, GPU_BATCH = 2 * 2**20, 64 * 2**20
"""Bytes of matrices that are multiplied at once, unless one is larger: to stay in a cache, or keep a GPU busy."""


class Muon(RuleOptimizer):
    """Muon with the constructor, groups and `state_dict` of `torch.optim.Muon`.

    momentum_buffer <- momentum * momentum_buffer + (1 - momentum) * grad
    direction        = momentum * momentum_buffer + (1 - momentum) * grad      momentum_buffer without nesterov
    p               <- (1 - lr * weight_decay) * p - lr * ratio * newton_schulz(direction)
    ratio            = sqrt(max(1, out / in))                 or 0.2 * sqrt(max(out, in)) with match_rms_adamw

    A step is a launch of momentum, matrix products over all lanes and parameters of one shape, and a launch of the
    update. Directions keep as much memory as parameters in bfloat16 (float32 if rounding or ns_dtype need it).

    Args:
        params: parameters `[out, in]`, or `[K, out, in]` with K values of a hyperparameter, which are lanes; or groups.
            A group with use_muon=False has parameters of any shape, which AdamW updates with its own lr, betas,
            eps and weight_decay: by default this class's lr and weight_decay, and AdamW's betas and eps.
        lr, weight_decay, momentum: a float, or `[K]` tensors over parameters stacked `[K, ...]`.
        nesterov, ns_coefficients, eps, ns_steps: as of torch's class; eps is the least norm that directions are
            divided by.
        adjust_lr_fn: "original" (also None) or "match_rms_adamw".
        maximize: ascend instead of descend.
        ns_dtype: the dtype of the matrix products; torch's class knows bfloat16 alone.
        own: backend, state_dtype, rounding, seed; see `RuleOptimizer`.
    Raises: ValueError if a value is out of range, or a parameter is not a matrix; TypeError if one is complex or a
        DTensor.
    The state has a step beside torch's momentum_buffer, which torch.optim.Muon ignores when it is loaded there.
    Reference: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982.
    """

    state_names = ("momentum_buffer", "exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params,
        lr: Value = 1e-3,
        weight_decay: Value = 0.1,
        momentum: Value = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        maximize: bool = False,
        ns_dtype: torch.dtype = torch.bfloat16,
        **own,
    ):
        given = options(locals())
        self.ns_dtype = given.pop("ns_dtype")
        accepted(ns_dtype, "ns_dtype", NS_DTYPES)
        # torch's groups have no maximize.
        defaults = {name: value for name, value in given.items() if name != "maximize" or value}
        super().__init__(params, defaults, **own)

    def add_param_group(self, param_group: dict) -> None:
        """Add a group as torch does; one with use_muon=False gets AdamW's defaults."""
        super().add_param_group(param_group if uses_muon(param_group) else {**ADAMW, **param_group})

    def rule(self, group: dict) -> rules.Rule:
        return rules.muon_momentum if uses_muon(group) else rules.adam

    def hyper(self, group: dict) -> tuple:
        lr, weight_decay = group["lr"], group["weight_decay"]
        if not uses_muon(group):
            return lr, *group["betas"], group["eps"], weight_decay, 0.0
        matches = group["adjust_lr_fn"] == "match_rms_adamw"
        return lr, group["momentum"], weight_decay, float(group["nesterov"]), float(matches)

    def check_group(self, group: dict) -> None:
        super().check_group(group)
        if not uses_muon(group):
            check_non_negative(group, "lr", "eps", "weight_decay")
            check_betas(group["betas"], 2)
            return
        words = {"lr": "Learning rate", "momentum": "momentum", "weight_decay": "weight decay"}
        for name, word in words.items():
            if bad := refused(group[name], lambda v: v >= 0):
                raise ValueError(f"{word} should be >= 0 but is: {bad[0]}")
        if group["adjust_lr_fn"] not in ADJUST_LR:
            raise ValueError(f"Adjust learning rate function {group['adjust_lr_fn']} is not supported")
        check_newton_schulz(group["ns_coefficients"], group["eps"], group["ns_steps"])

    def check_shapes(self, group: dict, lanes: int) -> None:
        """Raise ValueError or TypeError unless AdamW has the group, or its parameters are real matrices, and whole."""
        for i, p in enumerate(group["params"] if uses_muon(group) else []):
            is_stacked = p.ndim == 3 and p.shape[0] == lanes
            is_matrix = is_stacked or (p.ndim == 2 and lanes == 1)
            if is_matrix and not p.is_complex() and not memory.is_distributed(p):
                continue
            others = takewhile(lambda other: other is not group, self.param_groups)
            called = checks.name_of(self, p, i + sum(len(other["params"]) for other in others))
            if not is_matrix:
                stacked = f" stacked [{lanes}, out, in]" if lanes > 1 else ", or [K, out, in] with K values of lr"
                raise ValueError(
                    f"Muon only supports 2D parameters{stacked}, and not {called}: put it into a group with "
                    "use_muon=False, which AdamW updates"
                )
            kind = "complex parameters" if p.is_complex() else "DTensors, which may lack a part of their matrix"
            raise TypeError(f"Muon does not support {kind}: {called}")

    def orthogonal(self, group: int, directions: torch.Tensor) -> torch.Tensor:
        """Return what `newton_schulz` makes of directions with the options of a group, given by its number."""
        of = self.param_groups[group]
        return newton_schulz(directions, of["ns_coefficients"], of["ns_steps"], of["eps"], self.ns_dtype)

    def make_launch(
        self, backend: ModuleType, rule: rules.Rule, entries: list[tables.Entry], grad_dtype: torch.dtype, seed
    ) -> tuple[tables.Table, tables.Launch]:
        """Return the table of the momentum's launch, and what takes the whole step."""
        if rule.update is not rules.muon_momentum.update:
            return super().make_launch(backend, rule, entries, grad_dtype, seed)
        p_dtype, device = entries[0].p.dtype, entries[0].p.device
        dtype = torch.float64 if p_dtype == torch.float64 else torch.float32
        if dtype == torch.float32 and self.ns_dtype == torch.bfloat16 and seed is None:
            dtype = torch.bfloat16  # to which directions are rounded in any case, to nearest
        batches, directions = in_batches(entries, dtype)
        parts = [(group, part) for group, batch in batches for part in batch.split(n_at_once(batch, self.ns_dtype))]
        written = [replace(entry, p=direction) for entry, direction in zip(entries, directions, strict=True)]
        # Each launch counts a step.
        updated = [
            replace(entry, states=(), step=torch.empty_like(entry.step), scalars=sizes(entry.p, entry.step))
            for entry in entries
        ]
        first, second = backend.build(rule, written, grad_dtype, seed), backend.build(rules.muon, updated, dtype, seed)
        second.hyper[:, 0] = 1.0  # the factor of gradients, which is in directions already
        momentum, update = backend.launcher(first), backend.launcher(second)
        steps, counts = [entry.step for entry in entries], [entry.step for entry in updated]
        # The launch belongs to the optimizer, and would keep it alive.
        optimizer, n_hyper, skips = weakref.proxy(self), 1 + len(rules.muon.hyper), None

        def begin(grads, grad_scale, found_inf) -> None:
            nonlocal skips
            skips = found_inf
            torch._foreach_copy_(counts, steps)  # pyright: ignore[reportPrivateImportUsage]
            second.hyper[:, 1:].copy_(first.hyper[:, 1:n_hyper])
            momentum.begin(grads, grad_scale, found_inf)

        def finish() -> None:
            momentum.update()
            for group, matrices in parts:
                matrices.copy_(optimizer.orthogonal(group, matrices))
            update(directions, None, skips)
            if tables.capturing(device):
                second.pin(directions, None, skips)

        return first, momentum._replace(begin=begin, update=finish)

    def advance(self, group: int, step: eager.Step) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        new, states = step.update()
        if step.rule.update is not rules.muon_momentum.update:
            return new, states
        factor, *hyper = step.hyper[: 1 + len(rules.muon.hyper)]
        hyper, scalars = (torch.ones_like(factor), *hyper), sizes(step.p, step.step)
        second = eager.Step(
            rules.muon, step.p, self.orthogonal(group, new), (), step.step - 1, scalars, hyper, step.lanes
        )
        second.begin()
        return second.update()[0], states

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "ns_dtype": self.ns_dtype}


def uses_muon(group: dict) -> bool:
    return group.get("use_muon", True)


def sizes(p: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scalars of `rules.muon`: the rows and columns of p's matrices, for each of its lanes."""
    return torch.full_like(step, p.shape[-2]), torch.full_like(step, p.shape[-1])


def in_batches(
    entries: Sequence[tables.Entry], dtype: torch.dtype
) -> tuple[list[tuple[int, torch.Tensor]], list[torch.Tensor]]:
    """Return zeros for the directions of all entries, so that those of one shape lie in one batch.

    Returns: (group, `[n, rows, columns]`) for each group and shape in memory, and for each entry its part of one of
        these, shaped and laid out like its parameter.
    """
    members = defaultdict(list)
    for i, entry in enumerate(entries):
        # What lies in memory column by column is the transposed matrix, whose direction is the transposed one.
        p = entry.p if entry.p.is_contiguous() else entry.p.mT
        members[entry.group, p.shape[-2:]].append((i, p.shape[0] if p.ndim == 3 else 1))
    batches, directions = [], [torch.empty(0)] * len(entries)
    for (group, shape), found in members.items():
        n = sum(count for _, count in found)
        batch = torch.zeros(n, *shape, dtype=dtype, device=entries[0].p.device)
        batches.append((group, batch))
        for (i, _), part in zip(found, batch.split([count for _, count in found]), strict=True):
            p = entries[i].p
            direction = part if p.ndim == 3 else part[0]
            directions[i] = direction if p.is_contiguous() else direction.mT
    return batches, directions


def n_at_once(batch: torch.Tensor, dtype: torch.dtype) -> int:
    """Return how many matrices of a batch `[n, rows, columns]` are multiplied at once in this dtype."""
    largest = CPU_BATCH if batch.device.type == "cpu" else GPU_BATCH
    return max(1, largest // max(1, batch[0].numel() * dtype.itemsize))


def check_newton_schulz(coefficients: tuple[float, float, float], eps: float, steps: int) -> None:
    """Raise ValueError unless these are arguments of `newton_schulz`, with fewer than 100 steps, as in torch."""
    numbers = isinstance(coefficients, tuple | list) and all(isinstance(v, int | float) for v in coefficients)
    if not numbers or len(coefficients) != 3:
        raise ValueError(f"Invalid ns_coefficients: {coefficients} (3 numbers, the same for all lanes)")
    if not (isinstance(eps, int | float) and eps >= 0):
        raise ValueError(f"Invalid epsilon value: {eps} (a number of 0 or more, the same for all lanes)")
    if not (isinstance(steps, int) and 0 <= steps < 100):
        raise ValueError(f"Invalid ns_steps: {steps} (an int in [0, 100), the same for all lanes)")


def newton_schulz(
    x: torch.Tensor,
    coefficients: tuple[float, float, float],
    steps: int,
    eps: float,
    dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """Return matrices with the singular vectors of x, whose singular values are about 1, as `torch.optim.Muon` does.

        x <- x / max(|x|, eps), then so many times x <- a x + (b x x^T + c (x x^T)^2) x

    Args:
        x: `[..., rows, columns]`.
        coefficients: a, b and c.
        dtype: that of all products, and of the result.
    """
    a, b, c = coefficients
    is_tall = x.shape[-2] > x.shape[-1]
    wide = x.mT if is_tall else x
    y = wide.to(dtype).contiguous().view(math.prod(x.shape[:-2]), *wide.shape[-2:])
    y = y / torch.linalg.vector_norm(y, dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = torch.bmm(y, y.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        y = torch.baddbmm(y, polynomial, y, beta=a)
    y = y.view(wide.shape)
    return y.mT if is_tall else y
