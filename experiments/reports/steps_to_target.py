"""Steps to a target. The data are censored: in medians, a run that misses the target counts as infinite."""

import math

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy.special import betaincinv

from experiments.common import figure_style
from experiments.reports import comparison, figures, sampled_figures
from experiments.reports.aggregation import (
    INFINITE,
    axis_name,
    configuration,
    initial_loss,
    ranked,
    run_seconds,
    short,
    unscored,
    varied_axes,
)
from experiments.training.axes import WORDS, scale_of
from experiments.training.targets import Target

COLUMNS = ("steps_to_target", "seconds_to_target")


def choose(runs: pd.DataFrame, order: pd.DataFrame | None = None) -> Target | None:
    """Return a loss that a quarter of each optimizer's configurations ends at or below, to two digits.

    An optimizer does not count if less than a quarter of its configurations end below the loss before training; if
    none counts, return None. order: as of `aggregation.ranked`.
    """
    order = ranked(runs, order)
    quarters = order.groupby("optimizer")[["eval_loss_median"]].quantile(0.25, interpolation="lower")[
        "eval_loss_median"
    ]
    trained = quarters.loc[(quarters < initial_loss(runs)) & (quarters > 0)]
    if trained.empty:
        return None
    unit = 10.0 ** (math.floor(math.log10(trained.max())) - 1)
    return Target("eval_loss", float(f"{math.ceil(trained.max() / unit * (1 - 1e-9)) * unit:.2g}"))


def reach(runs: pd.DataFrame, curves: pd.DataFrame, target: Target) -> pd.DataFrame:
    """Return the runs with columns steps_to_target and seconds_to_target, infinite for runs that miss the target.

    Both count to the first evaluation that meets the target; see `aggregation.run_seconds` for the seconds. A run that
    diverged misses the target unless it met it before.
    """
    ends = curves["run_id"].map(runs.set_index("run_id")["diverged_step"].astype(float)).fillna(np.inf)
    met = curves.assign(seconds=run_seconds(runs, curves)).loc[target.reached(curves) & (curves["step"] < ends)]
    first = met.sort_values("step").groupby("run_id")[["step", "seconds"]].first().reindex(runs["run_id"])
    return runs.assign(**dict(zip(COLUMNS, first.fillna(np.inf).to_numpy().T, strict=True)))


def medians(reached: pd.DataFrame) -> pd.DataFrame:
    """Return medians over seeds of the columns of `reach`, infinite if half miss, and n_reached, by configuration."""
    finite = reached.replace(dict.fromkeys(COLUMNS, np.inf), INFINITE)
    finite["n_reached"] = np.isfinite(reached["steps_to_target"])
    groups = finite.groupby(configuration(reached), dropna=False)
    columns = {f"{name}_median": unscored(groups[name].median()) for name in COLUMNS}
    return pd.DataFrame({**columns, "n_reached": groups["n_reached"].sum()}).reset_index()


@style.context(figure_style.STYLE)
def figure(reached: pd.DataFrame, target: Target, last_step: int, sampled: bool = False) -> Figure:
    """Draw the share of runs that have reached the target by a step, and the steps to the target against lr.

    Left: one line per optimizer, over all its runs, in a 95 % band (see `share`). Right: the median over seeds of the
    fastest configuration at each lr (or value of the first axis that varies); configurations that miss the target on
    half of their seeds are in the strip at the top.
    """
    looks, axes = comparison.looks_of(reached), varied_axes(reached)
    drawn = Figure(figsize=(10.5 if axes else 6, 4.9))
    left, *right = np.atleast_1d(drawn.subplots(1, 1 + bool(axes)))
    for name, look in looks.items():
        group = reached.loc[reached["optimizer"] == name]
        share(left, group["steps_to_target"].to_numpy(), last_step, look, name)
    figures.explain_band(left, "band: 95 %, as if runs were independent")
    left.set(xlabel="step", ylabel=f"runs that have reached {target}", xlim=(0, 1.03 * last_step), ylim=(0, 1))
    left.yaxis.set_major_formatter(PercentFormatter(1))
    for ax in right:
        against(ax, medians(reached), axes[0], looks, last_step, sampled)
        name = axis_name(axes[0], reached)
        ax.set(xlabel=name, ylabel=f"steps to {target}", title=f"the fastest at each {name}")
    return figures.finished(drawn, reached, columns=4)


def share(ax: Axes, steps: np.ndarray, last_step: int, look: tuple[str, str, str], name: str) -> None:
    """Draw the share of runs that have reached the target by a step, with the exact 95 % interval of a share.

    The interval of Clopper and Pearson contains the share of all such runs at each step, however few runs there are.
    """
    at, counts = np.unique(steps[np.isfinite(steps)], return_counts=True)
    n, reached = len(steps), np.r_[0, np.cumsum(counts), counts.sum()]
    x = np.r_[0, at, last_step]
    ax.step(x, reached / n, look[1], where="post", color=look[0], label=f"{name}: {reached[-1]} of {n} runs")
    # The ends are NaN if no run or every run has reached the target; they are 0 and 1.
    low = np.nan_to_num(betaincinv(reached, n - reached + 1, 0.025))
    high = np.nan_to_num(betaincinv(reached + 1, n - reached, 0.975), nan=1.0)
    ax.fill_between(x, low, high, step="post", color=look[0], alpha=0.12, linewidth=0)


def against(ax: Axes, table: pd.DataFrame, axis: str, looks: dict, last_step: int, sampled: bool) -> None:
    """Draw the median steps to the target of the fastest configuration at each value of an axis. table: `medians`."""
    values = np.unique(table[axis].dropna().to_numpy())
    joined = not sampled and scale_of(axis, values) != WORDS
    fastest = table.groupby(["optimizer", axis])[["steps_to_target_median"]].agg("min").loc[:, "steps_to_target_median"]
    ax.axhspan(1.04 * last_step, 1.16 * last_step, color="0.95", zorder=0)
    for place, (name, (colour, line, marker)) in enumerate(looks.items()):
        if name not in fastest.index:
            continue
        own = fastest.loc[name]
        x, steps = figures.positions(own.index, axis, values), own.to_numpy()
        strip = (1.06 + 0.08 * (place + 0.5) / len(looks)) * last_step
        met = np.isfinite(steps)
        look = {"color": colour, "marker": marker, "linestyle": line if joined else "none", "markersize": 5}
        ax.plot(x, np.where(met, steps, np.nan), **look)
        ax.plot(x[~met], np.full((~met).sum(), strip), "x", color=colour)
    steps = np.asarray(MaxNLocator(5, integer=True).tick_values(0, 0.95 * last_step))
    steps = steps[steps < last_step]
    ax.set_yticks([*steps, 1.1 * last_step], [*(f"{step:.0f}" for step in steps), "missed"])
    ax.set_ylim(0, 1.16 * last_step)
    if sampled:
        sampled_figures.ticks(ax, "x", pd.Series(values), axis)
    else:
        labels = [short(value) for value in values]
        ax.set_xticks(figures.positions(values, axis, values), labels, rotation=60 if len(values) > 7 else 0)
