"""A step by torch's own operations, for tensors and modes that a launch over addresses would bypass.

Fake and meta tensors have no memory, and subclasses and modes (FakeTensorMode, tracing, counting) must see every
operation. This step is slow, and visible to all of them.
"""

import contextlib

import torch
from torch._subclasses.fake_tensor import FakeTensor

from kernels import eager
from kernels.rule import CLIP, Stage, check_portable
from optim import checks, compressed, launches, memory, totals, watch


def step(optimizer, params: list, grads: list, hyper: list[tuple]) -> None:
    """Update all parameters that have a gradient, one after the other, in place.

    Args:
        optimizer: a `RuleOptimizer`.
        params: all its parameters, groups laid end to end.
        grads: their gradients, None where there is none.
        hyper: for each group, the gradient's factor and the rule's hyperparameters.
    Raises: RuntimeError inside a transform of torch.func, for stochastic rounding or int8 states; nothing has been
        changed then.
    """
    name = type(optimizer).__name__
    if watch.in_a_transform():
        raise RuntimeError(f"{name}.step() does not work inside torch.func transforms: take the step outside of them")
    if optimizer.rounding == "stochastic":
        raise RuntimeError(f"{name} cannot round stochastically in a mode, or if tensors are not plain memory")
    grad_scale, found_inf = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
    if found_inf is not None and watch.is_plain(found_inf) and found_inf.item() != 0:
        return
    # Fake parameters may be stepped outside of their mode, but do not mix with real tensors.
    fake = next((p.fake_mode for p in params if isinstance(p, FakeTensor)), None)
    with fake or contextlib.nullcontext():
        checks.check(optimizer, params, grads)
        members = launches.members_of(optimizer, params, grads)
        if any(compressed.scale_names(member.rule, member.state) for member in members):
            raise RuntimeError(f"{name} cannot keep int8 states in a mode, or if tensors are not plain memory")
        for rule in {member.rule for member in members}:
            check_portable(rule)
        launches.keep(optimizer, members)
        steps = []
        for _, p, grad, group, rule, lanes, state in members:
            # Not every device has float64.
            device = "cpu" if p.device.type == "mps" else p.device
            values = [torch.as_tensor(v, dtype=torch.float64, device=device).reshape(-1) for v in hyper[group]]
            real = [memory.real(t) for t in (p, grad, *(state[name] for name in rule.states))]
            scalars = [state[name] for name in rule.scalars]
            step = eager.Step(rule, real[0], real[1], real[2:], state["step"], scalars, values, lanes, grad_scale)
            step.begin()
            steps.append(step)
        clipped = [i for i, member in enumerate(members) if member.rule.clips]
        for i, sums in zip(clipped, measure(steps, members, clipped, CLIP), strict=True):
            steps[i].conclude(CLIP, sums)
        for together in totals.together_of([member.rule for member in members]):
            if (rule := members[together[0]].rule).sums:
                stage = rule.stages[-1]
                for i, sums in zip(together, measure(steps, members, together, stage), strict=True):
                    steps[i].conclude(stage, sums)
            for i in together:
                new_p, new_states = optimizer.advance(members[i].group, steps[i])
                states = [members[i].state[name] for name in members[i].rule.states]
                for tensor, value in zip((members[i].p, *states), (new_p, *new_states), strict=True):
                    value = value.to(tensor.dtype.to_real())
                    tensor.copy_(torch.view_as_complex(value.contiguous()) if tensor.is_complex() else value)


def measure(steps: list, members: list, which: list[int], stage: Stage) -> list[torch.Tensor]:
    """Return the totals of a stage for some of the members; see `totals.measure`."""
    return totals.measure([steps[i] for i in which], [members[i].p for i in which], stage)
