"""The lanes of a population: their tensors, and their state as trees of tensors from which lanes can be taken."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from experiments.tasks import model
from experiments.tasks.problems import Problem
from experiments.training import optimizers

FEWEST = 8
"""Dead lanes leave when they are at least one of so many: rebuilding a population costs about a step."""


class Lanes(NamedTuple):
    """The lanes that are trained now, `[K, ...]` each, with as many lanes of every seed; steps change all in place.

    Attributes:
        numbers: int64 `[K]`, which lanes of the whole population these are, seed by seed.
        diverged_at: the step at which a lane diverged, 0 if it has not.
        loss_sum: of training losses since the last evaluation, float64.
        loss_limit: the training loss beyond which a lane has diverged.
    """

    numbers: np.ndarray
    params: list[torch.Tensor]
    others: list[torch.Tensor]
    optimizer: torch.optim.Optimizer
    diverged_at: torch.Tensor
    loss_sum: torch.Tensor
    loss_limit: torch.Tensor


def begin(
    problem: Problem,
    optimizer: str,
    table: pd.DataFrame,
    seeds: Sequence[int],
    numbers: np.ndarray,
    dtype: torch.dtype,
    device: str,
) -> Lanes:
    """Return lanes before their first step.

    Args:
        table: the configuration of each lane of the whole population.
        numbers: the lanes to return, as many of each seed.
    """
    of_seed, n = len(numbers) // len(seeds), len(numbers)
    params = model.stack(problem.model, seeds, of_seed, dtype, device)
    return Lanes(
        numbers,
        params,
        model.stack_others(problem.model, seeds, of_seed, dtype, device),
        optimizers.make(optimizer, params, optimizers.over_lanes(table.iloc[numbers], 1, device)),
        torch.zeros(n, dtype=torch.int64, device=device),
        torch.zeros(n, dtype=torch.float64, device=device),
        torch.zeros(n, dtype=dtype, device=device),
    )


def state_of(lanes: Lanes) -> dict[str, Any]:
    """Return the state of lanes, without copying its tensors."""
    of = {**lanes._asdict(), "params": [p.detach() for p in lanes.params], "optimizer": lanes.optimizer.state_dict()}
    return {**of, "numbers": torch.from_numpy(lanes.numbers)}


def load(lanes: Lanes, state: dict[str, Any]) -> None:
    """Copy a `state_of` as many lanes, on any device, into lanes, in place."""
    device = lanes.diverged_at.device
    groups = [
        {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in group.items()}
        for group in state["optimizer"]["param_groups"]
    ]
    lanes.optimizer.load_state_dict({**state["optimizer"], "param_groups": groups})
    with torch.no_grad():
        for t, saved in zip([*lanes.params, *lanes.others], [*state["params"], *state["others"]], strict=True):
            t.copy_(saved)
        for name in ("diverged_at", "loss_sum", "loss_limit"):
            getattr(lanes, name).copy_(state[name])


def gathered(chosen: Iterable[tuple[dict[str, Any], Sequence[int]]]) -> dict[str, Any]:
    """Return the state from which lanes of several trainings go on together, as `population.train_lanes` resumes it.

    chosen: what `keep` got there, after the same step, which was evaluated, and the numbers of the lanes to take.
    """
    parts, seconds, step = [], [], 0
    # One after the other, because each may be as large as memory allows.
    for state, numbers in chosen:
        place = {int(number): i for i, number in enumerate(state["lanes"]["numbers"])}
        parts.append(joined([state["lanes"]], [np.array([place[number] for number in numbers], dtype=np.int64)]))
        seconds.append(state["run_seconds"][list(numbers)])
        step = state["step"]
    n = sum(map(len, seconds))
    lanes = joined(parts, [np.arange(len(of)) for of in seconds]) | {"numbers": torch.arange(n)}
    of_all = {"reached": lanes["diverged_at"].cpu(), "run_seconds": torch.cat(seconds)}
    none = {"since": 0, "points": [], "shared": 0.0, "seconds": 0.0, "compile_seconds": 0.0}
    return {"step": step, "lanes": lanes, **of_all, **none}


def joined(states: Sequence[dict[str, Any]], chosen: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return the state of the lanes that are chosen from the states of several populations, one after the other.

    Tensors whose first dimension is the number of lanes hold a value, or more, for each; all else is the same in every
    state, except that a hyperparameter may be one number for all lanes, and that an optimizer may lack a state that
    none of its lanes needs, which is zero then.

    chosen: int64 indices into the lanes of each state.
    """
    picks = [torch.from_numpy(of) for of in chosen]
    return _joined(states, [len(state["numbers"]) for state in states], picks)


def _joined(trees: Sequence[Any], sizes: list[int], picks: list[torch.Tensor]) -> Any:
    first = next((tree for tree in trees if tree is not None), None)
    if isinstance(first, dict):
        names = dict.fromkeys(name for tree in trees if tree is not None for name in tree)
        return {name: _joined([tree and tree.get(name) for tree in trees], sizes, picks) for name in names}
    if isinstance(first, list | tuple):
        return type(first)(_joined(of, sizes, picks) for of in zip(*trees, strict=True))
    like = next((t for t, n in zip(trees, sizes, strict=True) if isinstance(t, torch.Tensor) and of_lanes(t, n)), None)
    if like is None:
        return first
    parts = []
    for t, n, pick in zip(trees, sizes, picks, strict=True):
        if isinstance(t, torch.Tensor) and of_lanes(t, n):
            parts.append(t.detach()[pick.to(t.device)])
        else:
            value = 0.0 if t is None else float(t)
            parts.append(torch.full((len(pick), *like.shape[1:]), value, dtype=like.dtype, device=like.device))
    return torch.cat(parts)


def of_lanes(t: torch.Tensor, n: int) -> bool:
    """Return whether a tensor of a state of n lanes has a value, or more, for each."""
    return t.ndim > 0 and len(t) == n


def remaining(dead: np.ndarray, n_seeds: int) -> np.ndarray:
    """Return the indices of the lanes to go on with, as many of each seed; none if all are dead.

    A seed with fewer living lanes than another goes on with some of its dead ones. dead: bool `[K]`.
    """
    of_seed = dead.reshape(n_seeds, -1)
    most = int((~of_seed).sum(1).max())
    living_first = np.sort(np.argsort(of_seed, axis=1, kind="stable")[:, :most], axis=1)
    return (living_first + of_seed.shape[1] * np.arange(n_seeds)[:, None]).ravel()
