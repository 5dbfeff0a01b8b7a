"""Figures of sampled configurations, no two of which share a value: points instead of lines and cells."""

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from experiments.common.figure_style import STYLE
from experiments.reports.aggregation import axis_name, initial_loss, ranked, seeds, short
from experiments.reports.figures import finished, loss_axis, positions
from experiments.training.axes import BETA, LINEAR, WORDS, scale_of

BEST = {"marker": "*", "s": 190, "edgecolors": "black", "linewidths": 1, "zorder": 4}


@style.context(STYLE)
def sensitivity(runs: pd.DataFrame, axis: str, loss_name: str, order: pd.DataFrame | None = None) -> Figure:
    """Draw every configuration's final evaluation loss against one hyperparameter.

    Points: medians over seeds, with the inter-quartile range. Strip at the top: configurations whose median is
    infinite, because at least half of their seeds diverged. order: as of `aggregation.ranked`.
    """
    order, initial = ranked(runs, order), initial_loss(runs)
    diverged = ~np.isfinite(order["eval_loss_median"])
    figure = Figure(figsize=(7.5, 5.2))
    ax = figure.subplots()
    losses = order.loc[~diverged, "eval_loss_median"]
    top = 1.2 * max(initial, losses.clip(upper=10 * initial).max() if len(losses) else 0.0)
    low, high = loss_axis(ax, losses, top, headroom=0.1 if diverged.any() else 0.0)
    at = positions(order[axis], axis, order[axis].to_numpy())
    q25, q75 = (order[f"eval_loss_{q}"].clip(low, high) for q in ("q25", "q75"))
    if order["n_seeds"].max() > 1:
        bars = {
            "linewidth": 0.8,
            "rasterized": True,
            "label": f"from quartile to quartile of {seeds(order['n_seeds'])}",
        }
        ax.vlines(at[~diverged], q25[~diverged], q75[~diverged], color="0.75", **bars)
    shown = {"color": to_hex("C0"), "s": 16, "label": "a configuration, median over seeds", "rasterized": True}
    ax.scatter(at[~diverged], losses.clip(low, high), **shown)
    if len(losses):
        ax.scatter(
            at[:1],
            losses.iloc[:1],
            color=to_hex("C1"),
            label=f"the best, {axis_name(axis, runs)} {short(order.loc[0, axis])}",
            **BEST,
        )
    if diverged.any():
        ax.axhspan(high, ax.get_ylim()[1], color="0.95", zorder=0)
        y = np.full(diverged.sum(), 0.96)
        ax.plot(at[diverged], y, "x", color="0.3", transform=ax.get_xaxis_transform(), label="diverged")
    ax.axhline(initial, color="0.3", linestyle="--", linewidth=1, label=f"loss before training, {initial:.3g}")
    ticks(ax, "x", order[axis], axis)
    ax.set_xlabel(axis_name(axis, runs))
    ax.set(ylabel=f"final {loss_name}", title="" if len(losses) else "every run diverged")
    return finished(figure, runs, columns=2)


@style.context(STYLE)
def pair(runs: pd.DataFrame, x: str, y: str, loss_name: str, order: pd.DataFrame | None = None) -> Figure:
    """Draw every configuration's median final evaluation loss, as a colour, over two hyperparameters.

    order: as of `aggregation.ranked`.
    """
    order, initial = ranked(runs, order), initial_loss(runs)
    diverged = ~np.isfinite(order["eval_loss_median"])
    losses = order.loc[~diverged, "eval_loss_median"].clip(upper=initial)
    figure = Figure(figsize=(7, 5.2))
    ax = figure.subplots()
    columns, rows = (positions(order[axis], axis, order[axis].to_numpy()) for axis in (x, y))
    ax.plot(columns[diverged], rows[diverged], "x", color="0.5", label="diverged")
    if len(losses):
        low = losses[losses > 0].min() if (losses > 0).any() else initial / 10
        looks = {"cmap": "viridis_r", "norm": LogNorm(low, max(losses.max(), 1.2 * low), clip=True)}
        # The best is drawn last, on top.
        points = [values[~diverged][::-1] for values in (columns, rows)]
        shown = ax.scatter(*points, c=losses[::-1], s=42, edgecolors="0.4", linewidths=0.4, rasterized=True, **looks)
        ticks_ = LogLocator(subs=(1, 2, 5) if losses.max() < 1e3 * low else (1,))
        figure.colorbar(shown, ticks=ticks_, format="{x:.3g}", label=f"final {loss_name}").minorticks_off()
        ax.scatter(columns[:1], rows[:1], c=losses[:1], label="the best", **BEST, **looks)
    for direction, axis in (("x", x), ("y", y)):
        ticks(ax, direction, order[axis], axis)
        ax.set(**{f"{direction}label": axis_name(axis, runs)})
    ax.set_title("brighter is better" if len(losses) else "every run diverged")
    return finished(figure, runs, columns=2)


def ticks(ax: Axes, direction: str, values: pd.Series, axis: str) -> None:
    """Label an axis of `positions` with its values, if they are few, else with round values in their range."""
    grid, few = values.to_numpy(), np.unique(values)
    scale = scale_of(axis, few)
    if len(few) > 7 and scale == LINEAR:
        return
    if len(few) > 7 and scale != WORDS:
        decades = 10.0 ** np.arange(-20, 21)
        # Use 1, 2 and 5 if there are fewer than three whole decades.
        low, high = positions(grid, axis, grid).min(), positions(grid, axis, grid).max()
        rounded = np.outer(decades, (1, 2, 5) if high - low < 3 else (1,)).ravel()
        few = 1 - rounded[rounded <= 1] if scale == BETA else rounded
        few = few[(few >= grid.min()) & (few <= grid.max())]
    labels = [value if isinstance(value, str) else short(float(f"{value:.12g}")) for value in few]
    getattr(ax, f"set_{direction}ticks")(positions(few, axis, grid), labels)
