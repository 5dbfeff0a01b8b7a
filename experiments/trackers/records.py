"""The runs of a sweep as trackers take them: a name, a configuration, results, and values by step."""

from __future__ import annotations

import datetime
import math
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.training.axes import axes_in

if TYPE_CHECKING:
    import pandas as pd

UNSAFE = re.compile(r"[^\w.-]+", re.ASCII)
"""What names of files and of values do not have here; no tracker takes all of it, and some take none."""
LONGEST = 100
PLACES = "run_id", "step"
ALWAYS = "eval_loss"
"""The value that is passed on even if it is NaN, because the run has diverged. Any other that is NaN is not known."""


class Point(NamedTuple):
    """An evaluation of a run: its values by safe name, and the seconds that its population has trained."""

    step: int
    seconds: float
    values: dict[str, float]


class Record(NamedTuple):
    """A run.

    Attributes:
        name: of letters, digits, "_", "." and "-", different for every run of a sweep; it can name a folder.
        config: task, model, optimizer, axes that the optimizer has, and seed.
        results: status, losses and accuracies at the end and at their best, as in runs.parquet, where they are known.
        points: evaluations, steps ascending.
    """

    name: str
    config: dict[str, Any]
    results: dict[str, Any]
    points: list[Point]


class Study(NamedTuple):
    """A sweep.

    Attributes:
        name: as of `Record`.
        started: seconds since 1970.
        about: command, commit and device, as text.
        records: its runs, which can be read once; a bar shows how far that is.
        tables: runs, curves and summary as DataFrames, by name.
        provenance: as in provenance.json.
    """

    name: str
    started: float
    about: dict[str, str]
    records: Iterable[Record]
    tables: dict[str, pd.DataFrame]
    provenance: dict[str, Any]


def study_name(folder: str | os.PathLike[str]) -> str:
    """Return a safe name for the sweep of a results folder."""
    return safe(os.path.basename(os.path.abspath(os.path.expanduser(folder)))) or "sweep"


def study_of(folder: str | os.PathLike[str], tables: dict[str, pd.DataFrame], provenance: dict[str, Any]) -> Study:
    """Return a sweep as trackers take it. tables, provenance: as of `experiments.results.Results`."""
    # What reads the options of a sweep imports this module, and no bars.
    from experiments.common.progress import progress_bar

    about = {
        "command": provenance.get("command"),
        "commit": provenance.get("git", {}).get("commit"),
        "device": provenance.get("device", {}).get("name"),
    }
    kept = {name: text for name, text in about.items() if text}
    of_runs = records(tables["runs"], tables["curves"])
    options = {"total": len(tables["runs"]), "desc": "exporting", "unit": "run", "delay": 2.0, "leave": False}
    bar = progress_bar(of_runs, **options, disable=sys.stderr is None)
    return Study(study_name(folder), started(provenance), kept, bar, tables, provenance)


def started(provenance: Mapping[str, Any]) -> float:
    """Return when a sweep started, in seconds since 1970; now if it does not say."""
    told = provenance.get("started")
    return datetime.datetime.fromisoformat(told).timestamp() if told else time.time()


def records(runs: pd.DataFrame, curves: pd.DataFrame) -> Iterator[Record]:
    """Yield the runs of a sweep, in the order of the table."""
    names, last = names_of(runs, runs["run_id"]), list(runs).index("seed")
    points = {run_id: points_of(rows) for run_id, rows in curves.sort_values("step").groupby("run_id")}
    for name, (run_id, *values) in zip(names, runs[["run_id", *runs]].itertuples(index=False), strict=True):
        row = list(zip(runs, values, strict=True))
        config = known({column: value for column, value in row[: last + 1] if column != "run_id"})
        yield Record(name, config, known(dict(row[last + 1 :])), points[run_id])


def names_of(runs: pd.DataFrame, run_ids: Iterable[int]) -> list[str]:
    """Return safe names of runs, which begin with their numbers and have all axes that vary."""
    varied = [axis for axis in axes_in(runs) if runs[axis].nunique(dropna=False) > 1]
    columns = runs.loc[:, ["optimizer", *varied, "seed"]]
    found = []
    for run_id, row in zip(run_ids, columns.to_dict("records"), strict=True):
        words = [word if name == "optimizer" else f"{name}_{shown(word)}" for name, word in known(row).items()]
        found.append(safe(f"{run_id:05d}-{'-'.join(words)}"))
    return found


def shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def points_of(curve: pd.DataFrame) -> list[Point]:
    """Return the evaluations of a run, given its rows of the table of curves."""
    columns = [column for column in curve if column not in PLACES]
    names = safe_names(columns)
    return [
        Point(int(step), float(seconds), values_of(dict(zip(names, values, strict=True))))
        for step, seconds, *values in curve[["step", "seconds", *columns]].itertuples(index=False)
    ]


def values_of(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the values that a tracker gets: the known ones, as floats."""
    found = {name: float(value) for name, value in values.items()}
    return {name: value for name, value in found.items() if name == ALWAYS or not math.isnan(value)}


def known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as Python's own types, without those that are missing or NaN."""
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}
    # Missing integers are pandas.NA, which equals nothing.
    return {name: value for name, value in plain.items() if isinstance(value, str) or (value == value) is True}


def safe(name: str) -> str:
    """Return a name as letters, digits, "_", "." and "-", which can name a file, at most 100 of them."""
    return UNSAFE.sub("_", name).lstrip(".")[:LONGEST]


def safe_names(names: Iterable[str]) -> list[str]:
    """Return safe names of values, which stay different from each other."""
    found: list[str] = []
    for name in names:
        candidate, number = safe(name), 2
        while candidate in found:
            candidate, number = f"{safe(name)}_{number}", number + 1
        found.append(candidate)
    return found
