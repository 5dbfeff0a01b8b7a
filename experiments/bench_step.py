"""Is our step slower than torch's, anywhere?

Each class of torch.optim that we replace, as torch runs it fastest by its own flags: with `fused=True` where it has
that on the CPU, by default otherwise. Both sides start from equal tensors and keep states of equal dtypes.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

import optim
from experiments import shapes, timing

SIZES: dict[str, list[shapes.Shape]] = {
    **{f"2^{power}": [(2**power,)] for power in (16, 20, 22, 24)},
    "ResNet-50": shapes.resnet50(),
}

STEPS_OF = 2**21
"""Elements that a timed side updates at least: small tensors take several steps."""

PLACEMENTS = 8
"""How often, in the course of the rounds, all tensors are allocated anew."""


class Case(NamedTuple):
    """One optimizer to compare: its class in torch.optim and here, and its arguments there and here."""

    name: str
    arguments: dict
    torch_only: dict
    dtype: torch.dtype = torch.float32

    @property
    def label(self) -> str:
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.arguments.items())])


FUSED = {"fused": True}
CASES = (
    Case("Adam", {}, FUSED),
    Case("AdamW", {}, FUSED),
    Case("AdamW", {}, FUSED, torch.bfloat16),
    Case("NAdam", {}, {}),
    Case("RAdam", {}, {}),
    Case("SGD", {}, FUSED),
    Case("SGD", {"momentum": 0.9}, FUSED),
    Case("Adagrad", {}, FUSED),
    Case("RMSprop", {}, {}),
    Case("Adadelta", {}, {}),
)


def make(case: Case, size: list[shapes.Shape]) -> dict[str, torch.optim.Optimizer]:
    """Both sides' optimizers, over parameters of their own that start equal, with gradients."""
    # torch keeps states in the dtype of the parameter.
    own = {"state_dtype": torch.bfloat16} if case.dtype == torch.bfloat16 else {}
    sides = {
        "torch": (getattr(torch.optim, case.name), case.torch_only),
        "ours": (getattr(optim, case.name), own),
    }
    optimizers = {}
    for side, (cls, only) in sides.items():
        generator = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(case.dtype)) for shape in size]
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(case.dtype)
        optimizers[side] = cls(params, **case.arguments, **only)
        optimizers[side].step()
    return optimizers


def step_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes that a step has to move: parameters and states are read and written, gradients are read."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    states = [v for p in params for v in optimizer.state[p].values() if torch.is_tensor(v) and v.shape == p.shape]
    return sum(2 * p.nbytes + p.grad.nbytes for p in params) + sum(2 * state.nbytes for state in states)


def time_placement(case: Case, size: str, rounds: int) -> tuple[pd.DataFrame, int]:
    """Seconds of a step of both sides, and of a copy, on tensors allocated for these rounds; bytes of a step."""
    optimizers = make(case, SIZES[size])
    moved = step_bytes(optimizers["ours"])
    # As large a working set, so that it lies in the same caches.
    source = torch.ones(moved // 4 // torch.float32.itemsize)
    target = torch.empty_like(source)
    steps = max(1, STEPS_OF // sum(math.prod(shape) for shape in SIZES[size]))

    def repeated(step: Callable[[], object]) -> Callable[[], object]:
        return lambda: [step() for _ in range(steps)]

    sides = {name: repeated(optimizer.step) for name, optimizer in optimizers.items()}
    sides["copy"] = repeated(lambda: target.copy_(source))
    bar = {"leave": False, "desc": f"{case.label}, {size}"}
    return timing.time_in_turn(sides, rounds, lambda: None, **bar) / steps, moved


def compare(case: Case, size: str, rounds: int) -> dict:
    """A row of the table."""
    # Where tensors lie, relative to each other and to pages, is luck, and decides on some tens of percent.
    placements = [time_placement(case, size, len(part)) for part in np.array_split(range(rounds), PLACEMENTS)]
    seconds, moved = pd.concat([seconds for seconds, _ in placements], ignore_index=True), placements[0][1]
    row = {
        "class": case.label,
        "dtype": str(case.dtype).removeprefix("torch."),
        "size": size,
        "elements": sum(math.prod(shape) for shape in SIZES[size]),
        "torch path": "fused" if case.torch_only else "default",
        "torch ms": seconds["torch"].median() * 1e3,
        "ours ms": seconds["ours"].median() * 1e3,
        **timing.with_interval("torch / ours", seconds["torch"] / seconds["ours"]),
    }
    row["verdict"] = timing.verdict(row["torch / ours, low"], row["torch / ours, high"])
    row["MB"] = moved / 1e6
    row["torch GB/s"] = moved / seconds["torch"].median() / 1e9
    row["ours GB/s"] = moved / seconds["ours"].median() / 1e9
    row["copy GB/s"] = moved / 2 / seconds["copy"].median() / 1e9
    return row
