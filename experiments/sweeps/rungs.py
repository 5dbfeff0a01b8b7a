"""Successive halving: at which evaluations configurations are ranked, and which of them go on.

A sweep is trained in stages, each from one rung to the next and the last to the end; a plain sweep has that one alone.

References: Jamieson & Talwalkar 2016, arXiv:1502.07943; Li et al. 2018, arXiv:1603.06560; Li et al. 2020,
arXiv:1810.05934, for the name.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import pandas as pd

from experiments.common.errors import OptionError
from experiments.sweeps.plan import Plan
from experiments.sweeps.run_keys import ORIGIN
from experiments.training import evaluation


def exponents(plan: Plan) -> list[int]:
    """Return k of each stage, in order: it ends at the first evaluation at or after T / ETA^k. The last is 0.

    There are as many rungs as leave at least one configuration of the optimizer with most; of those that would come at
    the same evaluation, the latest.

    Raises: OptionError if there is nothing to rank, or fewer evaluations before the last than rungs.
    """
    eta = plan.identity.get("halving")
    if eta is None:
        return [0]
    n_configs = max(configurations(plan).values())
    if n_configs < 2:
        raise OptionError("--halving needs at least two configurations of an optimizer, to stop the worse ones")
    most = 1
    while eta ** (most + 1) <= n_configs:
        most += 1
    n = min(min(setting.training["steps"], plan.identity["evaluations"]) for setting in plan.settings)
    if most >= n:
        raise OptionError(
            f"--halving {eta} of {n_configs} configurations has {most} rung{'s' * (most > 1)} before the last "
            f"evaluation, and needs at least {most + 1} --evaluations, not {n}"
        )
    at = {-(-n // eta**k): k for k in range(most, 0, -1)}
    return [*at.values(), 0]


def configurations(plan: Plan) -> dict[str, int]:
    """Return the number of configurations of each optimizer."""
    return {str(name): of["config"].nunique() for name, of in plan.runs.groupby("optimizer", sort=False)}


def end_of(plan: Plan, setting: int, exponent: int) -> int:
    """Return the step at which a stage ends for the runs of a setting."""
    eta, steps = plan.identity.get("halving", 1), plan.settings[setting].training["steps"]
    at = evaluation.evaluation_steps(steps, plan.identity["evaluations"])
    return at[-(-(len(at) - 1) // eta**exponent)]


def go_on(n_configs: int, eta: int) -> int:
    """Return how many of an optimizer's configurations go on from a rung."""
    return -(-n_configs // eta)


def stage(plan: Plan, runs: pd.DataFrame, exponent: int) -> pd.DataFrame:
    """Return the runs that go on as those of a stage, with their keys in this stage as index.

    Args:
        runs: rows of the stage before, or of the plan's runs with their `run_key`.
    Returns: the rows with columns begin and end, steps; key, in this stage; and before, the key in the stage before.
        A stage that is the whole run has the run's key.
    """
    before, begin = runs.get("key", ""), runs.get("end", 0)
    end = runs["setting"].map({number: end_of(plan, number, exponent) for number in runs["setting"].unique()})
    rows = runs.assign(before=before, begin=begin, end=end.astype("int64"))
    names = zip(rows["run_key"], rows["begin"], rows["end"], rows["steps"], strict=True)
    rows["key"] = [
        key if (first, last) == (0, steps) else f"{key[:ORIGIN]}{digest(f'{key} {first} {last}')[: 32 - ORIGIN]}"
        for key, first, last, steps in names
    ]
    return rows.set_index("key", drop=False)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def survivors(plan: Plan, rows: pd.DataFrame, tables: Iterable[pd.DataFrame], exponent: int) -> pd.DataFrame:
    """Return the runs of a stage that go on: of each optimizer's best configurations, those that have not diverged.

    The evaluation loss of a configuration is its median over seeds, infinite in seeds that have diverged; of equal ones
    the first goes on. All of them lose runs at each rung and none comes back, so that an optimizer with few
    configurations has one left early.

    Args:
        rows: of `stage`.
        tables: those of all its chunks.
    """
    ends = pd.concat(tables).drop_duplicates("key", keep="last").set_index("key")
    ends = ends.reindex(rows.index)
    diverged = ends["diverged_step"].notna()
    losses = ends["eval_loss"].where(~diverged & np.isfinite(ends["eval_loss"].astype(float)), np.inf)
    n_of, chosen = number_at(plan, exponent), []
    scores = losses.groupby([rows["optimizer"], rows["config"]]).agg(list)
    for name, of in scores.groupby(level=0):
        # Runs that have diverged before are no rows here, and count as infinite all the same.
        padded = [[*seeds, *[np.inf] * (plan.identity["seeds"] - len(seeds))] for seeds in of]
        order = np.argsort([np.median(seeds) for seeds in padded], kind="stable")
        chosen += [of.index[i][1] for i in order[: n_of[str(name)]]]
    stays = rows["config"].isin(chosen)
    return rows.loc[stays if plan.config.keep_diverged else stays & ~diverged]


def number_at(plan: Plan, exponent: int) -> dict[str, int]:
    """Return how many configurations of each optimizer may go on after a stage."""
    counts = configurations(plan)
    for one in exponents(plan):
        counts = {name: go_on(n, plan.identity["halving"]) for name, n in counts.items()}
        if one == exponent:
            break
    return counts


def described(plan: Plan) -> str:
    """Return at which steps how many of the configurations go on, in words."""
    parts, ks = [], [k for k in exponents(plan) if k]
    for k in ks:
        steps = sorted({end_of(plan, setting, k) for setting in range(len(plan.settings))})
        at = f"{steps[0]} to {steps[-1]}" if len(steps) > 1 else f"{steps[0]}"
        counts = ", ".join(f"{n}{f' {name}' * (len(plan.n_runs) > 1)}" for name, n in number_at(plan, k).items())
        parts.append(f"{counts} configurations go on at step {at}")
    return "; ".join(parts)


def planned(plan: Plan) -> pd.DataFrame:
    """Return what a sweep trains in which nothing diverges: a row for each stage, optimizer and setting.

    Columns: stage, optimizer, setting; runs, a fraction if the best of an optimizer may be of any setting; steps and
    evaluations of one of these runs in that stage.
    """
    of_all, sizes = configurations(plan), plan.runs[["optimizer", "setting"]].value_counts(sort=False)
    found, left, before = [], of_all, dict.fromkeys(range(len(plan.settings)), 0)
    for number, exponent in enumerate(exponents(plan)):
        ends = {setting: end_of(plan, setting, exponent) for setting in before}
        for (name, setting), n in zip(sizes.index.to_list(), sizes, strict=True):
            at = evaluation.evaluation_steps(plan.settings[setting].training["steps"], plan.identity["evaluations"])
            evaluated = sum(before[setting] < step <= ends[setting] for step in at)
            runs, steps = n * left[name] / of_all[name], ends[setting] - before[setting]
            found.append((number, name, setting, runs, steps, evaluated))
        left, before = number_at(plan, exponent) if exponent else left, ends
    return pd.DataFrame(found, columns=["stage", "optimizer", "setting", "runs", "steps", "evaluations"])


def bytes_kept(plan: Plan) -> float:
    """Return how many bytes of states a sweep keeps between rungs at most: those of a stage stay until the next ends.

    Of an optimizer with smaller states than another's it is more than there will be.
    """
    # Gradients are not kept.
    of_run = {number: one.memory.at_rest - 4 * one.problem.model.n_params for number, one in enumerate(plan.settings)}
    stages = planned(plan)
    sizes = (stages["runs"] * stages["setting"].map(of_run)).groupby(stages["stage"]).sum().iloc[:-1]
    return float((sizes + sizes.shift(fill_value=0)).max())
