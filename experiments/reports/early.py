"""Runs that ended before their last step, or have not ended: which these are, and how figures tell them from others.

`looks` says what they look like. Their losses are those at their last evaluation, and no final ones.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from experiments.reports import looks
from experiments.reports.aggregation import EARLY, stopped_at

WORDS = {"stopped": "stopped before the end", "unfinished": "not yet at the end"}


def is_early(table: pd.DataFrame) -> np.ndarray:
    """Return which configurations of a table ended early. If their median is infinite, they count as diverged."""
    return (stopped_at(table).notna() & np.isfinite(table["eval_loss_median"])).to_numpy()


def at_step(table: pd.DataFrame) -> list[str]:
    """Return for each configuration of a table where it ended early, to append to its name: ", to step 176"."""
    return [f", to step {step:.0f}" if np.isfinite(step) else "" for step in stopped_at(table)]


def words(runs: pd.DataFrame) -> str:
    """Return in which way runs ended early, in words: "stopped before the end"; "" if none did."""
    return " or ".join(WORDS[status] for status in EARLY if (runs["status"] == status).any())


def marks(ax: Axes, x: Any, y: Any, colour: str, label: str | None = None, marker: str = "o", **more: Any) -> None:
    """Draw configurations that ended early as hollow marks, if there are any. more: as of `Axes.plot`."""
    if np.size(x):
        ax.plot(x, y, marker, color=colour, label=label, **{**looks.HOLLOW, **more})


def apart(ax: Axes, x: Any, y: Any, stopped: Any, marker: str, **more: Any) -> None:
    """Draw marks, hollow where configurations ended early. y: one for all; more: as of `Axes.plot`."""
    x, stopped = np.asarray(x), np.asarray(stopped)
    for which, fill in ((~stopped, {}), (stopped, {"markerfacecolor": "none"})):
        if which.any():
            ax.plot(x[which], np.full(which.sum(), y), marker, **{**more, **fill})


def ends(ax: Axes, x: Any, y: Any, colour: str, **more: Any) -> None:
    """Mark where curves end early, if there are any. more: as of `Axes.plot`."""
    if np.size(x):
        ax.plot(x, y, looks.END, color=colour, **{**looks.OF_END, **more})


def core(ax: Axes, i: int, j: int, label: str) -> None:
    """Make a cell of a heatmap hollow: a ring of its colour around white."""
    size: float = looks.CORE
    style: dict[str, Any] = {"facecolor": "white", "edgecolor": looks.INK, "linewidth": 0.5}
    ax.add_patch(Rectangle((i - size / 2, j - size / 2), size, size, **style)).set(label=label)


def hollow(ended: str, drawn: Any, what: str = "Hollow marks") -> list[str]:
    """Return a sentence on what is hollow in a figure; none if nothing of it is.

    Args:
        ended: of `words`.
        drawn: of `is_early`.
    """
    return [f"{what}: {ended}, with the loss at the last evaluation."] * bool(np.any(drawn))


def last_step(runs: pd.DataFrame) -> float:
    """Return the step after which some of these runs, seeds of a configuration, ended early; infinite if none did."""
    steps = runs["stopped_step"].astype(float) if "stopped_step" in runs else pd.Series(dtype=float)
    return float(steps.min()) if steps.notna().any() else np.inf
