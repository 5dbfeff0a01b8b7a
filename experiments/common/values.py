"""From what somebody gives, as a word on a command line or as an object in Python, to the value that is meant."""

import functools
import inspect
import itertools
import math
import os
from collections.abc import Callable, Iterable, Mapping
from numbers import Number
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.common.errors import OptionError

MOST = 10**9
"""No count is larger: nothing that is counted here ends before then, or fits into a memory."""
MOST_VALUES = 10**5
"""Of a list: a generator may be endless."""


class TooLarge(ValueError):
    """A number above all that are accepted; its text is what is accepted."""


class Kind(NamedTuple):
    """What an option accepts.

    Attributes:
        accepts: in words, as in "--seeds accepts whole numbers from 1, not 0".
        take: from what is given to the value. Raises: any Exception for what is not accepted.
    """

    accepts: str
    take: Callable[[Any], Any]


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def taken(name: str, given: Any, kind: Kind) -> Any:
    """The value that is meant, if the kind accepts what is given. Raises: OptionError, which calls it by its name."""
    try:
        return kind.take(given)
    except OptionError:
        raise
    except TooLarge as error:
        raise OptionError(f"{name} accepts {error}, not {shown(given)}") from None
    # Whatever a number, a path or a tensor may raise in becoming one.
    except Exception:
        raise OptionError(f"{name} accepts {kind.accepts}, not {shown(given)}") from None


def checked(given: Mapping[str, Any], kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """What is given by name, with the values that are meant in the place of those that have a kind.

    Raises: OptionError.
    """
    return {name: taken(option(name), value, kinds[name]) if name in kinds else value for name, value in given.items()}


def normalised(kinds: Mapping[str, Kind]) -> Callable[[Callable], Callable]:
    """A decorator: the function is called with the values that are meant by its arguments; see `checked`."""

    def decorate(function: Callable) -> Callable:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args, **kwargs):
            return function(**checked(signature.bind(*args, **kwargs).arguments, kinds))

        return call

    return decorate


def shown(value: Any) -> str:
    """What was given, on one line that is not too long."""
    value = plain(value) if isinstance(value, Number) else value
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int) and abs(value) >= 10**15:
        return f"a number of {math.floor(math.log10(abs(value))) + 1} digits"
    try:
        text = value if isinstance(value, str) and is_number(value) else " ".join(repr(value).split())
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:60]}..."


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def plain(value: Any) -> Any:
    """The number in a tensor or array without dimensions, or in a scalar of numpy's; all else as it is."""
    if getattr(value, "ndim", None) != 0 or not hasattr(value, "item"):
        return value
    # What float32 prints as 0.1 is meant as 0.1.
    return float(str(np.float32(value.item()))) if str(value.dtype).endswith("float32") else value.item()


def number(value: Any) -> float:
    """A float. Raises: TypeError, ValueError or OverflowError if that is not what is meant."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, str | Number):
        raise TypeError
    return float(value)


def whole(low: int, high: int = MOST, what: str = "") -> Kind:
    """Whole numbers from low to high, also as words or as floats without a fraction."""

    def take(value: Any) -> int:
        value = plain(value)
        if isinstance(value, str):
            try:
                found = int(value)
            except ValueError:
                # As in 1e6.
                value = float(value)
                found = int(value)
        else:
            number(value)
            found = int(value)
            if found != value:
                raise ValueError
        if isinstance(value, float) and found != value:
            raise ValueError
        if found < low:
            raise ValueError
        if found > high:
            raise TooLarge(f"{accepts} to {high}" if high == MOST else accepts)
        return found

    accepts = what or (f"whole numbers from {low}" if high == MOST else f"whole numbers from {low} to {high}")
    return Kind(accepts, take)


def real(accepts: str, fits: Callable[[float], bool] = lambda value: True) -> Kind:
    """Finite numbers that fit."""

    def take(value: Any) -> float:
        found = number(value)
        if not (math.isfinite(found) and fits(found)):
            raise ValueError
        return found

    return Kind(accepts, take)


POSITIVE = real("positive numbers", lambda value: value > 0)
SECONDS = real("seconds above 0", lambda value: value > 0)


def word(accepts: str) -> Kind:
    def take(value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError
        return str(value)

    return Kind(accepts, take)


def flag(value: Any) -> bool:
    value = plain(value)
    # Of numbers 0 and 1; "no" would be true.
    if not isinstance(value, int) or value not in (0, 1):
        raise TypeError
    return bool(value)


FLAG = Kind("True or False", flag)


def folder(value: Any) -> Path:
    """A path, with ~ replaced by the home. Raises: TypeError, ValueError, or RuntimeError if nobody has that home."""
    text = os.fsdecode(value)
    if not text or b"\0" in os.fsencode(text):
        raise ValueError
    return Path(text).expanduser()


FOLDER = Kind("a folder", folder)


def optional(kind: Kind) -> Kind:
    """The same, or None."""
    return Kind(kind.accepts, lambda value: None if value is None else kind.take(value))


def several(value: Any) -> list:
    """One value, or several, as a list. Raises: TooLarge if there are too many, TypeError for keys with values."""
    value = plain(value)
    if isinstance(value, str | type) or not isinstance(value, Iterable):
        return [value]
    # Of bytes the numbers are characters.
    if isinstance(value, Mapping | bytes | bytearray | memoryview):
        raise TypeError
    found = [plain(one) for one in itertools.islice(value, MOST_VALUES + 1)]
    if len(found) > MOST_VALUES:
        raise TooLarge(f"at most {MOST_VALUES} values")
    return found
