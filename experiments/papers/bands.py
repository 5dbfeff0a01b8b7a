"""Curves over seeds, as the figures of claims show them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas.api.typing import SeriesGroupBy


def draw_band(ax: Axes, values: SeriesGroupBy, factor: float = 1.0, **look: Any) -> None:
    """Draw medians as a line, and the quartiles around them as a band of its colour.

    Args:
        values: those of all seeds, grouped by where they stand on the x axis.
        factor: by which these places are multiplied.
        look: of `Axes.plot`, with a color.
    """
    q25, median, q75 = (values.quantile(q) for q in (0.25, 0.5, 0.75))
    x = median.index.to_numpy() * factor
    ax.plot(x, median, **look)
    ax.fill_between(x, q25, q75, color=look["color"], alpha=0.2, linewidth=0)
