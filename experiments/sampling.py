"""Configurations of larger spaces: points of low discrepancy instead of every combination."""

import re

import numpy as np
import pandas as pd
from scipy.stats import qmc

from experiments.grid import AXES, BETAS, OptionError, Range
from experiments.values import shown

SEQUENCES = {"sobol": qmc.Sobol, "halton": qmc.Halton}
ACCEPTED = "sobol:N with a power of two, or halton:N, and N below a million"


def parse(text: str) -> tuple[str, int]:
    """A sequence and how many points of it, as `sobol:64`. Raises: OptionError."""
    match = re.fullmatch(r"(sobol|halton):([1-9]\d{0,5})", text.strip())
    # Only a power of two of Sobol's points is balanced.
    if not match or (match[1] == "sobol" and int(match[2]).bit_count() > 1):
        raise OptionError(f"--sample accepts {ACCEPTED}, for example sobol:64, not {shown(text)}")
    return match[1], int(match[2])


def configurations(axes: dict[str, list[float] | Range], sequence: str, n: int) -> pd.DataFrame:
    """At most n configurations, one row each; columns as in `AXES`, NaN in those that are not among `axes`.

    A range is sampled in log, for betas and momentum in the log of 1 - value, to six digits; of a list every value is
    as likely. The points are scrambled, always in the same way, and each is taken once: of lists alone there may be
    fewer than n.

    Reference: Owen 1998, doi:10.1006/jcom.1998.0487 (scrambling).
    """
    varied = [axis for axis, values in axes.items() if isinstance(values, Range) or len(values) > 1]
    points = SEQUENCES[sequence](max(1, len(varied)), scramble=True, rng=np.random.default_rng(0)).random(n)
    columns = dict(zip(varied, points.T, strict=False))
    table = {axis: between(axis, values, columns.get(axis, np.zeros(n))) for axis, values in axes.items()}
    return pd.DataFrame(table, dtype=float).drop_duplicates(ignore_index=True).reindex(columns=list(AXES))


def between(axis: str, values: list[float] | Range, points: np.ndarray) -> list[float]:
    """Values of an axis at points in [0, 1)."""
    if not isinstance(values, Range):
        return [values[int(point * len(values))] for point in points]
    start, stop = ((1 - end if axis in BETAS else end) for end in (values.start, values.stop))
    spaced = [float(f"{start * (stop / start) ** point:.6g}") for point in points]
    return [float(f"{1 - value:.12g}") for value in spaced] if axis in BETAS else spaced
