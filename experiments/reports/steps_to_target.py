"""Steps to a target. The data are censored: in medians, a run that misses the target counts as infinite."""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy.special import betaincinv

from experiments.reports import comparison, early, figures, layout, looks
from experiments.reports.aggregation import (
    INFINITE,
    axis_name,
    configuration,
    initial_loss,
    ranked,
    run_seconds,
    unscored,
    varied_axes,
)
from experiments.training.axes import WORDS, scale_of
from experiments.training.targets import Target

COLUMNS = ("steps_to_target", "seconds_to_target")


def choose(runs: pd.DataFrame, order: pd.DataFrame | None = None) -> Target | None:
    """Return a loss that a quarter of each optimizer's configurations ends at or below, to two digits.

    If those that were trained to the end are fewer, it is a loss that all of them reach. An optimizer does not count if
    less than a quarter of its configurations end below the loss before training; if none counts, return None. order: as
    of `aggregation.ranked`.
    """
    order = ranked(runs, order)
    quarters = pd.Series([quarter(own) for _, own in order.groupby("optimizer")])
    trained = quarters.loc[(quarters < initial_loss(runs)) & (quarters > 0)]
    if trained.empty:
        return None
    unit = 10.0 ** (math.floor(math.log10(trained.max())) - 1)
    return Target("eval_loss", float(f"{math.ceil(trained.max() / unit * (1 - 1e-9)) * unit:.2g}"))


def quarter(order: pd.DataFrame) -> float:
    """Return the lowest quartile of the losses of one optimizer's configurations, and at most the highest final one.

    order: as of `aggregation.ranked`.
    """
    losses, stopped = order["eval_loss_median"], early.is_early(order)
    reached = losses.loc[~stopped & np.isfinite(losses)]
    if stopped.any() and len(reached):
        return float(reached.iloc[min((len(losses) - 1) // 4, len(reached) - 1)])
    return float(losses.quantile(0.25, interpolation="lower"))


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


@layout.styled
def figure(
    reached: pd.DataFrame,
    target: Target,
    last_step: int,
    sampled: bool = False,
    order: pd.DataFrame | None = None,
    figsize: layout.Size = None,
) -> Figure:
    """Draw the share of runs that have reached the target by a step, and the steps to the target against lr.

    Left: one line per optimizer, over all its runs, in a 95 % band (see `share`). Right: the median over seeds of the
    fastest configuration at each lr (or value of the first axis that varies); configurations that miss the target on
    half of their seeds are in the strip at the top, hollow if they ended early. Of more than six optimizers, the best
    six have colours, and the right panel has a row for each.

    Args:
        order: as of `aggregation.ranked`.
        figsize: as of `layout.finished`.
    """
    order, axes = ranked(reached, order), varied_axes(reached)
    styles, ended = comparison.looks_of(order), early.words(reached)
    table = order[configuration(order)].assign(early=early.is_early(order)).merge(medians(reached), how="left")
    coloured, many = looks.emphasised(styles), len(styles) > looks.MOST
    tall = max(4.0, 1.2 + 0.19 * len(styles)) if many else 4.0
    drawn, (left, *right) = layout.canvas(1 + bool(axes), figsize, 5.2, tall)
    for name in [*coloured, *list(styles)[len(coloured) :]]:
        group = reached.loc[reached["optimizer"] == name, "steps_to_target"].to_numpy()
        share(left, group, last_step, styles[name], name, behind=name not in coloured)
    left.set(xlabel="step", ylabel=f"runs that have reached {target}", xlim=(0, 1.03 * last_step), ylim=(0, 1))
    left.yaxis.set_major_formatter(PercentFormatter(1))
    left.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    figures.explain_band(left, "band: 95 %, as if runs were independent")
    if many:
        left.plot([], [], color=looks.BEHIND, label=f"the other {len(styles) - len(coloured)}")
    caption = [
        "First: the share of runs that have reached the target by a step, in a band that holds at each step, with 95 % "
        "or more, the share of all runs like these (Clopper and Pearson 1934; as if no two runs shared a configuration "
        "or a seed).",
        f"Among all runs are those {ended}, which might have reached it later." if ended else "",
    ]
    of = "the median over seeds of the steps to the target" if order["n_seeds"].max() > 1 else "the steps to the target"
    for ax in right:
        if many:
            hollow = fastest_of_each(ax, table, styles, last_step)
            ax.set(xlabel=f"steps to {target}", title="the fastest of each optimizer, and all others")
            caption.append(f"Then: {of}; a mark is an optimizer's fastest configuration, a stroke any other.")
        else:
            hollow = against(ax, table, axes[0], styles, last_step, sampled, ended)
            name = axis_name(axes[0], reached)
            label = figures.axis_label(axes[0], table[axes[0]].dropna(), reached)
            ax.set(xlabel=label, ylabel=f"steps to {target}", title=f"the fastest at each {name}")
            caption.append(f"Then: {of}, of the fastest configuration at each {name}.")
        if not np.isfinite(table["steps_to_target_median"]).all():
            missed = "missed it on at least half of their seeds" if order["n_seeds"].max() > 1 else "missed it"
            which = ("Before a + in the strip:", "after it:") if many else ("A ✕ in the strip:", "hollow:")
            strip = f"{which[0]} {missed}; {which[1]} {ended}, without having met it."
            caption.append(strip if hollow else f"Configurations in the strip {missed}.")
    return layout.finished(drawn, reached, 4, figsize, caption)


def share(ax: Axes, steps: np.ndarray, last_step: int, look: looks.Look, name: str, behind: bool = False) -> None:
    """Draw the share of runs that have reached the target by a step, with the exact 95 % interval of a share.

    The interval of Clopper and Pearson contains the share of all such runs at each step, however few runs there are.

    behind: whether to draw a grey line alone.
    """
    at, counts = np.unique(steps[np.isfinite(steps)], return_counts=True)
    n, reached = len(steps), np.r_[0, np.cumsum(counts), counts.sum()]
    x = np.r_[0, at, last_step]
    if behind:
        ax.step(x, reached / n, where="post", color=looks.BEHIND, linewidth=0.8, zorder=1)
        return
    text = f"{name}: {reached[-1]} of {n} runs"
    ax.step(x, reached / n, where="post", color=look.colour, marker=look.marker, markevery=[len(x) - 1], label=text)
    # The ends are NaN if no run or every run has reached the target; they are 0 and 1.
    low = np.nan_to_num(betaincinv(reached, n - reached + 1, 0.025))
    high = np.nan_to_num(betaincinv(reached + 1, n - reached, 0.975), nan=1.0)
    ax.fill_between(x, low, high, step="post", color=look.colour, alpha=0.1, linewidth=0)


def against(
    ax: Axes, table: pd.DataFrame, axis: str, styles: dict[str, looks.Look], last_step: int, sampled: bool, ended: str
) -> bool:
    """Draw the median steps to the target of the fastest configuration at each value of an axis.

    Args:
        table: of `medians`, the best configurations first, with the column early.
        ended: of `early.words`.
    Returns: whether some marks are hollow.
    """
    values = np.unique(table[axis].dropna().to_numpy())
    joined = not sampled and scale_of(axis, values) != WORDS
    fastest = table.groupby(["optimizer", axis])[["steps_to_target_median"]].agg("min").loc[:, "steps_to_target_median"]
    # Where none has met it, the best says why.
    stopped = table.groupby(["optimizer", axis])["early"].first()
    apart = bool((stopped & ~np.isfinite(fastest)).any())
    ax.axhspan(1.04 * last_step, 1.16 * last_step, color=looks.STRIP, zorder=0)
    for place, (name, look) in enumerate(styles.items()):
        if name not in fastest.index:
            continue
        own = fastest.loc[name]
        x, steps = figures.positions(own.index, axis, values), own.to_numpy()
        strip = (1.05 + 0.1 * (1 - (place + 0.5) / len(styles))) * last_step
        met = np.isfinite(steps)
        style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "zorder": 3 - place / 99}
        ax.plot(x, np.where(met, steps, np.nan), linestyle="-" if joined else "none", **style)
        hollow = ~met & stopped.loc[name].to_numpy()
        missed = ~met & ~hollow
        ax.plot(x[missed], np.full(missed.sum(), strip), "x", color=look.colour, markersize=4)
        early.marks(ax, x[hollow], np.full(hollow.sum(), strip), look.colour)
    if apart:
        ax.plot([], [], "x", color=looks.INK, markersize=4, label="missed it")
        ax.plot([], [], "o", color=looks.INK, **looks.HOLLOW, label=ended)
    steps = np.asarray(MaxNLocator(5, integer=True).tick_values(0, 0.95 * last_step))
    steps = steps[steps < 0.97 * last_step]
    ax.set_yticks([*steps, 1.1 * last_step], [*(f"{step:.0f}" for step in steps), "not met" if apart else "missed"])
    ax.set_ylim(0, 1.16 * last_step)
    figures.ticks(ax, "x", pd.Series(values), axis, sampled)
    return apart


def fastest_of_each(ax: Axes, table: pd.DataFrame, styles: dict[str, looks.Look], last_step: int) -> bool:
    """Draw one row per optimizer, the fastest at the top: the median steps of its configurations.

    table: as of `against`. Returns: whether some ended early before they met the target.
    """
    steps = table["steps_to_target_median"]
    least = {name: float(steps[table["optimizer"] == name].min()) for name in styles}
    names = sorted(styles, key=lambda name: least[name])
    coloured = styles if len(styles) <= len(looks.COLOURS) else looks.emphasised(styles)
    apart = bool((table["early"] & ~np.isfinite(steps)).any())
    ax.axvspan(1.04 * last_step, 1.16 * last_step, color=looks.STRIP, zorder=0)
    for row, name in enumerate(names):
        which = table["optimizer"] == name
        own, stopped = steps.loc[which].to_numpy(), table.loc[which, "early"].to_numpy()
        look = styles[name] if name in coloured else styles[name]._replace(colour="0.45")
        met = np.isfinite(own)
        ax.plot(own[met], np.full(met.sum(), row), "|", color="0.6", markersize=5)
        if np.isfinite(least[name]):
            ax.plot(least[name], row, look.marker, color=look.colour, markersize=6, zorder=3)
        if not met.all():
            missed, hollow = (~met & ~stopped).sum(), (~met & stopped).sum()
            text = f"{missed}{f'+{hollow}' * apart}/{len(met)}"
            ax.text(1.1 * last_step, row, text, ha="center", va="center", fontsize="x-small")
    ticks = np.asarray(MaxNLocator(4, integer=True).tick_values(0, 0.9 * last_step))
    ticks = ticks[ticks < 0.97 * last_step]
    ax.set_xticks([*ticks, 1.1 * last_step], [*(f"{step:.0f}" for step in ticks), "not met" if apart else "missed"])
    ax.xaxis.set_gid(layout.ROUND)
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(axis="y", labelsize="small" if len(styles) <= 16 else "x-small", length=0)
    ax.set(xlim=(0, 1.16 * last_step), ylim=(len(names) - 0.4, -0.6))
    return apart
