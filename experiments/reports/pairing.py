"""Comparison of configurations of several studies: seed by seed where these share their batches, else all with all."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.common import intervals
from experiments.reports import aggregation, statistics
from experiments.reports.aggregation import EARLY
from experiments.reports.studies import Study, joined
from experiments.training.axes import RUN, axes_in

SAME_START = 1e-5
"""Relative difference of losses before training up to which two runs began with the same weights."""
OF_BATCHES = "batch_size", "accumulate", "n_train"
"""The options of a run on which, with its seed and the data, the batches depend."""


class Basis(NamedTuple):
    """What a comparison of two configurations rests on.

    Attributes:
        seeds: those that both have, if their batches are the same.
        text: the same in words.
    """

    seeds: list[int]
    text: str


def basis(ours: pd.DataFrame, theirs: pd.DataFrame, studies: Sequence[Study]) -> Basis:
    """Return what a comparison of two configurations rests on.

    Batches are the same where the seed, the data and the options `OF_BATCHES` are. Initial weights are the same where
    the losses before training are, if all evaluations were of the same examples.

    Args:
        ours, theirs: the runs of one configuration each, of `studies.joined`.
    """
    (one, a), (other, b) = ((studies[runs["study"].iloc[0]], runs.iloc[0]) for runs in (ours, theirs))
    unlike = [] if sources(one) == sources(other) else ["data"]
    unlike += [aggregation.axis_name(name) for name in OF_BATCHES if one.value(name, a) != other.value(name, b)]
    counts = f"{len(ours)} and {len(theirs)} seeds"
    if unlike:
        return Basis([], f"all pairs of {counts}: other batches (they differ in {' and '.join(unlike)})")
    starts = [runs.set_index("seed")["initial_eval_loss"] for runs in (ours, theirs)]
    both = sorted({*starts[0].index} & {*starts[1].index})
    if not both:
        return Basis([], f"all pairs of {counts}: they share none")
    known = aggregation.seeds([len(both)])
    left = "" if len(both) == len(ours) == len(theirs) else f", of {counts}"
    weights = ""
    if one.options.get("eval_examples") == other.options.get("eval_examples"):
        same = np.allclose(*(start.loc[both] for start in starts), rtol=SAME_START, atol=0, equal_nan=True)
        weights = " and initial weights" if same else ", other initial weights"
    text = f"{known} in both{left}: the same batches{weights}"
    return Basis(
        both, text + ("" if a["steps"] == b["steps"] else f"; {a['steps']:.0f} against {b['steps']:.0f} steps")
    )


def sources(study: Study) -> list:
    """Return what tells the data of a study from others, as far as its provenance does."""
    data = study.provenance.get("data") or {}
    return [study.options.get(name) for name in ("data_source", "condition_number")] + [
        data.get(name) for name in ("name", "n_train", "n_eval")
    ]


def rivals(runs: pd.DataFrame, order: pd.DataFrame, studies: Sequence[Study]) -> list[dict]:
    """Compare the best configuration with the best of each other optimizer and study.

    Args:
        runs: of `studies.joined`.
        order: as of `aggregation.ranked`, of these runs.
    Returns: for each other one its row of `order`, its `Basis`, and `differences`.
    """
    winner, *others = (row for _, row in aggregation.best_of_each(order).iterrows())
    ours = aggregation.runs_of(runs, winner)
    found = []
    for row in others:
        theirs = aggregation.runs_of(runs, row)
        on = basis(ours, theirs, studies)
        found.append({"row": row, "basis": on, **differences(ours, theirs, on)})
    return found


def differences(ours: pd.DataFrame, theirs: pd.DataFrame, on: Basis) -> dict:
    """Return the differences of final evaluation loss, theirs minus ours: of each shared seed, else of all pairs.

    Returns: n (differences), ahead (those above 0), their median, and the ends low and high and the level of an
        interval: of `statistics.paired`, or of `shift`.
    """
    if on.seeds:
        return statistics.paired(*(runs.loc[runs["seed"].isin(on.seeds)] for runs in (ours, theirs)))
    a, b = (aggregation.scored(runs, "eval_loss").to_numpy() for runs in (ours, theirs))
    pairs = np.subtract.outer(b, a).ravel()
    numbers = statistics.infinite_where_huge([float(np.median(pairs)), *shift(a, b)])
    level = levels(len(a), len(b))[rank(len(a), len(b)) - 1]
    return {"n": len(pairs), "ahead": int((pairs > 0).sum()), "level": level} | dict(
        zip(("median", "low", "high"), numbers, strict=True)
    )


def shift(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return the ends of an interval of how far the values of b lie above those of a, at 95 % or, of few, at less.

    If the distribution of b is that of a, moved, the interval has at least the level of `levels`: its ends are
    differences of pairs, and how many lie below the true one has the distribution of Mann and Whitney's U.
    Reference: Hodges & Lehmann 1963, doi:10.1214/aoms/1177704172.
    """
    ordered = np.sort(np.subtract.outer(b, a), axis=None)
    k = rank(len(a), len(b))
    return float(ordered[k - 1]), float(ordered[-k])


@cache
def levels(n: int, m: int) -> np.ndarray:
    """Return the levels of the intervals from the k-th lowest to the k-th highest of n * m differences, k = 1, 2, ...

    The numbers of orders of n + m values by U are the coefficients of a Gaussian binomial, in exact integers.
    """
    counts = [1] + [0] * (n * m)
    for i in range(1, m + 1):
        for u in range(n * m, n + i - 1, -1):
            counts[u] -= counts[u - n - i]
        for u in range(i, n * m + 1):
            counts[u] += counts[u - i]
    total, below, found = sum(counts), 0, []
    for k in range((n * m + 1) // 2):
        below += counts[k]
        found.append(1 - 2 * below / total)
    return np.array(found)


def rank(n: int, m: int) -> int:
    """Return the greatest k at which `levels` reach 95 %; 1, for the range of all differences, if none does."""
    return max(1, int((levels(n, m) >= intervals.LEVEL - 1e-12).sum()))


def table(found: list[dict], described: list[str]) -> pd.DataFrame:
    """Return `rivals` as short strings. described: the configuration of each in words."""
    rows = []
    for one, name in zip(found, described, strict=True):
        on, known = one["basis"], one["level"] > 0
        share = f"{one['ahead']} of {one['n']} {'seeds' if on.seeds else 'pairs'}"
        ends = f"{one['low']:+.3g} to {one['high']:+.3g} ({100 * one['level']:.3g} %)" if known else "-"
        rows.append([name, f"{one['median']:+.3g}", ends, share, on.text])
    return pd.DataFrame(
        rows, columns=["compared with", "median difference", "interval (level)", "ahead on", "rests on"]
    )


def repeated(one: Study, other: Study) -> str:
    """Return a sentence on the runs that two studies have in common, and how far apart they ended; "" if none."""
    if sources(one) != sources(other):
        return ""
    both = joined([one, other])[0]
    both["optimizer"] = pd.concat([one.runs["optimizer"], other.runs["optimizer"]], ignore_index=True)
    columns = ["data", "task", "model", "steps", "optimizer", *axes_in(both), "seed"]
    columns = list(dict.fromkeys(columns))
    # The column of steps tells the length of a run, however it was asked for.
    for name in {*RUN} - {"steps", "epochs"}:
        # What is no axis of either is the same in all runs of a study.
        if name not in columns and one.value(name, one.runs.iloc[0]) != other.value(name, other.runs.iloc[0]):
            return ""
    a, b = (both.loc[both["study"] == place] for place in (0, 1))
    pairs = a.merge(b, on=columns)
    if (n_pairs := len(pairs)) == 0:
        return ""
    n_stopped = int(((pairs["status_x"] == "stopped") != (pairs["status_y"] == "stopped")).sum())
    pairs = pairs[~pairs["status_x"].isin(EARLY) & ~pairs["status_y"].isin(EARLY)]
    x, y = (pairs[f"eval_loss_{end}"].where(pairs[f"status_{end}"] == "ok") for end in ("x", "y"))
    apart = ((x - y).abs() / y.abs()).loc[x != y]
    ended = int((x.notna() & y.notna()).sum())
    equal, unlike = int((x == y).sum()), int((x.notna() != y.notna()).sum())
    text = f"{n_pairs} runs of {one.name} are in {other.name}, too, with the same configuration, seed and batches: "
    text += f"{equal} of {f'the {ended} that ran to the end in both' if n_stopped else 'them'} ended with equal losses"
    if equal < ended:
        text += f", the others {apart.median():.2g} of the loss apart (median; at most {apart.max():.2g})"
    text += f"; {n_stopped} were stopped by halving in one of the two alone" * bool(n_stopped)
    return text + (f"; {unlike} diverged in one of the two alone." if unlike else ".")
