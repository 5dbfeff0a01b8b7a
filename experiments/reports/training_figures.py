"""Figures of runs while they train, against the step and against wall-clock time."""

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from experiments.common.figure_style import STYLE
from experiments.reports import figures
from experiments.reports.aggregation import (
    INFINITE,
    configuration,
    initial_loss,
    label,
    ranked,
    seeds,
    unscored,
    varied_axes,
)


def highlighted(runs: pd.DataFrame, order: pd.DataFrame | None = None, top: int = 5) -> list[tuple]:
    """Return the lines that `training` draws in colour: the `top` best configurations, and the default.

    order: as of `aggregation.ranked`.
    """
    order = ranked(runs, order)
    places = order[configuration(order)].assign(place=range(len(order)))
    ids = runs[["run_id", *configuration(runs)]].merge(places).groupby("place")["run_id"].agg(list)
    axes = varied_axes(runs)
    lines = [
        (ids[place], f"{place + 1}. {label(row, axes or ['lr'], runs)}", to_hex(f"C{place}"), "-")
        for place, row in order[np.isfinite(order["eval_loss_median"])].head(top).iterrows()
    ]
    whose, values = figures.default_of(runs)
    if values:
        default = np.all([figures.is_close(order[axis], value) for axis, value in values.items()], axis=0)
        # Of several, which differ in options of a run, the best.
        for place in np.flatnonzero(default)[:1]:
            of_run = label(order.iloc[place], [axis for axis in axes if axis not in values])
            name = f"{whose}{f' with {of_run}' * bool(of_run)} (number {place + 1} of {len(order)})"
            lines.append((ids[place], name, "black", "--"))
    return lines


@style.context(STYLE)
def convergence(runs: pd.DataFrame, curves: pd.DataFrame, loss_name: str, order: pd.DataFrame | None = None) -> Figure:
    """Draw evaluation loss, training loss and (for classification) evaluation accuracy against the step, or the epoch.

    The best configurations are coloured lines (median over seeds) in bands (inter-quartile range); the default, if
    it was run, is dashed black; every other run is a thin grey line. A diverged run is dotted and leaves the panel at
    a ✕ at the step at which it diverged.

    Args:
        runs, curves: as `sweep` returns them, of one optimizer; curves may hold those of other runs.
        loss_name: what to call the loss, `provenance["loss_name"]` of a sweep.
        order: as of `aggregation.ranked`.
    """
    lines, (evaluation, *rest) = highlighted(runs, order), figures.panels(curves, loss_name).items()
    columns = dict([evaluation, ("train_loss", "training loss since the last evaluation"), *rest])
    figure = Figure(figsize=(4.4 * len(columns), 5))
    # Runs of different lengths are compared by what they have seen, unless it is their steps that differ.
    differ = "steps" in runs and runs["steps"].nunique() > 1 and "steps" not in varied_axes(runs)
    x = "epoch" if differ else "step"
    for ax, (column, name) in zip(figure.subplots(1, len(columns)), columns.items(), strict=True):
        training(ax, runs, curves, column, lines, x)
        ax.set(xlabel=x, ylabel=name)
    return figures.finished(figure, runs, columns=len(columns))


@style.context(STYLE)
def wall_clock(
    runs: pd.DataFrame,
    curves: pd.DataFrame,
    loss_name: str,
    lines: list | None = None,
    order: pd.DataFrame | None = None,
) -> Figure:
    """Draw evaluation loss and (for classification) accuracy against a run's share of its population's seconds.

    Runs are trained together; the time of one run is that of its population divided by the number of runs in it.

    Args:
        curves: with the column run_seconds, as of `aggregation.run_seconds` over every run of the sweep.
        lines: as of `training`; by default the best configurations.
        order: as of `aggregation.ranked`; needed for that default alone.
    """
    lines, columns = highlighted(runs, order) if lines is None else lines, figures.panels(curves, loss_name)
    figure = Figure(figsize=(5.2 * len(columns), 5))
    for ax, (column, name) in zip(np.atleast_1d(figure.subplots(1, len(columns))), columns.items(), strict=True):
        training(ax, runs, curves, column, lines, x="run_seconds")
        ax.set(xlabel="wall-clock time of a run, s (its population's / number of runs in it)", ylabel=name)
    return figures.finished(figure, runs, columns=len(columns))


def training(ax: Axes, runs: pd.DataFrame, curves: pd.DataFrame, column: str, lines: list, x: str = "step") -> None:
    """Draw a column of curves against the column x; highlighted lines are medians over runs.

    lines: run_ids, label, colour and style of each highlighted line.
    """
    ids, ok = runs["run_id"], (runs["status"] == "ok").to_numpy()
    table, at = (
        curves.assign(value=curves[name]).pivot(index="step", columns="run_id", values="value").reindex(columns=ids)
        for name in (column, x)
    )
    top = 2 * initial_loss(runs)
    if column == "eval_accuracy":
        # Draw accuracy as error on an inverted log axis: 0.98 and 0.99 are as far apart as 0.8 and 0.9.
        table, top = 1 - table, 1.0
    steps, ends = table.index.to_numpy(dtype=float), runs["diverged_step"].to_numpy(dtype=float, na_value=np.nan)
    gone = pd.DataFrame(steps[:, None] > ends, table.index, table.columns)
    table = table.where(np.isfinite(table) & ~gone)
    low, high = figures.loss_axis(ax, table.loc[:, ok] if ok.any() else table, top)

    for place, (its, name, colour, line) in enumerate(lines):
        # After a run has diverged its loss is infinite, not missing.
        values, along = table[its].mask(gone[its], INFINITE), at[its].median(axis=1)
        q25, median, q75 = (unscored(values.quantile(q, axis=1)) for q in (0.25, 0.5, 0.75))
        known, shown = along.notna(), np.isfinite(median)
        # The best is on top; those below are wider, so that equal lines show.
        look = (4, 1.6) if line == "--" else (3 - place / 99, 1.4 + 0.5 * min(place, 4))
        ax.plot(along[shown], median[shown], line, color=colour, label=name, zorder=look[0], linewidth=look[1])
        if len(its) > 1:
            band = q25.clip(low, high), q75.clip(low, high)
            # Runs of other lengths are evaluated after other steps.
            ax.fill_between(along[known], band[0][known], band[1][known], shown[known], color=colour, alpha=0.15, lw=0)
    if counts := [len(its) for its, *_ in lines if len(its) > 1]:
        figures.explain_band(ax, f"band: quartiles of {seeds(counts)}")
    # One array per run: pandas would take a minute for 10,000 of them.
    points = np.stack([at.to_numpy(), table.to_numpy()], axis=-1)
    paths = [points[~np.isnan(points[:, i, 1]), i] for i in range(len(ids))]
    grey = ok & ~ids.isin([run_id for its, *_ in lines for run_id in its]).to_numpy()
    # Thousands of lines would make a PDF that no viewer opens.
    background = {"linewidths": 0.6, "rasterized": True}
    if grey.any():
        shown = [paths[i] for i in np.flatnonzero(grey)]
        ax.add_collection(LineCollection(long_paths(shown), colors="0.78", label="every other run", **background))
    if not ok.all():
        # Each run is evaluated after steps of its own.
        known = [~np.isnan(points[:, i, 0]) for i in range(len(ids))]
        exits = [(np.interp(ends[i], steps[known[i]], points[known[i], i, 0]), high) for i in np.flatnonzero(~ok)]
        left = [np.vstack([paths[i], end]) for i, end in zip(np.flatnonzero(~ok), exits, strict=True)]
        ax.add_collection(LineCollection(long_paths(left), colors="0.65", linestyles=":", **background))
        ax.plot(*np.transpose(exits), "x", color="0.35", markersize=5, clip_on=False, label="diverged at this step")
    ax.set_title("" if ok.any() else "every run diverged")
    if column == "eval_accuracy":
        ax.invert_yaxis()
        ax.yaxis.set_major_formatter(lambda error, _: f"{1 - error:.4g}")


def long_paths(paths: list[np.ndarray], size: int = 50) -> list[np.ndarray]:
    """Join paths, `[points, 2]` each, into a few long ones with gaps of NaN, because matplotlib is slow per path."""
    gap = np.full((1, 2), np.nan)
    parts = [part for path in paths for part in (path, gap)]
    return [np.concatenate(parts[i : i + 2 * size]) for i in range(0, len(parts), 2 * size)]
