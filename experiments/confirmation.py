"""Runs of a sweep's winners on fresh seeds: the best of many runs looks better than it is (winner's curse)."""

import json

import numpy as np
import pandas as pd

from experiments.reports import aggregation
from experiments.sweeps.plan import Plan
from experiments.training.axes import axes_in


def fresh_plan(plan: Plan, runs: pd.DataFrame, n: int) -> Plan | None:
    """Return a plan of the best configuration of every optimizer on n unused seeds; None if no run has trained."""
    best = aggregation.best_of_each(aggregation.ranked(runs))
    best = best[np.isfinite(best["eval_loss_median"])]
    if best.empty:
        return None
    of_one_seed = plan.runs.drop_duplicates("config")
    winners = [
        aggregation.rows_like(of_one_seed, row[["optimizer", *axes_in(plan.runs)]]) for _, row in best.iterrows()
    ]
    first = plan.identity["seeds"]
    again = [row.assign(seed=seed) for row in winners for seed in range(first, first + n)]
    # All of them are trained to the end.
    identity = {name: value for name, value in plan.identity.items() if name != "halving"}
    return plan._replace(identity=identity, runs=pd.concat(again, ignore_index=True))


def record(runs: pd.DataFrame) -> dict:
    """Return the runs of a `fresh_plan` as provenance.json has them."""
    rows = json.loads(str(runs.to_json(orient="records", double_precision=15)))
    return {"seeds": sorted(int(seed) for seed in runs["seed"].unique()), "runs": rows}
