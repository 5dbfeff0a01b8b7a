"""Figures of final losses over one hyperparameter of a grid, and over two."""

from functools import partial

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.colors import LogNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator

from experiments.common.figure_style import STYLE
from experiments.reports import figures
from experiments.reports.aggregation import (
    INFINITE,
    axis_name,
    best_on_edge,
    held,
    initial_loss,
    label,
    lr_sensitivity,
    ranked,
    scored,
    seeds,
    short,
    varied_axes,
)
from experiments.training.axes import WORDS, scale_of


@style.context(STYLE)
def sensitivity(runs: pd.DataFrame, axis: str, loss_name: str, order: pd.DataFrame | None = None) -> Figure:
    """Draw the final evaluation loss against one hyperparameter.

    Thick line and band: median and inter-quartile range over seeds, everything else as in the best configuration.
    Thin line: the lowest median over all other hyperparameters. Dots: single runs. Strip at the top: number of diverged
    runs; a line touches the strip where its median is infinite. Values are spaced on the scale of their axis; words
    have no order, and so neither lines nor a band, but bars.

    Args:
        runs: as `sweep` returns them, of one optimizer.
        axis: one of `axes.axes_in(runs)` that the optimizer has.
        loss_name: as of `training_figures.convergence`.
        order: as of `aggregation.ranked`.
    """
    order, grid, initial = (
        ranked(runs, order),
        np.unique(runs[axis].dropna().to_numpy()),
        initial_loss(runs),
    )
    best, curve, lowest = (
        order.iloc[0],
        held(order, [axis]),
        order.groupby(axis)[["eval_loss_median"]].agg("min").loc[:, "eval_loss_median"],
    )
    losses = runs[scored(runs, "eval_loss") < INFINITE].set_index(axis)["eval_loss"]
    diverged = order.groupby(axis)[["n_diverged", "n_seeds"]].agg("sum").query("n_diverged > 0")
    figure = Figure(figsize=(7.5, 5.4))
    ax = figure.subplots()
    top = 1.2 * max(initial, losses.clip(upper=10 * initial).max() if len(losses) else 0.0)
    low, high = figures.loss_axis(ax, losses, top, headroom=0.12 if len(diverged) else 0.0)

    at = partial(figures.positions, axis=axis, grid=grid)
    ax.plot(at(losses.index), losses.clip(low, high), "o", color="0.65", markersize=3, alpha=0.5, label="one run")
    others = label(best, [other for other in varied_axes(runs) if other != axis], runs) or "and only configuration"
    median, q25, q75 = (curve[f"eval_loss_{name}"].clip(low, high) for name in ("median", "q25", "q75"))
    kwargs = {"linewidth": 3.5, "markersize": 7, "label": f"with the best {others}"}
    line, band = ("", "bar") if scale_of(axis, grid) == WORDS else ("-", "band")
    ax.plot(at(median.index), median, "o" + line, color=to_hex("C0"), **kwargs)
    if line:
        ax.fill_between(at(median.index), q25, q75, color=to_hex("C0"), alpha=0.2, linewidth=0)
    else:
        ax.vlines(at(median.index), q25, q75, color=to_hex("C0"), alpha=0.35, linewidth=7)
    if curve["n_seeds"].max() > 1:
        figures.explain_band(ax, f"{band}: quartiles of {seeds(curve['n_seeds'])}")
    kwargs = {"linewidth": 1, "markersize": 3.5, "label": "best over all other hyperparameters"}
    ax.plot(at(lowest.index), lowest.clip(low, high), "s" + line, color=to_hex("C1"), **kwargs)
    ax.axhline(initial, color="0.3", linestyle="--", linewidth=1, label=f"loss before training, {initial:.3g}")
    whose, default = figures.default_at(runs, axis)
    if default is not None and (default in grid if not line else grid[0] <= default <= grid[-1]):
        kwargs = {"linestyle": ":", "linewidth": 1.2, "zorder": 1, "label": f"{whose}, {short(default)}"}
        ax.axvline(float(at(default)), ymax=0.88 if len(diverged) else 1.0, color="black", **kwargs)
    if len(diverged):
        ax.axhspan(high, ax.get_ylim()[1], color="0.93", zorder=0)
        x, strip = at(diverged.index), ax.get_xaxis_transform()
        ax.plot(x, np.full(len(x), 0.97), "x", color="0.2", transform=strip, label="diverged runs / all runs")
        for left, n_diverged, n in zip(x, diverged["n_diverged"], diverged["n_seeds"], strict=True):
            ax.text(left, 0.92, f"{n_diverged}/{n}", transform=strip, ha="center", va="center", fontsize=8)
    ax.set_xticks(at(grid), [short(value) for value in grid], rotation=60 if len(grid) > 10 else 0)
    note = f"best {axis_name(axis, runs)} {short(best[axis])}" if len(losses) else "every run diverged"
    note += ": best value on the edge of the grid" if best_on_edge(order, axis) else ""
    if axis == "lr" and np.isfinite(flat := lr_sensitivity(runs, order)):
        note += f"; lr sensitivity {flat:.3g} (0 is flat)"
    ax.set(xlabel=axis_name(axis, runs), ylabel=f"final {loss_name}", title=note)
    ax.margins(x=0.07)
    return figures.finished(figure, runs, columns=2)


@style.context(STYLE)
def heatmap(
    runs: pd.DataFrame,
    x: str = "lr",
    y: str = "beta1",
    loss_name: str = "evaluation loss",
    order: pd.DataFrame | None = None,
) -> Figure:
    """Draw the median final evaluation loss over two hyperparameters, everything else as in the best configuration.

    Numbers: loss and, for classification, accuracy. Hatched: every seed diverged, with the median step. Grey: most
    seeds diverged, so the median is infinite. Solid frame: best cell. Dashed frame: default values of both.

    Args:
        runs: as `sweep` returns them, of one optimizer.
        x, y: two of `axes.axes_in(runs)` that the optimizer has.
        loss_name: as of `training_figures.convergence`.
        order: as of `aggregation.ranked`.
    """
    order = ranked(runs, order)
    cells, initial = held(order, [y, x]), initial_loss(runs)
    losses, whose = cells["eval_loss_median"].unstack(x), figures.default_of(runs)[0]
    defaults = [figures.default_at(runs, axis)[1] for axis in (y, x)]
    finite = losses.to_numpy()[np.isfinite(losses) & (losses > 0)]
    low, high = finite.min(initial=initial), finite.max(initial=0.0, where=finite < 2 * initial)
    figure = Figure(figsize=(3.2 + min(losses.shape[1], 12) * 1.05, 2.9 + min(losses.shape[0], 12) * 0.75))
    ax = figure.subplots()
    ax.grid(False)
    size, crowded = (7, True) if losses.shape[1] > 12 else (10, False)
    norm = LogNorm(low, max(high, 1.2 * low), clip=True)
    image = ax.imshow(losses.where(np.isfinite(losses)), cmap="viridis_r", norm=norm, origin="lower", aspect="auto")
    if len(finite):
        ticks = LogLocator(subs=(1, 2, 5) if norm.vmax < 1e3 * low else (1,))
        figure.colorbar(image, ticks=ticks, format="{x:.3g}", label="brighter is better").minorticks_off()
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
            ink = "black" if np.dot(image.to_rgba(loss)[:3], (0.3, 0.6, 0.1)) > 0.5 else "white"
            lines = [f"{loss:.3g}", *([f"{accuracy:.2%}"] if np.isfinite(accuracy) else []), *lines]
        else:
            lines += [f"step {cell['diverged_step_median']:.0f}"] if n else ["not finite"]
            kwargs = {"facecolor": "0.93", "edgecolor": "0.8", "hatch": "///" if n == cell["n_seeds"] else None}
            ax.add_patch(Rectangle((i - 0.5, j - 0.5), 1, 1, linewidth=0, **kwargs))
        rest = "\n".join(lines[1:])
        ax.text(i, j, lines[0], color=ink, ha="center", va="bottom" if rest else "center", fontsize=size)
        ax.text(i, j, rest, color=ink, ha="center", va="top", fontsize=0.8 * size)
        is_default = None not in defaults and all(
            figures.is_close([v], default)[0] for v, default in zip(at, defaults, strict=True)
        )
        frames = [("best", 0.94, "-")] if np.isfinite(loss) and at == cells["eval_loss_median"].idxmin() else []
        frames += [(f"{whose} for both", 0.82, "--")] if is_default else []
        for name, width, line in frames:
            frame = Rectangle((i - width / 2, j - width / 2), width, width, fill=False, linewidth=2, linestyle=line)
            ax.add_patch(frame).set(label=name, path_effects=[withStroke(linewidth=4, foreground="white")])
    ax.set_xticks(range(losses.shape[1]), [short(value) for value in columns], rotation=60 * crowded)
    ax.set_yticks(range(losses.shape[0]), [short(value) for value in rows])
    others = label(order.iloc[0], [axis for axis in varied_axes(runs) if axis not in (x, y)], runs)
    title = f"final {loss_name}" if len(finite) else "every run diverged"
    if others and len(finite):
        title += "\n" + figures.wrapped(f"with the best {others}", int(10 * figure.get_figwidth()))
    title += "\n✕: how many seeds diverged, and the median step" if cells["n_diverged"].any() else ""
    ax.set(xlabel=axis_name(x, runs), ylabel=axis_name(y, runs), title=title)
    return figures.finished(figure, runs, columns=2)
