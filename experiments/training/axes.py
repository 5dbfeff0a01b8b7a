"""The axes of a sweep: all that a configuration has a value of.

An axis is an argument of an optimizer's constructor, or an option of a run. `NAMED` are the hyperparameters that have
an option of their own on the command line; `optimizers.axes` adds those of a constructor that are not here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.common import values
from experiments.common.values import POSITIVE, Kind, one_of, real, whole
from experiments.tasks.problems import LIMITS
from experiments.training.schedules import SCHEDULES

if TYPE_CHECKING:
    import pandas as pd

LOG, BETA, LINEAR, WORDS = "log", "beta", "linear", "words"
"""Scales, on which values are spaced, drawn and compared: log(value), log(1 - value), value; words have no order."""


class Axis(NamedTuple):
    """An axis of a sweep.

    Attributes:
        kind: accepts one value: a number, or a word. Tables and results hold True and False as words.
        scale: one of the scales above.
        default: None if a value has to be given; NaN, of an option of a run, if it takes that of the whole sweep.
    """

    name: str
    kind: Kind
    scale: str = LOG
    default: Any = None

    @property
    def option(self) -> str:
        """The spelling on the command line."""
        return spelled(self.name)


FRACTION = real("numbers in [0, 1)", lambda value: 0 <= value < 1)
NOT_NEGATIVE = real("numbers >= 0", lambda value: value >= 0)
NUMBER = real("numbers")
UNBOUNDED = values.extended("numbers, or inf", lambda value: not math.isnan(value))
FLAG = Kind("true or false", lambda value: {"true": "true", "false": "false"}[str(value).lower()])
WORD = values.word("a word")

NAMED = {
    axis.name: axis
    for axis in (
        Axis("lr", POSITIVE, LOG, 1e-3),
        Axis("beta1", FRACTION, BETA, 0.9),
        Axis("beta2", FRACTION, BETA, 0.999),
        Axis("eps", NOT_NEGATIVE, LOG, 1e-8),
        Axis("weight_decay", NOT_NEGATIVE, LOG, 0.0),
        Axis("momentum", FRACTION, BETA, 0.9),
    )
}
"""The hyperparameters with an option of their own, with the defaults of an optimizer that has none."""
AXES = {name: axis.default for name, axis in NAMED.items()}

OURS = {
    axis.name: axis
    for axis in (
        Axis("max_grad_norm", values.extended("numbers >= 0, or inf", lambda value: value >= 0), LOG, math.inf),
    )
}
"""The arguments that our optimizers have beside those that their constructors name."""

RUN = {
    axis.name: axis
    for axis in (
        Axis("batch_size", whole(1), LOG, math.nan),
        Axis("accumulate", whole(1), LOG, math.nan),
        Axis("n_train", whole(1), LOG, math.nan),
        Axis("epochs", POSITIVE, LOG, math.nan),
        Axis("steps", whole(1), LOG, math.nan),
        Axis("schedule", one_of(", ".join(SCHEDULES), SCHEDULES), WORDS, math.nan),
        Axis("warmup", whole(0), LOG, math.nan),
        Axis("hidden", whole(1, what=LIMITS["hidden"][0]), LOG, math.nan),
        Axis("dropout", real(LIMITS["dropout"][0]), LINEAR, math.nan),
        # Beyond that, losses at the start leave float32.
        Axis("init_scale", real("numbers above 0, at most 1000", lambda value: 0 < value <= 1000), LOG, math.nan),
    )
}
"""The options of a run that can be axes. Runs that share their values are trained together."""
OF_MODEL = "hidden", "dropout", "init_scale"
"""Those that change the model, and its name."""
COLUMNS = {
    *("run_id", "lane", "key", "config", "setting", "data", "task", "model", "optimizer", "seed", "n_seeds", "status"),
    *("step", "epoch", "seconds", "run_seconds", "chunk_seconds", "compile_seconds", "diverged_step", "stopped_step"),
    *("n_diverged", "n_stopped", "run_key", "before", "begin", "end"),
    *("train_loss", "eval_loss", "eval_accuracy", "best_train_loss", "best_eval_loss", "best_eval_accuracy"),
    "initial_eval_loss",
}
"""Other columns of tables of runs and curves, whose names no axis can have."""


def of_argument(name: str, default: Any) -> Axis | None:
    """Return the axis of a constructor's argument, judged by its default; None if that is no number, bool or word."""
    if isinstance(default, bool):
        return Axis(name, FLAG, WORDS, str(default).lower())
    if isinstance(default, Real):
        value = float(default)
        if name.removeprefix("beta").isdecimal():
            return Axis(name, FRACTION, BETA, value)
        if math.isinf(value):
            return Axis(name, UNBOUNDED, LOG, value)
        # The scale is a guess, so values of 1 and above are accepted, too.
        return Axis(name, NUMBER, BETA if 0.5 <= value < 1 else LOG, value)
    return Axis(name, WORD, WORDS, default) if isinstance(default, str) else None


def spelled(name: str) -> str:
    """Return the option that gives the values of an axis."""
    return values.option(name) if name in NAMED else f"--axis {name}"


def axes_in(table: pd.DataFrame) -> list[str]:
    """Return the axes of a table of runs, or of their configurations: its columns from the optimizer to the seed."""
    columns = list(table)
    ends = (columns.index(name) for name in ("seed", "n_seeds") if name in columns)
    return columns[columns.index("optimizer") + 1 : min(ends)]


def scale_of(name: str, given: Iterable[Any]) -> str:
    """Return the scale on which to draw values of an axis, also of one whose optimizer is not known here."""
    if axis := NAMED.get(name) or RUN.get(name):
        return axis.scale
    found = list(given)
    if any(isinstance(value, str) for value in found):
        return WORDS
    if min(found, default=0) < 0:
        return LINEAR
    return BETA if 0.5 <= max(found, default=0) < 1 else LOG
