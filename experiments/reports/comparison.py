"""Comparison of optimizers: which one wins, and how much it depends on its learning rate."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from experiments.common.numbers import number
from experiments.reports import against, early, figures, layout, looks
from experiments.reports.aggregation import (
    INFINITE,
    best_configurations,
    best_of_each,
    configuration,
    initial_loss,
    lr_sensitivity,
    of_optimizer,
    ranked,
    scored,
)
from experiments.reports.figures import LOG_SCALE, axis_label, panels
from experiments.reports.statistics import budgets, expected_best, tuning_losses
from experiments.reports.training_figures import Line, described, time_of, training


def table(runs: pd.DataFrame, summary: pd.DataFrame) -> pd.DataFrame:
    """Return one row per optimizer, best first, as short strings: its best configuration and the results of it.

    Args:
        runs: as `sweep` returns them.
        summary: `aggregation.summarise` of these runs.
    """
    best, groups = best_of_each(summary), dict(list(runs.groupby("optimizer")))
    numbers = [
        number(lr_sensitivity(groups[name], of_optimizer(summary, name))).replace("nan", "-")
        for name in best["optimizer"]
    ]
    ends = {status: runs["status"] == status for status in ("diverged", "stopped")}
    counts = runs.assign(**ends, n=1).groupby("optimizer")[[*ends, "n"]].agg("sum")
    rows = best_configurations(best, len(best)).drop(columns="train loss")
    losses = tuning_losses(runs, summary)
    sizes = {name: len(losses[name]) for name in best["optimizer"]}
    rows["configurations"] = [str(n) for n in sizes.values()]
    if len(set(sizes.values())) > 1:
        equal = min(sizes.values())
        expected = [expected_best(losses[name], [equal])["mean"].item() for name in sizes]
        rows[f"expected best of {equal}"] = [number(loss, 4) for loss in expected]
    for status in ends:
        if status == "diverged" or counts[status].any():
            pairs = counts.loc[best["optimizer"], [status, "n"]].to_numpy()
            rows[f"{status}, all runs"] = [f"{k} of {n}" for k, n in pairs]
    return rows.assign(**{"lr sensitivity": numbers})


@layout.styled
def figure(
    runs: pd.DataFrame,
    curves: pd.DataFrame,
    loss_name: str,
    sampled: bool = False,
    order: pd.DataFrame | None = None,
    figsize: layout.Size = None,
) -> Figure:
    """Draw every optimizer's final evaluation loss against lr, and how its best configuration trains.

    Left: at each lr the lowest median over seeds that the other hyperparameters allow, with its inter-quartile range;
    a star marks an optimizer's best lr, and the strip at the top counts diverged runs. Of more than six optimizers it
    is a `ranking` instead, and `lr_panels` shows their lr. Right: evaluation loss and (for classification) accuracy of
    the best configurations, of the six best optimizers in colour.

    Args:
        runs, curves: as `sweep` returns them.
        loss_name: what to call the loss, `provenance["loss_name"]` of a sweep.
        sampled: whether every lr belongs to one configuration; then the left panel has points, and a line below them.
        order: as of `aggregation.ranked`.
        figsize: as of `layout.finished`.
    """
    order = ranked(runs, order)
    styles, columns, initial = looks_of(order), panels(curves, loss_name), initial_loss(runs)
    many = len(styles) > looks.MOST
    tall = 4.2 if not many else max(3.4, 1.2 + 0.19 * len(styles))
    drawn, (left, *right) = layout.canvas(1 + len(columns), figsize, 4.8, tall)
    if many:
        first = ranking(left, runs, order, styles, initial, loss_name)
    else:
        left.set(ylabel=f"final {loss_name}{LOG_SCALE}", title="the best of each optimizer at each lr")
        first = against.panel(left, against.table(runs, order, "lr", sampled), styles)
        left.set_xlabel(axis_label("lr", order["lr"]))
    chosen, lines = tuned(runs, order)
    x = time_of(chosen, curves)
    others = f"best of the {len(styles) - len(lines)} others" if many else ""
    for ax, (column, name) in zip(right, columns.items(), strict=True):
        training(ax, chosen, curves, column, lines, x, others)
        ax.set(xlabel=x, ylabel=name, title=ax.get_title() or "the best configuration of each optimizer")
    return layout.finished(drawn, runs, 3, figsize, [*first, *described(chosen, lines, "optimizer")])


def ranking(
    ax: Axes, runs: pd.DataFrame, order: pd.DataFrame, styles: dict[str, looks.Look], initial: float, loss_name: str
) -> list[str]:
    """Draw one row per optimizer, the best at the top: all its configurations, and the best; return a caption."""
    order = order.assign(optimizer=order["optimizer"].astype(str))
    losses, gone = order["eval_loss_median"], scored(runs, "eval_loss") >= INFINITE
    scale = figures.loss_scale(ax, losses, initial, along="x")
    stopped = early.is_early(order)
    best = best_of_each(order.assign(early=stopped)).set_index("optimizer")
    counts = gone.groupby(runs["optimizer"].astype(str)).agg(["sum", "size"])
    coloured = styles if len(styles) <= len(looks.COLOURS) else looks.emphasised(styles)
    if ended := early.words(runs) * bool(stopped.any()):
        ax.plot([], [], "o", color="0.6", **looks.HOLLOW, label=ended)
    for row, name in enumerate(styles):
        which = (order["optimizer"] == name).to_numpy()
        own, hollow = (losses.loc[which & of].to_numpy() for of in (~stopped, stopped))
        look = styles[name] if name in coloured else styles[name]._replace(colour="0.45")
        ax.plot(scale.inside(own), np.full(len(own), row), "|", color="0.6", markersize=5, zorder=2)
        early.marks(ax, scale.inside(hollow), np.full(len(hollow), row), "0.6", markersize=3)
        above = which & scale.is_above(losses)
        if above.any():
            at = np.full(above.sum(), scale.within(next(iter(scale.rows))))
            style: dict[str, Any] = {"color": "0.6", "markersize": 3, "transform": ax.get_yaxis_transform()}
            early.apart(ax, at, row, stopped[above], ">", **style)
        found = best.loc[name]
        median, *ends = np.clip(
            found[["eval_loss_median", "eval_loss_q25", "eval_loss_q75"]].astype(float), scale.low, scale.high
        )
        if np.isfinite(found["eval_loss_median"]):
            ax.plot(ends, [row, row], color=look.colour, linewidth=3, alpha=0.4, zorder=3)
            mark: dict[str, Any] = {"markerfacecolor": "none"} if found["early"] else {}
            ax.plot(median, row, look.marker, color=look.colour, markersize=6, zorder=4, **mark)
        n, of = counts.loc[name]
        text = f"{n}/{of}" if n else ""
        ax.text(1.01, row, text, va="center", fontsize="x-small", transform=ax.get_yaxis_transform())
    if gone.any():
        ax.text(1.01, -1, "diverged", va="center", fontsize="x-small", transform=ax.get_yaxis_transform())
    names = [f"{name}  {figures.result(best.loc[name, 'eval_loss_median'], initial)}" for name in styles]
    ax.set_yticks(range(len(styles)), names)
    ax.tick_params(axis="y", labelsize="small" if len(styles) <= 16 else "x-small", length=0)
    ax.set_ylim(len(styles) - 0.4, -1.4)
    ax.axvline(initial, color=looks.INK, linestyle="--", linewidth=1, label=f"loss before training, {number(initial)}")
    ax.set(xlabel=f"final {loss_name}{LOG_SCALE}", title="the best of each optimizer, and all others")
    of = " (median over seeds; bars: quartiles)" if order["n_seeds"].max() > 1 else ""
    found = [f"Each row is an optimizer, the best first: a mark is its best configuration{of}, a stroke any other."]
    found += early.hollow(ended, stopped)
    found += ["At the right: how many of its runs diverged."] if gone.any() else []
    return [*found, *figures.said(scale, losses, initial)]


@layout.styled
def lr_panels(
    runs: pd.DataFrame,
    loss_name: str,
    sampled: bool = False,
    order: pd.DataFrame | None = None,
    figsize: layout.Size = None,
) -> Figure:
    """Draw final evaluation loss against lr in one panel per optimizer, with the lines of all others behind it.

    Args: as of `figure`.
    """
    order = ranked(runs, order)
    styles, of = looks_of(order), against.table(runs, order, "lr", sampled)
    n, narrow = len(styles), bool(figsize and figsize[0] < layout.NARROW)
    # As few rows as possible and, of few panels, as few empty places.
    columns = 3 if narrow else 6 if n > 12 else min((6, 5, 4), key=lambda wide: -n % wide)
    width = figsize[0] if figsize else 10.5
    drawn, axes = layout.canvas(n, (width, None), 1.7, 1.7, width / columns)
    rows = -(-n // columns)
    drawn.set_figheight((figsize and figsize[1]) or rows * (1.25 if narrow else 1.75))
    caption = [f"One panel per optimizer, the best first{'; grey: all others' * (n > 1)}."]
    for place, (ax, (name, look)) in enumerate(zip(axes, styles.items(), strict=True)):
        found = against.panel(ax, of, {name: look}, behind=n > 1, legend=place == 0)
        caption += found if place == 0 else []
        ax.set_title(f"{place + 1}. {name}", fontsize="small", pad=2)
        ax.tick_params(labelsize="x-small")
        if place % columns:
            ax.tick_params(labelleft=False)
        if place + columns < n:
            ax.tick_params(labelbottom=False)
        else:
            ax.set_xlabel(axis_label("lr", order["lr"]), fontsize="small")
    drawn.supylabel(f"final {loss_name}{LOG_SCALE}", fontsize="medium")
    return layout.finished(drawn, runs, 4, figsize, caption)


@layout.styled
def budget(
    runs: pd.DataFrame, loss_name: str, order: pd.DataFrame | None = None, figsize: layout.Size = None
) -> Figure:
    """Draw the expected best final loss of each optimizer after n of its configurations have been tried at random.

    Lines show the mean over the choices of configurations, bands the inter-quartile range; see
    `statistics.expected_best`. A vertical line marks the largest budget that every optimizer was given. Of more than
    six optimizers, the best six have colours.

    Args:
        runs, loss_name, order, figsize: as of `figure`.
    """
    order = ranked(runs, order)
    styles, initial = looks_of(order), initial_loss(runs)
    coloured, ended = looks.emphasised(styles), early.words(runs)
    curves = {name: expected_best(losses, budgets(len(losses))) for name, losses in tuning_losses(runs, order).items()}
    drawn, (ax,) = layout.canvas(1, figsize, 6.5, 4.4)
    values = np.concatenate([curve["mean"] for curve in curves.values()])
    scale = figures.loss_scale(ax, values, initial, top=1.0)
    sizes = {name: int(curve.index[-1]) for name, curve in curves.items()}
    for place, name in enumerate(styles):
        curve, look = curves[name], styles[name]
        mean = curve["mean"].clip(lower=scale.low)
        if name not in coloured:
            text = f"the other {len(styles) - len(coloured)}" if place == len(coloured) else None
            ax.plot(curve.index, mean, color=looks.BEHIND, linewidth=1, zorder=1.5, label=text)
            continue
        style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "zorder": 4 - place / 99}
        text = f"{name}: {figures.result(curve['mean'].iloc[-1], initial)} after all {sizes[name]}"
        ax.plot(curve.index, mean, **style, markevery=(place % 2, max(1, len(curve) // 6)), label=text)
        quartiles = (curve[q].clip(scale.low, scale.high) for q in ("q25", "q75"))
        ax.fill_between(curve.index, *quartiles, color=look.colour, alpha=0.1, lw=0)
    figures.explain_band(ax, "band: quartiles over orders")
    if len(set(sizes.values())) > 1:
        equal: dict[str, Any] = {"color": looks.INK, "linestyle": ":", "linewidth": 1.2}
        ax.axvline(min(sizes.values()), label=f"equal budget, {min(sizes.values())}", **equal)
    figures.before_training(ax, initial)
    name = "configurations tried, in random order"
    if max(sizes.values()) > 30:
        ax.set_xscale("log")
        found = figures.log_ticks(1, max(sizes.values()))
        ax.set_xticks(found, [f"{n:g}" for n in found])
        ax.xaxis.set_minor_locator(NullLocator())
        name += LOG_SCALE
    else:
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set(xlabel=name, ylabel=f"best final {loss_name} so far{LOG_SCALE}")
    few = f" The best {len(coloured)} have colours." if len(coloured) < len(styles) else ""
    caption = [
        "The lowest loss that one expects after trying so many of an optimizer's configurations in random order, and "
        "the inter-quartile range over orders, not over seeds: exact for these configurations and the medians that "
        f"they have here. A configuration that is worse than no training counts as no training.{few}",
        f"What was {ended} counts with its loss then, which is what trying it found: at the end it might be lower."
        if ended
        else "",
        *figures.said(scale, np.minimum(values, scale.high), initial),
    ]
    return layout.finished(drawn, runs, 3, figsize, caption)


def tuned(runs: pd.DataFrame, order: pd.DataFrame | None = None) -> tuple[pd.DataFrame, list[Line]]:
    """Return the runs of each optimizer's best configuration, and lines for `training_figures.training`, best first.

    Of more than six optimizers, the best six have lines.
    """
    order = ranked(runs, order)
    best, styles = best_of_each(order), looks_of(order)
    chosen = runs.merge(best[configuration(best)])
    ids = chosen.groupby("optimizer")["run_id"].agg(list).to_dict()
    return chosen, [Line(ids[name], name, styles[name]) for name in looks.emphasised(best["optimizer"])]


def looks_of(order: pd.DataFrame) -> dict[str, looks.Look]:
    """Return the look of each optimizer, by name, the best first. order: as of `aggregation.ranked`."""
    return looks.of_optimizers(best_of_each(order)["optimizer"])
