"""Compare times on a noisy machine: contenders run in turn in every round, and ratios are formed within rounds."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from experiments.common import intervals
from experiments.common.progress import progress_bar
from experiments.common.tables import ENDS

LIKE = (0.95, 1.05)
"""Two speeds count as the same if their ratio lies between these."""
INTERVALS = "their 95 % intervals from order statistics; of two to five rounds their range, and its level beside it"
"""How reports describe the brackets behind a median."""


def in_turn(contenders: Mapping[Any, Callable[[], float]], rounds: int, **bar) -> pd.DataFrame:
    """Call every contender once a round, and return the seconds that each one reports: a row a round, a column each."""
    turns = progress_bar(range(rounds), unit="round", **bar)
    return pd.DataFrame([{name: contender() for name, contender in contenders.items()} for _ in turns])


def time_in_turn(
    contenders: Mapping[Any, Callable[[], object]], rounds: int, sync: Callable[[], object], **bar
) -> pd.DataFrame:
    """Time every contender once a round, right after an untimed call: a row a round, a column each, in seconds."""

    def timed(contender: Callable[[], object]) -> Callable[[], float]:
        def seconds() -> float:
            contender()
            sync()
            started = time.perf_counter()
            contender()
            sync()
            return time.perf_counter() - started

        return seconds

    return in_turn({name: timed(contender) for name, contender in contenders.items()}, rounds, **bar)


def median_interval(values: pd.Series) -> tuple[float, float, float]:
    """Return the median and its 95 % interval: the range for two to five values, NaN for one."""
    low, high = intervals.interval_or_range(values.to_numpy())
    return float(np.median(values)), float(low), float(high)


def with_interval(name: str, values: pd.Series) -> dict[str, float]:
    """Return `median_interval` and its exact level as table columns: name, and name followed by each of `ENDS`."""
    numbers = *median_interval(values), intervals.attained(len(values))
    return dict(zip((name, *(name + end for end in ENDS)), numbers, strict=True))


def verdict(low: float, high: float, level: float = intervals.LEVEL) -> str:
    """Judge a speed-up (the other contender's seconds divided by ours) by its 95 % interval.

    Returns: "faster" if the whole interval lies above 1.05, "slower" if it lies below 0.95, "same" if it lies in
        between, and "ambiguous" if it crosses one of these marks or its level is below 95 %; more rounds or a quieter
        machine may then decide.
    """
    if not level >= intervals.LEVEL:
        return "ambiguous"
    if low > LIKE[1]:
        return "faster"
    if high < LIKE[0]:
        return "slower"
    return "same" if LIKE[0] <= low and high <= LIKE[1] else "ambiguous"
