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

from experiments.training import optimizers
from experiments.training.axes import BETAS

ACCURACY = "evaluation accuracy (log scale in the error)"


def default_of(runs: pd.DataFrame) -> tuple[str, dict[str, float]]:
    """Return the name of the runs' optimizer's default, and its values by axis; "" and {} for a user's class."""
    choice = optimizers.OPTIMIZERS.get(runs["optimizer"].iloc[0])
    if choice is None:
        return "", {}
    return "the default" if choice.fixed or choice.alone is None else "torch's default", optimizers.axes(choice)


def finished(figure: Figure, runs: pd.DataFrame, columns: int) -> Figure:
    """Add a legend and a title that says what was trained and how many runs, seeds and diverged runs there are."""
    data, model, names = (list(runs[column].unique()) for column in ("data", "model", "optimizer"))
    optimizer = [f"{len(names)} optimizers"] if len(names) > 5 else names
    # Tables of older sweeps have no column of steps.
    steps = [f"{steps} steps" for steps in runs["steps"].unique()] if "steps" in runs else []
    what = "; ".join(map(", ".join, (data + steps, model, optimizer)))
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
    """Return positions of values on a linear axis: log10, or -log10(1 - value) for `BETAS`; 0 is left of the grid."""
    values, positive = np.asarray(values, dtype=float), np.log10(grid[grid > 0])
    if axis in BETAS:
        return -np.log10(1 - values)
    slot = positive.min(initial=0.0) - (np.diff(positive).mean() if len(positive) > 1 else 1.0)
    return np.log10(values, where=values > 0, out=np.full(values.shape, slot))
