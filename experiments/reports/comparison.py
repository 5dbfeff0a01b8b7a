"""Comparison of optimizers: which one wins, and how much it depends on its learning rate."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.common.figure_style import STYLE
from experiments.reports.aggregation import (
    best_configurations,
    best_of_each,
    configuration,
    initial_loss,
    lr_sensitivity,
    of_optimizer,
    ranked,
    seeds,
    short,
)
from experiments.reports.figures import explain_band, finished, loss_axis, panels
from experiments.reports.statistics import budgets, expected_best, tuning_losses
from experiments.reports.training_figures import training

# The colours of Okabe and Ito, with black in place of yellow, which is hard to see on white.
COLOURS = ("C0", "C1", "C2", "C3", "C4", "C5", "black")
MARKERS = "osD^vPX<>phd"
STAR = {"markersize": 14, "markeredgecolor": "black"}


def table(runs: pd.DataFrame, summary: pd.DataFrame) -> pd.DataFrame:
    """Return one row per optimizer, best first, as short strings: its best configuration and the results of it.

    Args:
        runs: as `sweep` returns them.
        summary: `aggregation.summarise` of these runs.
    """
    best, groups = best_of_each(summary), dict(list(runs.groupby("optimizer")))
    numbers = [
        f"{lr_sensitivity(groups[name], of_optimizer(summary, name)):.3g}".replace("nan", "-")
        for name in best["optimizer"]
    ]
    counts = runs.assign(diverged=runs["status"] != "ok").groupby("optimizer")["diverged"].agg(["sum", "size"])
    rows = best_configurations(best, len(best)).drop(columns="train loss")
    losses = tuning_losses(runs, summary)
    sizes = {name: len(losses[name]) for name in best["optimizer"]}
    rows["configurations"] = [str(n) for n in sizes.values()]
    if len(set(sizes.values())) > 1:
        equal = min(sizes.values())
        expected = [expected_best(losses[name], [equal])["mean"].item() for name in sizes]
        rows[f"expected best of {equal}"] = [f"{loss:.4g}" for loss in expected]
    rows["diverged, all runs"] = [f"{k} of {n}" for k, n in counts.loc[best["optimizer"]].to_numpy()]
    return rows.assign(**{"lr sensitivity": numbers})


@style.context(STYLE)
def figure(
    runs: pd.DataFrame,
    curves: pd.DataFrame,
    loss_name: str,
    sampled: bool = False,
    order: pd.DataFrame | None = None,
) -> Figure:
    """Draw every optimizer's final evaluation loss against lr, and how its best configuration trains.

    Left: at each lr the lowest median over seeds that the other hyperparameters allow, with its inter-quartile range;
    a star marks an optimizer's best lr. In the strip at the top, a small ✕ marks an lr at which some seeds diverged,
    a large one an infinite median. Right: evaluation loss and (for classification) accuracy of the best configurations.

    Args:
        runs, curves: as `sweep` returns them.
        loss_name: what to call the loss, `provenance["loss_name"]` of a sweep.
        sampled: whether every lr belongs to one configuration; then the left panel has points and no lines.
        order: as of `aggregation.ranked`.
    """
    order = ranked(runs, order)
    looks, columns = looks_of(runs), panels(curves, loss_name)
    drawn = Figure(figsize=(5.6 + 4.2 * len(columns), 5.2 + 0.15 * len(looks)))
    left, *right = drawn.subplots(1, 1 + len(columns), width_ratios=[1.25, *[1] * len(columns)])
    against_lr(left, order, looks, initial_loss(runs), sampled)
    left.set(xlabel="lr", ylabel=f"final {loss_name}", title="the best of each optimizer at each lr")

    chosen, lines = tuned(runs, order)
    for ax, (column, name) in zip(right, columns.items(), strict=True):
        training(ax, chosen, curves, column, lines, x="epoch")
        ax.set(xlabel="epoch", ylabel=name, title=ax.get_title() or "the best configuration of each optimizer")
    return finished(drawn, runs, columns=3)


@style.context(STYLE)
def budget(runs: pd.DataFrame, loss_name: str, order: pd.DataFrame | None = None) -> Figure:
    """Draw the expected best final loss of each optimizer after n of its configurations have been tried at random.

    Lines show the mean over the choices of configurations, bands the inter-quartile range; see
    `statistics.expected_best`. A vertical line marks the largest budget that every optimizer was given.

    Args:
        runs, loss_name, order: as of `figure`.
    """
    looks, initial = looks_of(runs), initial_loss(runs)
    curves = {name: expected_best(losses, budgets(len(losses))) for name, losses in tuning_losses(runs, order).items()}
    drawn = Figure(figsize=(7.5, 5 + 0.1 * len(looks)))
    ax = drawn.subplots()
    low, high = loss_axis(ax, np.concatenate([curve["mean"] for curve in curves.values()]), 1.1 * initial)
    sizes = {name: int(curve.index[-1]) for name, curve in curves.items()}
    for name, curve in curves.items():
        colour, line, marker = looks[name]
        text = f"{name}: {curve['mean'].iloc[-1]:.3g} after all {sizes[name]}"
        ends = {"marker": marker, "markevery": [len(curve) - 1], "markersize": 7}
        ax.plot(curve.index, curve["mean"], line, color=colour, label=text, **ends)
        ax.fill_between(
            curve.index, *(curve[q].clip(low, high) for q in ("q25", "q75")), color=colour, alpha=0.12, lw=0
        )
    explain_band(ax, "band: quartiles over orders")
    if len(set(sizes.values())) > 1:
        equal = {"color": "0.3", "linestyle": ":", "linewidth": 1.2}
        ax.axvline(min(sizes.values()), label=f"equal budget, {min(sizes.values())}", **equal)
    ax.axhline(initial, color="0.3", linestyle="--", linewidth=1, label=f"loss before training, {initial:.3g}")
    if max(sizes.values()) > 30:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="configurations tried, in random order", ylabel=f"best final {loss_name} so far")
    return finished(drawn, runs, columns=3)


@style.context(STYLE)
def tuned(runs: pd.DataFrame, order: pd.DataFrame | None = None) -> tuple[pd.DataFrame, list[tuple]]:
    """Return the runs of each optimizer's best configuration, and lines for `training_figures.training`, best first."""
    best, looks = best_of_each(ranked(runs, order)), looks_of(runs)
    chosen = runs.merge(best[configuration(best)])
    ids = chosen.groupby("optimizer")["run_id"].agg(list)
    return chosen, [(ids[name], name, *looks[name][:2]) for name in best["optimizer"]]


def looks_of(runs: pd.DataFrame) -> dict[str, tuple[str, str, str]]:
    """Return the `look` of each optimizer, by name."""
    return {name: look(place) for place, name in enumerate(runs["optimizer"].unique())}


def look(place: int) -> tuple[str, str, str]:
    """Return colour, line and marker of an optimizer from its place in the sweep."""
    return to_hex(COLOURS[place % 7]), ("-", "-.")[place // 7 % 2], MARKERS[place % len(MARKERS)]


def against_lr(ax: Axes, order: pd.DataFrame, looks: dict[str, tuple], initial: float, sampled: bool) -> None:
    """Draw the panel of final losses against lr. order: as of `aggregation.ranked`."""
    at_lr = order.groupby(["optimizer", "lr"]).head(1).sort_values("lr")
    losses = at_lr["eval_loss_median"].replace(np.inf, initial)
    crossed = [name for name in looks if at_lr.loc[at_lr["optimizer"] == name, "n_diverged"].any()]
    strip = min(0.045 * len(crossed), 0.35)
    low, high = loss_axis(ax, losses, 1.2 * max(initial, losses.clip(upper=3 * initial).max()), headroom=strip)
    ax.set_xscale("log")
    ax.yaxis.set_major_formatter(lambda loss, _: f"{loss:.3g}" if loss <= high else "")
    for place, (_, best) in enumerate(best_of_each(order).iterrows()):
        name, rows = str(best["optimizer"]), at_lr.loc[at_lr["optimizer"] == best["optimizer"]]
        colour, line, marker = looks[name]
        median, q25, q75 = (rows[f"eval_loss_{key}"].clip(low, high) for key in ("median", "q25", "q75"))
        found = np.isfinite(best["eval_loss_median"])
        text = f"{best['eval_loss_median']:.3g} at lr {short(best.loc['lr'])}" if found else "every run diverged"
        # The best lies on top of the others; those below are larger, so that equal ones show.
        extra = min(place, 4)
        kwargs: dict[str, Any] = {"color": colour, "zorder": 3 - place / 99}
        kwargs |= {"marker": marker, "markersize": 5 + extra, "linewidth": 1.4 + 0.5 * extra}
        kwargs |= {"linestyle": "none" if sampled else line, "label": f"{place + 1}. {name}: {text}"}
        ax.plot(rows["lr"], median, **kwargs)
        if sampled:
            # Lines, because a collection at a single lr would make matplotlib divide by zero.
            ax.plot(np.stack([rows["lr"]] * 2), np.stack([q25, q75]), color=colour, alpha=0.4, linewidth=1)
        else:
            ax.fill_between(rows["lr"], q25, q75, color=colour, alpha=0.15, linewidth=0)
        if found:
            ax.plot(best["lr"], best["eval_loss_median"], "*", color=colour, **STAR, zorder=4 - place / 99)
        if name in crossed:
            y, half = 1 - strip * (crossed.index(name) + 0.5) / len(crossed), ~np.isfinite(rows["eval_loss_median"])
            for marked, size in ((half, 7), (~half & (rows["n_diverged"] > 0), 3.5)):
                x = rows["lr"][marked]
                ax.plot(x, np.full(len(x), y), "x", color=colour, markersize=size, transform=ax.get_xaxis_transform())
    if at_lr["n_seeds"].max() > 1:
        explain_band(ax, f"{'bars and bands' if sampled else 'band'}: quartiles of {seeds(at_lr['n_seeds'])}")
    ax.plot([], [], "*", color="white", **STAR, label="best lr of an optimizer")
    if crossed:
        ax.axhspan(high, ax.get_ylim()[1], color="0.95", zorder=0)
        ax.text(0.01, 1 - strip / 2, "diverged", color="0.3", va="center", fontsize=8, transform=ax.transAxes)
        ax.plot([], [], "x", color="0.3", label="diverged: half of the seeds or more (small: fewer)")
    ax.axhline(initial, color="0.3", linestyle="--", linewidth=1, label=f"loss before training, {initial:.3g}")
