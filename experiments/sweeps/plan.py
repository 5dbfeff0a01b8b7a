"""The plan of a sweep: its configurations, its runs, and how many are trained at once."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.common import ambient, devices, files, values
from experiments.common.errors import OptionError
from experiments.sweeps import cost, memory, space
from experiments.sweeps.config import SweepConfig
from experiments.sweeps.space import Range
from experiments.tasks import own, problems
from experiments.training import diagnostics, optimizers


class Plan(NamedTuple):
    """All that determines the results of a sweep, and how it is cut into chunks.

    Attributes:
        config: the options as the user gave them.
        identity: the options with their defaults filled in, as provenance.json has them under `sweep`.
        runs: one row each, in the order of the results: optimizer, the axes, seed, and the number of the configuration.
        lanes: largest number of runs that are trained at once.
        memory: what they take.
    """

    config: SweepConfig
    identity: dict
    problem: problems.Problem
    steps: int
    device: str
    runs: pd.DataFrame
    lanes: int
    memory: memory.Memory

    @property
    def training(self) -> dict:
        """The options of training, as arguments of `population.train_lanes`."""
        names = ("steps", "batch_size", "accumulate", "schedule", "warmup")
        found = {name: self.identity[name] for name in names}
        found |= {"eval_examples": self.identity.get("eval_examples"), "diagnostics": "diagnostics" in self.identity}
        return {**found, "device": self.device}

    @property
    def n_runs(self) -> dict[str, int]:
        """The number of runs of each optimizer."""
        return self.runs["optimizer"].value_counts(sort=False).to_dict()


@ambient.pinned()
def make_plan(config: SweepConfig) -> Plan:
    """Check all options and load the data. Raises: OptionError or DataError."""
    if config.out is not None:
        files.check_folder(config.out)
    task = own.name_of(config.task)
    problems.check(task, config.model, **config.of_problem)
    grids = space.grids(optimizers.names_of(config.optimizer), config.axes)
    drawn = None if config.sample is None else space.parse_sample(config.sample)
    if config.steps is not None and config.epochs is not None:
        raise OptionError("--steps and --epochs exclude each other: give one of them")
    device = devices.resolve_device(config.device, config.engine)
    if config.engine == "local":
        devices.check_kernels(device)
    n_configs = drawn[1] * len(grids) if drawn else sum(math.prod(map(len, own.values())) for own in grids.values())
    points = config.evaluations if config.steps is None else min(config.evaluations, config.steps)
    cost.check_room(config.out, n_configs * config.seeds, points + 1)
    configs = {
        name: space.sampled_configurations(own, *drawn) if drawn else space.grid_configurations(own)
        for name, own in grids.items()
    }
    for name, table in configs.items():
        optimizers.check_values(name, table)

    problem = problems.make(task, config.model, **config.of_problem)
    batch_size = config.batch_size or problem.batch_size
    steps = steps_of(config, problem, batch_size)
    if config.engine == "local":
        cost.check_fits(problem.model, batch_size, device)
    copies = diagnostics.copies(steps, config.evaluations) if config.diagnostics else 0
    needed = memory.measure(problem, batch_size, config.accumulate, config.seeds, configs, copies)
    identity = {
        "task": task,
        "model": problem.model.name,
        "optimizers": {
            name: {axis: str(own) if isinstance(own, Range) else own for axis, own in axes.items()}
            for name, axes in grids.items()
        },
        "sample": config.sample,
        "seeds": config.seeds,
        "steps": steps,
        "batch_size": batch_size,
        "accumulate": config.accumulate,
        "schedule": config.schedule,
        "warmup": config.warmup,
        "evaluations": config.evaluations,
        "data": problem.data.name,
        "data_source": problem.data.origin,
    }
    if config.eval_examples is not None:
        if config.eval_examples > (most := len(problem.data.x_eval)):
            raise OptionError(f"--eval-examples accepts at most the {most} evaluation examples of {problem.data.name}")
        # Sweeps without this option are those of earlier versions.
        identity["eval_examples"] = config.eval_examples
    if config.diagnostics:
        identity["diagnostics"] = True
    return Plan(
        config=config,
        identity=identity,
        problem=problem,
        steps=steps,
        device=device,
        runs=runs_of(configs, config.seeds),
        lanes=cost.lanes_at_once(problem.model, batch_size, device, needed),
        memory=needed,
    )


def steps_of(config: SweepConfig, problem: problems.Problem, batch_size: int) -> int:
    """Return the steps of a run. Raises: OptionError, also if the warm-up is as long, or a batch exceeds the data."""
    n_train, per_step = len(problem.data.x_train), batch_size * config.accumulate
    if per_step > n_train:
        product = " times --accumulate" * (config.accumulate > 1)
        raise OptionError(
            f"--batch-size{product} accepts at most the {n_train} training examples of {problem.data.name}"
        )
    if config.epochs is not None:
        steps = max(1, round(config.epochs * (n_train // per_step)))
    else:
        steps = config.steps or problem.steps or max(n_train, problem.examples) // per_step
    if steps > values.MOST:
        raise OptionError(f"--epochs accepts as many as make at most {values.MOST} steps, not {config.epochs:g}")
    if not config.warmup < steps:
        raise OptionError(
            f"--warmup accepts whole numbers from 0 to below the {steps} steps of a run, not {config.warmup}"
        )
    return steps


def runs_of(configs: Mapping[str, pd.DataFrame], seeds: int) -> pd.DataFrame:
    """Return every configuration of every optimizer with every seed, seed by seed; `config` numbers configurations."""
    numbered, n = [], 0
    for name, table in configs.items():
        rows = np.tile(np.arange(len(table)), seeds)
        of_name = table.iloc[rows].assign(seed=np.repeat(np.arange(seeds), len(table)), config=n + rows)
        of_name.insert(0, "optimizer", name)
        numbered.append(of_name)
        n += len(table)
    return pd.concat(numbered, ignore_index=True)
