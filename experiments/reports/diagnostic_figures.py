"""A figure of what `--diagnostics` records: gradients, updates, and losses of classes by their frequency."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from experiments.common.numbers import number
from experiments.reports import comparison, early, figures, layout, looks
from experiments.reports.aggregation import INFINITE, best_of_each, label, ranked, seeds, unscored, varied_axes
from experiments.training.diagnostics import OF_GROUP

OF_STEP = {
    "grad_norm": "L2 norm of the gradient",
    "update_ratio": "RMS of the update / RMS of the weights",
    "unusual_updates": "share of weights with an unusual update",
}
MOST_OPTIMIZERS = 3
"""The most optimizers whose losses by class frequency are drawn, each in a panel."""


@layout.styled
def diagnostics(
    runs: pd.DataFrame,
    curves: pd.DataFrame,
    order: pd.DataFrame | None = None,
    groups: list[dict] | None = None,
    figsize: layout.Size = None,
) -> Figure:
    """Draw the diagnostics of each optimizer's best configuration against the step.

    The first row shows norms of gradients, sizes of updates and shares of unusual ones; the second, for classification,
    the evaluation loss of each group of classes, of the three best optimizers. Lines are medians over seeds, bands
    inter-quartile ranges. A ✕ at the top is where a run diverged; a line ends where half of the seeds have. Of more
    than six optimizers, the best six are drawn.

    Args:
        runs, curves: as `sweep` returns them with diagnostics.
        order: as of `aggregation.ranked`.
        groups: numbers of classes and of training examples of each group, `provenance["class_groups"]` of a sweep.
        figsize: as of `layout.finished`.
    """
    order = ranked(runs, order)
    chosen, lines = comparison.tuned(runs, order)
    names = dict(zip(best_of_each(order)["optimizer"], best_labels(runs, order), strict=True))
    of_groups = [column for column in curves if column.startswith(OF_GROUP)]
    shown = lines[:MOST_OPTIMIZERS] if of_groups else []
    panels = [*OF_STEP, *range(len(shown))]
    figure, found_axes = layout.canvas(len(panels), figsize, 4.6, 3.7, most=2 if len(panels) == 4 else 3)
    axes: dict[Any, Axes] = dict(zip(panels, found_axes, strict=True))

    for column, name in OF_STEP.items():
        ax, found = axes[column], []
        for place, (ids, optimizer, look) in enumerate(lines):
            style: dict[str, Any] = {
                "color": look.colour,
                "marker": look.marker,
                "zorder": 3 - place / 99,
                "markevery": (place % 4, 4),
            }
            found.append(median_line(ax, chosen, curves, column, ids, label=names[optimizer], **style))
        log = scale(ax, found, 0.0 if column == "unusual_updates" else None)
        ax.set(xlabel="step", ylabel=name + log)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if counts := [len(ids) for ids, *_ in lines if len(ids) > 1]:
        figures.explain_band(axes["grad_norm"], f"band: quartiles of {seeds(counts)}")
    if (chosen["status"] == "diverged").any():
        axes["grad_norm"].plot([], [], "x", color=looks.INK, label="diverged at this step")
    if ended := early.words(chosen):
        axes["grad_norm"].plot([], [], looks.END, color=looks.INK, label=ended)
    axes["unusual_updates"].yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")

    colours = [to_hex(colour) for colour in colormaps["viridis"](np.linspace(0, 0.88, len(of_groups)))]
    found = [
        median_line(axes[place], chosen, curves, column, ids, label=text, color=colour)
        for place, (ids, *_) in enumerate(shown)
        for column, text, colour in zip(of_groups, group_names(len(of_groups), groups), colours, strict=True)
    ]
    for place, (_, optimizer, *_) in enumerate(shown):
        log = scale(axes[place], found)
        axes[place].set(xlabel="step", ylabel=f"evaluation loss of a group{log}", title=names[optimizer])
    for place in range(len(shown)):
        # A legend keeps the lines of groups out of that of the figure.
        legend = axes[place].legend(title="classes, by training examples")
        legend.set_visible(place == len(shown) - 1)
    return layout.finished(figure, runs, min(3, 1 + len(lines)), figsize, caption_of(chosen, lines, shown))


def caption_of(chosen: pd.DataFrame, lines: list, shown: list) -> list[str]:
    """Return sentences on what `diagnostics` draws. shown: the lines whose losses of groups have a panel."""
    n = chosen["optimizer"].nunique()
    which = f"of each of the {len(lines)} best optimizers" if n > len(lines) else "of each optimizer"
    return [
        f"The best configuration {which if n > 1 else ''} at its evaluations: the L2 norm of the gradient over all "
        "weights, the RMS (root mean square) of the update over that of the weights before it, and the share of "
        "weights whose update is over twice as large as its mean in the nine steps before.".replace("  ", " "),
        "By classes: the mean evaluation loss of groups of classes, from the most to the least frequent in the "
        "training data, with about as many training examples each as whole classes allow."
        if shown
        else "",
        "Lines are medians over seeds." if max(len(line.ids) for line in lines) > 1 else "",
        "A ✕ at the top is where a run diverged." if (chosen["status"] == "diverged").any() else "",
        f"A | at the end of a line: {early.words(chosen)}." if early.words(chosen) else "",
    ]


def best_labels(runs: pd.DataFrame, order: pd.DataFrame) -> list[str]:
    """Return the best configuration of every optimizer as text, best first."""
    axes = varied_axes(runs) or ["lr"]
    return [
        f"{row['optimizer']}: {label(row, [axis for axis in axes if pd.notna(row.at[axis])], runs)}"
        for _, row in best_of_each(order).iterrows()
    ]


def group_names(n: int, groups: list[dict] | None = None) -> list[str]:
    """Return the names of n groups of classes, with their sizes if these are known."""
    names = ["most frequent", *("second", "third", "fourth")[: n - 2], "rarest"][:n]
    if groups is None or len(groups) != n:
        return names
    return [
        f"{name}: {of['classes']} class{'es' * (of['classes'] > 1)}, {of['examples']:,} examples"
        for name, of in zip(names, groups, strict=True)
    ]


def median_line(ax: Axes, runs: pd.DataFrame, curves: pd.DataFrame, column: str, ids: list[int], **look) -> np.ndarray:
    """Draw the median of a column of curves over runs against the step, in a band of quartiles; return all values.

    Where a seed has ended early, the line ends at a |.
    """
    own, last = runs.set_index("run_id").loc[ids], early.last_step(runs.loc[runs["run_id"].isin(ids)])
    ends = own["diverged_step"].astype(float)
    table = curves[curves["run_id"].isin(ids)].pivot(index="step", columns="run_id", values=column)[ids]
    gone = table.index.to_numpy()[:, None] > ends.to_numpy()
    table = table.mask(np.isinf(table) | gone, INFINITE).loc[:last]
    low, median, high = (unscored(table.quantile(q, axis=1)) for q in (0.25, 0.5, 0.75))
    shown = np.isfinite(median)
    ax.plot(median.index[shown], median[shown], **look)
    if np.isfinite(last) and shown.any():
        early.ends(ax, median.index[shown][-1], median.loc[shown].iloc[-1], look["color"])
    if len(ids) > 1:
        # A band that is far above all medians would flatten the lines.
        high = high.clip(upper=2 * median[shown].max())
        ax.fill_between(median.index, low, high, where=shown, color=look["color"], alpha=0.15, linewidth=0)
    ends = ends.dropna()
    if len(ends):
        ax.plot(ends, np.ones(len(ends)), "x", color=look["color"], clip_on=False, transform=ax.get_xaxis_transform())
    return np.concatenate([low[shown], median[shown], high[shown]])


def scale(ax: Axes, lines: list[np.ndarray], low: float | None = None) -> str:
    """Choose the limits of y from what is drawn, and make it logarithmic if that spans a decade; return a note on that.

    low: where y begins, on a linear axis up to at most 1; None chooses both.
    """
    values = np.concatenate(lines)
    if not len(values):
        return ""
    if low is not None:
        ax.set_ylim(low, min(1.02, 1.08 * max(values.max(), 0.01)))
        return ""
    positive = values[values > 0]
    if len(positive) < len(values) or values.max() <= 10 * values.min():
        ax.set_ylim(0, 1.08 * values.max())
        return ""
    ends = 0.85 * values.min(), 1.2 * values.max()
    ax.set_yscale("log")
    ax.set_ylim(*ends)
    ticks = figures.log_ticks(*ends)
    ax.set_yticks(ticks, [number(tick) for tick in ticks])
    ax.yaxis.set_minor_locator(NullLocator())
    return figures.LOG_SCALE
