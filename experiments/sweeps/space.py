"""The search space of a sweep: parses the values of its axes, and makes configurations of them."""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiments.common import values as meant
from experiments.common.errors import OptionError
from experiments.common.values import Kind, option, several, shown
from experiments.training import optimizers
from experiments.training.axes import AXES, BETAS

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

RANGE = re.compile(r"(?P<start>.+?)\.\.(?P<stop>[^:]+)(:(?P<count>\d{1,5}))?")
ACCEPTED = {
    "lr": "positive numbers",
    "beta1": "numbers in [0, 1)",
    "beta2": "numbers in [0, 1)",
    "eps": "numbers >= 0",
    "weight_decay": "numbers >= 0",
    "momentum": "numbers in [0, 1)",
}

SEVERAL = {axis: Kind(accepts, several) for axis, accepts in ACCEPTED.items()}


@dataclass(frozen=True)
class Range:
    """All values from start to stop, for a sweep that samples."""

    start: float
    stop: float

    def __str__(self) -> str:
        return "..".join(map(shown, (self.start, self.stop)))


Values = list[float] | Range


def axis_values(axis: str, given: Any, sampled: bool = False) -> Values | dict[Any, Values]:
    """Return the values of an axis from a number, a `Range`, words (see `parse_axis`), or several of these.

    A dictionary of these, by optimizer, gives a dictionary. Raises: OptionError.
    """
    if isinstance(given, Mapping) and given:
        # Words that name another optimizer are not accepted here: they would give a dictionary in a dictionary.
        return {owner: of_one(axis, own, sampled, parse_values) for owner, own in given.items()}
    return of_one(axis, given, sampled, parse_axis)


def of_one(axis: str, given: Any, sampled: bool, parse: Callable) -> Any:
    """Return a checked range, or whatever else was given as words, parsed by `parse`."""
    if not isinstance(given, Range):
        found = given.split() if isinstance(given, str) else meant.taken(option(axis), given, SEVERAL[axis])
        return parse(axis, [one if isinstance(one, str) else repr(number(axis, one)) for one in found], sampled)
    if not sampled:
        raise OptionError(f"{option(axis)} takes a range without COUNT only with --sample, not '{given}'")
    return check_range(axis, Range(number(axis, given.start), number(axis, given.stop)))


def parse_axis(axis: str, tokens: list[str], sampled: bool = False) -> Values | dict[str, Values]:
    """Return the values of an axis from words such as `1e-4 3e-4` or `1e-4..1e-1:7` (COUNT values from START to STOP).

    A range is spaced logarithmically; for betas and momentum, in 1 - value. If configurations are sampled, a single
    range without COUNT becomes a `Range`. Words from `sgd=...` on are for that optimizer alone: then the result is a
    dictionary by optimizer, with the values for all others under "".
    Raises: OptionError.
    """
    words, owner = defaultdict(list), ""
    for token in tokens:
        name, equals, value = token.rpartition("=")
        owner = name if equals else owner
        words[owner] += [value] if value else []
    values = {name: parse_values(axis, own, sampled) for name, own in words.items()} or {"": check_axis(axis, [])}
    return values[""] if values.keys() == {""} else values


def parse_values(axis: str, tokens: list[str], sampled: bool) -> Values:
    if sampled and len(tokens) == 1 and (match := RANGE.fullmatch(tokens[0])) and not match["count"]:
        return check_range(axis, Range(number(axis, match["start"]), number(axis, match["stop"])))
    values = []
    for token in tokens:
        if ".." in token:
            values.extend(parse_range(axis, token))
        else:
            values.append(number(axis, token))
        if len(values) > meant.MOST_VALUES:
            raise OptionError(f"{option(axis)} accepts at most {meant.MOST_VALUES} values")
    return check_axis(axis, values)


def parse_range(axis: str, token: str) -> list[float]:
    match = RANGE.fullmatch(token)
    if not match or not match["count"]:
        raise OptionError(
            f"{option(axis)}: a range is START..STOP:COUNT, for example 1e-4..1e-1:7, of at most 99999 values, or "
            f"alone with --sample START..STOP, not {shown(token)}"
        )
    start, stop = number(axis, match["start"]), number(axis, match["stop"])
    count = int(match["count"])
    beta = axis in BETAS
    first, last = (1 - start, 1 - stop) if beta else (start, stop)
    if start > stop or min(first, last) <= 0 or count < 1 or (count == 1 and start != stop):
        limits = "0 <= START <= STOP < 1" if beta else "0 < START <= STOP"
        raise OptionError(f"{option(axis)}: a range needs {limits} and a COUNT of at least 2, not {shown(token)}")
    ratio = (last / first) ** (1 / max(count - 1, 1))
    spaced = [first * ratio**i for i in range(count)]
    # Twelve digits hide the rounding of the powers: 0.9..0.999:3 is 0.9 0.99 0.999.
    return [float(f"{1 - value if beta else value:.12g}") for value in spaced]


def check_range(axis: str, values: Range) -> Range:
    """Return the range. Raises: OptionError if it is empty or cannot be sampled in log."""
    first, last = (1 - values.start, 1 - values.stop) if axis in BETAS else (values.start, values.stop)
    if not (values.start < values.stop < math.inf and min(first, last) > 0 <= values.start and last / first < math.inf):
        limits = "0 <= START < STOP < 1" if axis in BETAS else "0 < START < STOP"
        raise OptionError(f"{option(axis)}: a range needs {limits}, not '{values}'")
    return values


def number(axis: str, given: Any) -> float:
    return meant.taken(option(axis), given, Kind(ACCEPTED[axis], meant.number))


def check_axis(axis: str, values: list[float]) -> list[float]:
    """Return the values sorted and without repetitions. Raises: OptionError if there is none or one is out of range."""
    if not values:
        raise OptionError(f"{option(axis)} needs at least one value ({ACCEPTED[axis]})")
    for value in values:
        below = 1 if axis in BETAS else math.inf
        if not (0 < value < below if axis == "lr" else 0 <= value < below):
            raise OptionError(f"{option(axis)} accepts {ACCEPTED[axis]}, not {value:g}")
    return sorted(set(values))


def grid_configurations(axes: dict[str, list[float]]) -> pd.DataFrame:
    """Return every combination of the axes, one row each; columns as in `AXES`, NaN in those not among `axes`."""
    import pandas as pd  # not to read words

    table = pd.DataFrame(list(itertools.product(*axes.values())), columns=list(axes), dtype=float)
    return table.reindex(columns=list(AXES))


def grids(names: Iterable[str], given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the values or the range of each axis of each optimizer.

    Args:
        given: for each axis, its values or its range for all optimizers that have it, or a dictionary of these by
            optimizer, with "" for all others. An axis that is not given takes each optimizer's default.
    Raises: OptionError for an unknown optimizer, and for an axis that no optimizer, or not the one named, has.
    """
    names = list(dict.fromkeys(names))
    if not names:
        raise OptionError(f"--optimizer needs at least one of {optimizers.ACCEPTED}")
    known = {name: optimizers.axes(optimizers.resolve(name)) for name in names}
    by_name = {axis: values if isinstance(values, Mapping) else {"": values} for axis, values in given.items()}
    for axis, values in by_name.items():
        for name in values:
            having = [axis in has for owner, has in known.items() if name in ("", owner)]
            if not having:
                raise OptionError(f"{option(axis)} accepts values for {', '.join(names)}, not for {shown(name)}")
            if not any(having):
                raise OptionError(
                    f"{option(axis)} goes with none of the optimizers chosen: "
                    + "; ".join(f"{name} accepts {', '.join(map(option, has))}" for name, has in known.items())
                )

    def of(name: str, axis: str, default: float) -> Any:
        values = by_name.get(axis, {})
        return values.get(name, values.get("", [default]))

    return {name: {axis: of(name, axis, default) for axis, default in has.items()} for name, has in known.items()}


SAMPLE_ACCEPTED = "sobol:N with a power of two, or halton:N, and N below a million"


def parse_sample(text: str) -> tuple[str, int]:
    """Parse the name of a sequence and a number of points, as in `sobol:64`. Raises: OptionError."""
    match = re.fullmatch(r"(sobol|halton):([1-9]\d{0,5})", text.strip())
    # Sobol's points are balanced only if their number is a power of two.
    if not match or (match[1] == "sobol" and int(match[2]).bit_count() > 1):
        raise OptionError(f"--sample accepts {SAMPLE_ACCEPTED}, for example sobol:64, not {shown(text)}")
    return match[1], int(match[2])


def sampled_configurations(axes: dict[str, list[float] | Range], sequence: str, n: int) -> pd.DataFrame:
    """Sample at most n configurations, one row each; columns as in `AXES`, NaN in those not among `axes`.

    A range is sampled in log, for betas and momentum in the log of 1 - value, to six digits; the values of a list are
    equally likely. The points are scrambled, always in the same way. Repeated configurations are dropped, so lists
    alone may give fewer than n.

    Reference: Owen 1998, doi:10.1006/jcom.1998.0487 (scrambling).
    """
    import numpy as np
    import pandas as pd
    from scipy.stats import qmc

    sequences = {"sobol": qmc.Sobol, "halton": qmc.Halton}
    varied = [axis for axis, values in axes.items() if isinstance(values, Range) or len(values) > 1]
    points = sequences[sequence](max(1, len(varied)), scramble=True, rng=np.random.default_rng(0)).random(n)
    columns = dict(zip(varied, points.T, strict=False))
    table = {axis: between(axis, values, columns.get(axis, np.zeros(n))) for axis, values in axes.items()}
    return pd.DataFrame(table, dtype=float).drop_duplicates(ignore_index=True).reindex(columns=list(AXES))


def between(axis: str, values: list[float] | Range, points: np.ndarray) -> list[float]:
    """Return the values of an axis at points in [0, 1)."""
    if not isinstance(values, Range):
        return [values[int(point * len(values))] for point in points]
    start, stop = ((1 - end if axis in BETAS else end) for end in (values.start, values.stop))
    spaced = [float(f"{start * (stop / start) ** point:.6g}") for point in points]
    return [float(f"{1 - value:.12g}") for value in spaced] if axis in BETAS else spaced
