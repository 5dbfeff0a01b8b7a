"""Sums that a step forms before it updates anything, where they go over several launches or processes.

A rule's own sums are the last of its stages; the norm by which gradients are clipped is the first. See
`kernels.rule.Stage`.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist

from kernels import eager
from kernels.rule import Rule, Stage, clipping
from optim import memory


def rule_of(optimizer, group: dict) -> Rule:
    """Return the rule that updates a group's parameters, with clipping if the group has a largest norm."""
    rule = optimizer.rule(group)
    return rule if group.get("max_grad_norm") is None else clipping(rule)


def hyper_of(optimizer, group: dict) -> tuple:
    """Return the group's hyperparameters, floats or tensors, in the order of `rule_of(optimizer, group).hyper`."""
    hyper, max_norm = optimizer.hyper(group), group.get("max_grad_norm")
    return hyper if max_norm is None else (*hyper, max_norm)


def check_lanes(rules: Sequence[Rule], lanes: Sequence[int]) -> None:
    """Raise ValueError if sums go over lanes and groups, a rule for each, have different numbers of them."""
    found = defaultdict(set)
    for rule, n in zip(rules, lanes, strict=True):
        for stage in rule.stages:
            if stage.over == "lane":
                found["max_grad_norm clips" if stage.clips else f"{rule.name} adds up"].add(n)
    for what, counts in found.items():
        if len(counts) > 1:
            raise ValueError(
                f"{what} each lane of all tensors: groups must have as many lanes as each other, not {sorted(counts)}"
            )


def shards(p: torch.Tensor) -> list:
    """Return the process groups over whose members a parameter is spread; none for a whole one."""
    if not memory.is_distributed(p):
        return []
    mesh = p.device_mesh
    return [mesh.get_group(i) for i, placement in enumerate(p.placements) if not placement.is_replicate()]


def add_shards(sums: torch.Tensor, groups: Iterable) -> None:
    """Add up sums over the processes that have a share of a tensor, in place."""
    for group in groups:
        dist.all_reduce(sums, group=group)


def combine(parts: Sequence, stage: int) -> None:
    """Make the totals of several launches, or of shards, those of the whole, in place."""
    found = [part.table.stages[stage] for part in parts]
    for part, of_part in zip(parts, found, strict=True):
        for rows, groups in part.spread:
            sums = of_part.totals[rows]
            add_shards(sums, groups)
            of_part.totals[rows] = sums
    if parts[0].table.rule.stages[stage].over == "lane":
        total = eager.added([t.totals.sum(0, keepdim=True) if t.slot_is_row else t.totals for t in found])
        for of_part in found:
            of_part.totals.copy_(total.expand_as(of_part.totals))


def form(parts: Sequence, stage: int) -> None:
    """Form the totals of a stage that several launches share: the first, or with -1 the last."""
    for part in parts:
        part.launch.measure(stage)
    if any(part.table.stages[stage].combined for part in parts):
        combine(parts, stage)
    for part in parts:
        part.launch.conclude(stage)


def run(parts: Sequence, taken: Sequence[list], scalers: Sequence[Sequence]) -> None:
    """Take a step of launches of which some have stages.

    Args:
        parts: see `launches.Part`.
        taken: the gradients of each.
        scalers: for each what a GradScaler gives it; see `kernels.table.Launch`.
    """
    for part, grads, scaler in zip(parts, taken, scalers, strict=True):
        part.launch.begin(grads, *scaler)
    form(clipped(parts), 0)
    # Tensors that share memory are in several parts, which come one after the other.
    for together in groups_of(parts):
        for part in together:
            part.fill()
        if together[0].table.rule.sums:
            form(together, -1)
        for part in together:
            part.launch.update()
            part.empty()


def clipped(parts: Sequence) -> list:
    return [part for part in parts if part.table.rule.clips]


def groups_of(parts: Sequence) -> list[list]:
    """Return parts in their order; those whose rule sums over lanes together, where the first of them is."""
    return [[parts[i] for i in together] for together in together_of([part.table.rule for part in parts])]


def together_of(rules: Sequence[Rule]) -> list[list[int]]:
    """Return numbers of rules in their order; those of one rule that sums over lanes together, the others alone."""
    groups = defaultdict(list)
    for i, rule in enumerate(rules):
        groups[(rule.sums, rule.name) if rule.sums and rule.over == "lane" else i].append(i)
    return [*groups.values()]


def mark(parts: Sequence) -> None:
    """Mark the totals that `combine` will change."""
    own = [(together, -1) for together in groups_of(parts) if together[0].table.rule.sums]
    for together, stage in [(clipped(parts), 0), *own]:
        for part in together:
            part.table.stages[stage].combined = len(together) > 1 or any(other.spread for other in together)


def measure(steps: Sequence[eager.Step], params: Sequence[torch.Tensor], stage: Stage) -> list[torch.Tensor]:
    """Return the totals of a stage for each of some parameters, float64 `[lanes, n_sums]`, by torch's operations."""
    found = [step.measure(stage) for step in steps]
    for sums, p in zip(found, params, strict=True):
        add_shards(sums, shards(p))
    if stage.over == "tensor" or not found:
        return found
    total = eager.added(found)
    return [total.to(sums.device) for sums in found]
