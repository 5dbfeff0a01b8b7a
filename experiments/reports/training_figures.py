"""Figures of runs while they train, against the step and against wall-clock time."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.reports import early, figures, layout, looks
from experiments.reports.aggregation import (
    EARLY,
    INFINITE,
    configuration,
    initial_loss,
    label,
    ranked,
    seeds,
    unscored,
    varied_axes,
)
from experiments.reports.looks import Look


class Line(NamedTuple):
    """Runs of which `training` draws the median, in a colour: their run_ids, their name, and its look."""

    ids: list[int]
    name: str
    look: Look


def highlighted(runs: pd.DataFrame, order: pd.DataFrame | None = None, top: int = 5) -> list[Line]:
    """Return the lines that `training` draws in colour: the `top` best configurations, and the default.

    Their names say which of them ended early. order: as of `aggregation.ranked`.
    """
    order = ranked(runs, order)
    ended = early.at_step(order)
    places = order[configuration(order)].assign(place=range(len(order)))
    ids = runs[["run_id", *configuration(runs)]].merge(places).groupby("place")["run_id"].agg(list)
    axes = varied_axes(runs)
    lines = [
        Line(
            ids[place], f"{place + 1}. {label(row, axes or ['lr'], runs)}{ended[place]}", looks.of_configuration(place)
        )
        for place, row in order[np.isfinite(order["eval_loss_median"])].head(top).iterrows()
    ]
    whose, values = figures.default_of(runs)
    if values:
        default = np.all([figures.is_close(order[axis], value) for axis, value in values.items()], axis=0)
        # Of several, which differ in options of a run, the best.
        for place in np.flatnonzero(default)[:1]:
            of_run = label(order.iloc[place], [axis for axis in axes if axis not in values])
            name = f"{whose}{f' with {of_run}' * bool(of_run)} (number {place + 1} of {len(order)}{ended[place]})"
            lines.append(Line(ids[place], name, looks.DEFAULT))
    return lines


def time_of(runs: pd.DataFrame, curves: pd.DataFrame) -> str:
    """Return the column of curves against which runs are compared: the step, or the epoch if their lengths differ.

    Runs of different lengths are compared by what they have seen, unless it is their steps that differ, or what they
    train on has no epochs, as a function.
    """
    differ = "steps" in runs and runs["steps"].nunique() > 1 and "steps" not in varied_axes(runs)
    return "epoch" if differ and not np.array_equal(curves["epoch"], curves["step"]) else "step"


@layout.styled
def convergence(
    runs: pd.DataFrame,
    curves: pd.DataFrame,
    loss_name: str,
    order: pd.DataFrame | None = None,
    note: str = "",
    figsize: layout.Size = None,
) -> Figure:
    """Draw evaluation loss, training loss and (for classification) evaluation accuracy against the step, or the epoch.

    The best configurations are coloured lines (median over seeds) in bands (inter-quartile range); the default, if
    it was run, is dashed black; every other run is a thin grey line. A diverged run is dotted and leaves the panel at
    a ✕ at the step at which it diverged; where a run ends early there is a |.

    Args:
        runs, curves: as `sweep` returns them, of one optimizer; curves may hold those of other runs.
        loss_name: what to call the loss, `provenance["loss_name"]` of a sweep.
        order: as of `aggregation.ranked`.
        note, figsize: as of `layout.finished`.
    """
    lines, (evaluation, *rest) = highlighted(runs, order), figures.panels(curves, loss_name).items()
    training_loss = "training loss since the last evaluation" + figures.LOG_SCALE
    columns = dict([evaluation, ("train_loss", training_loss), *rest])
    figure, axes = layout.canvas(len(columns), figsize, 4.4, 3.8)
    x = time_of(runs, curves)
    for ax, (column, name) in zip(axes, columns.items(), strict=True):
        training(ax, runs, curves, column, lines, x)
        ax.set(xlabel=x, ylabel=name)
    caption = [
        f"Losses{' and accuracy' * (len(columns) > 2)} while training.",
        *described(runs, lines, "configuration"),
    ]
    return layout.finished(figure, runs, len(columns), figsize, caption, note)


@layout.styled
def wall_clock(
    runs: pd.DataFrame,
    curves: pd.DataFrame,
    loss_name: str,
    lines: list[Line] | None = None,
    order: pd.DataFrame | None = None,
    figsize: layout.Size = None,
) -> Figure:
    """Draw evaluation loss and (for classification) accuracy against a run's share of its population's seconds.

    Runs are trained together; the time of one run is that of its population divided by the number of runs in it.

    Args:
        curves: with the column run_seconds, as of `aggregation.run_seconds` over every run of the sweep.
        lines: as of `training`; by default the best configurations.
        order: as of `aggregation.ranked`; needed for that default alone.
    """
    of = "configuration" if lines is None else "optimizer"
    lines, columns = highlighted(runs, order) if lines is None else lines, figures.panels(curves, loss_name)
    n_others = runs["optimizer"].nunique() - len(lines)
    others = f"best of the {n_others} others" if of == "optimizer" and n_others else ""
    figure, axes = layout.canvas(len(columns), figsize, 5.2, 3.8)
    for ax, (column, name) in zip(axes, columns.items(), strict=True):
        training(ax, runs, curves, column, lines, "run_seconds", others)
        ax.set(xlabel="wall-clock seconds of a run (its population's / number of runs in it)", ylabel=name)
    caption = [
        f"The loss{' and the accuracy' * (len(columns) > 1)} against the time that a run takes: its share of the time "
        "of the population trained with it, evaluations left out, compilation in the first steps included.",
        *described(runs, lines, of),
    ]
    return layout.finished(figure, runs, len(columns), figsize, caption)


def described(runs: pd.DataFrame, lines: list[Line], of: str) -> list[str]:
    """Return sentences on what `training` draws. of: whether lines are the best of each optimizer or configurations."""
    coloured = [line for line in lines if line.look != looks.DEFAULT]
    median = " (median over seeds)" if any(len(line.ids) > 1 for line in lines) else ""
    found, n_others = [], runs["optimizer"].nunique() - len(coloured)
    if coloured and of == "optimizer":
        which = f"of the {len(coloured)} best optimizers" if n_others else "of every optimizer"
        grey = f"; grey: the runs of the other {n_others}" if n_others else ""
        found.append(f"Coloured: the best configuration {which}{median}{grey}.")
    elif coloured:
        which = f"the {len(coloured)} best configurations" if len(coloured) > 1 else "the best configuration"
        found.append(f"Coloured: {which}{median}, the darker the better.")
    if len(coloured) < len(lines):
        found.append("Dashed black: the default.")
    drawn = {run_id for line in lines for run_id in line.ids}
    if of == "configuration" and (~runs["run_id"].isin(drawn) & (runs["status"] != "diverged")).any():
        found.append("Grey: every other run.")
    if (runs["status"] == "diverged").any():
        found.append("A ✕ at the edge is where a run diverged.")
    if ended := early.words(runs):
        found.append(f"A | at the end of a curve: {ended}.")
    return found


def training(
    ax: Axes, runs: pd.DataFrame, curves: pd.DataFrame, column: str, lines: list[Line], x: str = "step", others=""
) -> None:
    """Draw a column of curves against the column x; highlighted lines are medians over runs.

    Lines may lie on each other: the best is on top, and each has marks of its own, which take turns.

    others: the name of runs that no line has.
    """
    ids, ok = runs["run_id"], (runs["status"] != "diverged").to_numpy()
    table, at = (
        curves.assign(value=curves[name]).pivot(index="step", columns="run_id", values="value").reindex(columns=ids)
        for name in (column, x)
    )
    # Draw accuracy as error on an inverted log axis: 0.98 and 0.99 are as far apart as 0.8 and 0.9.
    table = 1 - table if column == "eval_accuracy" else table
    steps, ends = table.index.to_numpy(dtype=float), runs["diverged_step"].to_numpy(dtype=float, na_value=np.nan)
    gone = pd.DataFrame(steps[:, None] > ends, table.index, table.columns)
    table = table.where(np.isfinite(table) & ~gone)
    shown = table.loc[:, ok] if ok.any() else table
    if column == "eval_accuracy":
        low, high = figures.accuracy_scale(ax, shown)
    else:
        # Lines above that leave the panel.
        initial = initial_loss(runs)
        low, high, _ = figures.loss_scale(ax, shown.where(shown <= 2 * initial), initial)

    marks = max(1, -(-len(table) // 8))
    for place, (its, name, look) in enumerate(lines):
        # After a run has diverged its loss is infinite, not missing.
        # All seeds, or none: where one has ended early, a median would be that of others.
        last = early.last_step(runs.loc[ids.isin(its)])
        values, along = table[its].mask(gone[its], INFINITE), at[its].median(axis=1)
        values.loc[steps > last] = np.nan
        q25, median, q75 = (unscored(values.quantile(q, axis=1)) for q in (0.25, 0.5, 0.75))
        known, shown = along.notna(), np.isfinite(median)
        style: dict[str, Any] = {"color": look.colour, "linestyle": look.line, "marker": look.marker}
        style |= {"markevery": (place % marks, marks), "markersize": 4, "zorder": 4 - place / 99}
        ax.plot(along[shown], median.loc[shown].clip(lower=low), label=name, **style)
        if np.isfinite(last) and shown.any():
            early.ends(ax, along[shown].iloc[-1], max(median.loc[shown].iloc[-1], low), look.colour)
        if len(its) > 1:
            band = q25.clip(low, high), q75.clip(low, high)
            # Runs of other lengths are evaluated after other steps.
            shade = {"color": look.colour, "alpha": 0.15, "lw": 0}
            ax.fill_between(along[known], band[0][known], band[1][known], shown[known], **shade)
    if counts := [len(line.ids) for line in lines if len(line.ids) > 1]:
        figures.explain_band(ax, f"band: quartiles of {seeds(counts)}")
    # One array per run: pandas would take a minute for 10,000 of them.
    points = np.stack([at.to_numpy(), table.clip(lower=low).to_numpy()], axis=-1)
    paths = [points[~np.isnan(points[:, i, 1]), i] for i in range(len(ids))]
    grey = ok & ~ids.isin([run_id for line in lines for run_id in line.ids]).to_numpy()
    # Thousands of lines would make a PDF that no viewer opens.
    background = {"linewidths": 0.6, "rasterized": True}
    if grey.any():
        shown = [paths[i] for i in np.flatnonzero(grey)]
        text = others or "every other run"
        ax.add_collection(LineCollection(long_paths(shown), colors=looks.BEHIND, label=text, **background))
    if not ok.all():
        # Each run is evaluated after steps of its own.
        known = [~np.isnan(points[:, i, 0]) for i in range(len(ids))]
        exits = [(np.interp(ends[i], steps[known[i]], points[known[i], i, 0]), high) for i in np.flatnonzero(~ok)]
        left = [np.vstack([paths[i], end]) for i, end in zip(np.flatnonzero(~ok), exits, strict=True)]
        ax.add_collection(LineCollection(long_paths(left), colors="0.65", linestyles=":", **background))
        ax.plot(*np.transpose(exits), "x", color=looks.INK, markersize=5, clip_on=False, label="diverged at this step")
    if ended := early.words(runs):
        cut = np.flatnonzero(grey & runs["status"].isin(EARLY).to_numpy())
        places = np.array([paths[i][-1] for i in cut if len(paths[i])]).reshape(-1, 2)
        early.ends(ax, places[:, 0], places[:, 1], "0.55", markersize=5, zorder=2.1, rasterized=True)
        ax.plot([], [], looks.END, color=looks.INK, label=ended)
    ax.set_title("" if ok.any() else "every run diverged")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=x == "step"))


def long_paths(paths: list[np.ndarray], size: int = 50) -> list[np.ndarray]:
    """Join paths, `[points, 2]` each, into a few long ones with gaps of NaN, because matplotlib is slow per path."""
    gap = np.full((1, 2), np.nan)
    parts = [part for path in paths for part in (path, gap)]
    return [np.concatenate(parts[i : i + 2 * size]) for i in range(0, len(parts), 2 * size)]
