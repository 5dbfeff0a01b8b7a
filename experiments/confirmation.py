"""The winners of a sweep again, on seeds by which nothing was chosen: the minimum of many runs is a winner's curse."""

import json

import numpy as np
import pandas as pd

from experiments import tables
from experiments.grid import AXES
from experiments.plan import Plan, runs_of


def fresh_plan(plan: Plan, runs: pd.DataFrame, n: int) -> Plan | None:
    """The best configuration of every optimizer on n seeds that no run has used; None if none has trained."""
    best = tables.best_of_each(tables.ranked(runs))
    best = best[np.isfinite(best["eval_loss_median"])]
    if best.empty:
        return None
    configs = {row["optimizer"]: row[list(AXES)].to_frame().T.astype(float) for _, row in best.iterrows()}
    again = runs_of(configs, n)
    return plan._replace(runs=again.assign(seed=again["seed"] + plan.identity["seeds"]))


def record(runs: pd.DataFrame) -> dict:
    """The runs of a `fresh_plan` as provenance.json keeps them."""
    rows = json.loads(runs.to_json(orient="records", double_precision=15))
    return {"seeds": sorted(int(seed) for seed in runs["seed"].unique()), "runs": rows}


def recorded(confirmed: dict) -> pd.DataFrame:
    """The runs of a `record`, as in runs.parquet."""
    numbers = dict.fromkeys((*AXES, "train_loss", "eval_loss", "eval_accuracy", "initial_eval_loss"), "float64")
    return pd.DataFrame(confirmed["runs"]).astype({**numbers, "diverged_step": "Int64"})
