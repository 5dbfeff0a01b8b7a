"""Figures of one hyperparameter of a grid, and over two."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import NullLocator

from experiments.common.numbers import number
from experiments.reports import early, figures, layout, looks
from experiments.reports.aggregation import (
    EARLY,
    INFINITE,
    axis_name,
    best_on_edge,
    held,
    initial_loss,
    label,
    lr_sensitivity,
    ranked,
    resolution,
    scored,
    seeds,
    short,
    varied_axes,
)
from experiments.training.axes import WORDS, scale_of

COLOURS = "viridis_r"
LEGIBLE = 4.5
"""Numbers in cells are at least so many points high, or left out."""


@layout.styled
def sensitivity(
    runs: pd.DataFrame,
    axis: str,
    loss_name: str,
    order: pd.DataFrame | None = None,
    note: str = "",
    figsize: layout.Size = None,
) -> Figure:
    """Draw the final evaluation loss against one hyperparameter.

    Dark line and band: median and inter-quartile range over seeds, everything else as in the best configuration.
    Light line: the lowest median over all other hyperparameters. Dots: single runs. Strips at the top: number of
    diverged runs, and runs that ended far above the loss before training; a line ends where its median is infinite.
    Hollow dots: what ended early, and so has no place on a line.
    Values are spaced on the scale of their axis; words have no order, and so neither lines nor a band, but bars.

    Args:
        runs: as `sweep` returns them, of one optimizer.
        axis: one of `axes.axes_in(runs)` that the optimizer has.
        loss_name: as of `training_figures.convergence`.
        order: as of `aggregation.ranked`.
        note, figsize: as of `layout.finished`.
    """
    order, grid, initial = ranked(runs, order), np.unique(runs[axis].dropna().to_numpy()), initial_loss(runs)
    best, curve = order.iloc[0], held(order, [axis])
    stopped, ended = early.is_early(curve), early.words(runs)
    reached = order.assign(loss=order["eval_loss_median"].mask(early.is_early(order)))
    lowest = reached.groupby(axis)[["loss"]].agg("min").loc[:, "loss"]
    known = runs[scored(runs, "eval_loss") < INFINITE].set_index(axis)
    losses, hollow = known["eval_loss"], known["status"].isin(EARLY).to_numpy()
    diverged = order.groupby(axis)[["n_diverged", "n_seeds"]].agg("sum").query("n_diverged > 0")
    figure, (ax,) = layout.canvas(1, figsize, 6.5, 4.2)
    scale = figures.loss_scale(ax, losses, initial, {"diverged": 0.1} if len(diverged) else {})

    at = partial(figures.positions, axis=axis, grid=grid)
    joined = scale_of(axis, grid) != WORDS
    line = "-" if joined else ""
    places, inner = at(losses.index), scale.inside(losses)
    ax.plot(places[~hollow], inner[~hollow], "o", color="0.65", markersize=3, alpha=0.5, label="one run")
    early.marks(ax, places[hollow], inner[hollow], "0.65", ended)
    others = label(best, [other for other in varied_axes(runs) if other != axis], runs) or "and only configuration"
    q25, q75 = (curve[f"eval_loss_{name}"].clip(scale.low, scale.high) for name in ("q25", "q75"))
    median, x = scale.inside(curve["eval_loss_median"].mask(stopped)), at(curve.index)
    early.marks(ax, x[stopped], scale.inside(curve["eval_loss_median"])[stopped], looks.HELD)
    ax.plot(x, median, "o" + line, color=looks.HELD, label=f"with the best {others}", zorder=3)
    if joined:
        ax.fill_between(x, q25, q75, where=np.isfinite(median), color=looks.HELD, alpha=0.2, linewidth=0)
    else:
        shown = np.isfinite(median)
        ax.vlines(x[shown], q25[shown], q75[shown], color=looks.HELD, alpha=0.35, linewidth=7)
    if curve["n_seeds"].max() > 1:
        figures.explain_band(ax, f"{'band' if joined else 'bar'}: quartiles of {seeds(curve['n_seeds'])}")
    # Open marks around those of the other line, with which they may coincide.
    style: dict[str, Any] = {"color": looks.ENVELOPE, "markersize": 8, "markerfacecolor": "none", "zorder": 2}
    ax.plot(at(lowest.index), scale.inside(lowest), "s" + line, **style, label="best over all other hyperparameters")
    figures.before_training(ax, initial)
    whose, default = figures.default_at(runs, axis)
    if default is not None and (default in grid if not joined else grid[0] <= default <= grid[-1]):
        style: dict[str, Any] = {"linestyle": ":", "linewidth": 1.2, "zorder": 1, "label": f"{whose}, {short(default)}"}
        ax.axvline(float(at(default)), ymax=scale.end, color="black", **style)
    above = scale.is_above(losses)
    if above.any():
        row = next(name for name in scale.rows if name.startswith("above"))
        style: dict[str, Any] = {"color": "0.65", "markersize": 4, "transform": ax.get_xaxis_transform()}
        early.apart(ax, places[above], scale.within(row), hollow[above], "^", **style)
    for value, n in diverged.iterrows():
        text = f"{n['n_diverged']}/{n['n_seeds']}"
        place = float(at(value)), scale.within("diverged")
        style: dict[str, Any] = {
            "transform": ax.get_xaxis_transform(),
            "ha": "center",
            "va": "center",
            "fontsize": "small",
        }
        ax.text(*place, text, **style).set_gid(layout.COUNT)
    figures.ticks(ax, "x", pd.Series(grid), axis, sampled=False)
    title = f"best {axis_name(axis, runs)} {short(best[axis])}" if len(losses) else "every run diverged"
    title += " so far" * bool(early.is_early(order)[0])
    title += ": best value on the edge of the grid" if best_on_edge(order, axis) else ""
    if axis == "lr" and np.isfinite(flat := lr_sensitivity(runs, order)):
        title += f"; lr sensitivity {number(flat)} (0 is flat)"
    ax.set(xlabel=figures.axis_label(axis, grid, runs), ylabel=f"final {loss_name}{figures.LOG_SCALE}", title=title)
    ends = at(grid[[0, -1]])
    margin = 0.07 * (ends[1] - ends[0]) or 0.5
    ax.set_xlim(ends[0] - margin, ends[1] + margin)
    name, marks = axis_name(axis), ("the dark line", "the light one") if joined else ("dots", "squares")
    verbs = ("changes", "is") if joined else ("change", "are")
    caption = [
        f"Final loss against {name}: {marks[0]} {verbs[0]} {name} alone, starting from the best configuration, and "
        f"{marks[1]} {verbs[1]} the best one can do by tuning everything else"
        f"{' (both: medians over seeds)' if curve['n_seeds'].max() > 1 else ''}.",
        "A line has gaps where none of these was trained to the end." if hollow.any() and joined else "",
        *early.hollow(ended, hollow, "Hollow dots"),
        "The strip at the top counts diverged runs, of all at that value." if len(diverged) else "",
        *figures.said(scale, losses, initial),
    ]
    return layout.finished(figure, runs, 2, figsize, caption, note)


@layout.styled
def heatmap(
    runs: pd.DataFrame,
    x: str = "lr",
    y: str = "beta1",
    loss_name: str = "evaluation loss",
    order: pd.DataFrame | None = None,
    note: str = "",
    figsize: layout.Size = None,
) -> Figure:
    """Draw the median final evaluation loss over two hyperparameters, everything else as in the best configuration.

    Numbers: loss and, for classification, accuracy. Hatched: the median is infinite, because at least half of the seeds
    diverged, with the median step. White inside: ended early, with that step. Solid frame: best cell. Dashed frame:
    default values of both. All heatmaps of these runs have the same scale of colours.

    Args:
        runs: as `sweep` returns them, of one optimizer.
        x, y: two of `axes.axes_in(runs)` that the optimizer has.
        loss_name: as of `training_figures.convergence`.
        order: as of `aggregation.ranked`.
        note, figsize: as of `layout.finished`.
    """
    order = ranked(runs, order)
    cells, initial = held(order, [y, x]), initial_loss(runs)
    cells = cells.assign(early=early.is_early(cells))
    best = cells.loc[~cells["early"], "eval_loss_median"]
    losses, whose = cells["eval_loss_median"].unstack(x), figures.default_of(runs)[0]
    defaults = [figures.default_at(runs, axis)[1] for axis in (y, x)]
    norm = norm_of(order["eval_loss_median"], initial)
    narrow = figsize is not None and figsize[0] < layout.NARROW
    wide, tall = 2.6 + min(losses.shape[1], 12) * 0.95, 1.2 + min(losses.shape[0], 12) * 0.7
    figure, (ax,) = layout.canvas(1, figsize, wide, tall)
    ax.grid(False)
    finite = np.isfinite(losses)
    image = ax.imshow(losses.where(finite), cmap=COLOURS, norm=norm, origin="lower", aspect="auto")
    colour_bar(figure, ax, image, norm, f"final {loss_name}{figures.LOG_SCALE}; brighter is better", narrow)
    columns, rows = losses.columns.tolist(), losses.index.tolist()
    for cell in cells.reset_index().to_dict("records"):
        loss, accuracy, n, at = (
            cell["eval_loss_median"],
            cell["eval_accuracy_median"],
            cell["n_diverged"],
            (cell[y], cell[x]),
        )
        i, j = columns.index(at[1]), rows.index(at[0])
        ink, lines = "black", [f"✕ {n} of {cell['n_seeds']}"] if n else []
        if np.isfinite(loss):
            ink = ink_on(image.to_rgba(loss))
            lines = [number(loss), *([f"{accuracy:.2%}"] if np.isfinite(accuracy) else []), *lines]
            if cell["early"]:
                early.core(ax, i, j, early.words(runs))
                ink = "black"
                lines.insert(1, f"to step {cell['stopped_step_median']:.0f}")
        else:
            lines += [f"step {cell['diverged_step_median']:.0f}"] if n else ["not finite"]
            hatched(ax, i, j, bool(n))
        rest = "\n".join(lines[1:])
        first = {"color": ink, "ha": "center", "fontsize": 8 if narrow else 10, "gid": "first"}
        ax.text(i, j, lines[0], va="bottom" if rest else "center", **first)
        if rest:
            ax.text(i, j, rest, color=ink, ha="center", va="top", fontsize=6.5 if narrow else 8, gid="rest")
        is_default = None not in defaults and all(
            figures.is_close([v], default)[0] for v, default in zip(at, defaults, strict=True)
        )
        frames = [("best", 0.96, "-")] if np.isfinite(loss) and len(best) and at == best.idxmin() else []
        frames += [(f"{whose} for both", 0.92 if narrow else 0.84, "--")] if is_default else []
        for name, width, line in frames:
            thick = 1.2 if narrow else 2
            frame = Rectangle((i - width / 2, j - width / 2), width, width, fill=False, linewidth=thick, linestyle=line)
            ax.add_patch(frame).set(label=name, path_effects=[withStroke(linewidth=2 * thick, foreground="white")])
    ax.set_xticks(range(losses.shape[1]), [short(value) for value in columns])
    ax.set_yticks(range(losses.shape[0]), [short(value) for value in rows])
    others = label(order.iloc[0], [axis for axis in varied_axes(runs) if axis not in (x, y)], runs)
    title = f"with the best {others}" if others else ""
    title = title if finite.any(axis=None) else "every run diverged"
    ax.set(xlabel=axis_name(x, runs), ylabel=axis_name(y, runs), title=title)
    gone = cells[~np.isfinite(cells["eval_loss_median"]) & (cells["n_diverged"] > 0)]
    several = cells["n_seeds"].max() > 1
    rest = ", everything else as in the best configuration" if others else ""
    caption = [
        f"Final loss over {axis_name(x)} and {axis_name(y)}{rest}{' (median over seeds)' if several else ''}: brighter "
        "is better, on the scale of all configurations.",
        ("In hatched cells at least half of the seeds diverged." if several else "Hatched cells diverged.")
        if len(gone)
        else "",
        "A ✕ says how many seeds diverged." if cells["n_diverged"].any() and several else "",
        *early.hollow(early.words(runs), cells["early"], "White inside"),
        figures.unresolved(initial).replace("drawn there", "not told apart")
        if (cells["eval_loss_median"] < resolution(initial)).any()
        else "",
    ]
    figure = layout.finished(figure, runs, 2, figsize, caption, note)
    fit_cells(ax, losses.shape)
    return figure


def norm_of(losses: pd.Series, initial: float) -> LogNorm:
    """Return the scale of colours of a sweep, from the best configuration to at most twice the loss before training."""
    finite = losses.loc[np.isfinite(losses)].to_numpy()
    low = max(finite[finite > 0].min(initial=initial), resolution(initial))
    high = finite.max(initial=0.0, where=finite < 2 * initial)
    return LogNorm(low, max(high, 1.2 * low), clip=True)


def colour_bar(
    figure: Figure, ax: Axes | list[Axes], shades: ScalarMappable, norm: LogNorm, name: str, narrow: bool
) -> None:
    """Add a bar that explains the colours: at the right, or below in a narrow figure."""
    ticks = figures.log_ticks(float(norm.vmin or 1.0), float(norm.vmax or 1.0))
    place: dict[str, Any] = {"location": "bottom", "aspect": 35, "pad": 0.02} if narrow else {"location": "right"}
    bar = figure.colorbar(shades, ax=ax, ticks=ticks, label=name, **place)
    axis = bar.ax.xaxis if narrow else bar.ax.yaxis
    axis.set_ticks(ticks, [number(tick) for tick in ticks])
    axis.set_minor_locator(NullLocator())
    axis.set_gid(layout.ROUND)


def ink_on(shade: tuple | np.ndarray) -> str:
    """Return the colour of letters that are legible on a shade."""
    return "black" if np.dot(shade[:3], (0.3, 0.6, 0.1)) > 0.5 else "white"


def hatched(ax: Axes, i: int, j: int, diverged: bool) -> None:
    """Draw a cell of a heatmap whose median is infinite: hatched if runs diverged, grey if losses were not finite."""
    style: dict[str, Any] = {"facecolor": looks.STRIP, "edgecolor": "0.8", "hatch": "///" if diverged else None}
    ax.add_patch(Rectangle((i - 0.5, j - 0.5), 1, 1, linewidth=0, **style))


def fit_cells(ax: Axes, shape: tuple[int, int]) -> None:
    """Make the numbers in the cells of a heatmap as small as the cells need; if they were illegible, leave some out."""
    box = ax.get_window_extent()
    room = 0.9 * box.width / shape[1], 0.86 * box.height / shape[0]

    def factor(texts: list[Text], lines: float) -> float:
        extents = [text.get_window_extent() for text in texts]
        return min(
            room[0] / max((of.width for of in extents), default=1),
            room[1] / max((lines * of.height for of in extents), default=1),
        )

    first, rest = ([text for text in ax.texts if text.get_gid() == gid] for gid in ("first", "rest"))
    # Both meet in the middle of their cell.
    size = min(1.0, factor(first, 2.0), factor(rest, 2.0)) if rest else min(1.0, factor(first, 1.0))
    if rest and size * float(rest[0].get_fontsize()) < LEGIBLE:
        for text in rest:
            text.set_visible(False)
        for text in first:
            text.set_verticalalignment("center")
        size = min(1.0, factor(first, 1.0))
    for text in [*first, *rest]:
        text.set_fontsize(size * float(text.get_fontsize()))
        if float(text.get_fontsize()) < LEGIBLE:
            text.set_visible(False)
