"""A description of a sweep, and an estimate of its time, without training it."""

import datetime
import hashlib
import json
import math
import sys
import time
from typing import NamedTuple

import pandas as pd
import torch

from experiments.common import run_info
from experiments.sweeps import chunks, run_keys, rungs
from experiments.sweeps.plan import Plan, Setting
from experiments.training import axes, population
from kernels.files import cache_folder, keep, kept

STEPS, LANES = 8, 128
"""Steps that are measured, and the most lanes that they have."""


VARIED = ("steps", "warmup", "eval_examples")
"""Options that the estimate itself takes into account."""


class Timing(NamedTuple):
    """Seconds of a population on this machine."""

    per_step: float
    per_evaluation: float
    measured: str  # the date, UTC


class Estimate(NamedTuple):
    """Seconds of a sweep on this machine, the share of its evaluations, and words that say when it was measured."""

    seconds: float
    evaluations: float
    measured: str


def estimate_seconds(plan: Plan) -> Estimate:
    """Estimate the time of a plan on this machine from eight steps of at most 128 lanes of each optimizer.

    The user's cache keeps these timings; what is measured is announced on stderr.
    """
    training, evaluating, dates, n_seeds = 0.0, 0.0, set(), plan.identity["seeds"]
    n_eval = len(plan.problem.data.x_eval)
    share, planned = (plan.config.eval_examples or n_eval) / n_eval, rungs.planned(plan)
    for runs in chunks.together(plan.runs):
        name, setting = str(runs["optimizer"].iloc[0]), plan.settings[runs["setting"].iloc[0]]
        of_one_seed = runs.loc[runs["seed"] == 0, axes.axes_in(runs)]
        sample = of_one_seed[: max(1, min(LANES, setting.lanes) // n_seeds)]
        lanes = len(sample) * n_seeds
        path = cache_folder("timings") / key(plan, setting, name, lanes)
        timing, date = read(kept(path)), ""
        if timing is None:
            of = f"{name}, {setting.problem.model.name}, batch {setting.training['batch_size']}"
            of = of if len(plan.settings) > 1 else name
            print(f"measuring {STEPS} steps of {lanes} lanes of {of} ...", file=sys.stderr, flush=True)
            timing = measure(plan, setting, name, sample)
            keep(path, json.dumps(timing).encode())
        else:
            date = timing.measured
        dates.add(date)
        own = planned[(planned["optimizer"] == name) & (planned["setting"] == runs["setting"].iloc[0])]
        # The part of the sweep's lanes that go on to each stage.
        populations = own["runs"] / own.loc[:, "runs"].iloc[0] * len(runs) / lanes
        training += float((populations * own["steps"]).sum()) * timing.per_step
        evaluations = populations * own["evaluations"] * share
        evaluating += float(evaluations.sum() + populations.iloc[0]) * timing.per_evaluation
    total = training + evaluating
    on = [f"on {date}" for date in sorted(dates) if date] + ["now"] * ("" in dates)
    return Estimate(total, evaluating / total, f"measured {' and '.join(on)}")


def key(plan: Plan, setting: Setting, name: str, lanes: int) -> str:
    """Return a hash of all that the time of a step of an optimizer's lanes, or of an evaluation, depends on."""
    data, identity = setting.problem.data, plan.identity
    training = {option: value for option, value in setting.training.items() if option not in VARIED}
    parts = [identity["task"], setting.problem.model.name, name, lanes, identity["seeds"], training]
    parts += [data.in_order, [(str(t.dtype), [*t.shape]) for t in (data.x_train, data.y_train, data.x_eval)]]
    parts += [run_info.describe_device(plan.device), torch.__version__, torch.get_num_threads()]
    parts += [run_keys.compiler(torch.device(plan.device).type), run_keys.code_version(), run_keys.own_source(name)]
    parts += [run_keys.task_source(identity["task"])]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def read(content: bytes | None) -> Timing | None:
    """Return the timing that a file of the cache holds; None if it holds none."""
    try:
        timing = Timing(*json.loads(content or b""))
        datetime.date.fromisoformat(timing.measured)
        return timing if all(math.isfinite(seconds) and seconds > 0 for seconds in timing[:2]) else None
    except (ValueError, TypeError):
        return None


def measure(plan: Plan, setting: Setting, name: str, sample: pd.DataFrame) -> Timing:
    """Time a few steps of an optimizer with these configurations, and an evaluation."""

    def run(configs: pd.DataFrame, steps: int) -> tuple[float, float]:
        started = time.perf_counter()
        _, curves = population.train_lanes(
            setting.problem,
            configs,
            range(plan.identity["seeds"]),
            optimizer=name,
            evaluations=1,
            device=plan.device,
            **{**setting.training, "steps": steps, "warmup": 0, "eval_examples": None},
        )
        training = curves["seconds"].max()
        return training / steps, (time.perf_counter() - started - training) / 2

    run(sample.head(1), 2)  # compiles
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return Timing(*run(sample, STEPS), today)


def describe(plan: Plan, estimate: Estimate) -> str:
    """Return the plan in a few lines of text."""
    n_runs, n_seeds = len(plan.runs), plan.identity["seeds"]
    parts = chunks.cut(plan.runs, [setting.lanes for setting in plan.settings])
    n_chunks, lanes = len(parts), max(map(len, parts))
    needed = max(plan.settings[part["setting"].iloc[0]].memory.of(len(part)) for part in parts)
    grids = {
        name: {
            axes.spelled(axis): own
            if isinstance(own, str)
            else " ".join(v if isinstance(v, str) else f"{v:g}" for v in own)
            for axis, own in grid.items()
        }
        for name, grid in plan.identity["optimizers"].items()
    }
    lines_of = next(iter(grids.values()))
    if len(grids) > 1:
        lines_of = {name: "  ".join(map(" ".join, grid.items())) for name, grid in grids.items()}
    steps = sorted({setting.training["steps"] for setting in plan.settings})
    length = f"{steps[0]} steps" if len(steps) == 1 else f"{steps[0]} to {steps[-1]} steps"
    time_ = f"{estimate.seconds:.0f} s, {estimate.evaluations:.0%} of it evaluations, {estimate.measured}"
    lines = {
        "trains": f"{plan.problem.data.name}, {plan.identity['model']}, {', '.join(grids)}",
        **lines_of,
        **({"--sample": plan.identity["sample"]} if plan.identity["sample"] else {}),
        "runs": f"{n_runs} ({n_runs // n_seeds} configurations x {n_seeds} seeds), {length} each",
        **({"rungs": rungs.described(plan)} if "halving" in plan.identity else {}),
        "lanes": f"{lanes} at once, in {n_chunks} chunk{'s' * (n_chunks > 1)}",
        "memory": f"{needed / 2**20:.0f} MiB a chunk on {plan.device}",
        "estimated time": time_,
    }
    width = max(16, *(len(name) + 2 for name in lines))
    return "\n".join(f"{name:{width}}{value}" for name, value in lines.items())
