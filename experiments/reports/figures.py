"""Parts that all figures of a report share: axes, legends and titles.

Each figure is drawn from a table of runs (one row per run) and returned; nothing is written. The figures are in
`training_figures`, `grid_figures`, `sampled_figures`, `comparison` and `steps_to_target`; their numbers come from
`aggregation`.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from experiments.reports.aggregation import listed, run_length
from experiments.training import optimizers
from experiments.training.axes import BETA, LINEAR, WORDS, scale_of

ACCURACY = "evaluation accuracy (log scale in the error)"


def default_of(runs: pd.DataFrame) -> tuple[str, dict[str, Any]]:
    """Return the name of the runs' optimizer's default, and its values by axis; "" and {} for a user's class."""
    choice = optimizers.OPTIMIZERS.get(runs["optimizer"].iloc[0])
    if choice is None:
        return "", {}
    return "the default" if choice.fixed or choice.alone is None else "torch's default", {
        axis.name: axis.default for axis in optimizers.axes(choice).values() if axis.name in runs
    }


def is_close(values: Any, value: Any) -> np.ndarray:
    """Return whether each value is the given one: a word, or a number, up to rounding."""
    if any(isinstance(one, str) for one in (value, *values)):
        return np.asarray(values, dtype=object) == value
    return np.isclose(np.asarray(values, dtype=float), value, rtol=1e-6, atol=0)


def finished(figure: Figure, runs: pd.DataFrame, columns: int) -> Figure:
    """Add a legend and a title that says what was trained and how many runs, seeds and diverged runs there are."""
    data = [listed(runs["data"]), *run_length(runs)]
    what = "; ".join([", ".join(data), listed(runs["model"]), listed(runs["optimizer"], most=5)])
    n_seeds, n_diverged = runs["seed"].nunique(), (runs["status"] != "ok").sum()
    figure.suptitle(f"{what}\nruns: {len(runs)}, seeds: {n_seeds}, diverged: {n_diverged}")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns)
    # Matplotlib makes ticks on first use: without this they would miss the style.
    figure.draw_without_rendering()
    # Keep this layout: computing it again for each file would take as long.
    figure.set_layout_engine("none")
    return figure


def loss_axis(ax: Axes, values: Any, top: float, headroom: float = 0.0) -> tuple[float, float]:
    """Make y logarithmic, from just below the lowest positive value to `top` plus headroom; return both limits."""
    low = np.fmin.reduce(np.where(np.asarray(values) > 0, values, np.nan), axis=None, initial=top / 2)
    low *= (low / top) ** 0.06
    ax.set_yscale("log")
    ax.set_ylim(low, low * (top / low) ** (1 / (1 - headroom)))
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if top < 1e3 * low else (1,)))
    ax.yaxis.set_major_formatter("{x:.3g}")
    ax.yaxis.set_minor_locator(NullLocator())
    return low, top


def explain_band(ax: Axes, text: str) -> None:
    """Add an explanation of bands to the legend."""
    ax.plot([], [], color="0.5", alpha=0.35, linewidth=7, label=text)


def panels(curves: pd.DataFrame, loss_name: str) -> dict[str, str]:
    """Return the columns of curves by which a configuration is judged, with their names in figures."""
    accuracy = {"eval_accuracy": ACCURACY} if curves["eval_accuracy"].notna().any() else {}
    return {"eval_loss": loss_name, **accuracy}


def positions(values: Any, axis: str, grid: np.ndarray) -> np.ndarray:
    """Return positions of values on the axis of a figure, by its scale (see `axes.scale_of`).

    They are log10(value), with 0 left of the grid, -log10(1 - value), the value itself, or the place of a word.
    """
    scale = scale_of(axis, grid)
    if scale == WORDS:
        return np.searchsorted(np.unique(grid.astype(str)), np.asarray(values, dtype=str)).astype(float)
    values = np.asarray(values, dtype=float)
    if scale == LINEAR:
        return values
    if scale == BETA:
        return -np.log10(1 - values)
    positive = np.log10(grid[grid > 0])
    slot = positive.min(initial=0.0) - (np.diff(positive).mean() if len(positive) > 1 else 1.0)
    return np.log10(values, where=values > 0, out=np.full(values.shape, slot))
