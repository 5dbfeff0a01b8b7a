"""What a sweep will do, before it does it: its configurations, its chunks, what they cost."""

import math
import os
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import pandas as pd
import torch

from experiments import grid, optimizers, population, problems
from experiments.grid import OptionError
from experiments.schedules import SCHEDULES


class Plan(NamedTuple):
    """What a sweep will do: everything that decides its results, and how it is cut into chunks.

    Attributes:
        chunks: what is trained at once: the name of an optimizer, and configurations, one row each.
        chunk_bytes: memory of the largest chunk.
    """

    identity: dict
    problem: problems.Problem
    seeds: list[int]
    steps: int
    device: str
    chunks: list[tuple[str, pd.DataFrame]]
    chunk_bytes: int

    @property
    def training(self) -> dict:
        """How runs are trained, as arguments of `population.train`."""
        names = ("steps", "batch_size", "accumulate", "schedule", "warmup")
        return {**{name: self.identity[name] for name in names}, "device": self.device}

    @property
    def n_runs(self) -> dict[str, int]:
        """Runs of each optimizer."""
        counts = dict.fromkeys(self.identity["optimizers"], 0)
        for name, configs in self.chunks:
            counts[name] += len(configs) * len(self.seeds)
        return counts


def make_plan(
    task: str,
    *,
    model: str | None,
    optimizer: str | type | Iterable[str | type],
    axes: Mapping[str, float | Iterable[float] | None],
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
) -> Plan:
    """Check everything and load the data; arguments as of `sweep`. Raises: OptionError or DataError."""
    problems.check_model(task, model, hidden, dropout)
    given = {axis: grid.check_axis(axis, as_list(values)) for axis, values in axes.items() if values is not None}
    grids = optimizers.grids(optimizers.names_of(optimizer), given)
    configs = {name: grid.configurations(values) for name, values in grids.items()}
    for name, table in configs.items():
        optimizers.check(name, table)
    for name, value in (
        ("seeds", seeds),
        ("batch-size", batch_size),
        ("accumulate", accumulate),
        ("evaluations", evaluations),
    ):
        if value is not None and value < 1:
            raise OptionError(f"--{name} accepts whole numbers from 1, not {value}")
    if steps is not None and epochs is not None:
        raise OptionError("--steps and --epochs exclude each other: give one of them")
    for name, length in (("steps", steps), ("epochs", epochs)):
        if length is not None and not 0 < length < math.inf:
            raise OptionError(f"--{name} accepts positive numbers, not {length:g}")
    device = resolve_device(device)

    if schedule not in SCHEDULES:
        raise OptionError(f"--schedule accepts {', '.join(SCHEDULES)}, not {schedule!r}")

    problem = problems.make(task, model, hidden, data_dir, condition_number, dropout)
    n_train, batch_size = len(problem.data.x_train), batch_size or problem.batch_size
    if batch_size * accumulate > n_train:
        product = " times --accumulate" * (accumulate > 1)
        raise OptionError(
            f"--batch-size{product} accepts at most the {n_train} training examples of {problem.data.name}"
        )
    if epochs is None:
        steps = steps or problem.steps
    if steps is None:
        steps = max(1, round((epochs or 1) * (n_train // (batch_size * accumulate))))
    if not 0 <= warmup < steps:
        raise OptionError(f"--warmup accepts whole numbers from 0 to below the {steps} steps of a run, not {warmup}")
    config_bytes = seeds * population.lane_bytes(problem.model, batch_size)
    per_chunk = max(1, memory_budget(device) // config_bytes)
    chunks = [(name, chunk) for name, table in configs.items() for chunk in cut(table, per_chunk)]
    identity = {
        "task": task,
        "model": problem.model.name,
        "optimizers": grids,
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
        seeds=list(range(seeds)),
        steps=steps,
        device=device,
        chunks=chunks,
        chunk_bytes=max(len(chunk) for _, chunk in chunks) * config_bytes,
    )


def cut(configs: pd.DataFrame, per_chunk: int) -> list[pd.DataFrame]:
    """The rows in as few chunks as will do, of nearly equal sizes."""
    size = math.ceil(len(configs) / math.ceil(len(configs) / per_chunk))
    return [configs.iloc[i : i + size].reset_index(drop=True) for i in range(0, len(configs), size)]


def as_list(values: float | Iterable[float]) -> list[float]:
    return [float(v) for v in values] if isinstance(values, Iterable) else [float(values)]


def resolve_device(device: str) -> str:
    """The device to run on. Raises: OptionError if it is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise OptionError(f"--device accepts auto, cpu, cuda or cuda:N, not {device!r}") from None
    if wanted.type not in ("cpu", "cuda"):
        raise OptionError(f"--device accepts auto, cpu, cuda or cuda:N, not {device!r}")
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise OptionError(
            f"--device {device}: this machine has {torch.cuda.device_count()} CUDA devices; use auto or cpu"
        )
    return device


def memory_budget(device: str) -> int:
    """Bytes that a chunk may take: half of what is free."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0] // 2
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError, AttributeError):
        return 4 * 2**30


def estimate_seconds(plan: Plan) -> float:
    """How long the plan will take on this machine, from eight measured steps of at most 128 lanes of each optimizer."""

    def sample_run(name: str, configs: pd.DataFrame, steps: int) -> tuple[float, float]:
        started = time.perf_counter()
        _, curves = population.train(
            plan.problem,
            configs,
            plan.seeds,
            optimizer=name,
            evaluations=1,
            **{**plan.training, "steps": steps, "warmup": 0},
        )
        training = curves["seconds"].max()
        return training / steps, (time.perf_counter() - started - training) / 2

    total, first_chunks = 0.0, dict(reversed(plan.chunks))
    for name, chunk in first_chunks.items():
        sample = chunk[: max(1, 128 // len(plan.seeds))]
        sample_run(name, sample[:1], 2)  # compiles
        per_step, per_evaluation = sample_run(name, sample, 8)
        share = plan.n_runs[name] / (len(sample) * len(plan.seeds))
        total += share * (plan.steps * per_step + (plan.identity["evaluations"] + 1) * per_evaluation)
    return total


def describe(plan: Plan, seconds: float) -> str:
    """The plan in a few lines."""
    n_runs, n_seeds, n_chunks = sum(plan.n_runs.values()), len(plan.seeds), len(plan.chunks)
    grids = {
        name: {grid.option(axis): " ".join(f"{v:g}" for v in values) for axis, values in axes.items()}
        for name, axes in plan.identity["optimizers"].items()
    }
    axes = next(iter(grids.values()))
    if len(grids) > 1:
        axes = {name: "  ".join(map(" ".join, axes.items())) for name, axes in grids.items()}
    lanes = max(len(configs) for _, configs in plan.chunks) * n_seeds
    lines = {
        "trains": f"{plan.problem.data.name}, {plan.problem.model.name}, {', '.join(grids)}",
        **axes,
        "runs": f"{n_runs} ({n_runs // n_seeds} configurations x {n_seeds} seeds), {plan.steps} steps each",
        "lanes": f"{lanes} at once, in {n_chunks} chunk{'s' * (n_chunks > 1)}",
        "memory": f"{plan.chunk_bytes / 2**20:.0f} MiB a chunk on {plan.device}",
        "estimated time": f"{seconds:.0f} s",
    }
    width = max(16, *(len(name) + 2 for name in lines))
    return "\n".join(f"{name:{width}}{value}" for name, value in lines.items())
