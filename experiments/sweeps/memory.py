"""The memory that a population takes, counted in real steps of a few lanes."""

import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from experiments.common.errors import OptionError, first_line
from experiments.tasks import model as models
from experiments.tasks.any_module import AnyModel
from experiments.tasks.problems import Problem
from experiments.training import optimizers, population

SLACK = 1.25
"""Resident memory over live tensors: malloc keeps gaps. Measured: 1.03 to 1.15 for CNNs, 1.2 to 1.6 for others."""
EVALUATION = 2 * 2**24
"""Bytes of the two largest activations of an evaluation; see `evaluation.evaluate`."""


class Memory(NamedTuple):
    """The memory of a population in training, by the bytes of its live tensors.

    Attributes:
        fixed, per_lane: of a step: a part for all lanes together, and a part for each.
        at_rest: of a lane between two steps: parameters, gradients and states.
    """

    fixed: float
    per_lane: float
    at_rest: float

    def of(self, lanes: int) -> float:
        """Return the resident memory of so many lanes, bytes."""
        return SLACK * max(self.fixed + lanes * self.per_lane, EVALUATION + lanes * self.at_rest)

    def lanes(self, budget: float) -> int:
        """Return how many lanes fit into so many bytes."""
        live = budget / SLACK
        return int(min((live - self.fixed) / self.per_lane, (live - EVALUATION) / self.at_rest))


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that operations make while it is active, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak, self.known = 0, 0, set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch from importing its compiler, which takes a second, only to keep it out of `__torch_dispatch__`."""
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf.untyped_storage())
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            weakref.finalize(storage, self.drop, key, size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


class Unmoved:
    """Has the place of an optimizer, and does nothing.

    Under a dispatch mode ours would take its slow way, with temporaries; and torch's import its compiler.
    """

    def zero_grad(self, set_to_none: bool = True) -> None: ...

    def step(self) -> None: ...


def measure(
    problem: Problem,
    batch_size: int,
    accumulate: int,
    seeds: int,
    configs: Mapping[str, pd.DataFrame],
    copies: int = 0,
) -> Memory:
    """Count the memory of a training step, for two numbers of lanes on the CPU; takes a tenth of a second to one.

    Torch's generators do not change. On a GPU the same is expected: its allocator's rounding is not counted.

    Args:
        seeds: number of batches that are in memory at the same time.
        configs: the configurations of each optimizer; that with the largest states counts.
        copies: of the parameters, that are kept beside the states, as of `diagnostics.copies`.
    Raises: OptionError if an optimizer cannot take a step of two lanes.
    """
    few = problem.model.grain
    x, y = (t[: batch_size * accumulate].unsqueeze(0).clone() for t in (problem.data.x_train, problem.data.y_train))
    low, high = (counted(problem.model, lanes, x, y, accumulate) for lanes in (few, 2 * few))
    per_lane = (high - low) / few
    n_params, batches = problem.model.n_params, seeds * (x.nbytes + y.nbytes)
    states = 4 * n_params * (copies + max(states_of(name, table) for name, table in configs.items()))
    kept = sum(t.nbytes for t in models.stack_others(problem.model, [0], 1))
    return Memory(max(0.0, low - few * per_lane) + batches, per_lane + states, 8 * n_params + kept + states)


def counted(model: AnyModel, lanes: int, x: torch.Tensor, y: torch.Tensor, accumulate: int) -> int:
    """Return the largest number of bytes of parameters, gradients and activations that live during a step."""
    draws = population.draws_of(model, [0], 1, x.shape[1])
    with Live() as live:
        params, others = models.stack(model, [0], lanes), models.stack_others(model, [0], lanes)
        optimizer: Any = Unmoved()
        population.step_(params, optimizer, x, y, draws, model=model, others=others, accumulate=accumulate)
    return live.peak


def states_of(name: str, configs: pd.DataFrame) -> float:
    """Return how many float32 an optimizer keeps for each element of a parameter. Raises: OptionError, as `measure`."""
    most = 0.0
    for group in optimizers.alike(configs):
        p = torch.zeros(2 * len(group), 8, requires_grad=True)
        p.grad = torch.ones_like(p)
        try:
            optimizer = optimizers.make(name, [p], optimizers.over_lanes(group, 2))
            optimizer.step()
        # A user's class may raise anything.
        except Exception as error:
            raise OptionError(f"--optimizer {name} cannot take a step of two lanes ({first_line(error)})") from error
        states = [t for t in tree_leaves(dict(optimizer.state[p])) if isinstance(t, torch.Tensor)]
        most = max(most, sum(t.nbytes for t in states if t.numel() >= p.numel()) / (4 * p.numel()))
    return most
