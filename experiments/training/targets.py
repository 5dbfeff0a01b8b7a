"""Targets: a loss to fall to, or an accuracy to rise to."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.common import values
from experiments.common.errors import OptionError

if TYPE_CHECKING:
    import pandas as pd

ACCEPTED = "a loss (0.2) or an accuracy (95%)"
TOO_HIGH = 10.0
"""No untrained network has a cross-entropy as high as this: a number from here on must be a percentage."""


def text_of(given: Any) -> str:
    """Return a target, given as text or as a number, as text."""
    return given if isinstance(given, str) else f"{values.number(given):.12g}"


TARGET = values.Kind(ACCEPTED, text_of)


class Target(NamedTuple):
    """An evaluation loss to fall to, or an evaluation accuracy, a fraction, to rise to."""

    column: str
    value: float

    def __str__(self) -> str:
        return f"accuracy {100 * self.value:g}%" if self.column == "eval_accuracy" else f"loss {self.value:g}"

    def reached(self, curves: pd.DataFrame) -> pd.Series:
        values = curves[self.column]
        return values >= self.value if self.column == "eval_accuracy" else values <= self.value


def parse(text: str | float, classifies: bool) -> Target:
    """Parse a target as a user types it. Raises: OptionError, also for an accuracy if nothing is classified."""
    text = str(values.taken("--target", text, TARGET))
    match = re.fullmatch(r"(.+?)(%?)", text.strip())
    try:
        number = float(match[1]) if match else math.nan
    except ValueError:
        number = math.nan
    if not (match and 0 < number < math.inf and (not match[2] or number <= 100)):
        raise OptionError(f"--target accepts {ACCEPTED}, not {values.shown(text)}")
    if not match[2] and classifies and number >= TOO_HIGH:
        meant = f"{number:g}%" if number <= 100 else "95%"
        raise OptionError(f"--target accepts {ACCEPTED}, and no loss is as high as {number:g}: an accuracy is {meant}")
    if not match[2]:
        return Target("eval_loss", number)
    if not classifies:
        raise OptionError(f"--target accepts a loss where nothing is classified, not the accuracy {values.shown(text)}")
    return Target("eval_accuracy", number / 100)
