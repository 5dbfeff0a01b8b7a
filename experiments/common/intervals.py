"""Confidence intervals of medians from order statistics; their level is exact for any continuous distribution.

The median lies between the k-th lowest and the k-th highest of n values with probability 1 - 2 P(Binomial(n, 1/2) < k),
or more if there are ties. The range of three values has a level of 75 %; fewer than six values give no 95 % interval.
"""

from collections.abc import Iterable
from functools import cache

import numpy as np

from experiments.common.numbers import exponents

LEVEL = 0.95


def levels(n: int, below: int | np.ndarray) -> np.ndarray:
    """Return the level of the interval of n values that leaves out `below` of them at each end."""
    # scipy.stats has it by name, and takes three times as long to import.
    from scipy.special import bdtr

    return 1 - 2 * bdtr(below, n, 0.5)


@cache
def coverage(n: int, k: int = 1) -> float:
    """Return the probability that the median lies between the k-th lowest and the k-th highest of n values."""
    return float(levels(n, k - 1))


@cache
def rank(n: int, level: float = LEVEL) -> int:
    """Return the greatest k whose `coverage` is at least `level`; 0 if not even the range reaches it."""
    return int((levels(n, np.arange(n // 2)) >= level - 1e-12).sum())


def interval(samples: np.ndarray, level: float = LEVEL, axis: int = -1) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the narrowest symmetric interval of the median along an axis, with at least this level.

    Both ends are NaN if there are too few values (fewer than six at 95 %) or a value is NaN; values may be infinite.

    Args:
        samples: any shape.
    Returns: low and high, float64, with the shape of samples without this axis.
    """
    ordered = np.sort(np.asarray(samples, dtype=float), axis=axis)
    n = ordered.shape[axis]
    k = rank(n, level)
    if k == 0:
        none = np.full(np.delete(ordered.shape, axis), np.nan)
        return none, none
    # Sorting takes NaN to the end.
    known = ~np.isnan(ordered.take(-1, axis))
    low, high = (np.where(known, ordered.take(i, axis), np.nan) for i in (k - 1, n - k))
    return low, high


def interval_or_range(samples: np.ndarray, axis: int = -1) -> tuple[np.ndarray, np.ndarray]:
    """Return `interval` at 95 %, or the range of two to five values; `attained` and `label` give its level."""
    return interval(samples, stated(np.shape(samples)[axis]), axis)


def stated(n: int) -> float:
    """Return the level that `interval_or_range` of n values claims: 95 %, or less if not even the range reaches it."""
    return min(LEVEL, coverage(n))


def attained(n: int) -> float:
    """Return the exact level of `interval_or_range` for n values; NaN for fewer than two, which have no interval."""
    return coverage(n, rank(n, stated(n))) if n > 1 else np.nan


def label(n: int) -> str:
    """Return the name of `interval_or_range` for n values, such as "95 % interval" or "75 % range"."""
    return f"{100 * stated(n):g} % {'interval' if coverage(n) >= LEVEL else 'range'}"


def column(low: Iterable[float], high: Iterable[float], n: Iterable[int], form: str) -> dict[str, list[str]]:
    """Format intervals as a table's column; its name states the level, or each cell does if levels differ.

    Args:
        low, high: ends of `interval_or_range`, one for each row; NaN is shown as "-".
        n: number of values behind each row.
        form: format of a number, such as "{:.4g}".
    Returns: {name: cells}, or {} if no row has an interval.
    """
    rows = list(zip(low, high, n, strict=True))
    names = {label(count) for a, _, count in rows if a == a}
    if not names:
        return {}
    same = len(names) == 1
    cells = [
        exponents(f"{form.format(a)} to {form.format(b)}{'' if same else f' ({label(count)})'}") if a == a else "-"
        for a, b, count in rows
    ]
    return {names.pop() if same else "interval": cells}


def explained(counts: Iterable[int]) -> str:
    """Explain the intervals of `column` in two sentences, for rows of these numbers of seeds; "" if no row has two."""
    known = sorted({int(n) for n in counts if n > 1})
    if not known:
        return ""
    kinds = []
    for n in known:
        k = rank(n, stated(n))
        ends = "the lowest to the highest" if k == 1 else f"number {k} to number {n + 1 - k}"
        exactly = f" ({100 * attained(n):.1f} % exactly)" if attained(n) > LEVEL else ""
        kinds.append(f"{label(n)}: from {ends} of {n} seeds{exactly}")
    few = "; of fewer than six seeds no interval has 95 %" if coverage(known[0]) < LEVEL else ""
    return (
        f"{'; '.join(kinds)}. It contains the median over all seeds at least that often, whatever their "
        f"distribution, if the configuration was not chosen by these seeds{few}."
    )
