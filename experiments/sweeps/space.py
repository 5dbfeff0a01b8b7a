"""The search space of a sweep: the values of its axes for each optimizer, and configurations made of them."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiments.common.errors import OptionError
from experiments.common.values import Kind, option, several, shown
from experiments.sweeps.axis_values import Given, Range, Values, check_range, parse, value
from experiments.training import optimizers
from experiments.training.axes import BETA, NAMED, RUN, WORDS, Axis, spelled

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


@dataclass(frozen=True)
class SameAs:
    """The values of an axis that is tied to another one."""

    axis: str

    def __str__(self) -> str:
        return f"= {self.axis}"


Grid = dict[Axis, "Values | SameAs"]
"""The values of each axis of an optimizer, or the range to sample, in the order of all tables."""


def given_axes(config: Any) -> dict[str, dict[str, Given]]:
    """Return what a `SweepConfig` gives for each axis, by owner; see `by_owner`. Raises: OptionError."""
    given = {name: value for name in NAMED if (value := getattr(config, name)) is not None}
    if twice := given.keys() & config.axes:
        raise OptionError(f"{option(min(twice))} and --axis {min(twice)} exclude each other: give one of them")
    return given | config.axes


def known_axes(names: Iterable[str], given: Iterable[str] = ()) -> dict[str, dict[str, Axis]]:
    """Return the axes of each optimizer by name: of its constructor, and those options of a run that are given."""
    of_run = {name: RUN[name] for name in RUN if name in given}
    names = list(dict.fromkeys(names))
    if not names:
        raise OptionError(f"--optimizer needs at least one of {optimizers.ACCEPTED}")
    return {name: optimizers.axes(optimizers.resolve(name)) | of_run for name in names}


def grids(
    names: Iterable[str],
    given: Mapping[str, Mapping[str, Given]],
    ties: Iterable[tuple[str, ...]] = (),
    sampled: bool = False,
) -> dict[str, Grid]:
    """Return the values or the range of each axis of each optimizer: of `NAMED`, and of what is given.

    Args:
        given: as of `given_axes`. An axis that is not given takes each optimizer's default.
        ties: names of axes that take the same values; those of one of them are given.
    Raises: OptionError for an unknown optimizer, and for an axis that no optimizer, or not the one named, has.
    """
    same = leaders(given, ties)
    known = known_axes(names, {*given, *same})
    for axis in given.keys() & NAMED.keys():
        for own in given[axis].values():
            parse(NAMED[axis], own, sampled)
    check_owners(known, given)
    check_ties(known, ties)

    def of(name: str, axis: Axis) -> Values | SameAs:
        owned = given.get(axis.name, {})
        if name in owned or "" in owned:
            return parse(axis, owned.get(name, owned.get("", [])), sampled)
        if (leader := same.get(axis.name)) in known[name]:
            check_accepts(axis, of(name, known[name][leader]))
            return SameAs(leader)
        if axis.default is None:
            raise OptionError(f"{axis.option} needs values, because {name} has no default for it")
        return [axis.default]

    def wanted(axis: Axis) -> bool:
        return axis.name in NAMED or axis.name in given or axis.name in same or axis.default is None

    return {name: {axis: of(name, axis) for axis in has.values() if wanted(axis)} for name, has in known.items()}


def check_accepts(axis: Axis, values: Values | SameAs) -> None:
    """Raise OptionError unless an axis accepts the values of another one."""
    if isinstance(values, Range):
        check_range(axis, values.start, values.stop)
    elif isinstance(values, list):
        for one in values:
            # NaN takes the option of the whole sweep.
            if axis.name not in RUN or one == one:
                value(axis, one)


def leaders(given: Mapping[str, Any], ties: Iterable[tuple[str, ...]]) -> dict[str, str]:
    """Return, for each axis that a tie gives its values, the axis that has them. Raises: OptionError."""
    found = {}
    for names in ties:
        having = [name for name in names if name in given]
        if len(having) != 1 or any(name in found for name in names):
            raise OptionError(f"--tie {'='.join(names)} needs values of one of these axes, and each in one tie")
        found |= {name: having[0] for name in names if name != having[0]}
    return found


def check_ties(known: Mapping[str, Mapping[str, Axis]], ties: Iterable[tuple[str, ...]]) -> None:
    """Raise OptionError unless some optimizer has all axes of each tie. known: as of `known_axes`."""
    for names in ties:
        if not any(has.keys() >= {*names} for has in known.values()):
            raise OptionError(f"--tie {'='.join(names)} goes with none of the optimizers chosen: {accepted(known)}")


def check_owners(known: Mapping[str, Mapping[str, Axis]], given: Mapping[str, Mapping[str, Given]]) -> None:
    """Raise OptionError unless every axis goes with the optimizers it is given for. known: as of `known_axes`."""
    for axis, owners in given.items():
        for name in owners:
            having = [axis in has for owner, has in known.items() if name in ("", owner)]
            if not having:
                raise OptionError(f"{spelled(axis)} accepts values for {', '.join(known)}, not for {shown(name)}")
            if not any(having):
                raise OptionError(
                    f"{spelled(axis)} goes with none of the optimizers chosen: {accepted(known)}; "
                    f"options of a run are {', '.join(RUN)}"
                )


def accepted(known: Mapping[str, Mapping[str, Axis]]) -> str:
    """Return the names of the axes that each optimizer has. known: as of `known_axes`."""
    return "; ".join(f"{name} accepts {', '.join(has)}" for name, has in known.items())


def as_typed(grid: Grid) -> dict[str, list | str]:
    """Return a grid as provenance.json holds it: lists of values, or words that say how they came about."""
    given = {axis: values for axis, values in grid.items() if values != [axis.default] or axis.name not in RUN}
    # JSON has no infinity.
    return {
        axis.name: ["inf" if v == math.inf else v for v in values] if isinstance(values, list) else str(values)
        for axis, values in given.items()
    }


def grid_configurations(grid: Grid) -> pd.DataFrame:
    """Return every combination of the values, one row each and one column for each axis."""
    free = {axis: values for axis, values in grid.items() if isinstance(values, list)}
    return table_of(grid, dict(zip(free, zip(*itertools.product(*free.values()), strict=True), strict=True)))


def table_of(grid: Grid, columns: Mapping[Axis, Iterable[Any]]) -> pd.DataFrame:
    """Return a table with a column for each axis of a grid, float64 or of words.

    columns: the values of all axes but tied ones.
    """
    import pandas as pd  # not to read words

    by_name = {axis.name: list(column) for axis, column in columns.items()}
    of = {axis.name: by_name[values.axis if isinstance(values, SameAs) else axis.name] for axis, values in grid.items()}
    dtypes = {axis.name: object if axis.scale == WORDS else float for axis in grid}
    return pd.DataFrame(of, dtype=object).astype(dtypes)


SAMPLE_ACCEPTED = "sobol:N with a power of two, or halton:N, and N below a million"


def parse_sample(text: str) -> tuple[str, int]:
    """Parse the name of a sequence and a number of points, as in `sobol:64`. Raises: OptionError."""
    match = re.fullmatch(r"(sobol|halton):([1-9]\d{0,5})", text.strip())
    # Sobol's points are balanced only if their number is a power of two.
    if not match or (match[1] == "sobol" and int(match[2]).bit_count() > 1):
        raise OptionError(f"--sample accepts {SAMPLE_ACCEPTED}, for example sobol:64, not {shown(text)}")
    return match[1], int(match[2])


def sampled_configurations(grid: Grid, sequence: str, n: int) -> pd.DataFrame:
    """Sample at most n configurations, one row each and one column for each axis.

    A range is sampled evenly on the axis' scale, to six digits; the values of a list are equally likely. The points are
    scrambled, always in the same way. Repeated configurations are dropped, so lists alone may give fewer than n.

    Reference: Owen 1998, doi:10.1006/jcom.1998.0487 (scrambling).
    """
    import numpy as np
    from scipy.stats import qmc

    sequences = {"sobol": qmc.Sobol, "halton": qmc.Halton}
    free = {axis: values for axis, values in grid.items() if not isinstance(values, SameAs)}
    varied = [axis for axis, values in free.items() if isinstance(values, Range) or len(values) > 1]
    points = sequences[sequence](max(1, len(varied)), scramble=True, rng=np.random.default_rng(0)).random(n)
    columns = dict(zip(varied, points.T, strict=False))
    drawn = {axis: between(axis, values, columns.get(axis, np.zeros(n))) for axis, values in free.items()}
    return table_of(grid, drawn).drop_duplicates(ignore_index=True)


def between(axis: Axis, values: Values, points: np.ndarray) -> list[Any]:
    """Return the values of an axis at points in [0, 1)."""
    if not isinstance(values, Range):
        return [values[int(point * len(values))] for point in points]
    start, stop = ((1 - end if axis.scale == BETA else end) for end in (values.start, values.stop))
    spaced = [float(f"{start * (stop / start) ** point:.6g}") for point in points]
    return [float(f"{1 - value:.12g}") for value in spaced] if axis.scale == BETA else spaced


def tie(given: Any) -> tuple[str, ...]:
    """Return the names of axes in `beta1=beta2`. Raises: ValueError or AttributeError if these are none."""
    names = tuple(name.strip().replace("-", "_") for name in given.split("="))
    if len(names) < 2 or not all(names) or len(set(names)) < len(names):
        raise ValueError
    return names


TIES = Kind(
    "names of axes that take the same values, such as beta1=beta2",
    lambda given: [tie(one) for one in (given.split() if isinstance(given, str) else several(given))],
)
