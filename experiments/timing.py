"""Timing on a machine that is not quiet: sides in turn, round after round, and what can be said of their ratio."""

import math
import time
from collections.abc import Callable
from itertools import chain

import numpy as np
import pandas as pd
import scipy.stats

from experiments.bars import progress_bar

LIKE = (0.95, 1.05)
"""Ratios within which two speeds count as the same."""


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
    """Median and its bootstrap 95 % interval."""
    sample = values.to_numpy()
    interval = scipy.stats.bootstrap((sample,), np.median, method="percentile", random_state=0)
    low, high = interval.confidence_interval
    return float(np.median(sample)), float(low), float(high)


def with_interval(name: str, values: pd.Series) -> dict[str, float]:
    """Median and interval as three columns of a table: name, "name, low" and "name, high"."""
    return dict(zip((name, f"{name}, low", f"{name}, high"), median_interval(values), strict=True))


def verdict(low: float, high: float) -> str:
    """What the 95 % interval of a speed-up (seconds of the other side by ours) says.

    "faster" if all of it is above 1.05, "slower" if all of it is below 0.95, "same" if all of it is in between, and
    "ambiguous" if it crosses one of these marks: more rounds, or a quieter machine, may tell.
    """
    if low > LIKE[1]:
        return "faster"
    if high < LIKE[0]:
        return "slower"
    return "same" if LIKE[0] <= low and high <= LIKE[1] else "ambiguous"


def markdown_table(rows: list[dict]) -> str:
    """A row a line; a median takes its interval into its cell. Columns that a row lacks, or that are NaN, are empty."""
    names = [name for name in dict.fromkeys(chain(*rows)) if not name.endswith((", low", ", high"))]
    lines = ["| " + " | ".join(names) + " |", "| " + " | ".join("---" for _ in names) + " |"]
    lines += ["| " + " | ".join(cell(row, name) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def cell(row: dict, name: str) -> str:
    value = row.get(name, "")
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return ""
    if f"{name}, low" not in row:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    digits = 0 if abs(value) >= 100 else 2 if abs(value) >= 0.2 else 4
    return f"{value:.{digits}f} [{row[f'{name}, low']:.{digits}f}, {row[f'{name}, high']:.{digits}f}]"
