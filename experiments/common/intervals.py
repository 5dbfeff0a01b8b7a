"""How sure is a median? Intervals from order statistics, whose level is exact for any continuous distribution.

Between the k-th lowest and the k-th highest of n values the median lies with probability 1 - 2 P(Binomial(n, 1/2) < k);
with ties, at least with that. The range of three values has 75 %, and no interval of fewer than six has 95 %.
"""

from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
from scipy.stats import binom

LEVEL = 0.95


@cache
def coverage(n: int, k: int = 1) -> float:
    """The probability with which the median lies between the k-th lowest and the k-th highest of n values."""
    return 1 - 2 * float(binom.cdf(k - 1, n, 0.5))


@cache
def rank(n: int, level: float = LEVEL) -> int:
    """The greatest k whose `coverage` is at least `level`; 0 if not even the range has it."""
    return int((1 - 2 * binom.cdf(np.arange(n // 2), n, 0.5) >= level - 1e-12).sum())


def interval(samples: np.ndarray, level: float = LEVEL, axis: int = -1) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the narrowest symmetric interval of the median along an axis that has at least this level.

    Both are NaN of fewer values than it takes (six at 95 %), and where a value is NaN; values may be infinite.
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
    """`interval` at 95 %, but of two to five values their range; see `attained` and `label` for what it holds."""
    return interval(samples, stated(np.shape(samples)[axis]), axis)


def stated(n: int) -> float:
    return min(LEVEL, coverage(n))


def attained(n: int) -> float:
    """The exact level of `interval_or_range` of n values; NaN of fewer than two, of which there is none."""
    return coverage(n, rank(n, stated(n))) if n > 1 else np.nan


def label(n: int) -> str:
    """What `interval_or_range` of n values is to be called: 95 % interval, or 75 % range."""
    return f"{100 * stated(n):g} % {'interval' if coverage(n) >= LEVEL else 'range'}"


def column(low: Sequence[float], high: Sequence[float], n: Sequence[int], form: str) -> dict[str, list[str]]:
    """A column for a table of short strings, by its name: that says the level, or each cell does if they differ.

    Args:
        low, high, n: of `interval_or_range`, and of how many values, a row each; NaN is shown as -.
        form: of a number, as "{:.4g}".
    Returns: nothing if no row has an interval.
    """
    rows = list(zip(low, high, n, strict=True))
    names = {label(count) for a, _, count in rows if a == a}
    if not names:
        return {}
    same = len(names) == 1
    cells = [
        f"{form.format(a)} to {form.format(b)}{'' if same else f' ({label(count)})'}" if a == a else "-"
        for a, b, count in rows
    ]
    return {names.pop() if same else "interval": cells}


def explained(counts: Iterable[int]) -> str:
    """What `column` shows of rows of so many seeds, in two sentences; "" if no row has two."""
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
