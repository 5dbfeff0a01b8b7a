"""A description of a sweep, and an estimate of its time, without training it."""

import time

import pandas as pd

from experiments.common import values
from experiments.sweeps import chunks
from experiments.sweeps.plan import Plan
from experiments.training import axes, population


def estimate_seconds(plan: Plan) -> float:
    """Estimate the seconds of a plan on this machine from eight steps of at most 128 lanes of each optimizer."""

    def sample_run(name: str, configs: pd.DataFrame, steps: int) -> tuple[float, float]:
        started = time.perf_counter()
        _, curves = population.train_lanes(
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
    for name, n_runs in plan.n_runs.items():
        runs = plan.runs.loc[plan.runs["optimizer"] == name]
        of_one_seed = runs.loc[runs["seed"] == 0, list(axes.AXES)]
        sample = of_one_seed[: max(1, min(128, plan.lanes) // len(seeds))]
        sample_run(name, sample[:1], 2)  # compiles
        per_step, per_evaluation = sample_run(name, sample, 8)
        share = n_runs / (len(sample) * len(seeds))
        total += share * (plan.steps * per_step + (plan.identity["evaluations"] + 1) * per_evaluation)
    return total


def describe(plan: Plan, seconds: float) -> str:
    """Return the plan in a few lines of text. seconds: as of `estimate_seconds`."""
    n_runs, n_seeds = len(plan.runs), plan.identity["seeds"]
    parts = chunks.cut(plan.runs, plan.lanes)
    n_chunks, lanes = len(parts), max(map(len, parts))
    grids = {
        name: {
            values.option(axis): own if isinstance(own, str) else " ".join(f"{v:g}" for v in own)
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
        "memory": f"{plan.memory.of(lanes) / 2**20:.0f} MiB a chunk on {plan.device}",
        "estimated time": f"{seconds:.0f} s",
    }
    width = max(16, *(len(name) + 2 for name in lines))
    return "\n".join(f"{name:{width}}{value}" for name, value in lines.items())
