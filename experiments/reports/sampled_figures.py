"""Figures of sampled configurations, no two of which share a value: points instead of lines and cells."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.reports import early, figures, layout, looks
from experiments.reports.aggregation import axis_name, initial_loss, ranked, seeds, short
from experiments.reports.grid_figures import COLOURS, colour_bar, norm_of

BEST: dict[str, Any] = {"marker": "*", "s": 150, "edgecolors": "black", "linewidths": 1, "zorder": 4}


@layout.styled
def sensitivity(
    runs: pd.DataFrame,
    axis: str,
    loss_name: str,
    order: pd.DataFrame | None = None,
    note: str = "",
    figsize: layout.Size = None,
) -> Figure:
    """Draw every configuration's final evaluation loss against one hyperparameter.

    Points: medians over seeds, with the inter-quartile range. Strips at the top: configurations whose median is
    infinite, because at least half of their seeds diverged, and those that ended far above the loss before training.
    Hollow: configurations that ended early; the star, the best, is none of these.

    Args: as of `grid_figures.sensitivity`.
    """
    order, initial = ranked(runs, order), initial_loss(runs)
    medians = order["eval_loss_median"]
    diverged, several = ~np.isfinite(medians.to_numpy()), bool(order["n_seeds"].max() > 1)
    stopped, ended = early.is_early(order), early.words(runs)
    figure, (ax,) = layout.canvas(1, figsize, 6.5, 4.2)
    scale = figures.loss_scale(ax, medians, initial, {"diverged": 0.08} if diverged.any() else {})
    at, inner = figures.positions(order[axis], axis, order[axis].to_numpy()), scale.inside(medians)
    shown = np.isfinite(inner)
    q25, q75 = (order[f"eval_loss_{q}"].clip(scale.low, scale.high) for q in ("q25", "q75"))
    if several:
        text = f"from quartile to quartile of {seeds(order['n_seeds'])}"
        ax.vlines(at[shown], q25[shown], q75[shown], color="0.75", linewidth=0.8, rasterized=True, label=text)
    text = f"a configuration{', median over seeds' * several}"
    full = shown & ~stopped
    ax.scatter(at[full], inner[full], color=looks.ENVELOPE, s=16, label=text, rasterized=True)
    early.marks(ax, at[stopped], inner[stopped], looks.ENVELOPE, ended, rasterized=True)
    if full[:1].any():
        text = f"the best, {axis_name(axis, runs)} {short(order.loc[0, axis])}"
        ax.scatter(at[:1], inner[:1], color=looks.HELD, label=text, **BEST)
    strips = ax.get_xaxis_transform()
    if diverged.any():
        y = np.full(diverged.sum(), scale.within("diverged"))
        ax.plot(at[diverged], y, "x", color=looks.INK, transform=strips, label="diverged")
    if (above := scale.is_above(medians)).any():
        row = next(name for name in scale.rows if name.startswith("above"))
        style: dict[str, Any] = {"color": looks.ENVELOPE, "markersize": 4, "transform": strips}
        early.apart(ax, at[above], scale.within(row), stopped[above], "^", **style)
    figures.before_training(ax, initial)
    figures.ticks(ax, "x", order[axis], axis)
    ax.set_xlabel(figures.axis_label(axis, order[axis], runs))
    title = "" if shown.any() else "every run diverged"
    ax.set(ylabel=f"final {loss_name}{figures.LOG_SCALE}", title=title)
    caption = [
        f"Final loss of every configuration against {axis_name(axis)}{', median over seeds' * several}.",
        "A star is the best." if full[:1].any() else "",
        *early.hollow(ended, stopped),
        f"Those in the strip at the top diverged{', on at least half of their seeds' * several}."
        if diverged.any()
        else "",
        *figures.said(scale, medians, initial),
    ]
    return layout.finished(figure, runs, 2, figsize, caption, note)


@layout.styled
def pair(
    runs: pd.DataFrame,
    x: str,
    y: str,
    loss_name: str,
    order: pd.DataFrame | None = None,
    note: str = "",
    figsize: layout.Size = None,
) -> Figure:
    """Draw every configuration's median final evaluation loss, as a colour, over two hyperparameters.

    All such figures of these runs have the same scale of colours. Hollow: configurations that ended early.

    Args: as of `grid_figures.heatmap`.
    """
    order, initial = ranked(runs, order), initial_loss(runs)
    diverged, stopped = ~np.isfinite(order["eval_loss_median"].to_numpy()), early.is_early(order)
    losses = order.loc[~diverged, "eval_loss_median"]
    narrow = figsize is not None and figsize[0] < layout.NARROW
    figure, (ax,) = layout.canvas(1, figsize, 6.5, 4.4)
    columns, rows = (figures.positions(order[axis], axis, order[axis].to_numpy()) for axis in (x, y))
    if diverged.any():
        ax.plot(columns[diverged], rows[diverged], "x", color="0.5", label="diverged")
    if len(losses):
        norm = norm_of(losses, initial)
        style: dict[str, Any] = {"cmap": COLOURS, "norm": norm}
        # The best is drawn last, on top.
        full, size = np.flatnonzero(~diverged & ~stopped)[::-1], 20 if narrow else 42
        edges: dict[str, Any] = {"edgecolors": "0.4", "linewidths": 0.4, "rasterized": True}
        shown = ax.scatter(columns[full], rows[full], c=losses.loc[full], s=size, **edges, **style)
        if stopped.any():
            rings: dict[str, Any] = {
                "facecolors": "none",
                "edgecolors": shown.to_rgba(order.loc[stopped, "eval_loss_median"]),
            }
            rings |= {"s": 0.45 * size, "linewidths": 0.9 if narrow else 1.3, "rasterized": True, "zorder": 0.9}
            ax.scatter(columns[stopped], rows[stopped], **rings, label=early.words(runs))
        colour_bar(figure, ax, shown, norm, f"final {loss_name}{figures.LOG_SCALE}; brighter is better", narrow)
        if len(full):
            ax.scatter(columns[:1], rows[:1], c=losses[:1], label="the best", **BEST, **style)
    for direction, axis in (("x", x), ("y", y)):
        figures.ticks(ax, direction, order[axis], axis)
        ax.set(**{f"{direction}label": figures.axis_label(axis, order[axis], runs)})
    ax.set_title("" if len(losses) else "every run diverged")
    several = bool(order["n_seeds"].max() > 1)
    caption = [
        f"Final loss of every configuration over {axis_name(x)} and {axis_name(y)}{', median over seeds' * several}: "
        f"brighter is better{'' if stopped[0] else '; a star is the best'}.",
        *early.hollow(early.words(runs), stopped),
        f"A ✕ diverged{', on at least half of its seeds' * several}." if diverged.any() else "",
    ]
    return layout.finished(figure, runs, 2, figsize, caption, note)
