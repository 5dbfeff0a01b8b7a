"""Parts that all figures of a report share: axes, legends and titles.

Each figure is drawn from a table of runs (one row per run) and returned; nothing is written. The figures are in
`training_figures`, `grid_figures`, `sampled_figures`, `comparison` and `steps_to_target`; their numbers come from
`aggregation`.
"""

import textwrap
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from experiments.reports.aggregation import listed, run_length, twins
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


def finished(figure: Figure, runs: pd.DataFrame, columns: int) -> Figure:
    """Add a legend and a title that says what was trained and how many runs, seeds and diverged runs there are.

    columns: of the legend, at most; there are fewer if they would be wider than the figure.
    """
    data, model = listed(runs["data"]), listed(runs["model"])
    # A problem of one's own may have one name for both.
    names = [model] * (model != data) + [listed(runs["optimizer"], most=5)]
    what = "; ".join([", ".join([data, *run_length(runs)]), *names])
    n_seeds, n_diverged = runs["seed"].nunique(), (runs["status"] != "ok").sum()
    counts = f"\nruns: {len(runs)}, seeds: {n_seeds}, diverged: {n_diverged}"
    title = figure.suptitle(what + counts)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    add_legend = partial(figure.legend, handles, loc="outside lower center")
    legend = add_legend(labels, ncols=columns)
    # Matplotlib makes ticks on first use: without this they would miss the style.
    figure.draw_without_rendering()
    if title.get_window_extent().width > figure.bbox.width:
        title.set_text(what.replace("; ", ";\n") + counts)
        figure.draw_without_rendering()
    # Configurations of many axes have long labels: use fewer columns for them, and at last more lines.
    for n_columns in range(columns - 1, -1, -1):
        if (excess := legend.get_window_extent().width / figure.bbox.width) <= 1:
            break
        if n_columns == 0:
            width = int(0.9 / excess * max(map(len, labels)))
            labels = [wrapped(label, width) for label in labels]
        legend.remove()
        legend = add_legend(labels, ncols=max(1, n_columns))
        figure.draw_without_rendering()
    # Keep this layout: computing it again for each file would take as long.
    figure.set_layout_engine("none")
    return figure


def wrapped(text: str, width: int) -> str:
    """Return text in lines of about this many characters, broken after commas."""
    unbroken = ", ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in text.split(", "))
    return textwrap.fill(unbroken, width, break_long_words=False).replace("\N{NO-BREAK SPACE}", " ")


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
