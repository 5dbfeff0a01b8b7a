"""What a sweep will do, before it does it: its configurations, its chunks, what they cost."""

import math
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from experiments import ambient, arguments, grid, models, optimizers, population, problems, sampling, store, values
from experiments.arguments import DEVICES, ENGINES
from experiments.grid import OptionError, Range
from experiments.optimizers import names_or_classes
from experiments.schedules import SCHEDULES
from experiments.values import Kind

KEPT_BLOCK = 32 * 2**20
"""Bytes up to which glibc's malloc gives a block of memory out again; a larger one is page-faulted in each time."""


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
        store.check_folder(out)
    problems.check_model(task, model, hidden, dropout)
    given = {axis: of_optimizers(axis, given, sample) for axis, given in axes.items() if given is not None}
    grids = optimizers.grids(optimizers.names_of(optimizer), given)
    drawn = None if sample is None else sampling.parse(sample)
    if steps is not None and epochs is not None:
        raise OptionError("--steps and --epochs exclude each other: give one of them")
    if engine not in ENGINES:
        raise OptionError(f"--engine accepts {' or '.join(ENGINES)}, not {values.shown(engine)}")
    device = resolve_device(device, engine)
    if engine == "local":
        check_kernels(device)
    n_configs = drawn[1] * len(grids) if drawn else sum(math.prod(map(len, own.values())) for own in grids.values())
    store.check_room(out, n_configs * seeds, (evaluations if steps is None else min(evaluations, steps)) + 1)
    configs = {
        name: sampling.configurations(own, *drawn) if drawn else grid.configurations(own) for name, own in grids.items()
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
    if engine == "local" and lane_bytes > (most := total_memory(device)):
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
        lanes=lanes_at_once(problem.model, batch_size, device),
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


def cut(runs: pd.DataFrame, lanes: int) -> list[pd.DataFrame]:
    """The runs in chunks of at most so many, of nearly equal sizes, each every combination of its configurations
    and seeds under one optimizer.

    Args:
        runs: rows of `Plan.runs`, any of them.
    """
    seeds_of, blocks = defaultdict(list), defaultdict(list)
    for row in zip(runs.index, runs["config"], runs["seed"], strict=True):
        seeds_of[row[1]].append((row[2], row[0]))
    # Configurations that lack the same seeds, as after a grid or the number of seeds has grown, go together.
    names = dict(zip(runs["config"], runs["optimizer"], strict=True))
    for config, lacking in seeds_of.items():
        blocks[names[config], tuple(seed for seed, _ in lacking)].append([row for _, row in lacking])
    chunks = []
    for rows in blocks.values():
        for of_seeds in pieces(list(zip(*rows, strict=True)), lanes):
            for of_configs in pieces(list(zip(*of_seeds, strict=True)), max(1, lanes // len(of_seeds))):
                by_seed = zip(*of_configs, strict=True)
                chunks.append(runs.loc[[row for of_seed in by_seed for row in of_seed]])
    return chunks


def pieces(items: list, size: int) -> list[list]:
    """The items in as few pieces as will do, of nearly equal sizes."""
    n = -(-len(items) // size)
    return [items[len(items) * i // n : len(items) * (i + 1) // n] for i in range(n)]


def lanes_at_once(model: models.Model, batch_size: int, device: str) -> int:
    """How many lanes fit into the memory budget and, on the CPU, into blocks that need no new pages in every step."""
    lanes = memory_budget(device) // population.lane_bytes(model, batch_size)
    if device == "cpu":
        lanes = min(lanes, KEPT_BLOCK // population.largest_block(model, batch_size))
    return max(1, lanes)


def of_optimizers(axis: str, given: Any, sample: str | None) -> Any:
    """The values of an axis, or its range, or a dictionary of such by the names of optimizers. Raises: OptionError."""
    found = grid.taken(axis, given, sample is not None)
    if not isinstance(found, dict):
        return found
    by = Kind("values by the names of optimizers", names_or_classes)
    owners = {owner: values.taken(grid.option(axis), owner, by) for owner in found}
    return {owner and optimizers.names_of(owners[owner])[0]: own for owner, own in found.items()}


def resolve_device(device: str, engine: str = "local") -> str:
    """The device to run on. Raises: OptionError if it is not there, which only a cluster can say of its own."""
    device = values.taken("--device", device, arguments.KINDS["device"])
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu(:0)?|cuda(:\d{1,3})?", device, re.ASCII):
        raise OptionError(f"--device accepts {DEVICES}, not {values.shown(device)}")
    if device.startswith("cpu"):
        return "cpu"
    wanted = torch.device(device)
    if engine == "local" and wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise OptionError(
            f"--device {device}: this machine has {torch.cuda.device_count()} CUDA devices; use auto or cpu"
        )
    return device


def check_kernels(device: str) -> None:
    """Raise OptionError, one sentence, if Triton cannot run kernels on a GPU, as where there is no C compiler."""
    if device.startswith("cuda"):
        from experiments import preflight  # which imports Triton

        preflight.check(device)


def total_memory(device: str) -> float:
    """Bytes of memory that the device has, whether they are free or not; infinite where nothing says it."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[1]
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return math.inf


def memory_budget(device: str) -> int:
    """Bytes that a chunk may take: half of what is free; of a cluster's GPUs, which nobody asks here, 8 GiB."""
    if not device.startswith("cuda"):
        return store.memory() // 2
    return torch.cuda.mem_get_info(device)[0] // 2 if torch.cuda.is_available() else 8 * 2**30


def estimate_seconds(plan: Plan) -> float:
    """How long the plan will take on this machine, from eight measured steps of at most 128 lanes of each optimizer."""

    def sample_run(name: str, configs: pd.DataFrame, steps: int) -> tuple[float, float]:
        started = time.perf_counter()
        _, curves = population.train(
            plan.problem,
            configs,
            seeds,
            optimizer=name,
            evaluations=1,
            **{**plan.training, "steps": steps, "warmup": 0},
        )
        training = curves["seconds"].max()
        return training / steps, (time.perf_counter() - started - training) / 2

    total, seeds = 0.0, range(plan.identity["seeds"])
    for name, runs in plan.runs.groupby("optimizer", sort=False):
        of_one_seed = runs.loc[runs["seed"] == 0, list(grid.AXES)]
        sample = of_one_seed[: max(1, min(128, plan.lanes) // len(seeds))]
        sample_run(name, sample[:1], 2)  # compiles
        per_step, per_evaluation = sample_run(name, sample, 8)
        share = plan.n_runs[name] / (len(sample) * len(seeds))
        total += share * (plan.steps * per_step + (plan.identity["evaluations"] + 1) * per_evaluation)
    return total


def describe(plan: Plan, seconds: float) -> str:
    """The plan in a few lines."""
    n_runs, n_seeds = len(plan.runs), plan.identity["seeds"]
    parts = cut(plan.runs, plan.lanes)
    n_chunks, lanes = len(parts), max(map(len, parts))
    grids = {
        name: {
            grid.option(axis): own if isinstance(own, str) else " ".join(f"{v:g}" for v in own)
            for axis, own in axes.items()
        }
        for name, axes in plan.identity["optimizers"].items()
    }
    axes = next(iter(grids.values()))
    if len(grids) > 1:
        axes = {name: "  ".join(map(" ".join, axes.items())) for name, axes in grids.items()}
    lines = {
        "trains": f"{plan.problem.data.name}, {plan.problem.model.name}, {', '.join(grids)}",
        **axes,
        **({"--sample": plan.identity["sample"]} if plan.identity["sample"] else {}),
        "runs": f"{n_runs} ({n_runs // n_seeds} configurations x {n_seeds} seeds), {plan.steps} steps each",
        "lanes": f"{lanes} at once, in {n_chunks} chunk{'s' * (n_chunks > 1)}",
        "memory": f"{lanes * plan.lane_bytes / 2**20:.0f} MiB a chunk on {plan.device}",
        "estimated time": f"{seconds:.0f} s",
    }
    width = max(16, *(len(name) + 2 for name in lines))
    return "\n".join(f"{name:{width}}{value}" for name, value in lines.items())
