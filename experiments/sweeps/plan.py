"""What a sweep will do, before it does it: its configurations, its chunks, what they cost."""

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.common import ambient, devices, files, values
from experiments.common.errors import OptionError
from experiments.common.values import Kind
from experiments.sweeps import arguments, cost, space
from experiments.sweeps.arguments import ENGINES
from experiments.sweeps.space import Range
from experiments.tasks import problems
from experiments.training import optimizers, population
from experiments.training.optimizers import names_or_classes
from experiments.training.schedules import SCHEDULES


class Plan(NamedTuple):
    """What a sweep will do: everything that decides its results, and how it is cut into chunks.

    Attributes:
        runs: one row each, in the order of the results: optimizer, the axes, seed, and the number of the configuration.
        lanes: how many runs may be trained at once.
        lane_bytes: memory that each of them takes.
    """

    identity: dict
    problem: problems.Problem
    steps: int
    device: str
    runs: pd.DataFrame
    lanes: int
    lane_bytes: int

    @property
    def training(self) -> dict:
        """How runs are trained, as arguments of `population.train`."""
        names = ("steps", "batch_size", "accumulate", "schedule", "warmup")
        return {**{name: self.identity[name] for name in names}, "device": self.device}

    @property
    def n_runs(self) -> dict[str, int]:
        """Runs of each optimizer."""
        return self.runs["optimizer"].value_counts(sort=False).to_dict()


@ambient.pinned()
@arguments.normalised
def make_plan(
    task: str,
    *,
    model: str | None,
    optimizer: str | type | Iterable[str | type],
    axes: Mapping[str, Any],
    sample: str | None = None,
    seeds: int,
    epochs: float | None,
    steps: int | None,
    batch_size: int | None,
    accumulate: int,
    schedule: str,
    warmup: int,
    dropout: float,
    hidden: int | None,
    condition_number: float,
    evaluations: int,
    data_dir: str | os.PathLike[str] | None,
    device: str,
    out: Path | None = None,
    engine: str = "local",
) -> Plan:
    """Check everything and load the data; arguments as of `sweep`. Raises: OptionError or DataError."""
    if out is not None:
        files.check_folder(out)
    problems.check_model(task, model, hidden, dropout)
    given = {axis: of_optimizers(axis, given, sample) for axis, given in axes.items() if given is not None}
    grids = space.grids(optimizers.names_of(optimizer), given)
    drawn = None if sample is None else space.parse_sample(sample)
    if steps is not None and epochs is not None:
        raise OptionError("--steps and --epochs exclude each other: give one of them")
    if engine not in ENGINES:
        raise OptionError(f"--engine accepts {' or '.join(ENGINES)}, not {values.shown(engine)}")
    device = devices.resolve_device(device, engine)
    if engine == "local":
        check_kernels(device)
    n_configs = drawn[1] * len(grids) if drawn else sum(math.prod(map(len, own.values())) for own in grids.values())
    cost.check_room(out, n_configs * seeds, (evaluations if steps is None else min(evaluations, steps)) + 1)
    configs = {
        name: space.sampled_configurations(own, *drawn) if drawn else space.grid_configurations(own)
        for name, own in grids.items()
    }
    for name, table in configs.items():
        optimizers.check(name, table)
    if schedule not in SCHEDULES:
        raise OptionError(f"--schedule accepts {', '.join(SCHEDULES)}, not {values.shown(schedule)}")

    problem = problems.make(task, model, hidden, data_dir, condition_number, dropout)
    n_train, batch_size = len(problem.data.x_train), batch_size or problem.batch_size
    if batch_size * accumulate > n_train:
        product = " times --accumulate" * (accumulate > 1)
        raise OptionError(
            f"--batch-size{product} accepts at most the {n_train} training examples of {problem.data.name}"
        )
    if epochs is None:
        steps = steps or problem.steps or max(n_train, problem.examples) // (batch_size * accumulate)
    if steps is None:
        steps = max(1, round((epochs or 1) * (n_train // (batch_size * accumulate))))
    if steps > values.MOST:
        raise OptionError(f"--epochs accepts as many as make at most {values.MOST} steps, not {epochs:g}")
    if not 0 <= warmup < steps:
        raise OptionError(f"--warmup accepts whole numbers from 0 to below the {steps} steps of a run, not {warmup}")
    lane_bytes = population.lane_bytes(problem.model, batch_size)
    if engine == "local" and lane_bytes > (most := devices.total_memory(device)):
        raise OptionError(
            f"--hidden and --batch-size accept what fits into the memory of {most / 2**30:.3g} GiB, and a run of "
            f"{problem.model.name} takes about {lane_bytes / 2**30:.3g}"
        )
    identity = {
        "task": task,
        "model": problem.model.name,
        "optimizers": {
            name: {axis: str(own) if isinstance(own, Range) else own for axis, own in axes.items()}
            for name, axes in grids.items()
        },
        "sample": sample,
        "seeds": seeds,
        "steps": steps,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "schedule": schedule,
        "warmup": warmup,
        "evaluations": evaluations,
        "data": problem.data.name,
        "data_source": problem.data.name if task == "mnist" else problem.data.source,
    }
    return Plan(
        identity=identity,
        problem=problem,
        steps=steps,
        device=device,
        runs=runs_of(configs, seeds),
        lanes=cost.lanes_at_once(problem.model, batch_size, device),
        lane_bytes=lane_bytes,
    )


def runs_of(configs: Mapping[str, pd.DataFrame], seeds: int) -> pd.DataFrame:
    """Every configuration of every optimizer with every seed, seed by seed; configurations are numbered by `config`."""
    numbered, n = [], 0
    for name, table in configs.items():
        rows = np.tile(np.arange(len(table)), seeds)
        of_name = table.iloc[rows].assign(seed=np.repeat(np.arange(seeds), len(table)), config=n + rows)
        of_name.insert(0, "optimizer", name)
        numbered.append(of_name)
        n += len(table)
    return pd.concat(numbered, ignore_index=True)


def of_optimizers(axis: str, given: Any, sample: str | None) -> Any:
    """The values of an axis, or its range, or a dictionary of such by the names of optimizers. Raises: OptionError."""
    found = space.taken(axis, given, sample is not None)
    if not isinstance(found, dict):
        return found
    by = Kind("values by the names of optimizers", names_or_classes)
    owners = {owner: values.taken(values.option(axis), owner, by) for owner in found}
    return {owner and optimizers.names_of(owners[owner])[0]: own for owner, own in found.items()}


def check_kernels(device: str) -> None:
    """Raise OptionError, one sentence, if Triton cannot run kernels on a GPU, as where there is no C compiler."""
    if device.startswith("cuda"):
        from experiments.bench import preflight  # which imports Triton

        preflight.check(device)
