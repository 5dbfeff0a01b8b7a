"""The plan of a sweep: its configurations, its runs, and how many are trained at once."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.common import ambient, devices, files, values
from experiments.common.errors import OptionError
from experiments.common.values import option
from experiments.sweeps import configs_file, cost, memory, space
from experiments.sweeps.config import SweepConfig
from experiments.tasks import own, problems
from experiments.training import diagnostics, optimizers, variants
from experiments.training.axes import NAMED, OF_MODEL, RUN, spelled

LENGTH = "batch_size", "accumulate", "n_train", "epochs", "steps"
"""The options of a run that its number of steps may depend on."""


class Setting(NamedTuple):
    """What runs share, besides the optimizer, that can be trained together.

    Attributes:
        training: arguments of `population.train_lanes`, except the device.
        lanes: largest number of runs that are trained at once.
        memory: what they take.
    """

    problem: problems.Problem
    training: dict[str, Any]
    lanes: int
    memory: memory.Memory


class Plan(NamedTuple):
    """All that determines the results of a sweep, and how it is cut into chunks.

    Attributes:
        config: the options as the user gave them.
        identity: the options with their defaults filled in, as provenance.json has them under `sweep`; those that are
            axes are among the `optimizers`.
        settings: more than one if options of a run are axes.
        runs: one row each, in the order of the results: optimizer, the axes, seed, the numbers of the configuration and
            of the setting, and steps.
    """

    config: SweepConfig
    identity: dict
    settings: list[Setting]
    device: str
    runs: pd.DataFrame

    @property
    def problem(self) -> problems.Problem:
        """The problem of the first setting: all have its task, its data but for their number, and its loss."""
        return self.settings[0].problem

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
    drawn = None if config.sample is None else space.parse_sample(config.sample)
    grids, listed = search_space(config)
    of_run = [name for name in RUN if any(axis.name == name for grid in grids.values() for axis in grid)]
    for name in of_run:
        if getattr(config, name) != getattr(SweepConfig, name):
            raise OptionError(f"{option(name)} and --axis {name} exclude each other: give one of them")
    if sum(name in of_run or getattr(config, name) is not None for name in ("steps", "epochs")) > 1:
        raise OptionError("--steps and --epochs exclude each other: give one of them")
    device = devices.resolve_device(config.device, config.engine)
    if config.engine == "local":
        devices.check_kernels(device)
    points = config.evaluations if config.steps is None else min(config.evaluations, config.steps)
    n_configs = sum(map(len, listed.values())) or number_of(grids, drawn)
    cost.check_room(config.out, n_configs * config.seeds, points + 1)
    configs = listed or {
        name: space.sampled_configurations(grid, *drawn) if drawn else space.grid_configurations(grid)
        for name, grid in grids.items()
    }
    check_columns(configs)
    for name, table in configs.items():
        optimizers.check_values(name, table)
    check_options_of_model(config, task, configs)

    problem = problems.make(task, config.model, **config.of_problem)
    runs = runs_of(configs, config.seeds)
    # NaN takes the option of the whole sweep.
    chosen: list[dict[str, Any]] = [{}]
    runs["setting"] = 0
    if of_run:
        different = runs[of_run].drop_duplicates()
        chosen = [dict(zip(of_run, row, strict=True)) for row in different.itertuples(index=False)]
        numbers = different.assign(setting=range(len(chosen)))
        runs["setting"] = runs[of_run].merge(numbers, how="left")["setting"]
    measured: dict[tuple, memory.Memory] = {}
    settings = [setting_of(config, problem, row, device, configs, measured) for row in chosen]
    check_different(runs, chosen, settings)
    runs["steps"] = [settings[number].training["steps"] for number in runs["setting"]]
    return Plan(config, identity_of(config, problem, grids, settings, of_run), settings, device, runs)


def search_space(config: SweepConfig) -> tuple[dict[str, space.Grid], dict[str, pd.DataFrame]]:
    """Return the values of each axis of each optimizer, and the configurations if --configs lists them, else none."""
    given, names = space.given_axes(config), optimizers.names_of(config.optimizer)
    if config.configs is None:
        return space.grids(names, given, config.tie, config.sample is not None), {}
    if given or config.tie or config.sample:
        others = [
            *map(spelled, given),
            *["--tie"] * bool(config.tie),
            *["--sample"] * bool(config.sample),
        ]
        raise OptionError(f"--configs holds all configurations, and excludes {', '.join(others)}")
    return configs_file.configurations(config.configs, names)


def number_of(grids: Mapping[str, space.Grid], drawn: tuple[str, int] | None) -> int:
    """Return the number of configurations. drawn: how many are sampled of each optimizer."""
    if drawn:
        return drawn[1] * len(grids)
    lists = [[values for values in grid.values() if isinstance(values, list)] for grid in grids.values()]
    return sum(math.prod(map(len, of_one)) for of_one in lists)


def check_options_of_model(config: SweepConfig, task: str, configs: Mapping[str, pd.DataFrame]) -> None:
    """Raise OptionError if the model lacks an option that is an axis."""
    for name in ("hidden", "dropout"):
        for value in {value for table in configs.values() if name in table for value in table[name].dropna()}:
            problems.check(task, config.model, **{**config.of_problem, name: RUN[name].kind.take(value)})


def check_columns(configs: Mapping[str, pd.DataFrame]) -> None:
    """Raise OptionError if an axis holds words of one optimizer and numbers of another."""
    words = {axis for table in configs.values() for axis in optimizers.words_of(table)}
    for axis in sorted(words):
        if numbers := [name for name, table in configs.items() if axis in table and table[axis].dtype.kind != "O"]:
            raise OptionError(
                f"{spelled(axis)} accepts numbers for {numbers[0]} and words for others: sweep one of them"
            )


def check_different(runs: pd.DataFrame, chosen: list[dict[str, Any]], settings: list[Setting]) -> None:
    """Raise OptionError if two settings of an optimizer are the same runs, because their epochs make as many steps."""
    seen: dict[tuple, int] = {}
    for name, number in runs[["optimizer", "setting"]].drop_duplicates().itertuples(index=False):
        problem, training = settings[number].problem, settings[number].training
        what = name, problem.model.name, len(problem.data.x_train), *training.values()
        if (first := seen.setdefault(what, number)) != number:
            both = " and ".join(f"{chosen[one]['epochs']:g}" for one in (first, number))
            raise OptionError(
                f"--axis epochs accepts numbers that differ in steps, and {both} make {training['steps']}"
            )


def setting_of(
    config: SweepConfig,
    problem: problems.Problem,
    row: Mapping[str, Any],
    device: str,
    configs: Mapping[str, pd.DataFrame],
    measured: dict[tuple, memory.Memory],
) -> Setting:
    """Return the setting of some runs. Raises: OptionError.

    Args:
        row: their values of those options that are axes.
        measured: the memory of other settings, by what it depends on; that of this one is added.
    """
    values_ = {name: RUN[name].kind.take(value) for name, value in row.items() if value == value}
    chosen = {name: values_.get(name, getattr(config, name)) for name in RUN}
    options = {name: values_[name] for name in ("hidden", "dropout") if name in values_}
    if options:
        options = {**config.of_problem, **options}
    problem = variants.variant(
        problem, config.model, n_train=chosen["n_train"], init_scale=chosen["init_scale"], **options
    )
    chosen["batch_size"] = chosen["batch_size"] or problem.batch_size
    batch_size, accumulate = chosen["batch_size"], chosen["accumulate"]
    training = {
        "steps": steps_of(chosen, problem),
        **{name: chosen[name] for name in ("batch_size", "accumulate", "schedule", "warmup")},
        "eval_examples": config.eval_examples,
        "diagnostics": config.diagnostics,
        "keep_diverged": config.keep_diverged,
    }
    if config.engine == "local":
        cost.check_fits(problem.model, batch_size, device)
    copies = diagnostics.copies(training["steps"], config.evaluations) if config.diagnostics else 0
    what = problem.model.name, batch_size, accumulate, copies
    if what not in measured:
        measured[what] = memory.measure(problem, batch_size, accumulate, config.seeds, configs, copies)
    needed = measured[what]
    return Setting(problem, training, cost.lanes_at_once(problem.model, batch_size, device, needed), needed)


def identity_of(
    config: SweepConfig,
    problem: problems.Problem,
    grids: Mapping[str, space.Grid],
    settings: list[Setting],
    of_run: list[str],
) -> dict:
    """Return the `Plan.identity`. of_run: the options of a run that are axes. Raises: OptionError."""
    training = settings[0].training
    identity = {
        "task": problem.task,
        "model": problem.model.name if {*of_run} & {*OF_MODEL} else settings[0].problem.model.name,
        "optimizers": {name: space.as_typed(grid) for name, grid in grids.items()},
        "sample": config.sample,
        "seeds": config.seeds,
        "steps": training["steps"],
        **{name: training[name] for name in ("batch_size", "accumulate", "schedule", "warmup")},
        "evaluations": config.evaluations,
        "data": problem.data.name,
        "data_source": problem.data.origin,
    }
    # Sweeps without these options are those of earlier versions.
    if config.configs is not None:
        identity["configs"] = configs_file.name_of(config.configs)
    if config.eval_examples is not None:
        if config.eval_examples > (most := len(problem.data.x_eval)):
            raise OptionError(f"--eval-examples accepts at most the {most} evaluation examples of {problem.data.name}")
        identity["eval_examples"] = config.eval_examples
    if config.n_train is not None:
        identity["n_train"] = config.n_train
    if config.init_scale != 1:
        identity["init_scale"] = config.init_scale
    if config.diagnostics:
        identity["diagnostics"] = True
    if config.halving is not None:
        identity["halving"] = config.halving
    if config.keep_diverged:
        identity["keep_diverged"] = True
    if {*of_run} & {*LENGTH} and config.steps is None:
        # Whatever values these axes have, runs are as long as this says.
        del identity["steps"]
        if config.epochs is not None:
            identity["epochs"] = config.epochs
    return {name: value for name, value in identity.items() if name not in of_run}


def steps_of(chosen: Mapping[str, Any], problem: problems.Problem) -> int:
    """Return the steps of a run. Raises: OptionError, also if the warm-up is as long, or a batch exceeds the data.

    chosen: a value, or None, for each name in `axes.RUN`.
    """
    n_train, per_step = len(problem.data.x_train), chosen["batch_size"] * chosen["accumulate"]
    if per_step > n_train:
        product = " times --accumulate" * (chosen["accumulate"] > 1)
        raise OptionError(
            f"--batch-size{product} accepts at most the {n_train} training examples of {problem.data.name}"
        )
    if (epochs := chosen["epochs"]) is not None:
        steps = max(1, round(epochs * (n_train // per_step)))
    else:
        steps = chosen["steps"] or problem.steps or max(n_train, problem.examples) // per_step
    if steps > values.MOST:
        raise OptionError(f"--epochs accepts as many as make at most {values.MOST} steps, not {epochs:g}")
    if not chosen["warmup"] < steps:
        raise OptionError(
            f"--warmup accepts whole numbers from 0 to below the {steps} steps of a run, not {chosen['warmup']}"
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
    runs = pd.concat(numbered, ignore_index=True)
    own = dict.fromkeys(axis for table in configs.values() for axis in table if axis not in (*NAMED, *RUN))
    # Those of `NAMED` are always there, as in tables of earlier versions.
    axes = [*NAMED, *own, *(axis for axis in RUN if axis in runs)]
    # Words have the type that pandas reads from a file.
    return runs.reindex(columns=["optimizer", *axes, "seed", "config"]).infer_objects()
