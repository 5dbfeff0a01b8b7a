"""Figures of several studies: what each optimizer of each reaches at the values of an axis, or of two."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.common.numbers import number
from experiments.reports import against, comparison, early, figures, layout, looks
from experiments.reports.aggregation import axis_name, configuration, initial_loss, of_optimizer, short
from experiments.reports.grid_figures import COLOURS, colour_bar, fit_cells, hatched, ink_on, norm_of

PANELS = 6
"""At most so many panels of a figure."""


def axes_of_several(order: pd.DataFrame) -> list[str]:
    """Return the axes that vary in a study, and that two have. order: as of `aggregation.ranked`."""
    groups = order.groupby("optimizer")
    columns = configuration(order)[4:]
    return [axis for axis in columns if groups[axis].nunique().max() > 1 and (groups[axis].count() > 0).sum() > 1]


@layout.styled
def sensitivity(
    runs: pd.DataFrame, axis: str, loss_name: str, sampled: bool, order: pd.DataFrame, figsize: layout.Size = None
) -> Figure:
    """Draw the lowest median final loss that each optimizer of each study reaches at each value of an axis.

    The strip at the top counts diverged runs. Of more than six optimizers, the best six have colours.

    Args:
        runs: of `studies.joined`, with its labels.
        order: as of `aggregation.ranked`.
        figsize: as of `layout.finished`.
    """
    of = against.table(runs, order, axis, sampled)
    styles = comparison.looks_of(order)
    coloured = looks.emphasised(name for name in styles if name in of.series)
    figure, (ax,) = layout.canvas(1, figsize, 7, 4.4)
    some = {name: styles[name] for name in coloured}
    caption = against.panel(ax, of, some, behind=len(some) < len(of.series))
    ax.set(xlabel=figures.axis_label(axis, of.grid), ylabel=f"final {loss_name}{figures.LOG_SCALE}")
    ax.set_title(f"the best of each at each {axis_name(axis)}")
    return layout.finished(figure, runs, 2, figsize, caption)


@layout.styled
def heatmaps(
    runs: pd.DataFrame,
    x: str,
    y: str,
    loss_name: str,
    order: pd.DataFrame,
    names: list[str],
    figsize: layout.Size = None,
) -> Figure:
    """Draw a heatmap over two axes for each name, in one colour scale: the lowest median that the other axes allow.

    Hatched: at best half of the seeds diverged. White inside: none was trained to the end. White: not run. A frame
    marks the best cell of a panel.

    Args:
        names: labels of `studies.joined`; the first `PANELS` of them are drawn.
        figsize: as of `layout.finished`.
    """
    names = names[:PANELS]
    tables, hollow = (
        # The first of a cell is its best.
        [of_optimizer(cells, name).pivot_table(column, y, x, "first", sort=True, observed=True) for name in names]
        for cells, column in ((order, "eval_loss_median"), (order.assign(early=1.0 * early.is_early(order)), "early"))
    )
    columns, rows = (sorted({value for table in tables for value in getattr(table, of)}) for of in ("columns", "index"))
    norm = norm_of(order["eval_loss_median"], initial_loss(runs))
    shades = ScalarMappable(norm, COLOURS)
    narrow = figsize is not None and figsize[0] < layout.NARROW
    wide, tall = 0.9 + 0.62 * min(len(columns), 12), 1.1 + 0.5 * min(len(rows), 12)
    n = min(3, len(names))
    figure, panels = layout.canvas(len(names), figsize or (1.6 + n * wide, None), wide, tall, min(wide, 2.9))
    for ax, name, table, is_early in zip(panels, names, tables, hollow, strict=True):
        ax.grid(False)
        table, is_early = (of.reindex(rows).reindex(columns, axis="columns") for of in (table, is_early))
        values, is_early = table.to_numpy(), is_early.to_numpy() == 1
        reached = values[~is_early & ~np.isnan(values)]
        ax.imshow(np.where(np.isfinite(values), values, np.nan), cmap=COLOURS, norm=norm, origin="lower", aspect="auto")
        for j, i in zip(*np.nonzero(~np.isnan(values)), strict=True):
            loss = float(values[j, i])
            best, ink = np.isfinite(loss) and not is_early[j, i] and loss == reached.min(), "black"
            if is_early[j, i]:
                early.core(ax, i, j, early.words(runs))
            elif np.isfinite(loss):
                ink = ink_on(np.asarray(shades.to_rgba(np.array(loss))))
            else:
                hatched(ax, i, j, True)
            style: dict[str, Any] = {
                "color": ink,
                "ha": "center",
                "va": "center",
                "fontsize": 8 if narrow else 9,
                "gid": "first",
            }
            ax.text(i, j, number(loss) if np.isfinite(loss) else "✕", fontweight="bold" if best else None, **style)
            if best:
                frame = Rectangle((i - 0.46, j - 0.46), 0.92, 0.92, fill=False, linewidth=1.2 if narrow else 2)
                ax.add_patch(frame).set(label="best cell of a panel")
        ax.set_title(name)
        ax.set_xticks(range(len(columns)), [short(value) for value in columns])
        ax.set_yticks(range(len(rows)), [short(value) for value in rows])
        ax.set(xlabel=axis_name(x), ylabel=axis_name(y))
    colour_bar(figure, panels, shades, norm, f"final {loss_name}{figures.LOG_SCALE}; brighter is better", narrow)
    gone = any(np.isinf(table.to_numpy()).any() for table in tables)
    caption = [
        f"Final loss over {axis_name(x)} and {axis_name(y)}, for the best optimizer of each study, in one scale of "
        "colours: in each cell the lowest median over seeds that the other axes allow, and nothing where no run was.",
        "A hatched cell with a ✕ has an infinite one: at least half of the seeds diverged." if gone else "",
        *early.hollow(early.words(runs), [(of == 1).any(axis=None) for of in hollow], "White inside"),
    ]
    figure = layout.finished(figure, runs, 2, figsize, caption)
    for ax in panels:
        fit_cells(ax, (len(rows), len(columns)))
    return figure
