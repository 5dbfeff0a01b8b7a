"""Timing on a machine that is not quiet: sides in turn, round after round, and what can be said of their ratio."""

import time
from collections.abc import Callable

import numpy as np
import pandas as pd

from experiments.common import intervals
from experiments.common.progress import progress_bar
from experiments.common.tables import ENDS

LIKE = (0.95, 1.05)
"""Ratios within which two speeds count as the same."""
INTERVALS = "their 95 % intervals from order statistics; of two to five rounds their range, and its level beside it"
"""What stands behind medians, for texts."""


def in_turn(sides: dict[str, Callable[[], float]], rounds: int, **bar) -> pd.DataFrame:
    """Seconds of each side, one row a round; a side times itself."""
    turns = progress_bar(range(rounds), unit="round", **bar)
    return pd.DataFrame([{name: side() for name, side in sides.items()} for _ in turns])


def time_in_turn(
    sides: dict[str, Callable[[], object]], rounds: int, sync: Callable[[], object], **bar
) -> pd.DataFrame:
    """Seconds of each side, one row a round; every side runs once, untimed, right before it is timed."""

    def timed(side: Callable[[], object]) -> Callable[[], float]:
        def seconds() -> float:
            side()
            sync()
            started = time.perf_counter()
            side()
            sync()
            return time.perf_counter() - started

        return seconds

    return in_turn({name: timed(side) for name, side in sides.items()}, rounds, **bar)


def median_interval(values: pd.Series) -> tuple[float, float, float]:
    """Median and the ends of its 95 % interval; of fewer than six values their range, of one NaN."""
    low, high = intervals.interval_or_range(values.to_numpy())
    return float(np.median(values)), float(low), float(high)


def with_interval(name: str, values: pd.Series) -> dict[str, float]:
    """`median_interval` and its exact level as columns of a table: name, and name with each of `ENDS`."""
    numbers = *median_interval(values), intervals.attained(len(values))
    return dict(zip((name, *(name + end for end in ENDS)), numbers, strict=True))


def verdict(low: float, high: float, level: float = intervals.LEVEL) -> str:
    """What the 95 % interval of a speed-up (seconds of the other side by ours) says.

    "faster" if all of it is above 1.05, "slower" if all of it is below 0.95, "same" if all of it is in between, and
    "ambiguous" if it crosses one of these marks, or has not that level: more rounds, or a quieter machine, may tell.
    """
    if not level >= intervals.LEVEL:
        return "ambiguous"
    if low > LIKE[1]:
        return "faster"
    if high < LIKE[0]:
        return "slower"
    return "same" if LIKE[0] <= low and high <= LIKE[1] else "ambiguous"
