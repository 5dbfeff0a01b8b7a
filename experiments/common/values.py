"""Convert option values, given as words on a command line or as Python objects, and check them."""

import functools
import importlib
import inspect
import itertools
import math
import os
import re
from collections.abc import Callable, Container, Iterable, Mapping
from numbers import Number
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common.errors import OptionError, first_line

MOST = 10**9
"""The largest count that is accepted: larger ones would never end, or not fit into memory."""
MOST_VALUES = 10**5
"""The most values that a list may have, because a generator may be endless."""


class TooLarge(ValueError):
    """A number or list is too large; the message says what is accepted."""


class Kind(NamedTuple):
    """The values that an option accepts.

    Attributes:
        accepts: description, as in "--seeds accepts whole numbers from 1, not 0".
        take: converts a given object to the value. Raises: any Exception for an object that is not accepted.
    """

    accepts: str
    take: Callable[[Any], Any]


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def taken(name: str, given: Any, kind: Kind) -> Any:
    """Return the given object's value if the kind accepts it. Raises: OptionError, which names the option."""
    try:
        return kind.take(given)
    except OptionError:
        raise
    except TooLarge as error:
        raise OptionError(f"{name} accepts {error}, not {shown(given)}") from None
    # Converting arbitrary objects may raise any exception.
    except Exception:
        raise OptionError(f"{name} accepts {kind.accepts}, not {shown(given)}") from None


def checked(given: Mapping[str, Any], kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """Return the given options by name, converted by `taken` where they have a kind. Raises: OptionError."""
    return {name: taken(option(name), value, kinds[name]) if name in kinds else value for name, value in given.items()}


def normalised(kinds: Mapping[str, Kind]) -> Callable[[Callable], Callable]:
    """Return a decorator that converts a function's arguments as `checked` does."""

    def decorate(function: Callable) -> Callable:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args, **kwargs):
            return function(**checked(signature.bind(*args, **kwargs).arguments, kinds))

        return call

    return decorate


def shown(value: Any) -> str:
    """Return a given object as text on one line, for messages, shortened if it is long."""
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
    """Return the Python number in a 0-d tensor or array or a numpy scalar; return anything else unchanged."""
    if getattr(value, "ndim", None) != 0 or not hasattr(value, "item"):
        return value
    if not str(value.dtype).endswith("float32"):
        return value.item()
    import numpy as np  # as the value's own package has done

    # A float32 that prints as 0.1 means 0.1.
    return float(str(np.float32(value.item())))


def number(value: Any) -> float:
    """Return a number as a float. Raises: TypeError, ValueError or OverflowError if it is not a number."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, str | Number):
        raise TypeError
    return float(value)  # pyright: ignore[reportArgumentType]: complex raises TypeError


def whole(low: int, high: int = MOST, what: str = "") -> Kind:
    """Accept whole numbers from low to high, also as words or as floats without a fraction."""

    def take(value: Any) -> int:
        value = plain(value)
        if isinstance(value, str):
            try:
                found = int(value)
            except ValueError:
                # Such as 1e6.
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
    """Accept finite numbers for which `fits` is true."""

    def take(value: Any) -> float:
        found = number(value)
        if not (math.isfinite(found) and fits(found)):
            raise ValueError
        return found

    return Kind(accepts, take)


UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}


def seconds(given: Any) -> float:
    """Return a positive time in seconds, given as words such as 10m or 1h30m, or as a number of seconds."""
    if isinstance(given, str):
        match = re.fullmatch("".join(rf"(?:(\d+(?:\.\d+)?)\s*{unit}\s*)?" for unit in UNITS), given.strip())
        if not match:
            raise ValueError
        found = sum(float(part) * unit for part, unit in zip(match.groups(), UNITS.values(), strict=True) if part)
    else:
        found = number(given)
    if not 0 < found < math.inf:
        raise ValueError
    return found


DURATION = Kind("a time above 0, such as 90s, 10m or 1h30m", seconds)


def extended(accepts: str, fits: Callable[[float], bool]) -> Kind:
    """Accept numbers for which `fits` is true, infinity too."""

    def take(value: Any) -> float:
        found = number(value)
        if not fits(found):
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


def one_of(accepts: str, names: Container[str]) -> Kind:
    """Return the kind of these names."""

    def take(value: Any) -> str:
        if (found := word(accepts).take(value)) not in names:
            raise ValueError
        return found

    return Kind(accepts, take)


def flag(value: Any) -> bool:
    value = plain(value)
    # Besides bools only 0 and 1: bool("no") would be true.
    if not isinstance(value, int) or value not in (0, 1):
        raise TypeError
    return bool(value)


FLAG = Kind("True or False", flag)


def folder(value: Any) -> Path:
    """Return a path with ~ expanded. Raises: TypeError, ValueError, or RuntimeError if the home is unknown."""
    text = os.fsdecode(value)
    if not text or b"\0" in os.fsencode(text):
        raise ValueError
    return Path(text).expanduser()


FOLDER = Kind("a folder", folder)


def optional(kind: Kind) -> Kind:
    """Accept what kind accepts, or None."""
    return Kind(kind.accepts, lambda value: None if value is None else kind.take(value))


def several(value: Any) -> list:
    """Return one value or several as a list. Raises: TooLarge for too many values, TypeError for mappings and bytes."""
    value = plain(value)
    if isinstance(value, str | type) or not isinstance(value, Iterable):
        return [value]
    # Iterating over bytes would give their characters' codes.
    if isinstance(value, Mapping | bytes | bytearray | memoryview):
        raise TypeError
    found = [plain(one) for one in itertools.islice(value, MOST_VALUES + 1)]
    if len(found) > MOST_VALUES:
        raise TooLarge(f"at most {MOST_VALUES} values")
    return found


def reference_to(given: Any) -> str:
    """Return the name of a user's class or function in results, `module:Name`."""
    # __main__ becomes main, because legends leave out names that begin with an underscore.
    return f"{given.__module__.strip('_')}:{given.__qualname__}"


def imported(name: str, accepts: str) -> Any:
    """Return what a name `module:Name` stands for; None if its module has no such thing.

    accepts: how the sentence begins if there is no such module: "--option accepts a MODULE:CLASS". Raises: OptionError.
    """
    module, _, member = name.partition(":")
    try:
        return getattr(importlib.import_module(module), member, None)
    # The code of a user's module may raise anything, even SystemExit.
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise OptionError(f"{accepts} that can be imported, and {module or name} cannot be ({reason})") from error
