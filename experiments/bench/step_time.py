"""How long does a step of each implementation take, and how close is it to what memory bandwidth allows?

The contenders of a comparison are timed in turn, round after round, over the same parameters and gradients; each has
its own states. Module `contenders` defines the times.
"""

import functools
import itertools
import math
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from experiments.bench import gpu_info, gpu_timing, implementations, step_plan, timing
from experiments.bench.contenders import DEFINITIONS, LEAST_ROUNDS, Contender, ready_on_gpu, time_contenders
from experiments.bench.implementations import IMPLEMENTATIONS, OptimizerCase
from experiments.bench.step_plan import ADAMW, FLOAT32, MOST_COPY, Group, NotEnoughMemory, Wanted
from experiments.common import tables
from kernels.rule import NUMPY, Rule, rebind

PLACEMENTS = 8
"""On a CPU all tensors are allocated anew this many times in the course of the rounds."""


def groups(device: torch.device, sizes: dict[str, list], cases: tuple[OptimizerCase, ...]) -> list[Group]:
    """Return the groups to time, most informative first."""
    known = [case for case in cases if device.type == "cpu" or case.dtype != torch.float64]
    return [Group(case, size, shapes) for case in known for size, shapes in sizes.items()]


@functools.cache
def flops_of(rule: Rule) -> int:
    """Count the operations of a rule on one element, sums included; a function counts as one operation."""
    count = itertools.count()

    def operation(*_) -> "Operand":
        next(count)
        return Operand()

    names = ("add", "sub", "mul", "truediv", "radd", "rsub", "rmul", "rtruediv", "neg", "gt", "lt", "ge", "le", "eq")
    Operand = type("Operand", (), {f"__{name}__": operation for name in names})
    language = SimpleNamespace(**dict.fromkeys(vars(NUMPY), operation))
    update = rebind(rule.update, language)
    states, coefficients, totals = ((Operand(),) * n for n in (len(rule.states), rule.n_coefficients, rule.n_totals))
    update(Operand(), Operand(), states, coefficients, *([totals] if rule.sums else []))
    for stage in rule.stages:
        rebind(stage.sums, language)(Operand(), Operand(), states, coefficients)
    return next(count)


def make_tensors(group: Group, dtype: torch.dtype, device: torch.device, seed: int) -> implementations.Params:
    """Return random parameters with random gradients: zeros would draw less power and could run at another clock."""
    generator = torch.Generator(device).manual_seed(seed)
    like = {"generator": generator, "dtype": dtype, "device": device}
    params = [torch.nn.Parameter(torch.randn(shape, **like)) for shape in group.shapes]
    for p in params:
        p.grad = torch.randn(p.shape, **like)
    return params


def make_contenders(
    group: Group, wanted: list[Wanted], sets: int, device: torch.device, left_out: dict[str, str]
) -> list[Contender]:
    """Return the copy and all contenders that can be made, ready to be timed.

    Args:
        sets: number of sets of tensors for each contender.
        left_out: gets the reason for each contender that fails. Updated in place.
    """
    n_bytes = int(min(MOST_COPY, step_plan.largest(wanted, group.n_elements)))
    n_bytes -= n_bytes % 8  # float32, read and written
    contenders = [Contender("copy", gpu_timing.copies(device, n_bytes), n_bytes)]
    dtypes = dict.fromkeys(contender.case.dtype for contender in wanted)
    tensors = {dtype: [make_tensors(group, dtype, device, seed) for seed in range(sets)] for dtype in dtypes}
    for label, name, case in wanted:
        try:
            optimizers = [implementations.make(name, case, params) for params in tensors[case.dtype]]
            steps: list[Callable[[], object]] = [optimizer.step for optimizer in optimizers]
            contender = Contender(label, steps, implementations.step_bytes(name, case, group.n_elements))
            if device.type == "cuda":
                ready_on_gpu(contender, optimizers if IMPLEMENTATIONS[name].captures else [], device)
        except torch.OutOfMemoryError:
            left_out[label] = "out of memory"
        except RuntimeError as error:
            left_out[label] = str(error)
        else:
            contenders.append(contender)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if device.type == "cuda":
        ready_on_gpu(contenders[0], [], device)
    return contenders


def compare(
    group: Group,
    device: torch.device,
    rounds: int,
    names: list[str],
    compile: bool = False,
    deadline: float = math.inf,
) -> tuple[list[dict], dict[str, str]]:
    """Time the implementations of a group in turn.

    Args:
        names: implementations to time, by their names in `IMPLEMENTATIONS`.
        compile: whether to time those that take minutes to compile.
        deadline: `time.monotonic()` after which only the rounds for a 95 % interval are completed.
    Returns: a row for each implementation that was timed, and the reason for each that was not.
    Raises: NotEnoughMemory if not even two implementations fit into memory.
    """
    wanted, sets, left_out = step_plan.plan(group, names, device, compile)
    if not wanted:
        return [], left_out
    # Where tensors happen to lie in memory changes a CPU's times by some tens of per cent.
    parts = [part for part in np.array_split(range(rounds), PLACEMENTS if device.type == "cpu" else 1) if len(part)]
    frames, contenders = [], []
    for part in parts:
        if sum(map(len, frames)) >= LEAST_ROUNDS and time.monotonic() > deadline:
            break
        del contenders  # before the next ones are made
        try:
            contenders = make_contenders(group, wanted, sets, device, left_out)
            bar = {"leave": False, "desc": str(group)}
            frames.append(time_contenders(contenders, sum(group.n_elements), len(part), device, deadline, **bar))
        except torch.OutOfMemoryError:
            raise NotEnoughMemory("out of memory") from None
    rows = make_rows(group, contenders, pd.concat(frames, ignore_index=True), device)
    if device.type == "cuda":
        found = gpu_info.state(device)
        found["throttle"] = ", ".join(found.get("throttle", []))
        l2_bytes = gpu_info.cache_bytes(device)
        set_bytes = step_plan.footprint("ours", group.case, group.n_elements)
        rows = [row | {"sets": sets, "set bytes": set_bytes, "l2 bytes": l2_bytes} | found for row in rows]
    return rows, left_out


def baseline_of(names: list[str], device: torch.device) -> str | None:
    """Return the name of the baseline: torch's fused step if it was timed, else torch's default, else None."""
    default = "torch for-loop" if device.type == "cpu" else "torch foreach"
    return next((name for name in ("torch fused", default) if name in names), None)


def make_rows(group: Group, contenders: list[Contender], seconds: pd.DataFrame, device: torch.device) -> list[dict]:
    """Return a row for each implementation; see `DEFINITIONS` for the times.

    Args:
        contenders: the copy first.
        seconds: as `time_contenders` returns them.
    """
    copy, *contenders = contenders
    # Bandwidth comes from the device's own time; a CPU has only wall time.
    what = "step" if device.type == "cpu" else "kernel"
    copy_rate = copy.moved / seconds[copy.name, what]
    datasheet = None if device.type == "cpu" else gpu_info.datasheet_bandwidth(torch.cuda.get_device_name(device))
    baseline = baseline_of([contender.name for contender in contenders], device)
    rows = []
    for contender in contenders:
        row = {
            "class": group.case.label,
            "dtype": step_plan.dtype_name(group.case.dtype),
            "size": group.size,
            "elements": sum(group.n_elements),
            "implementation": contender.name,
            "rounds": len(seconds),
            "baseline": baseline or "",
        }
        own = {name: seconds[contender.name, name] for name in DEFINITIONS if (contender.name, name) in seconds}
        for name, values in own.items():
            row |= summary(f"{name} us", 1e6 * values)
        row |= {"bytes": contender.moved, "flops": flops_of(group.case.rule) * sum(group.n_elements)}
        row["GB/s"] = contender.moved / 1e3 / row[f"{what} us"]
        if "warm" in own:
            row["warm GB/s"] = contender.moved / 1e3 / row["warm us"]
        row["copy GB/s"] = copy_rate.median() / 1e9
        row |= interval("share of copy", contender.moved / own[what] / copy_rate)
        if datasheet:
            row["datasheet GB/s"] = datasheet / 1e9
            row["share of datasheet"] = row["GB/s"] / row["datasheet GB/s"]
        others = [("baseline", baseline)]
        others += [(other, other) for other in (FLOAT32, ADAMW) if (other, "step") in seconds]
        for name, (label, other) in itertools.product(("step", "kernel"), others):
            if name in own and other and other != contender.name:
                row |= ratio(f"{name}: {label} / this", seconds[other, name] / own[name])
        row["note"] = contender.note
        rows.append(row)
    return rows


def summary(name: str, values: pd.Series) -> dict[str, float]:
    """Return median, interval, and the 20th and 80th percentile of a time, as table columns."""
    found = interval(name, values)
    return found | {f"{name}, p{p}": float(values.quantile(p / 100)) for p in (20, 80)}


def interval(name: str, values: pd.Series) -> dict[str, float]:
    """Return `timing.with_interval` over the rounds with a value; all NaN if more than half of the rounds lack one."""
    known = values.dropna()
    if known.empty or 2 * len(known) < len(values):
        return dict.fromkeys((name, *(name + end for end in tables.ENDS)), math.nan)
    return timing.with_interval(name, known)


def ratio(name: str, values: pd.Series) -> dict[str, float | str]:
    """Return a speed-up with its interval and verdict, as table columns."""
    found: dict = interval(name, values)
    if not math.isnan(found[name]):
        found[f"{name}, verdict"] = timing.verdict(*(found[name + end] for end in tables.ENDS))
    return found
