"""From samples to a verdict: does an interval of an effect lie where the claim said, before it was measured?

An effect is `confirmed` if its interval lies in the stated region, `refuted` if it lies outside of it altogether, and
`undecided` if it crosses a border, or if there are too few samples for an interval. Where chance has no part, every
case has to lie in the region, and one that does not refutes the claim.

A region with two finite ends that holds 0 is an equivalence margin: an effect that is confirmed there is as small as
was said beforehand, which is more than not being told from 0 (Schuirmann 1987, doi:10.1007/BF01068419).

A claim with several effects is confirmed if all are, and refuted if one is. Their intervals hold together at 95 %
(Bonferroni).
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.common import intervals

CONFIRMED, REFUTED, UNDECIDED = "confirmed", "refuted", "undecided"


class Region(NamedTuple):
    """Where an effect lies if a claim is true.

    Attributes:
        low, high: its ends; one of them may be infinite.
        exact: chance has no part in the effect: its samples are cases, such as both ends of a bracket, all of which lie
            in the region if the claim is true. Otherwise they are independent samples, such as differences between two
            runs of a seed.
    """

    low: float = -math.inf
    high: float = math.inf
    exact: bool = False


class Outcome(NamedTuple):
    """What was found of an effect.

    Attributes:
        n: number of samples.
        median, low, high: of the samples, and the interval of the median, or the range if the region is exact.
        level: of the interval; NaN if there is none, 1 if the region is exact.
        verdict: of the effect alone.
        needed: about how many samples would decide, if further ones are like these; 0 if it is decided.
    """

    n: int
    median: float
    low: float
    high: float
    level: float
    verdict: str
    needed: int


def judge(
    regions: Mapping[str, Region], samples: Mapping[str, Sequence[float] | np.ndarray]
) -> tuple[str, dict[str, Outcome]]:
    """Return the verdict of a claim, and the outcome of each of its effects.

    Args:
        regions: by name of effect, as stated before the run.
        samples: by the same names. Infinite samples are allowed, such as a loss that diverged; NaN is not.
    Raises: ValueError if a sample is NaN, or a name is missing.
    """
    n_random = sum(not region.exact for region in regions.values())
    level = 1 - (1 - intervals.LEVEL) / max(1, n_random)
    found = {name: outcome(region, np.asarray(samples[name], dtype=float), level) for name, region in regions.items()}
    verdicts = {one.verdict for one in found.values()}
    all_of_it = REFUTED if REFUTED in verdicts else UNDECIDED if UNDECIDED in verdicts else CONFIRMED
    return all_of_it, found


def outcome(region: Region, samples: np.ndarray, level: float = intervals.LEVEL) -> Outcome:
    """Return the outcome of an effect. level: of the interval of its median."""
    if len(samples) == 0 or np.isnan(samples).any():
        raise ValueError("an effect needs samples, none of them NaN")
    n, median = len(samples), float(np.median(samples))
    if region.exact:
        low, high, attained = float(samples.min()), float(samples.max()), 1.0
    else:
        low, high = (float(end) for end in intervals.interval(samples, level))
        attained = intervals.coverage(n, intervals.rank(n, level)) if not math.isnan(low) else math.nan
    verdict = verdict_of(region, low, high)
    if region.exact and verdict == UNDECIDED:
        verdict = REFUTED
    needed = enough(region, samples, level) if verdict == UNDECIDED else 0
    return Outcome(n, median, low, high, attained, verdict, needed)


def verdict_of(region: Region, low: float, high: float) -> str:
    """Return the verdict for an interval; it is undecided if its ends are NaN."""
    if region.low <= low and high <= region.high:
        return CONFIRMED
    return REFUTED if high < region.low or low > region.high else UNDECIDED


def enough(region: Region, samples: np.ndarray, level: float) -> int:
    """Return about how many samples would decide, if further ones are like these: the quantiles stay, n grows.

    At most a thousand times as many; 0 stands for more than that.
    """
    # Between infinite samples quantiles would be NaN.
    n, ordered = len(samples), np.sort(np.clip(samples, -1e300, 1e300))
    for factor in np.geomspace(1, 1000, 61)[1:]:
        more = math.ceil(n * factor)
        k = intervals.rank(more, level)
        if k:
            share = (k - 0.5) / more
            ends = np.quantile(ordered, (share, 1 - share), method="linear")
            if verdict_of(region, *map(float, ends)) != UNDECIDED:
                return more
    return 0
