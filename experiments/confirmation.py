"""The winners of a sweep again, on seeds by which nothing was chosen: the minimum of many runs is a winner's curse."""

import json

import numpy as np
import pandas as pd

from experiments.reports import aggregation
from experiments.sweeps.plan import Plan, runs_of
from experiments.training.axes import AXES


def fresh_plan(plan: Plan, runs: pd.DataFrame, n: int) -> Plan | None:
    """The best configuration of every optimizer on n seeds that no run has used; None if none has trained."""
    best = aggregation.best_of_each(aggregation.ranked(runs))
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
