"""What a sweep will do, before it does it: its configurations, its chunks, what they cost."""

import math
import os
import time
from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd
import torch

from experiments import grid, population, problems
from experiments.grid import AXES, OptionError


class Plan(NamedTuple):
    """What a sweep will do: everything that decides its results, and how it is cut into chunks."""

    identity: dict
    problem: problems.Problem
    configs: pd.DataFrame
    seeds: list[int]
    steps: int
    device: str
    chunks: list[pd.DataFrame]
    chunk_bytes: int


def make_plan(
    task: str,
    *,
    model: str | None,
    optimizer: str,
    axes: dict,
    seeds: int,
    epochs: float | None,
    steps: int | None,
    batch_size: int,
    hidden: int | None,
    condition_number: float,
    evaluations: int,
    data_dir: str | os.PathLike[str] | None,
    device: str,
) -> Plan:
    """Check everything and load the data; arguments as of `sweep`. Raises: OptionError or DataError."""
    problems.check_model(task, model, hidden)
    values = {axis: grid.check_axis(axis, as_list(axes[axis])) for axis in AXES}
    if optimizer not in population.OPTIMIZERS:
        raise OptionError(f"--optimizer accepts {' or '.join(population.OPTIMIZERS)}, not {optimizer!r}")
    for name, value in (("seeds", seeds), ("batch-size", batch_size), ("evaluations", evaluations)):
        if value < 1:
            raise OptionError(f"--{name} accepts whole numbers from 1, not {value}")
    if steps is not None and epochs is not None:
        raise OptionError("--steps and --epochs exclude each other: give one of them")
    for name, length in (("steps", steps), ("epochs", epochs)):
        if length is not None and not 0 < length < math.inf:
            raise OptionError(f"--{name} accepts positive numbers, not {length:g}")
    device = resolve_device(device)

    problem = problems.make(task, model, hidden, data_dir, condition_number)
    n_train = len(problem.data.x_train)
    if batch_size > n_train:
        raise OptionError(f"--batch-size accepts at most the {n_train} training examples of {problem.data.name}")
    if steps is None:
        steps = max(1, round((epochs or 1) * (n_train // batch_size)))
    configs = grid.configurations(values)
    config_bytes = seeds * population.lane_bytes(problem.model, batch_size)
    per_chunk = max(1, min(len(configs), memory_budget(device) // config_bytes))
    n_chunks = math.ceil(len(configs) / per_chunk)
    size = math.ceil(len(configs) / n_chunks)
    identity = {
        "task": task,
        "model": problem.model.name,
        "optimizer": optimizer,
        "axes": values,
        "seeds": seeds,
        "steps": steps,
        "batch_size": batch_size,
        "evaluations": evaluations,
        "data": problem.data.name,
        "data_source": problem.data.source if task == "regression" else problem.data.name,
    }
    return Plan(
        identity=identity,
        problem=problem,
        configs=configs,
        seeds=list(range(seeds)),
        steps=steps,
        device=device,
        chunks=[configs.iloc[i : i + size].reset_index(drop=True) for i in range(0, len(configs), size)],
        chunk_bytes=size * config_bytes,
    )


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
    """How long the plan will take on this machine, from eight measured steps of at most 128 of its lanes."""
    sample = plan.chunks[0][: max(1, 128 // len(plan.seeds))]

    def sample_run(configs: pd.DataFrame, steps: int) -> tuple[float, float]:
        started = time.perf_counter()
        _, curves = population.train(
            plan.problem,
            configs,
            plan.seeds,
            optimizer=plan.identity["optimizer"],
            steps=steps,
            batch_size=plan.identity["batch_size"],
            evaluations=1,
            device=plan.device,
        )
        training = curves["seconds"].max()
        return training / steps, (time.perf_counter() - started - training) / 2

    sample_run(sample[:1], 2)  # compiles
    per_step, per_evaluation = sample_run(sample, 8)
    share = len(plan.configs) / len(sample)
    return share * (plan.steps * per_step + (plan.identity["evaluations"] + 1) * per_evaluation)
