"""The panel in which optimizers are compared at the values of an axis: the best of each, and how many runs diverged."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba

from experiments.reports import early, figures, layout, looks
from experiments.reports.aggregation import INFINITE, initial_loss, scored, seeds, short
from experiments.training.axes import LOG, WORDS, scale_of

STAR: dict[str, Any] = {"markersize": 9, "markeredgecolor": "black", "markeredgewidth": 0.7}
ROW = 0.055
"""The share of a panel that the strip of one optimizer takes."""
PARTS = 12
"""The parts of an axis whose values are sampled, each with its best configuration."""


class Series(NamedTuple):
    """What an optimizer reaches along an axis.

    Attributes:
        rows: its best configuration at each value, in ascending order.
        x: their positions on the axis of a figure.
        kept: places of those that a line joins: all, or of a sample the best in each part of the axis. A line has gaps
            at those that are early.
        early: which of the rows ended early: at that value, none of an optimizer's reached its last step.
        n_diverged, n: numbers of runs that diverged, and of all, in each part.
    """

    rows: pd.DataFrame
    x: np.ndarray
    kept: np.ndarray
    early: np.ndarray
    n_diverged: np.ndarray
    n: np.ndarray


class Table(NamedTuple):
    """What each optimizer reaches along an axis, the best optimizer first.

    Attributes:
        edges: of the parts of the axis: one for each value of a grid, or `PARTS` equal ones of a sample.
        sampled: whether every value belongs to one configuration.
        counts: numbers of seeds of the configurations.
        ended: how those ended that ended early, as of `early.words`; "" if none did.
    """

    axis: str
    grid: np.ndarray
    edges: np.ndarray
    sampled: bool
    series: dict[str, Series]
    initial: float
    counts: pd.Series
    ended: str

    @property
    def losses(self) -> np.ndarray:
        return np.concatenate([one.rows["eval_loss_median"] for one in self.series.values()])


def table(runs: pd.DataFrame, order: pd.DataFrame, axis: str, sampled: bool) -> Table:
    """Return what each optimizer that has an axis reaches along it. order: as of `aggregation.ranked`."""
    known, tried = order.dropna(subset=[axis]), runs.dropna(subset=[axis])
    grid = np.unique(known[axis].to_numpy())
    sampled = sampled and scale_of(axis, grid) != WORDS
    edges = parts(figures.positions(grid, axis, grid), sampled)
    best = known.groupby(["optimizer", axis]).head(1).sort_values(axis)
    at = figures.positions(tried[axis], axis, grid)
    gone = (scored(tried, "eval_loss") >= INFINITE).to_numpy()
    series = {}
    for name in dict.fromkeys(known["optimizer"]):
        rows, own = best.loc[best["optimizer"] == name], (tried["optimizer"] == name).to_numpy()
        x = figures.positions(rows[axis], axis, grid)
        stopped, losses = early.is_early(rows), rows["eval_loss_median"].to_numpy()
        kept = envelope(losses, stopped, x, edges) if sampled else np.arange(len(rows))
        counts = (np.histogram(at[which], edges)[0] for which in (own & gone, own))
        series[str(name)] = Series(rows, x, kept, stopped, *counts)
    ended = early.words(runs) if any(one.early.any() for one in series.values()) else ""
    return Table(axis, grid, edges, sampled, series, initial_loss(runs), order["n_seeds"], ended)


def parts(at: np.ndarray, sampled: bool) -> np.ndarray:
    """Return the edges of the parts of an axis. at: the positions of its values, in ascending order."""
    if sampled and len(at) > PARTS:
        return np.linspace(at[0] - 1e-9, at[-1] + 1e-9, PARTS + 1)
    gaps = np.diff(at)
    # A grid of one value has a part, too.
    first, last = (gaps[0], gaps[-1]) if len(gaps) else (1.0, 1.0)
    return np.concatenate([[at[0] - first / 2], (at[1:] + at[:-1]) / 2, [at[-1] + last / 2]])


def envelope(losses: np.ndarray, stopped: np.ndarray, x: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the place of the lowest finite loss in each part of an axis, of one that was not stopped if there is one.

    x: positions in ascending order.
    """
    part = np.digitize(x, edges)
    groups = [np.flatnonzero((part == k) & np.isfinite(losses)) for k in np.unique(part)]
    found = [group[np.lexsort((losses[group], stopped[group]))[0]] for group in groups if len(group)]
    return np.array(found, dtype=int)


def panel(ax: Axes, of: Table, styles: dict[str, looks.Look], behind: bool = False, legend: bool = True) -> list[str]:
    """Draw the lowest median final loss that optimizers reach at each value of an axis; return a caption.

    Args:
        styles: the look of each optimizer that has a colour.
        behind: whether the lines of all others are there in grey.
        legend: whether to add what all panels of a figure share to its legend.
    """
    joined = scale_of(of.axis, of.grid) != WORDS
    drawn = {name: one for name, one in of.series.items() if name in styles}
    crossed = [name for name, one in drawn.items() if one.n_diverged.any()]
    # Panels of one figure have the same strips, and scales.
    strips = any(one.n_diverged.any() for one in of.series.values())
    size = 0.12 if behind and len(drawn) == 1 else min(ROW * max(len(crossed), 1.4), 0.4)
    scale = figures.loss_scale(ax, of.losses, of.initial, {"diverged": size} if strips else {})
    if behind:
        others = [one for name, one in of.series.items() if name not in styles]
        paths = [np.column_stack([one.x[one.kept], scale.inside(joined_losses(one))[one.kept]]) for one in others]
        style: dict[str, Any] = {"colors": looks.BEHIND, "linewidths": 0.8, "zorder": 1}
        text = "every other optimizer" if legend else None
        ax.add_collection(LineCollection([path for path in paths if len(path)], **style, label=text))
    for place, (name, one) in enumerate(drawn.items()):
        look = styles[name]
        label = None if behind and len(drawn) == 1 else labelled(name, one, of)
        optimizer(ax, one, look, scale, joined, of.sampled, place, label)
        if (above := scale.is_above(one.rows["eval_loss_median"])).any():
            row = next(name for name in scale.rows if name.startswith("above"))
            height = scale.within(row, (place + 0.5) / len(drawn))
            style: dict[str, Any] = {"color": look.colour, "markersize": 4, "transform": ax.get_xaxis_transform()}
            early.apart(ax, one.x[above], height, one.early[above], "^", **style)
    for place, name in enumerate(crossed):
        # The best is at the top, as in the legend.
        ends = [scale.within("diverged", 1 - (place + share) / len(crossed)) for share in (1, 0)]
        strip(ax, drawn[name], of.edges, styles[name].colour, ends)
    if legend:
        if of.counts.max() > 1 and not of.sampled:
            figures.explain_band(ax, f"{'band' if joined else 'bar'}: quartiles of {seeds(of.counts)}")
        ax.plot([], [], "*", color="white", **STAR, label=f"best {of.axis}")
        if of.ended:
            ax.plot([], [], "o", color=looks.INK, **looks.HOLLOW, label=of.ended)
    figures.before_training(ax, of.initial, legend)
    figures.ticks(ax, "x", pd.Series(of.grid), of.axis, of.sampled)
    edge = 0.02 * (of.edges[-1] - of.edges[0])
    ax.set_xlim(of.edges[0] - edge, of.edges[-1] + edge)
    return described(of, scale, strips)


def joined_losses(one: Series) -> np.ndarray:
    """Return the losses that a line joins: NaN for those that are early."""
    return np.where(one.early, np.nan, one.rows["eval_loss_median"].to_numpy())


def best_place(one: Series) -> int | None:
    """Return the place of the lowest loss of those that are not early; None if all others diverged."""
    losses = joined_losses(one)
    return int(np.nanargmin(losses)) if np.isfinite(losses).any() else None


def labelled(name: str, one: Series, of: Table) -> str:
    """Return an optimizer with its best loss, and where on the axis that is."""
    if (place := best_place(one)) is None:
        return f"{name}: every run diverged" if not one.early.any() else f"{name}: none reached the end"
    best = one.rows.iloc[place]
    return f"{name}: {figures.result(best['eval_loss_median'], of.initial)} at {of.axis} {short(best[of.axis])}"


def optimizer(
    ax: Axes,
    one: Series,
    look: looks.Look,
    scale: figures.Scale,
    joined: bool,
    sampled: bool,
    place: int,
    label: str | None,
) -> None:
    """Draw the line of an optimizer, its spread over seeds, and a star at its best. place: 0 for the best."""
    inside = scale.inside(joined_losses(one))
    shown = np.isfinite(inside)
    style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "zorder": 3 - place / 99}
    hollow = scale.inside(one.rows["eval_loss_median"].to_numpy()[one.early])
    early.marks(ax, one.x[one.early], hollow, look.colour, marker=look.marker)
    if sampled:
        ax.plot(one.x, inside, **{**style, "alpha": 0.35}, linestyle="none", markersize=3)
        ax.plot(one.x[one.kept], inside[one.kept], **style, markersize=4, label=label)
    else:
        ax.plot(one.x, inside, **style, linestyle="-" if joined else "none", label=label)
        low, high = (one.rows[f"eval_loss_{q}"].clip(scale.low, scale.high).to_numpy() for q in ("q25", "q75"))
        if joined:
            ax.fill_between(one.x, low, high, where=shown, color=look.colour, alpha=0.13, linewidth=0)
        else:
            ax.vlines(one.x[shown], low[shown], high[shown], color=look.colour, alpha=0.4, linewidth=3)
    if (best := best_place(one)) is not None:
        ax.plot(one.x[best], inside[best], "*", color=look.colour, **STAR, zorder=4 - place / 99)


def strip(ax: Axes, one: Series, edges: np.ndarray, colour: str, ends: list[float]) -> None:
    """Write how many runs diverged in each part of an axis; the more of all there, the stronger the shade."""
    transform = ax.get_xaxis_transform()
    for k in np.flatnonzero(one.n_diverged):
        shade = to_rgba(colour, 0.12 + 0.5 * one.n_diverged[k] / one.n[k])
        ax.fill_between(edges[k : k + 2], ends[0], ends[1], transform=transform, facecolor=shade, linewidth=0)
        style: dict[str, Any] = {
            "transform": transform,
            "ha": "center",
            "va": "center",
            "fontsize": 7,
            "gid": layout.COUNT,
        }
        ax.text((edges[k] + edges[k + 1]) / 2, sum(ends) / 2, str(one.n_diverged[k]), **style)


def described(of: Table, scale: figures.Scale, strips: bool) -> list[str]:
    """Return sentences on what `panel` drew."""
    median = "median over seeds" if of.counts.max() > 1 else "loss"
    where = f"at each {of.axis}"
    if of.sampled:
        where = f"in each of {len(of.edges) - 1} equal parts of the {'log ' * (scale_of(of.axis, of.grid) == LOG)}axis"
        found = [f"Small marks are configurations ({median}); a line joins the best of an optimizer {where}."]
    else:
        found = [f"The lowest {median} that an optimizer reaches {where} with everything else."]
    found.append(f"A star is its best {of.axis}.")
    if of.ended:
        where_hollow = "" if of.sampled else ", where an optimizer has no other"
        found += early.hollow(of.ended, True, f"Hollow marks{where_hollow}")
    if strips:
        found.append(f"The strip at the top counts the runs that diverged {where}; the darker, the more of all.")
    return [*found, *figures.said(scale, of.losses, of.initial)]
