"""The launches of a step: which tensors they update together, with which states and which copies."""

import functools
import logging
from collections import defaultdict
from typing import NamedTuple

import torch

from kernels import table as tables
from kernels.rule import Rule
from optim import backends, checks, compressed, memory, totals, watch

LOG = logging.getLogger("optim")


class Part(NamedTuple):
    """A launch of a step.

    Attributes:
        launch: see `kernels.table.Launch`.
        index: which of all gradients it reads.
        special: (position in index, buffer) of gradients that are complex, or not laid out like their parameter:
            the latter are copied into the buffer first.
        gaps: (copy, parameter) of parameters with gaps in memory, whose copies are updated.
        spread: (rows of the table, process groups) of parameters of which other processes have a share.
    """

    table: tables.Table
    launch: tables.Launch
    index: list[int]
    special: list[tuple[int, torch.Tensor | None]]
    gaps: list[tuple[torch.Tensor, torch.Tensor]]
    spread: list[tuple[torch.Tensor, list]]

    def fill(self) -> None:
        """Copy parameters with gaps, before they are read."""
        for copy, p in self.gaps:
            copy.copy_(p)

    def empty(self) -> None:
        """Copy what was updated back."""
        for copy, p in self.gaps:
            p.copy_(copy)

    def taken(self, grads: list) -> list:
        """Return those of all gradients that the launch reads. Raises: RuntimeError if one to be copied was freed."""
        if len(self.index) == len(grads) and not self.special:
            return grads
        own = [grads[i] for i in self.index]
        for i, buffer in self.special:
            if checks.is_freed(own[i]):
                raise RuntimeError("The memory of a gradient has been freed or made smaller")
            grad = memory.real(own[i])
            own[i] = grad if buffer is None else buffer.copy_(grad)
        return own

    def moves(self, grads: list) -> bool:
        """Return whether a gradient that is not copied into a buffer has moved since the last step."""
        buffered = {i for i, buffer in self.special if buffer is not None}
        before = self.table.grad_addresses or []
        return any(
            memory.local(grads[i]).data_ptr() != address
            for position, (i, address) in enumerate(zip(self.index, before, strict=False))
            if position not in buffered
        )


def build(optimizer, params: list, grads: list) -> list[Part]:
    """Make missing states and build the tables; `checks.check` must come first.

    Args:
        optimizer: a `RuleOptimizer`, as in all functions here.
        params: all its parameters, groups laid end to end. A number i is an index into this list.
        grads: their gradients, None where there is none.
    Raises: ValueError, TypeError, RuntimeError or NotImplementedError for tensors that no launch can update; nothing
        has been changed then.
    """
    if any(tables.capturing(p.device) for p in params):
        raise RuntimeError(
            "Parameters, states or the layout of gradients have changed since the last step, and a CUDA graph is "
            "being captured: take a step with them before the capture"
        )
    members = members_of(optimizer, params, grads)
    buckets = defaultdict(list)
    waves = memory.waves([memory.local(member.p) for member in members])
    for member, wave in zip(members, waves, strict=True):
        i, p, grad, group, rule, lanes, state = member
        template = state[rule.states[0]] if rule.states else memory.like(p, p.dtype, lanes)
        backend = backends.backend_of(optimizer, p, grad)
        dtypes = tuple(map(memory.real_dtype, (p, grad, template)))
        copy = None
        if memory.lazy(p) or memory.layout(memory.real(p)) != memory.layout(memory.real(template)):
            copy = torch.empty_like(memory.local(template), dtype=p.dtype)
        entry = tables.Entry(
            p=memory.real(p if copy is None else copy),
            states=tuple(memory.real(state[name]) for name in rule.states),
            step=state["step"],
            scalars=tuple(state[name] for name in rule.scalars),
            lanes=lanes,
            group=group,
            parameter=i,
            scales=tuple(state[name] for name in compressed.scale_names(rule, state)),
            sharded=bool(rule.stages and totals.shards(p)),
        )
        buckets[(wave, rule.name, rule.clips, p.device, *dtypes, backend)].append((member, entry, copy))

    parts = []
    for (*_, grad_dtype, _, backend), bucket in sorted(buckets.items(), key=lambda item: item[0][0]):
        entries, rule = [entry for _, entry, _ in bucket], bucket[0][0].rule
        seed = optimizer.seed if optimizer.rounding == "stochastic" else None
        table, launch = optimizer.make_launch(backend, rule, entries, grad_dtype, seed)
        if table.choice:
            debug_once(f"{rule.name} on {entries[0].p.device}: {table.choice}")
        special, gaps = [], []
        for position, (member, entry, copy) in enumerate(bucket):
            moved = memory.layout(memory.real(member.grad)) != memory.layout(entry.p)
            if moved or member.grad.is_complex() or memory.lazy(member.grad):
                special.append((position, torch.empty_like(entry.p, dtype=grad_dtype) if moved else None))
            if copy is not None:
                gaps.append((copy, memory.local(member.p)))
        index = [member.i for member, *_ in bucket]
        parts.append(Part(table, launch, index, special, gaps, spread_of(bucket)))
    totals.mark(parts)
    keep(optimizer, members)
    return parts


def spread_of(bucket: list) -> list[tuple[torch.Tensor, list]]:
    """Return the rows of a launch whose parameters are spread over the same processes, with the process groups."""
    found = defaultdict(list)
    for row, (member, entry, _) in enumerate(bucket):  # Shards have no lanes: each is a row.
        if entry.sharded:
            found[tuple(totals.shards(member.p))].append(row)
    return [(torch.tensor(rows, device=bucket[0][1].p.device), [*groups]) for groups, rows in found.items()]


class Member(NamedTuple):
    """A parameter that has a gradient, and what its update needs.

    Attributes:
        i: its index among all parameters; group: the number of its group; state: all states that the rule needs.
    """

    i: int
    p: torch.Tensor
    grad: torch.Tensor
    group: int
    rule: Rule
    lanes: int
    state: dict[str, torch.Tensor]


def members_of(optimizer, params: list, grads: list) -> list[Member]:
    """Return every parameter that has a gradient, with its states, made if missing; arguments as of `build`.

    Nothing is changed: `keep` stores the states.
    """
    groups = [g for g, group in enumerate(optimizer.param_groups) for _ in group["params"]]
    lanes_of_group = [checks.lanes_of(optimizer, group) for group in optimizer.param_groups]
    rules = [totals.rule_of(optimizer, group) for group in optimizer.param_groups]
    members, states = [], {}
    for i in (i for i, grad in enumerate(grads) if grad is not None):
        p, g = params[i], groups[i]
        group, rule, lanes = optimizer.param_groups[g], rules[g], lanes_of_group[g]
        if (known := (id(p), rule.name)) not in states:  # A parameter may be listed twice.
            states[known] = state_of(optimizer, p, group, rule, lanes, i)
        members.append(Member(i, p, grads[i], g, rule, lanes, states[known]))
    return members


def keep(optimizer, members: list[Member]) -> None:
    """Put the members' states into `optimizer.state`."""
    for member in members:
        own = watch.own(optimizer.state, member.p)
        own.update(member.state)
        compressed.drop_scales(own, member.state)


def make_states(optimizer) -> None:
    """Make all states before the first step."""
    i = 0
    for group in optimizer.param_groups:
        rule, lanes = totals.rule_of(optimizer, group), checks.lanes_of(optimizer, group)
        for p in group["params"]:
            watch.own(optimizer.state, p).update(state_of(optimizer, p, group, rule, lanes, i))
            i += 1


def names_of(rule: Rule, state: dict) -> tuple[str, ...]:
    """Return the names of all that a parameter's state has for a rule."""
    return ("step", *rule.states, *rule.scalars, *compressed.scale_names(rule, state))


def state_of(optimizer, p: torch.Tensor, group: dict, rule: Rule, lanes: int, i: int) -> dict[str, torch.Tensor]:
    """Return the state of p as a launch needs it, with entries made or converted where necessary.

    Step and scalars are float32 on p's device, one per lane; states are laid out like p, or without gaps if p has
    gaps.
    Raises: ValueError if the state has another shape, or lacks some of the rule's states; RuntimeError if its memory
        has been freed.
    """
    state, initial = dict.get(optimizer.state, p) or {}, optimizer.initial(group)
    state = {name: value for name, value in state.items() if value is not None}  # older torch.optim.SGD saved None
    found = [name for name in rule.states if name in state]
    for name in names_of(rule, state):
        if isinstance(state.get(name), torch.Tensor) and checks.is_freed(state[name]):
            called = checks.name_of(optimizer, p, i)
            raise RuntimeError(f"{called}: the memory of {name} of its state has been freed or made smaller")
    begun = [*(["step"] if "step" in state else []), *found]
    lacking = [name for name in rule.states if name not in state and name not in optimizer.late_states]
    if begun and lacking:
        called, kind = checks.name_of(optimizer, p, i), type(optimizer).__name__
        raise ValueError(
            f"{called}: its state has {', '.join(begun)} and lacks {', '.join(lacking)}: it is not what {kind} keeps"
        )
    fresh = not (found if rule.states else begun)
    # torch.optim.SGD does not count steps: it has taken one if it has a momentum buffer.
    made: dict = {"step": 0.0 if fresh else state.get("step", 1.0)}
    made |= {name: state.get(name, initial.get(name, 0.0)) for name in rule.scalars}
    for name, value in made.items():
        shape = (lanes,) if lanes > 1 else ()
        if is_count(value, p, shape):
            continue
        value = torch.as_tensor(value, dtype=torch.float32, device=p.device).detach().reshape(-1)
        if lanes == 1 and value.numel() > 1 and (value == value[0]).all():  # saved with lanes
            value = value[:1]
        if value.numel() not in (1, lanes):
            raise ValueError(
                f"{checks.name_of(optimizer, p, i)} has {lanes} lanes, and {name} of its state {value.numel()}"
            )
        made[name] = value.expand(lanes).reshape(shape).clone(memory_format=torch.contiguous_format)

    for name in found:
        if (shape := state[name].shape) != p.shape:
            raise ValueError(f"{checks.name_of(optimizer, p, i)}: {name} of its state has shape {list(shape)}")
    is_compressed = compressed.is_wanted(optimizer, p, rule, state)
    state = compressed.expanded(optimizer, p, rule, state, lanes, lambda: checks.name_of(optimizer, p, i))
    if is_compressed:
        return made | compressed.make(p, rule, state, lanes)
    dtype = optimizer.state_dtype or next(
        (state[name].dtype for name in found if state[name].dtype in memory.DTYPES), None
    )
    dtype = memory.state_dtype(p.dtype, dtype)
    for name in rule.states:
        old, new = state.get(name), memory.like(p, dtype, lanes)
        if old is None:
            value = initial.get(name, 0.0)
            if isinstance(value, torch.Tensor) or value != 0:
                real, value = memory.real(new), torch.as_tensor(value, dtype=torch.float64, device=p.device)
                real.copy_(value.reshape(-1, *[1] * (real.ndim - 1)) if value.numel() > 1 else value.reshape(()))
        elif old.dtype == dtype and old.device == p.device and is_laid_out_like(old, new):
            new = old
        else:
            new.copy_(old)
        made[name] = new
    return made


def is_count(value, p: torch.Tensor, shape: tuple[int, ...]) -> bool:
    """Return whether a launch can use the value as a step count or a scalar."""
    return (
        isinstance(value, torch.Tensor)
        and (value.dtype, value.device, value.shape) == (torch.float32, p.device, shape)
        and value.is_contiguous()
        and not memory.lazy(value)
    )


def is_laid_out_like(old: torch.Tensor, new: torch.Tensor) -> bool:
    """Return whether a launch can use a state as it is."""
    return not memory.lazy(old) and memory.layout(memory.real(old)) == memory.layout(memory.real(new))


@functools.cache
def debug_once(message: str) -> None:
    LOG.debug(message)
