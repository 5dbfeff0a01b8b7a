"""How long does a step take, of every implementation, and how near is it to what memory allows?

Every side of a comparison is timed in turn, round after round, over the same parameters and gradients, each with
states of its own; `sides` says how.
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

from experiments.bench import gpu_info, gpu_timing, implementations, networks, step_plan, timing
from experiments.bench.contenders import DEFINITIONS, LEAST_ROUNDS, Side, ready_on_gpu, time_in_turn
from experiments.bench.implementations import IMPLEMENTATIONS, Case
from experiments.bench.step_plan import FLOAT32, MOST_COPY, Group, TooLarge, Wanted
from experiments.common import tables
from kernels.rule import NUMPY, Rule, rebind

CASES = (
    Case("Adam", {}),
    Case("Adam", {}, torch.bfloat16),
    Case("AdamW", {}),
    Case("AdamW", {}, torch.bfloat16),
    Case("NAdam", {}),
    Case("RAdam", {}),
    Case("SGD", {}),
    Case("SGD", {"momentum": 0.9}),
    Case("Adagrad", {}),
    Case("RMSprop", {}),
    Case("Adadelta", {}),
    # With the default, torch's other ways than fused divide by 0: 1e-8 is 0 in float16.
    Case("Adam", {"eps": 1e-4}, torch.float16),
    # The Triton kernel has no float64.
    Case("Adam", {}, torch.float64),
)
MODEL_CASES = CASES[:4]

SIZES: dict[str, list[networks.Shape]] = {f"2^{power}": [(2**power,)] for power in range(10, 31)} | {
    "ResNet-50": networks.resnet50()
}
MODELS = {name: make() for name, make in networks.LISTS.items()}

CPU_SIZES = ["2^16", "2^20", "2^22", "2^24", "ResNet-50"]
CUDA_SIZES = [f"2^{power}" for power in (27, 20, 24, 28, 29, 30, 16, 22, 12, 26, 18, 10, 14, 25)]
"""The most telling first: what a budget of time leaves out are the last ones."""

PLACEMENTS = 8
"""How often, in the course of the rounds, all tensors are allocated anew on a CPU."""


def groups(device: torch.device, sizes: dict[str, list], cases: tuple[Case, ...]) -> list[Group]:
    """What is to be timed, the most telling first."""
    known = [case for case in cases if device.type == "cpu" or case.dtype != torch.float64]
    return [Group(case, size, shapes) for case in known for size, shapes in sizes.items()]


@functools.cache
def flops_of(rule: Rule) -> int:
    """Operations of a rule's update of one element; every function counts as one."""
    count = itertools.count()

    def operation(*_) -> "Operand":
        next(count)
        return Operand()

    names = ("add", "sub", "mul", "truediv", "radd", "rsub", "rmul", "rtruediv", "neg", "gt", "lt", "ge", "le", "eq")
    Operand = type("Operand", (), {f"__{name}__": operation for name in names})
    update = rebind(rule.update, SimpleNamespace(**dict.fromkeys(vars(NUMPY), operation)))
    states, coefficients = ((Operand(),) * n for n in (len(rule.states), rule.n_coefficients))
    update(Operand(), Operand(), states, coefficients)
    return next(count)


def make_tensors(group: Group, dtype: torch.dtype, device: torch.device, seed: int) -> implementations.Params:
    """Parameters with gradients, random: zeros would draw less power, and could run at another clock."""
    generator = torch.Generator(device).manual_seed(seed)
    like = {"generator": generator, "dtype": dtype, "device": device}
    params = [torch.nn.Parameter(torch.randn(shape, **like)) for shape in group.shapes]
    for p in params:
        p.grad = torch.randn(p.shape, **like)
    return params


def make_sides(
    group: Group, wanted: list[Wanted], sets: int, device: torch.device, left_out: dict[str, str]
) -> list[Side]:
    """The sides that can be made, ready to be timed, and the copy; the others go to left_out, with the reason."""
    n_bytes = int(min(MOST_COPY, step_plan.largest(wanted, group.n_elements)))
    n_bytes -= n_bytes % 8  # float32, read and written
    sides = [Side("copy", gpu_timing.copies(device, n_bytes), n_bytes)]
    dtypes = dict.fromkeys(side.case.dtype for side in wanted)
    tensors = {dtype: [make_tensors(group, dtype, device, seed) for seed in range(sets)] for dtype in dtypes}
    for label, name, case in wanted:
        try:
            optimizers = [implementations.make(name, case, params) for params in tensors[case.dtype]]
            steps: list[Callable[[], object]] = [optimizer.step for optimizer in optimizers]
            side = Side(label, steps, implementations.step_bytes(name, case, group.n_elements))
            if device.type == "cuda":
                ready_on_gpu(side, optimizers if IMPLEMENTATIONS[name].captures else [], device)
        except torch.OutOfMemoryError:
            left_out[label] = "out of memory"
        except RuntimeError as error:
            left_out[label] = str(error)
        else:
            sides.append(side)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if device.type == "cuda":
        ready_on_gpu(sides[0], [], device)
    return sides


def compare(
    group: Group,
    device: torch.device,
    rounds: int,
    names: list[str],
    compile: bool = False,
    deadline: float = math.inf,
) -> tuple[list[dict], dict[str, str]]:
    """Time a group: a row for each implementation, and why others have none.

    Raises: TooLarge if it does not fit into memory.
    """
    wanted, sets, left_out = step_plan.plan(group, names, device, compile)
    if not wanted:
        return [], left_out
    # Where tensors lie, relative to each other and to pages, is luck, and decides on some tens of percent of a CPU.
    parts = [part for part in np.array_split(range(rounds), PLACEMENTS if device.type == "cpu" else 1) if len(part)]
    frames, sides = [], []
    for part in parts:
        if sum(map(len, frames)) >= LEAST_ROUNDS and time.monotonic() > deadline:
            break
        del sides  # before the next ones are made
        try:
            sides = make_sides(group, wanted, sets, device, left_out)
            bar = {"leave": False, "desc": str(group)}
            frames.append(time_in_turn(sides, sum(group.n_elements), len(part), device, deadline, **bar))
        except torch.OutOfMemoryError:
            raise TooLarge("out of memory") from None
    rows = make_rows(group, sides, pd.concat(frames, ignore_index=True), device)
    if device.type == "cuda":
        found = gpu_info.state(device)
        found["throttle"] = ", ".join(found.get("throttle", []))
        l2_bytes = gpu_info.cache_bytes(device)
        set_bytes = step_plan.footprint("ours", group.case, group.n_elements)
        rows = [row | {"sets": sets, "set bytes": set_bytes, "l2 bytes": l2_bytes} | found for row in rows]
    return rows, left_out


def baseline_of(names: list[str], device: torch.device) -> str | None:
    """What verdicts are against: torch's fused step, or where that cannot be had what torch does by default."""
    default = "torch for-loop" if device.type == "cpu" else "torch foreach"
    return next((name for name in ("torch fused", default) if name in names), None)


def make_rows(group: Group, sides: list[Side], seconds: pd.DataFrame, device: torch.device) -> list[dict]:
    """A row for each implementation; see `DEFINITIONS`."""
    copy, *sides = sides
    # The device's own time says how fast it is; a CPU has but one.
    what = "step" if device.type == "cpu" else "kernel"
    copy_rate = copy.moved / seconds[copy.name, what]
    datasheet = None if device.type == "cpu" else gpu_info.datasheet_bandwidth(torch.cuda.get_device_name(device))
    baseline = baseline_of([side.name for side in sides], device)
    rows = []
    for side in sides:
        row = {
            "class": group.case.label,
            "dtype": step_plan.dtype_name(group.case.dtype),
            "size": group.size,
            "elements": sum(group.n_elements),
            "implementation": side.name,
            "rounds": len(seconds),
            "baseline": baseline or "",
        }
        own = {name: seconds[side.name, name] for name in DEFINITIONS if (side.name, name) in seconds}
        for name, values in own.items():
            row |= summary(f"{name} us", 1e6 * values)
        row |= {"bytes": side.moved, "flops": flops_of(group.case.rule) * sum(group.n_elements)}
        row["GB/s"] = side.moved / 1e3 / row[f"{what} us"]
        if "warm" in own:
            row["warm GB/s"] = side.moved / 1e3 / row["warm us"]
        row["copy GB/s"] = copy_rate.median() / 1e9
        row |= interval("share of copy", side.moved / own[what] / copy_rate)
        if datasheet:
            row["datasheet GB/s"] = datasheet / 1e9
            row["share of datasheet"] = row["GB/s"] / row["datasheet GB/s"]
        others = [("baseline", baseline)]
        others += [(FLOAT32, FLOAT32)] if (FLOAT32, "step") in seconds else []
        for name, (label, other) in itertools.product(("step", "kernel"), others):
            if name in own and other and other != side.name:
                row |= ratio(f"{name}: {label} / this", seconds[other, name] / own[name])
        row["note"] = side.note
        rows.append(row)
    return rows


def summary(name: str, values: pd.Series) -> dict[str, float]:
    """Median, interval, and the 20th and 80th percentile of a time."""
    found = interval(name, values)
    return found | {f"{name}, p{p}": float(values.quantile(p / 100)) for p in (20, 80)}


def interval(name: str, values: pd.Series) -> dict[str, float]:
    """`timing.with_interval` of the rounds that have a value; NaN if half of them have none."""
    known = values.dropna()
    if known.empty or 2 * len(known) < len(values):
        return dict.fromkeys((name, *(name + end for end in tables.ENDS)), math.nan)
    return timing.with_interval(name, known)


def ratio(name: str, values: pd.Series) -> dict[str, float | str]:
    """How many times faster, with interval and verdict."""
    found: dict = interval(name, values)
    if not math.isnan(found[name]):
        found[f"{name}, verdict"] = timing.verdict(*(found[name + end] for end in tables.ENDS))
    return found
