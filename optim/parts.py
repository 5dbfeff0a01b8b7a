"""From parameters and gradients to launches: which tensors go together, with which states, over which copies."""

import functools
import importlib
import logging
import os
import warnings
from collections import defaultdict
from importlib.util import find_spec
from typing import NamedTuple

import torch

from kernels import table as tables
from kernels.rule import Rule
from optim import memory

BACKENDS = {"triton": "kernels.multi_tensor", "cpu": "kernels.cpu", "eager": "kernels.eager"}
LOG = logging.getLogger("optim")


class Part(NamedTuple):
    """One launch of a step.

    Attributes:
        launch: see `kernels.table.Launch`.
        index: which of the gradients it takes.
        special: (position in index, buffer) of gradients that are complex, or laid out in memory otherwise than
            their parameter: those are copied into the buffer first.
        gaps: (copy, parameter) of parameters that have gaps in memory: the copy is what is updated.
    """

    table: tables.Table
    launch: tables.Launch
    index: list[int]
    special: list[tuple[int, torch.Tensor | None]]
    gaps: list[tuple[torch.Tensor, torch.Tensor]]


def build(optimizer: torch.optim.Optimizer, params: list, grads: list) -> list[Part]:
    """Check every tensor, make the states that are missing, and lay the tables out.

    Args:
        optimizer: a `RuleOptimizer`, as in all functions here.
        params: all its parameters, groups laid end to end. A number i is a place in this list.
        grads: their gradients, None where there is none.
    """
    if any(tables.capturing(p.device) for p in params):
        raise RuntimeError(
            "Parameters, states or the layout of gradients have changed since the last step, and a CUDA graph is "
            "being captured: take a step with them before the capture"
        )
    groups = [g for g, group in enumerate(optimizer.param_groups) for _ in group["params"]]
    lanes_of_group = [lanes_of(optimizer, group) for group in optimizer.param_groups]
    present = [i for i, grad in enumerate(grads) if grad is not None]
    for i in present:
        check_tensors(optimizer, params[i], grads[i], lanes_of_group[groups[i]], i)
    buckets = defaultdict(list)
    waves = memory.waves([memory.real(params[i]) for i in present])
    for i, wave in zip(present, waves, strict=True):
        p, group = params[i], optimizer.param_groups[groups[i]]
        rule, lanes = optimizer.rule(group), lanes_of_group[groups[i]]
        state = state_of(optimizer, p, group, rule, lanes, i)
        template = state[rule.states[0]] if rule.states else memory.like(p, p.dtype, lanes)
        backend = backend_of(optimizer, p, grads[i])
        dtypes = memory.real(p).dtype, memory.real(grads[i]).dtype, memory.real(template).dtype
        copy = None
        if memory.layout(memory.real(p)) != memory.layout(memory.real(template)):
            copy = torch.empty_like(memory.real(template), dtype=dtypes[0])
        entry = tables.Entry(
            p=memory.real(p) if copy is None else copy,
            states=tuple(memory.real(state[name]) for name in rule.states),
            step=state["step"],
            scalars=tuple(state[name] for name in rule.scalars),
            lanes=lanes,
            group=groups[i],
            parameter=i,
        )
        buckets[(wave, rule.name, p.device, *dtypes, backend)].append((i, rule, entry, copy))

    parts = []
    for (_, _, _, _, grad_dtype, _, backend), members in sorted(buckets.items(), key=lambda item: item[0][0]):
        _, (rule, *_), entries, _ = map(list, zip(*members, strict=True))
        seed = optimizer.seed if optimizer.rounding == "stochastic" else None
        table = backend.build(rule, entries, grad_dtype, seed)
        if table.choice:
            debug_once(f"{rule.name} on {entries[0].p.device}: {table.choice}")
        special, gaps = [], []
        for position, (i, _, entry, copy) in enumerate(members):
            grad = memory.real(grads[i])
            moved = memory.layout(grad) != memory.layout(entry.p)
            if moved or grads[i].is_complex():
                special.append((position, torch.empty_like(entry.p, dtype=grad_dtype) if moved else None))
            if copy is not None:
                gaps.append((copy, memory.real(params[i])))
        parts.append(Part(table, backend.launcher(table), [i for i, *_ in members], special, gaps))
    return parts


def state_of(optimizer, p: torch.Tensor, group: dict, rule: Rule, lanes: int, i: int) -> dict:
    """The state of p as a launch needs it, made or mended where it is not.

    Step and scalars are float32 on p's device, one a lane; states are laid out like p, or without gaps if p has.
    """
    state, initial = optimizer.state[p], optimizer.initial(group)
    fresh = not any(name in state for name in rule.states) and (bool(rule.states) or "step" not in state)
    # torch.optim.SGD does not count: it has taken a step if it has a momentum buffer.
    made = {"step": torch.tensor(0.0) if fresh else torch.as_tensor(state.get("step", 1.0))}
    for name in rule.scalars:
        made[name] = torch.as_tensor(state.get(name, initial.get(name, 0.0)))
    for name, value in made.items():
        if value.numel() not in (1, lanes):
            raise ValueError(f"{name_of(optimizer, p, i)} has {lanes} lanes, and {name} of its state {value.numel()}")
        value = value.to(p.device, torch.float32)
        made[name] = value.reshape(-1).expand(lanes).contiguous() if lanes > 1 else value.reshape(())
        if name in state and made[name].data_ptr() == state[name].data_ptr():
            made[name] = state[name]

    dtype = optimizer.state_dtype or next((state[n].dtype for n in rule.states if n in state), None)
    dtype = memory.state_dtype(p.dtype, dtype)
    for name in rule.states:
        old, new = state.get(name), memory.like(p, dtype, lanes)
        if old is None:
            value = torch.as_tensor(initial.get(name, 0.0), dtype=torch.float64)
            if value.numel() > 1 or value.item() != 0:
                real = memory.real(new)
                real.copy_(value.to(real.device).reshape(-1, *[1] * (real.ndim - 1)) if value.ndim else value)
        elif old.shape != p.shape:
            raise ValueError(f"{name_of(optimizer, p, i)}: {name} of its state has shape {list(old.shape)}")
        elif old.dtype == dtype and memory.layout(memory.real(old)) == memory.layout(memory.real(new)):
            new = old
        else:
            new.copy_(old)
        made[name] = new
    state.update(made)
    return state


def check_tensors(optimizer, p: torch.Tensor, grad: torch.Tensor, lanes: int, i: int) -> None:
    """Raise if p or its gradient is of a kind that the backend cannot update."""

    def name() -> str:
        return name_of(optimizer, p, i)

    if grad.layout != torch.strided:
        raise RuntimeError(
            f"{type(optimizer).__name__} does not support sparse gradients, consider SparseAdam instead: {name()}"
        )
    if any(stride == 0 and size > 1 for size, stride in zip(p.shape, p.stride(), strict=True)):
        raise RuntimeError(f"{name()}: several elements share one place in memory (strides {tuple(p.stride())})")
    backend = backend_of(optimizer, p, grad)
    for tensor, what in ((p, "parameter"), (grad, "gradient")):
        dtype = memory.real(tensor).dtype
        if dtype not in backend.DTYPES:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in backend.DTYPES)
            raise TypeError(f"{name()}: a {what} of {tensor.dtype} (this backend takes {known})")
    if optimizer.rounding == "stochastic" and memory.real(p).dtype == torch.float16:
        raise TypeError(f"{name()} is float16, and rounding='stochastic' is for bfloat16")
    if lanes > 1 and hasattr(p, "to_local"):
        raise TypeError(f"{name()} is a DTensor, whose lanes could lie on several machines: lanes need plain tensors")


def name_of(optimizer, p: torch.Tensor, i: int) -> str:
    """What messages call parameter i of all groups laid end to end."""
    names = [name for group in optimizer.param_groups for name in group.get("param_names", group["params"])]
    called = f" ({names[i]})" if isinstance(names[i], str) else ""
    return f"parameter {i}{called} of shape {list(p.shape)}"


def lanes_of(optimizer, group: dict) -> int:
    """The number of lanes of a group: 1 where all its hyperparameters are single values.

    Raises: ValueError if lane counts differ, or a parameter is not stacked accordingly.
    """
    values = dict(zip(optimizer.rule(group).hyper, optimizer.hyper(group), strict=True)) | dict(
        optimizer.initial(group)
    )
    hyper = {name: v for name, v in values.items() if isinstance(v, torch.Tensor)}
    for name, value in hyper.items():
        for p in group["params"]:
            if value.device.type != "cpu" and value.device != p.device:
                raise ValueError(f"{name} is on {value.device}, and a parameter of shape {list(p.shape)} on {p.device}")
    sizes = {name: v.numel() for name, v in hyper.items() if v.numel() != 1}
    if not sizes:
        return 1
    lanes = max(sizes.values())
    if min(sizes.values()) != lanes:
        counts = ", ".join(f"{name} has {n}" for name, n in sizes.items())
        raise ValueError(f"Hyperparameter tensors of a group must have as many lanes as each other: {counts}")
    for i, p in enumerate(group["params"]):
        if p.ndim == 0 or p.shape[0] != lanes:
            raise ValueError(
                f"Tensor {next(iter(sizes))} must be 1-element, or have as many elements as parameters have lanes: "
                f"it has {lanes}, so parameter {i} must be stacked [{lanes}, ...]; its shape is {list(p.shape)}"
            )
    return lanes


def backend_of(optimizer, p: torch.Tensor, grad: torch.Tensor):
    """The module that updates p: the one asked for, or else the fastest that takes the tensors."""
    if optimizer.backend:
        return backend_module(optimizer.backend)
    module = backend_module({"cuda": "triton", "cpu": "cpu"}.get(p.device.type, "eager"))
    takes_both = all(memory.real(tensor).dtype in module.DTYPES for tensor in (p, grad))
    return module if takes_both else backend_module("eager")


def backend_module(name: str):
    if name == "cpu" and not has_numba():
        name = "eager"
    return importlib.import_module(BACKENDS[name])


@functools.cache
def debug_once(message: str) -> None:
    LOG.debug(message)


@functools.cache
def has_numba() -> bool:
    """Whether Numba is installed, and compiles; says once what it means if not."""
    if find_spec("numba"):
        return os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")
    warnings.warn(
        "Numba is not installed: CPU tensors are updated by eager formulas, about twenty times slower", stacklevel=2
    )
    return False
