"""Parts that all figures of a report share: scales, ticks, and strips for what has no place among the data.

Each figure is drawn from a table of runs (one row per run) and returned; nothing is written. The figures are in
`training_figures`, `grid_figures`, `sampled_figures`, `comparison`, `steps_to_target`, `diagnostic_figures` and
`studies_figures`; their numbers come from `aggregation`, their looks from `looks`, and `layout` makes them fit.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from experiments.common.numbers import number
from experiments.reports import layout, looks
from experiments.reports.aggregation import axis_name, resolution, short, twins
from experiments.training import optimizers
from experiments.training.axes import BETA, LINEAR, LOG, WORDS, scale_of

ACCURACY = "evaluation accuracy, log scale in the error"
LOG_SCALE = ", log scale"
ABOVE = 10.0
"""Losses of runs that did not diverge, but ended above so many times the loss before training, are off the scale."""
FINE = (1, 1.5, 2, 3, 4, 5, 6, 8)


def default_of(runs: pd.DataFrame) -> tuple[str, dict[str, Any]]:
    """Return the name of the runs' optimizer's default, and its values by axis; "" and {} for a user's class."""
    choice = optimizers.OPTIMIZERS.get(runs["optimizer"].iloc[0])
    if choice is None:
        return "", {}
    return "the default" if choice.fixed or choice.alone is None else "torch's default", {
        axis.name: axis.default for axis in optimizers.axes(choice).values() if axis.name in runs
    }


def default_at(runs: pd.DataFrame, axis: str) -> tuple[str, Any]:
    """Return the name of the default, and its value on an axis: None if axes tied to it have other defaults."""
    whose, values = default_of(runs)
    found = values.get(axis)
    return whose, found if all(values.get(other) == found for other in twins(runs, axis)) else None


def is_close(values: Any, value: Any) -> np.ndarray:
    """Return whether each value is the given one: a word, or a number, up to rounding. Words are no numbers."""
    given = np.asarray(values)
    if isinstance(value, str) or given.dtype.kind in "OU":
        return np.asarray([one == value for one in given], dtype=bool)
    return np.isclose(given.astype(float), value, rtol=1e-6, atol=0)


class Scale(NamedTuple):
    """The scale of a loss axis.

    Attributes:
        low, high: the lowest and the highest loss that have a place on it; lower ones are drawn at `low`.
        rows: the strips beyond `high`, by name: where each begins and ends, as fractions of the axis.
    """

    low: float
    high: float
    rows: dict[str, tuple[float, float]]

    def inside(self, losses: Any) -> np.ndarray:
        """Return losses with NaN for those that are beyond the scale, diverged or not."""
        values = np.asarray(losses, dtype=float)
        return np.where(values <= self.high, np.maximum(values, self.low), np.nan)

    def is_above(self, losses: Any) -> np.ndarray:
        """Return which losses are finite, and yet beyond the scale."""
        values = np.asarray(losses, dtype=float)
        return np.isfinite(values) & (values > self.high)

    def within(self, row: str, share: float = 0.5) -> float:
        """Return the place of a share of a row, as a fraction of the axis; 0 is its end towards the data."""
        start, end = self.rows[row]
        return start + share * (end - start)

    @property
    def end(self) -> float:
        """Where the data end and the strips begin, as a fraction of the axis."""
        return min((start for start, _ in self.rows.values()), default=1.0)


def loss_scale(
    ax: Axes, values: Any, initial: float, rows: dict[str, float] | None = None, top: float = ABOVE, along: str = "y"
) -> Scale:
    """Make an axis logarithmic, for losses, with a strip for each of `rows` beyond them.

    A strip "above" is added if losses exceed `top` times the loss before training.

    Args:
        values: losses; what is not finite does not count.
        initial: the loss before training.
        rows: shares of the axis that strips take, by name.
    """
    values = np.asarray(values, dtype=float).ravel()
    values = values[np.isfinite(values)]
    rows = dict(rows or {})
    fits = values[values <= top * initial]
    high = 1.15 * max(initial, fits.max(initial=0.0))
    if (values > high).any():
        rows = {f"above {number(high, 2)}": 0.07, **rows}
    floor = resolution(initial)
    positive = values[values > 0]
    low = min(max(positive.min(initial=initial / 2), floor), high / 1.2)
    bottom = low * (low / high) ** 0.05
    share = sum(rows.values())
    end = bottom * (high / bottom) ** (1 / (1 - share))
    places, start = {}, 1 - share
    for name, of in rows.items():
        places[name] = (start, start + of)
        start += of
    scale = Scale(low, high, places)
    ticks = log_ticks(bottom, high)
    labels = [number(tick) for tick in ticks]
    if (values < floor).any():
        ticks, labels = (
            [low, *ticks[ticks > 1.5 * low]],
            [f"≤ {number(low, 2)}", *map(number, ticks[ticks > 1.5 * low])],
        )
    span = end / bottom
    at = [bottom * span ** scale.within(name) for name in places]
    ax.set(**{f"{along}scale": "log", f"{along}lim": (bottom, end)})
    getattr(ax, f"set_{along}ticks")([*ticks, *at], [*labels, *places])
    getattr(ax, f"{along}axis").set_minor_locator(NullLocator())
    getattr(ax, f"{along}axis").set_gid(layout.ROUND)
    for begin, stop in places.values():
        shade = ax.axhspan if along == "y" else ax.axvspan
        shade(bottom * span**begin, bottom * span**stop, facecolor=looks.STRIP, edgecolor="white", zorder=0.5)
    return scale


def accuracy_scale(ax: Axes, errors: Any) -> tuple[float, float]:
    """Make y an inverted log axis of errors that is labelled with accuracies; return its lowest error, and 1."""
    values = np.asarray(errors, dtype=float)
    low = min(np.min(values[values > 0], initial=1.0), 0.8)
    ends = 1.0, low**1.05
    ax.set_yscale("log")
    ax.set_ylim(*ends)
    found = log_ticks(ends[1], 1.0)
    ax.set_yticks(found, [f"{1 - error:.4g}" for error in found])
    ax.yaxis.set_minor_locator(NullLocator())
    return low, 1.0


def said(scale: Scale, values: Any, initial: float) -> list[str]:
    """Return sentences on losses that are not drawn where they are. values: as of `loss_scale`."""
    values = np.asarray(values, dtype=float)
    found = []
    if scale.is_above(values).any():
        found.append(f"A ▲ is a loss above {number(scale.high, 2)} of a run that did not diverge.")
    if ((values < resolution(initial)) & np.isfinite(values)).any():
        found.append(unresolved(initial))
    return found


def result(loss: float, initial: float) -> str:
    """Return a loss as text: "≤ 1.6e-12" if float32 does not resolve it. initial: the loss before training."""
    floor = resolution(initial)
    return number(loss) if not loss < floor else f"≤ {number(floor, 2)}"


def unresolved(initial: float) -> str:
    """Return a sentence on losses below the resolution of float32. initial: the loss before training."""
    return (
        f"Losses below {number(resolution(initial), 2)} are drawn there: that is float32's epsilon squared times the "
        "loss before training, below which it does not resolve a minimum that is not at the origin."
    )


def log_ticks(low: float, high: float) -> np.ndarray:
    """Return ticks of a logarithmic axis, at round values, of which one is near its lower end."""
    span = np.log10(high / low)
    exponents = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    if span > 4:
        pace = int(np.ceil(span / 7))
        return inside(10.0 ** exponents[exponents % pace == 0], low, high)
    tried = [inside(np.outer(10.0**exponents, subs).ravel(), low, high) for subs in ((1,), (1, 2, 5), FINE)]
    ticks = next((found for found in tried if len(found) > 3), tried[-1])
    if len(ticks) < 3:
        ticks = inside(np.asarray(MaxNLocator(5).tick_values(low, high)), low, high)
    if len(ticks) and np.log10(ticks[0] / low) > 0.1 * span:
        # Where the best are, there is always a tick; leave room between the two.
        finer = tried[-1][tried[-1] < ticks[0] / 10 ** (0.06 * span)]
        ticks = np.append(finer[:1], ticks)
    return ticks


def inside(ticks: np.ndarray, low: float, high: float) -> np.ndarray:
    return ticks[(ticks >= low * (1 - 1e-9)) & (ticks <= high * (1 + 1e-9))]


def explain_band(ax: Axes, text: str) -> None:
    """Add an explanation of bands to the legend."""
    ax.plot([], [], color="0.5", alpha=0.35, linewidth=7, label=text)


def before_training(ax: Axes, initial: float, legend: bool = True) -> None:
    """Draw the loss before training as a line."""
    text = f"loss before training, {number(initial)}" if legend else None
    ax.axhline(initial, color=looks.INK, linestyle="--", linewidth=1, zorder=1, label=text)


def panels(curves: pd.DataFrame, loss_name: str) -> dict[str, str]:
    """Return the columns of curves by which a configuration is judged, with their names in figures."""
    accuracy = {"eval_accuracy": ACCURACY} if curves["eval_accuracy"].notna().any() else {}
    return {"eval_loss": loss_name + LOG_SCALE, **accuracy}


def axis_label(axis: str, values: Iterable[Any], runs: pd.DataFrame | None = None) -> str:
    """Return the name of an axis and how `positions` transforms it. runs: as of `aggregation.axis_name`."""
    name, given = axis_name(axis, runs), list(values)
    scale = scale_of(axis, given)
    if scale == BETA:
        return f"{name}{LOG_SCALE} in 1 - {axis_name(axis)}"
    apart = [text for text, value in (("0", 0.0), ("inf", np.inf)) if scale == LOG and value in given]
    return name + LOG_SCALE * (scale == LOG) + (f" ({' and '.join(apart)} apart)" if apart else "")


def positions(values: Any, axis: str, grid: np.ndarray) -> np.ndarray:
    """Return positions of values on the axis of a figure, by its scale (see `axes.scale_of`).

    They are log10(value), with 0 left and infinity right of the grid, -log10(1 - value), the value itself, or the place
    of a word.
    """
    scale = scale_of(axis, grid)
    if scale == WORDS:
        return np.searchsorted(np.unique(grid.astype(str)), np.asarray(values, dtype=str)).astype(float)
    values = np.asarray(values, dtype=float)
    if scale == LINEAR:
        return values
    if scale == BETA:
        return -np.log10(1 - values)
    positive = np.log10(grid[(grid > 0) & np.isfinite(grid)])
    gap = np.diff(positive).mean() if len(positive) > 1 else 1.0
    left, right = (positive.min() - gap, positive.max() + gap) if len(positive) else (-gap, gap)
    found = np.log10(values, where=values > 0, out=np.full(values.shape, left))
    return np.where(np.isinf(values), right, found)


def ticks(ax: Axes, direction: str, values: pd.Series, axis: str, sampled: bool = True) -> None:
    """Label an axis of `positions` with its values, if it is a grid or they are few, else with round ones."""
    grid, few = values.to_numpy(), np.unique(values)
    scale = scale_of(axis, few)
    if sampled and len(few) > 7 and scale == LINEAR:
        return
    if sampled and len(few) > 7 and scale != WORDS:
        getattr(ax, f"{direction}axis").set_gid(layout.ROUND)
        decades = 10.0 ** np.arange(-20, 21)
        # Use 1, 2 and 5 if there are fewer than three whole decades.
        low, high = positions(grid, axis, grid).min(), positions(grid, axis, grid).max()
        rounded = np.outer(decades, (1, 2, 5) if high - low < 3 else (1,)).ravel()
        few = 1 - rounded[rounded <= 1] if scale == BETA else rounded
        few = few[(few >= grid.min()) & (few <= grid.max())]
    labels = [value if isinstance(value, str) else short(float(f"{value:.12g}")) for value in few]
    getattr(ax, f"set_{direction}ticks")(positions(few, axis, grid), labels)
