"""The values of an axis: from words, numbers and ranges, as users give them, to sorted lists or ranges to sample."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.common import values as meant
from experiments.common.errors import OptionError
from experiments.common.values import Kind, several, shown
from experiments.training import optimizers
from experiments.training.axes import BETA, LINEAR, LOG, NAMED, RUN, WORDS, Axis

RANGE = re.compile(r"(?P<start>.+?)\.\.(?P<stop>[^:]+)(:(?P<count>\d{1,5}))?")
LIMITS = {LOG: "0 < START", BETA: "0 <= START", LINEAR: "START"}


@dataclass(frozen=True)
class Range:
    """All values from start to stop, for a sweep that samples."""

    start: float
    stop: float

    def __str__(self) -> str:
        return "..".join(map(shown, (self.start, self.stop)))


Given = list[Any] | Range
"""What a user gave for an axis, word by word or value by value, not yet checked."""
Values = list[Any] | Range


def by_owner(name: str, given: Any) -> dict[str, Given]:
    """Return what was given for an axis by the names of optimizers, with "" for all that have none of their own.

    Args:
        given: a value, a `Range`, words as on the command line, or several values or words; or a dictionary of these
            by optimizer. Words from `sgd=...` on are for that optimizer alone.
    Raises: OptionError.
    """
    axis = NAMED.get(name) or RUN.get(name) or Axis(name, Kind("values", several))
    if isinstance(given, Mapping) and given:
        by = Kind("values by the names of optimizers", optimizers.names_or_classes)
        owners = [owner and optimizers.names_of(meant.taken(axis.option, owner, by))[0] for owner in given]
        return {owner: listed(axis, own) for owner, own in zip(owners, given.values(), strict=True)}
    words = listed(axis, given)
    if isinstance(words, Range):
        return {"": words}
    of, owner = defaultdict(list), ""
    for word in words:
        name, equals, one = word.rpartition("=") if isinstance(word, str) else ("", "", word)
        owner = name if equals else owner
        of[owner] += [] if isinstance(one, str) and not one else [one]
    return dict(of) or {"": []}


def listed(axis: Axis, given: Any) -> Given:
    if isinstance(given, Range):
        return given
    return (
        given.split() if isinstance(given, str) else meant.taken(axis.option, given, Kind(axis.kind.accepts, several))
    )


def parse(axis: Axis, given: Given, sampled: bool = False) -> Values:
    """Return the values of an axis sorted and without repetitions.

    A range `1e-4..1e-1:7` is 7 values, spaced evenly on the axis' scale. If configurations are sampled, a single range
    without a count becomes a `Range`. Raises: OptionError.
    """
    if isinstance(given, Range):
        if not sampled:
            raise OptionError(f"{axis.option} takes a range without COUNT only with --sample, not '{given}'")
        return check_range(axis, given.start, given.stop)
    if sampled and len(given) == 1 and (match := range_in(axis, given[0])) and not match["count"]:
        return check_range(axis, match["start"], match["stop"])
    values = []
    for one in given:
        is_range = axis.scale != WORDS and isinstance(one, str) and ".." in one
        values += parse_range(axis, one) if is_range else [value(axis, one)]
        if len(values) > meant.MOST_VALUES:
            raise OptionError(f"{axis.option} accepts at most {meant.MOST_VALUES} values")
    if not values:
        raise OptionError(f"{axis.option} needs at least one value ({axis.kind.accepts})")
    return sorted(set(values))


def range_in(axis: Axis, word: Any) -> re.Match | None:
    return RANGE.fullmatch(word) if isinstance(word, str) and axis.scale != WORDS else None


def value(axis: Axis, given: Any) -> Any:
    """Return one value, given as a word or not. Raises: OptionError."""
    if axis.scale != WORDS and isinstance(given, str) and meant.is_number(given):
        given = float(given)
    return meant.taken(axis.option, given, axis.kind)


def parse_range(axis: Axis, word: str) -> list[float]:
    match = range_in(axis, word)
    if not match or not match["count"]:
        raise OptionError(
            f"{axis.option}: a range is START..STOP:COUNT, for example 1e-4..1e-1:7, of at most 99999 values, or "
            f"alone with --sample START..STOP, not {shown(word)}"
        )
    (start, stop), count = ends(axis, match["start"], match["stop"]), int(match["count"])
    below = " < 1" if axis.scale == BETA else ""
    wrong = OptionError(
        f"{axis.option}: a range needs {LIMITS[axis.scale]} <= STOP{below} and a COUNT of at least 2, not {shown(word)}"
    )
    if not (start <= stop < math.inf) or count < 1 or (count == 1 and start != stop):
        raise wrong
    if axis.scale == LINEAR:
        spaced = [start + (stop - start) * i / max(count - 1, 1) for i in range(count)]
    else:
        first, last = (1 - start, 1 - stop) if axis.scale == BETA else (start, stop)
        if min(first, last) <= 0:
            raise wrong
        ratio = (last / first) ** (1 / max(count - 1, 1))
        spaced = [first * ratio**i for i in range(count)]
    # Twelve digits hide the rounding of the powers: 0.9..0.999:3 is 0.9 0.99 0.999.
    spaced = [float(f"{1 - one if axis.scale == BETA else one:.12g}") for one in spaced]
    if axis.name in RUN and isinstance(axis.kind.take(1), int):
        spaced = [round(one) for one in spaced]
    return [value(axis, one) for one in spaced]


def ends(axis: Axis, *given: Any) -> list[float]:
    """Return the ends of a range as numbers, which the axis itself may not accept."""
    return [meant.taken(axis.option, end, Kind(axis.kind.accepts, meant.number)) for end in given]


def check_range(axis: Axis, start: Any, stop: Any) -> Range:
    """Return a range to sample. Raises: OptionError if it is empty or cannot be drawn evenly on the axis' scale."""
    if axis.name in RUN or axis.scale == WORDS:
        words = axis.kind.accepts if axis.scale == WORDS else "values or START..STOP:COUNT"
        raise OptionError(f"{axis.option} accepts {words}, also with --sample, not {start}..{stop}")
    found = Range(*ends(axis, start, stop))
    first, last = (1 - found.start, 1 - found.stop) if axis.scale == BETA else (found.start, found.stop)
    if not (found.start < found.stop < math.inf and min(first, last) > 0 <= found.start and last / first < math.inf):
        below = " < 1" if axis.scale == BETA else ""
        raise OptionError(f"{axis.option}: a range needs {LIMITS[axis.scale]} < STOP{below}, not '{found}'")
    return found
