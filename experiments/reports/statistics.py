"""Statistics of a sweep: the expected best loss by tuning budget, and comparisons of configurations seed by seed."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy.special import gammaln

from experiments.common import intervals
from experiments.common.numbers import number
from experiments.reports.aggregation import (
    INFINITE,
    best_of_each,
    initial_loss,
    of_optimizer,
    ranked,
    resolution,
    runs_of,
    scored,
)


def budgets(n: int, at_most: int = 60) -> np.ndarray:
    """Return at most `at_most` numbers of configurations from 1 to n, evenly spaced in log where they are large."""
    return np.unique(np.geomspace(1, n, at_most).round().astype(int))


def chance_of_none(n: int, special: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Return the probability that none of the special ones among n is drawn, without replacement."""
    rest = n - special
    possible = rest >= drawn
    others = np.where(possible, rest - drawn, 0)
    log_share = gammaln(rest + 1) - gammaln(others + 1) - gammaln(n + 1) + gammaln(n - drawn + 1)
    return np.where(possible, np.exp(log_share), 0.0)


def expected_best(losses: np.ndarray, tried: Sequence[int] | np.ndarray) -> pd.DataFrame:
    """Return mean and quartiles of the lowest of several losses that are drawn at random without replacement.

    P(the lowest drawn is among the i lowest of N) is hypergeometric, so mean and quartiles are exact.

    Args:
        losses: finite, one per configuration, in any order.
        tried: numbers of losses that are drawn, each from 1 to N.
    Returns: columns mean, q25 and q75, indexed by `tried`.
    Reference: Dodge et al. 2019, arXiv:1909.03004, who draw with replacement; without it, N draws find the best.
    """
    values, n = np.sort(losses), len(losses)
    found = 1 - chance_of_none(n, np.arange(1, n + 1), np.asarray(tried)[:, None])
    table = {"mean": np.diff(found, prepend=0) @ values}
    table |= {name: values[(found >= q - 1e-12).argmax(axis=1)] for name, q in (("q25", 0.25), ("q75", 0.75))}
    return pd.DataFrame(table, index=pd.Index(tried, name="tried"))


def tuning_losses(runs: pd.DataFrame, order: pd.DataFrame | None = None) -> dict[str, np.ndarray]:
    """Return the losses of each optimizer's configurations, lowest first, by optimizer in the order of the sweep.

    A configuration has its median final evaluation loss over seeds, or the loss before training where that is lower:
    who tries a configuration that diverges still has an untrained network. order: as of `aggregation.ranked`.
    """
    order, initial = ranked(runs, order), initial_loss(runs)
    losses = {str(name): of_optimizer(order, name)["eval_loss_median"] for name in runs["optimizer"].unique()}
    return {name: own.clip(upper=initial).to_numpy() for name, own in losses.items()}


def paired(ours: pd.DataFrame, theirs: pd.DataFrame) -> dict:
    """Compare two configurations seed by seed: the differences of final evaluation loss, theirs minus ours.

    Runs of a seed have the same initial weights and batches. A diverged run has an infinite loss; if both diverged, the
    difference is 0.

    Args:
        ours, theirs: the runs of one configuration each.
    Returns: n (seeds that both have), ahead (seeds on which ours is lower), the median of the differences, the ends low
        and high of its interval, `intervals.interval_or_range`, and its exact level, 0.75 at three seeds; NaN for one.
    """
    own, other = (scored(runs, "eval_loss").set_axis(runs["seed"]) for runs in (ours, theirs))
    differences = (other - own).dropna().to_numpy()
    n, median = len(differences), np.median(differences) if len(differences) else np.nan
    ends = intervals.interval_or_range(differences)
    numbers = dict(zip(("median", "low", "high"), infinite_where_huge([float(median), *map(float, ends)]), strict=True))
    return {"n": n, "ahead": int((differences > 0).sum()), **numbers, "level": intervals.attained(n)}


def infinite_where_huge(differences: Iterable[float]) -> list[float]:
    """Return differences, as infinite ones of the same sign if they were computed from `INFINITE`."""
    return [float(np.copysign(np.inf, d)) if abs(d) > INFINITE**0.5 else float(d) for d in differences]


def rivals(order: pd.DataFrame) -> pd.DataFrame:
    """Return the best configuration of each optimizer, best first; of a single optimizer its two best.

    order: as of `aggregation.ranked`.
    """
    return best_of_each(order) if order["optimizer"].nunique() > 1 else order.head(2)


def paired_rivals(runs: pd.DataFrame, order: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return `paired` of the best configuration with each other one of `rivals`: a row each, with its configuration.

    order: as of `aggregation.ranked`.
    """
    (_, winner), *others = rivals(ranked(runs, order)).iterrows()
    ours = runs_of(runs, winner)
    return pd.DataFrame([{**other, **paired(ours, runs_of(runs, other))} for _, other in others])


def unresolved(runs: pd.DataFrame, order: pd.DataFrame) -> list[str]:
    """Return a sentence on configurations whose order means nothing; none if float32 resolves their losses."""
    floor = resolution(initial_loss(runs))
    n = int((order["eval_loss_median"] < floor).sum())
    if n < 2:
        return []
    text = "which is float32's epsilon squared times the loss before training: their order means little."
    return [f"{n} configurations end below {number(floor, 2)}, {text}"]
