"""Read a results folder as DataFrames: `experiments.load`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pandas as pd


class Results(NamedTuple):
    """The results of a sweep, as its folder holds them.

    Attributes:
        runs, curves, provenance: see `experiments.sweeps.results.Sweep`.
        summary: one row per configuration, best first, as in summary.csv: the columns of `aggregation.summarise`, and
            if there is a target also steps_to_target_median, seconds_to_target_median (both infinite if half of the
            seeds miss it) and n_reached.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    provenance: dict
    summary: pd.DataFrame


def load(folder: str | os.PathLike[str]) -> Results:
    """Read a results folder: runs, curves, provenance and summary.

    While its sweep runs, or after an interruption, these are the finished runs and, with the status "unfinished", those
    at work so far; `provenance["unfinished"]` says how many are finished, of how many. Nothing is written.

    Raises: OptionError, a sentence that names the folder or the missing or damaged file.
    """
    from experiments.sweeps import reading

    runs, curves, provenance = reading.load(folder)
    return Results(runs, curves, provenance, summary_of(runs, curves, provenance))


def summary_of(runs: pd.DataFrame, curves: pd.DataFrame, provenance: dict) -> pd.DataFrame:
    """Return the summary of a sweep; see `Results`."""
    from experiments.reports import aggregation, steps_to_target, writer

    summary = aggregation.summarise(runs)
    if target := writer.target_of(runs, provenance, order=summary):
        reached = steps_to_target.reach(runs, curves, target)
        summary = summary.merge(steps_to_target.medians(reached), how="left")
    return summary
