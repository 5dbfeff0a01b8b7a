"""Figures of several studies: what each optimizer of each reaches at the values of an axis, or of two."""

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator

from experiments.common.figure_style import STYLE
from experiments.reports import comparison, figures
from experiments.reports.aggregation import axis_name, best_of_each, configuration, initial_loss, of_optimizer, short
from experiments.reports.sampled_figures import ticks
from experiments.training.axes import WORDS, scale_of

PANELS = 6
"""At most so many panels of a figure."""


def axes_of_several(order: pd.DataFrame) -> list[str]:
    """Return the axes that vary in a study, and that two have. order: as of `aggregation.ranked`."""
    groups = order.groupby("optimizer")
    columns = configuration(order)[4:]
    return [axis for axis in columns if groups[axis].nunique().max() > 1 and (groups[axis].count() > 0).sum() > 1]


@style.context(STYLE)
def sensitivity(runs: pd.DataFrame, axis: str, loss_name: str, sampled: bool, order: pd.DataFrame) -> Figure:
    """Draw the lowest median final loss that each optimizer of each study reaches at each value of an axis.

    In the strip at the top, a ✕ marks values at which every configuration has an infinite median.

    Args:
        runs: of `studies.joined`, with its labels.
        order: as of `aggregation.ranked`.
    """
    looks, initial = comparison.looks_of(runs), initial_loss(runs)
    at_value = order.dropna(subset=[axis]).groupby(["optimizer", axis]).head(1).sort_values(axis)
    grid = np.unique(at_value[axis].to_numpy())
    joined = scale_of(axis, grid) != WORDS and not sampled
    figure = Figure(figsize=(8, 5.2 + 0.12 * len(looks)))
    ax = figure.subplots()
    losses = at_value["eval_loss_median"].replace(np.inf, initial)
    gone = ~np.isfinite(at_value["eval_loss_median"])
    top = 1.2 * max(initial, losses.clip(upper=3 * initial).max())
    low, high = figures.loss_axis(ax, losses, top, headroom=0.1 if gone.any() else 0.0)
    for place, name in enumerate(best_of_each(order)["optimizer"]):
        rows = of_optimizer(at_value, name)
        if rows.empty:
            continue
        colour, line, marker = looks[str(name)]
        x, left = figures.positions(rows[axis], axis, grid), ~np.isfinite(rows["eval_loss_median"])
        median, q25, q75 = (rows[f"eval_loss_{key}"].clip(low, high) for key in ("median", "q25", "q75"))
        shown = {"color": colour, "marker": marker, "linestyle": line if joined else "none", "zorder": 3 - place / 99}
        ax.plot(x, median.mask(left), **shown, markersize=6, label=f"{place + 1}. {name}")
        ax.vlines(x[~left], q25[~left], q75[~left], color=colour, alpha=0.4, linewidth=3)
        height = 0.91 + 0.08 * (place + 0.5) / len(looks)
        ax.plot(x[left], np.full(left.sum(), height), "x", color=colour, transform=ax.get_xaxis_transform())
    if at_value["n_seeds"].max() > 1:
        figures.explain_band(ax, "bars: quartiles over seeds")
    if gone.any():
        ax.axhspan(high, ax.get_ylim()[1], color="0.95", zorder=0)
        ax.plot([], [], "x", color="0.3", label="at best half of the seeds diverged")
    ax.axhline(initial, color="0.3", linestyle="--", linewidth=1, label=f"loss before training, {initial:.3g}")
    if sampled and scale_of(axis, grid) != WORDS:
        ticks(ax, "x", pd.Series(grid), axis)
    else:
        labels = [short(value) for value in grid]
        ax.set_xticks(figures.positions(grid, axis, grid), labels, rotation=60 if len(grid) > 7 else 0)
    name = axis_name(axis)
    ax.set(xlabel=name, ylabel=f"final {loss_name}", title=f"the best of each at each {name}")
    return figures.finished(figure, runs, columns=2)


@style.context(STYLE)
def heatmaps(runs: pd.DataFrame, x: str, y: str, loss_name: str, order: pd.DataFrame, names: list[str]) -> Figure:
    """Draw a heatmap over two axes for each name, in one colour scale: the lowest median that the other axes allow.

    Grey: at best half of the seeds diverged. White: not run. A frame marks the best cell of a panel.

    Args:
        names: labels of `studies.joined`; the first `PANELS` of them are drawn.
    """
    names = names[:PANELS]
    tables = [
        of_optimizer(order, name).pivot_table("eval_loss_median", y, x, "min", sort=True, observed=True)
        for name in names
    ]
    columns, rows = (sorted({value for table in tables for value in getattr(table, of)}) for of in ("columns", "index"))
    finite = np.concatenate([table.to_numpy()[np.isfinite(table) & (table > 0)] for table in tables])
    initial = initial_loss(runs)
    low, high = finite.min(initial=initial), finite.max(initial=0.0, where=finite < 2 * initial)
    norm = LogNorm(low, max(high, 1.2 * low), clip=True)
    shades = ScalarMappable(norm, "viridis_r")
    wide = min(3, len(names))
    deep = -(-len(names) // wide)
    size = (1.6 + wide * (0.9 + 0.62 * min(len(columns), 12)), 1.8 + deep * (0.8 + 0.5 * min(len(rows), 12)))
    figure = Figure(figsize=size)
    panels = figure.subplots(deep, wide, squeeze=False, sharex=True, sharey=True)
    for ax, name, table in zip(panels.flat, names, tables, strict=False):
        ax.grid(False)
        table = table.reindex(rows).reindex(columns, axis="columns")
        gone = np.where(np.isinf(table), 1.0, np.nan)
        ax.imshow(gone, cmap="Greys", vmin=0, vmax=5, origin="lower", aspect="auto")
        ax.imshow(table.where(np.isfinite(table)), cmap=shades.cmap, norm=norm, origin="lower", aspect="auto")
        for j, i in zip(*np.nonzero(table.notna().to_numpy()), strict=True):
            loss = float(table.to_numpy()[j, i])
            ink = (
                "white"
                if np.isfinite(loss) and np.dot(shades.to_rgba(np.array(loss))[:3], (0.3, 0.6, 0.1)) < 0.5
                else "black"
            )
            best = np.isfinite(loss) and loss == np.nanmin(table)
            shown = {"color": ink, "ha": "center", "va": "center", "fontsize": 7 if len(columns) > 8 else 8}
            ax.text(i, j, f"{loss:.3g}" if np.isfinite(loss) else "✕", fontweight="bold" if best else None, **shown)
            if best:
                frame = Rectangle((i - 0.46, j - 0.46), 0.92, 0.92, fill=False, linewidth=2)
                ax.add_patch(frame).set(label="best cell of a panel")
        ax.set_title(figures.wrapped(name, 26), fontsize=10)
        ax.set_xticks(range(len(columns)), [short(value) for value in columns], rotation=60 if len(columns) > 5 else 0)
        ax.set_yticks(range(len(rows)), [short(value) for value in rows])
        ax.set(xlabel=axis_name(x), ylabel=axis_name(y))
        ax.label_outer()
    for ax in panels.flat[len(names) :]:
        ax.remove()
    if len(finite):
        ticks_ = LogLocator(subs=(1, 2, 5) if norm.vmax < 1e3 * low else (1,))
        bar = figure.colorbar(shades, ax=panels, ticks=ticks_, format="{x:.3g}", label=f"final {loss_name}")
        bar.minorticks_off()
    return figures.finished(figure, runs, columns=2)
