"""The layout of figures at any width: panels, titles, legends and ticks that neither overlap nor leave the figure."""

import functools
import re
import textwrap
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, ParamSpec

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator
from matplotlib.transforms import Bbox

from experiments.common.figure_style import STYLE
from experiments.reports.aggregation import EARLY, listed, run_length

Size = tuple[float, float | None] | None
"""Width and height in inches: a height of None lets a figure choose it, and None alone both."""
NARROW = 5.0
"""Narrower figures, for a column of a paper, have smaller letters and marks."""
SMALL: dict[str, Any] = {
    **{"font.size": 7.5, "axes.titlesize": 7.5, "axes.labelsize": 7.5, "figure.titlesize": 8},
    **{"xtick.labelsize": 7, "ytick.labelsize": 7, "legend.fontsize": 7, "legend.title_fontsize": 7},
    **{"lines.linewidth": 1.3, "lines.markersize": 4, "legend.handlelength": 1.6, "legend.columnspacing": 1.2},
}
COUNT = "count"
"""The gid of numbers in a strip."""
ROUND = "round values"
"""The gid of an axis whose ticks are no values of a grid: of those that overlap, some are left out."""
UNBROKEN: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorate a function that draws a figure, so that it draws in our style, smaller for a narrow `figsize`."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        size: Any = kwargs.get("figsize")
        with style.context([*STYLE, *[SMALL] * (size is not None and size[0] < NARROW)]):
            return draw(*args, **kwargs)

    return drawn


def arrange(figure: Figure) -> None:
    """Place panels and text, without drawing what is in them."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)


def is_narrow(figure: Figure) -> bool:
    return figure.get_figwidth() < NARROW


def canvas(
    n: int, figsize: Size, wide: float, tall: float, least: float = 2.9, most: int = 9
) -> tuple[Figure, list[Axes]]:
    """Return a figure and its n panels, in as many rows as their width needs.

    Args:
        wide, tall: inches of a panel, if `figsize` leaves the choice.
        least: inches that a panel is wide, at least, unless the figure is narrower.
        most: panels beside each other, at most.
    """
    width = figsize[0] if figsize else min(n, most) * wide
    columns = max(1, min(n, most, int(width / least)))
    rows = -(-n // columns)
    height = figsize[1] if figsize and figsize[1] else rows * tall * min(1.0, max(0.6, width / columns / wide))
    figure = Figure(figsize=(width, height))
    # Letters are up to 3 % wider at a lower resolution than that of the layout.
    figure.set_layout_engine("constrained", w_pad=0.07)
    axes = list(np.ravel(figure.subplots(rows, columns)))
    for ax in axes[n:]:
        ax.remove()
    return figure, axes[:n]


def finished(
    figure: Figure, runs: pd.DataFrame, columns: int, figsize: Size = None, caption: list[str] | None = None, note=""
) -> Figure:
    """Add a legend and a title that says what was trained, and fit all text into the figure.

    Args:
        columns: of the legend, at most; there are fewer if they would be wider than the figure.
        figsize: as the figure was asked for. If it leaves the height open, the panels keep theirs, and the figure grows
            by its title and legend.
        caption: sentences on what was drawn; the figure keeps them, see `caption_of`.
        note: what to say about the runs in the title, after what they are.
    """
    data, model = listed(runs["data"]), listed(runs["model"])
    # A problem of one's own may have one name for both.
    names = [model] * (model != data) + [note or listed(runs["optimizer"], most=5)]
    n = runs["status"].value_counts()
    counts = f"runs: {len(runs)}, seeds: {runs['seed'].nunique()}, diverged: {n.get('diverged', 0)}"
    counts += "".join(f", {status}: {n[status]}" for status in EARLY if status in n)
    what = ", ".join([data, *run_length(runs)])
    title = figure.suptitle("; ".join([what, *names]) + f"\n{counts}")
    handles, labels = handles_of(figure)
    add_legend = partial(figure.legend, handles, loc="outside lower center")
    legend = add_legend(labels, ncols=columns) if handles else None
    fit_lines(title, 0.97 * figure.bbox.width, title.get_text())
    # Configurations of many axes have long labels: use fewer columns for them, and at last more lines.
    for n_columns in range(columns - 1, -1, -1):
        if legend is None or (excess := legend.get_window_extent().width / figure.bbox.width) <= 1:
            break
        if n_columns == 0:
            width = int(0.85 / excess * max(map(len, labels)))
            labels = [wrapped(label, width) for label in labels]
        legend.remove()
        legend = add_legend(labels, ncols=max(1, n_columns))
    if figsize is None or figsize[1] is None:
        beside = title.get_window_extent().height + (legend.get_window_extent().height if legend else 0)
        figure.set_figheight(figure.get_figheight() + beside / figure.dpi + 0.15)
    fit(figure)
    # Keep this layout: computing it again for each file would take as long.
    figure.set_layout_engine("none")
    figure.set_label(" ".join(filter(None, caption or [])))
    return figure


def caption_of(figure: Figure) -> str:
    """Return the sentences on what a figure shows, which its function wrote as it drew."""
    return str(figure.get_label())


def handles_of(figure: Figure) -> tuple[list[Any], list[str]]:
    """Return what the legend of a figure shows: each label once, of all panels that have no legend of their own."""
    found: dict[str, Any] = {}
    for ax in figure.axes:
        if ax.get_legend() is None:
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
                # "adam: 0.07 at lr 1e-3" says more of the same series.
                if not any(other.startswith(f"{label}: ") for other in found):
                    found.setdefault(str(label), handle)
    return list(found.values()), list(found)


def fit(figure: Figure) -> None:
    """Break labels and titles that are longer than their panel, and turn or thin ticks whose labels overlap."""
    changed = True
    for _ in range(2):
        if not changed:
            break
        arrange(figure)
        outer = {ax: ax.get_tightbbox() for ax in figure.axes}
        changed = False
        for ax in figure.axes:
            box = ax.get_window_extent()
            right = next_to(ax, figure, [of for other, of in outer.items() if of and other is not ax])
            lengths = {ax.yaxis.label: 1.05 * box.height, ax.xaxis.label: box.width}
            for text, length in {**lengths, ax._left_title: 0.97 * (right - box.x0)}.items():  # type: ignore[attr-defined]
                changed |= fit_lines(text, length, text.get_text().replace("\n", " "))
            changed |= fit_ticks(ax.xaxis, 0) | fit_ticks(ax.yaxis, 1)
            fit_counts(ax)
    # Matplotlib makes ticks on first use: without this they would miss the style.
    figure.draw_without_rendering()


def fit_counts(ax: Axes) -> None:
    """Hide the numbers in a strip if they overlap: shades say the same."""
    counts = [text for text in ax.texts if text.get_gid() == COUNT]
    for height in {text.get_position()[1] for text in counts}:
        if overlap([text for text in counts if text.get_position()[1] == height], 0):
            for text in counts:
                text.set_visible(False)


def next_to(ax: Axes, figure: Figure, others: list[Bbox]) -> float:
    """Return where the next panel to the right begins, or the figure ends, in pixels. others: all other panels."""
    box = ax.get_window_extent()
    starts = [of.x0 for of in others if of.x0 > box.x1 - 1 and of.y0 < box.y1 and of.y1 > box.y0]
    return max(box.x1, min([figure.bbox.x1, *starts]) - 4)


def fit_lines(text: Text, length: float, content: str) -> bool:
    """Show content, each line broken into lines of at most so many pixels if words allow; return whether that is new.

    length: of a line, along the direction of the text.
    """

    def longest() -> float:
        extent = text.get_window_extent()
        return extent.height if text.get_rotation() == 90 else extent.width

    before = text.get_text()
    text.set_text(content)
    lines = content.split("\n")
    widest = max(map(len, lines))
    while widest > 8 and longest() > length:
        widest = min(widest - 1, int(widest * length / longest()) + 1)
        text.set_text("\n".join(wrapped(line, widest) for line in lines))
    return text.get_text() != before


def wrapped(text: str, width: int) -> str:
    """Return text in lines of at most this many characters, broken after commas or semicolons where that is enough."""
    unbroken = re.sub(r"(?<![,;]) ", "\N{NO-BREAK SPACE}", text)
    found = textwrap.fill(unbroken, width, **UNBROKEN).replace("\N{NO-BREAK SPACE}", " ")
    lines = found.split("\n")
    return "\n".join(textwrap.fill(line, width, **UNBROKEN) for line in lines)


def fit_ticks(axis: Axis, along: int) -> bool:
    """Turn the labels of an x axis if they overlap, and leave some out if that does not suffice; return whether so.

    along: 0 for x, 1 for y.
    """

    def fits() -> bool:
        labels = [label for label in axis.get_ticklabels() if label.get_text() and label.get_visible()]
        return not overlap(labels, along)

    if fits():
        return False
    if not isinstance(axis.get_major_locator(), FixedLocator):
        axis.set_major_locator(MaxNLocator(3))
        return True
    labels = axis.get_ticklabels()
    if along == 0 and axis.get_gid() != ROUND and labels[0].get_rotation() == 0:
        axis.set_tick_params(rotation=90 if len(labels) > 6 else 60)
        if fits():
            return True
    ticks, texts = axis.get_ticklocs(), [label.get_text() for label in axis.get_ticklabels()]
    axis.set_major_locator(FixedLocator(list(ticks)))
    for pace in range(2, len(ticks)):
        # Words, such as "diverged", are no members of a series.
        kept = [t if i % pace == 0 or not any(map(str.isdigit, t)) else "" for i, t in enumerate(texts)]
        axis.set_major_formatter(FixedFormatter(kept))
        if fits():
            break
    return True


def overlap(labels: list[Text], along: int) -> bool:
    """Return whether labels of an axis that follow each other overlap."""
    boxes = sorted((label.get_window_extent().get_points()[:, along] for label in labels), key=lambda ends: ends[0])
    # Slanted labels may overlap as boxes, and not as text: their lines are as far apart as they are high.
    if along == 0 and labels and labels[0].get_rotation() % 90:
        size = labels[0].get_fontsize() * labels[0].get_figure(root=True).dpi / 72  # type: ignore[union-attr]
        middles = sorted(float(np.mean(box)) for box in boxes)
        return any(after - before < 1.05 * size for before, after in pairwise(middles))
    gap = 6 if along == 0 else 1
    return any(after[0] < before[1] + gap for before, after in pairwise(boxes))
