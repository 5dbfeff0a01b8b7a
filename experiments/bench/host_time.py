"""How much host time does one `optimizer.step()` take, apart from the device's work?

AdamW steps over the parameter lists of real networks, with every dimension cut to at most 2. Without device work, both
implementations run all of their Python and none of their arithmetic: torch's two kernels become no-ops, and our launch
is replaced by `Table.point_at`, which is all that it does on the host. With device work, the CPU updates the tiny
tensors.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch

import optim
from experiments.bench import networks, timing
from experiments.common import intervals
from kernels import table as tables

STEPS = 20
GOAL = 1 / 3
"""The share of torch's time that ours should not exceed."""


def tiny(name: str) -> list[torch.nn.Parameter]:
    """Return parameters with a network's number of tensors and dimensions, each dimension at most 2."""
    return [torch.nn.Parameter(torch.rand([min(2, size) for size in shape])) for shape in networks.LISTS[name]()]


def move_grads(params: list[torch.nn.Parameter]) -> None:
    """Have autograd allocate every gradient anew, at another address."""
    # Keeping the old gradients alive stops the allocator from reusing their addresses.
    old = [p.grad for p in params]
    for p in params:
        p.grad = None
    torch.autograd.backward(params, [torch.ones_like(p) for p in params])
    del old


@contextmanager
def torch_without_device_work() -> Iterator[None]:
    """Have `torch.optim.AdamW(fused=True)` take steps that touch no tensor."""
    with mock.patch.object(torch, "_fused_adamw_", nothing), mock.patch.object(torch, "_foreach_add_", nothing):
        yield


def nothing(*_, **__) -> None:
    """Do nothing, in place of a kernel."""


def drop_launches_(optimizer: optim.AdamW) -> None:
    """Reduce the launches of an optimizer that has taken a step to their work on the address table."""

    def only_point(table: tables.Table) -> tables.Launch:
        return tables.Launch(begin=lambda grads, *_: table.point_at(grads), update=nothing)

    optimizer._parts = [part._replace(launch=only_point(part.table)) for part in optimizer._parts]


def uploads(optimizer: optim.AdamW) -> int:
    """Return how often the optimizer's tables have been written since they were built."""
    return sum(part.table.rows._version + part.table.hyper._version for part in optimizer._parts)


def median_step_seconds(optimizer: torch.optim.Optimizer, params: list, moves: bool, steps: int = STEPS) -> float:
    """Return the median seconds of several steps, after one untimed step."""
    if moves:
        move_grads(params)
    optimizer.step()
    seconds = []
    for _ in range(steps):
        if moves:
            move_grads(params)
        started = time.perf_counter()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def compare(name: str, device_work: bool, rounds: int) -> dict:
    """Time one parameter list, with or without device work; return a row of the table."""
    contenders, counts = {}, {"uploads": 0, "builds": 0}
    makers = {"torch": functools.partial(torch.optim.AdamW, fused=True), "ours": optim.AdamW, "known": optim.AdamW}
    for moves in (False, True):
        for whose, make in makers.items():
            params = tiny(name)
            move_grads(params)
            optimizer = make(params)
            optimizer.step()
            contenders[whose, moves] = functools.partial(median_step_seconds, optimizer, params, moves)
            if whose == "known":
                optimizer.state_dict()  # from now on its caller could change every state
            if whose != "torch" and not device_work:
                drop_launches_(optimizer)
            if whose == "ours" and not moves:
                contenders[whose, moves] = functools.partial(counted, optimizer, contenders[whose, moves], counts)
            if whose == "torch" and not device_work:
                contenders[whose, moves] = torch_without_device_work()(contenders[whose, moves])

    seconds = timing.in_turn(contenders, rounds, leave=False, desc=name)
    row = {"list": name, "tensors": len(networks.LISTS[name]()), "device work": "yes" if device_work else "no"}
    for moves, where in ((False, "stay"), (True, "move")):
        torch_seconds, our_seconds = seconds["torch", moves], seconds["ours", moves]
        row[f"torch us, gradients {where}"] = torch_seconds.median() * 1e6
        row[f"ours us, gradients {where}"] = our_seconds.median() * 1e6
        row |= timing.with_interval(f"ours / torch, gradients {where}", our_seconds / torch_seconds)
        known = f"ours / torch, gradients {where}, states known"
        row |= timing.with_interval(known, seconds["known", moves] / torch_seconds)
    ratios = {where: f"ours / torch, gradients {where}" for where in ("stay", "move")}
    reached = [
        where
        for where, name in ratios.items()
        if row[f"{name}, high"] <= GOAL and row[f"{name}, level"] >= intervals.LEVEL
    ]
    row["at most 1/3 if gradients"] = " or ".join(reached) or "-"
    return row | counts


def counted(optimizer: optim.AdamW, timed: Callable[[], float], counts: dict[str, int]) -> float:
    """Run a timed contender, and add to counts how often it wrote and built tables."""
    with mock.patch.object(tables, "build", wraps=tables.build) as build:
        before = uploads(optimizer)
        seconds = timed()
    counts["uploads"] += uploads(optimizer) - before
    counts["builds"] += build.call_count
    return seconds
