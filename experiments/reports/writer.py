"""The writer of a report's files: a table of configurations, the figures, and a page about them."""

import functools
import itertools
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.figure import Figure

from experiments.common import ambient, files
from experiments.common.figure_style import STYLE
from experiments.common.numbers import number
from experiments.common.progress import progress_bar
from experiments.reports import (
    aggregation,
    comparison,
    diagnostic_figures,
    grid_figures,
    html,
    importance,
    interactive,
    layout,
    looks,
    markdown,
    markup,
    sampled_figures,
    steps_to_target,
    training_figures,
)
from experiments.reports.aggregation import ranked, summarise
from experiments.training import diagnostics, targets
from experiments.training.targets import Target


class Drawing(NamedTuple):
    """A figure of a report.

    Attributes:
        draw: draws it; takes `figsize`, as of `layout.finished`. The figure has its caption.
        before: what its caption begins with, as Markdown.
    """

    draw: Callable[..., Figure]
    before: str = ""

    def caption(self, figure: Figure) -> str:
        """Return the caption, as Markdown, of the figure that was drawn."""
        return self.before + markup.plain(layout.caption_of(figure))


PAIRED = 4
"""Of how many axes of an optimizer all pairs are drawn. `experiments.report` and the page show those of others."""


class OfOne(NamedTuple):
    """The runs of one optimizer, whose figures are over its axes.

    Attributes:
        order: as of `aggregation.ranked`.
        note: what the title of a figure says about the runs, if there are other optimizers.
        before: as of `Drawing`.
    """

    runs: pd.DataFrame
    order: pd.DataFrame
    loss_name: str
    sampled: bool
    note: str = ""
    before: str = ""

    def against(self, axis: str) -> Drawing:
        """Return the figure of the final loss against an axis."""
        draw = sampled_figures.sensitivity if self.sampled else grid_figures.sensitivity
        return Drawing(partial(draw, self.runs, axis, self.loss_name, self.order, self.note), self.before)

    def over(self, x: str, y: str) -> Drawing:
        """Return the figure of the final loss over two axes."""
        draw = sampled_figures.pair if self.sampled else grid_figures.heatmap
        return Drawing(partial(draw, self.runs, x, y, self.loss_name, self.order, self.note), self.before)


def of_one(runs: pd.DataFrame, order: pd.DataFrame, provenance: dict, optimizer: str | None = None) -> OfOne:
    """Return the runs of an optimizer: by default of the best. runs, order: of all optimizers."""
    best, n = str(order.loc[0, "optimizer"]), runs["optimizer"].nunique()
    name = optimizer or best
    loss_name, sampled = provenance.get("loss_name", "evaluation loss"), bool(markdown.sampled(provenance))
    if n < 2:
        return OfOne(runs, order, loss_name, sampled)
    place = list(aggregation.best_of_each(order)["optimizer"]).index(name) + 1
    which = "the best optimizer" if place == 1 else f"number {place} of {n} optimizers"
    note = f"{name} alone, the best of {n} optimizers" if place == 1 else f"{name} alone, {which}"
    own = runs.loc[runs["optimizer"] == name]
    return OfOne(
        own,
        aggregation.of_optimizer(order, name),
        loss_name,
        sampled,
        note,
        f"Of {markup.plain(name)} alone, {which}. ",
    )


def without_clock(provenance: dict) -> str:
    """Return a sentence on why there is no figure of wall-clock time; "" if there is one."""
    seconds = provenance.get("seconds") or {}
    compiling, training = seconds.get("compile", 0.0), seconds.get("train", np.inf)
    if compiling <= training:
        return ""
    return (
        f"There is no figure of wall-clock time: of {number(compiling + training)} s of training, "
        f"{number(compiling)} s were compilation, which says nothing about longer runs."
    )


def target_of(
    runs: pd.DataFrame, provenance: dict, asked: str | None = None, order: pd.DataFrame | None = None
) -> Target | None:
    """Return the target asked for, else the sweep's, else the one that `steps_to_target.choose` chooses.

    order: as of `aggregation.ranked`. Raises: OptionError.
    """
    text = provenance.get("target") if asked is None else asked
    if text is None:
        return steps_to_target.choose(runs, order)
    return targets.parse(text, runs["eval_accuracy"].notna().any())


@ambient.pinned()
def write(
    folder: str | os.PathLike[str],
    runs: pd.DataFrame,
    curves: pd.DataFrame,
    provenance: dict,
    target: str | None = None,
    summary: pd.DataFrame | None = None,
    progress: bool = False,
) -> list[Path]:
    """Write summary.csv, the figures (PNG and PDF), report.md and report.html into the folder; return their paths.

    Nothing in the folder changes unless everything could be drawn and written.

    Args:
        target: a loss or an accuracy, as a user types it; see `target_of`.
        summary: `aggregation.summarise(runs)`, from a caller that has it.
        progress: whether to show a bar if drawing takes long.
    Raises: OptionError if the target is neither.
    """
    folder, summary = Path(folder), summarise(runs) if summary is None else summary
    goal, reached = target_of(runs, provenance, target, summary), None
    folder.mkdir(parents=True, exist_ok=True)
    if goal:
        reached = steps_to_target.reach(runs, curves, goal)
        summary = summary.merge(steps_to_target.medians(reached), how="left")
    matter = functools.cache(partial(importance.of_each, runs, summary))
    figures_ = drawings(runs, curves, provenance, reached, goal, summary, matter)
    names = ["summary.csv", *(f"{name}.{kind}" for name in figures_ for kind in ("png", "pdf"))]
    paths = {name: folder / name for name in [*names, "report.md", "report.html"]}

    def fill(temporary: dict[Path, Path]) -> None:
        summary.to_csv(temporary[paths["summary.csv"]], index=False)
        images, captions, shown = {}, {}, progress and sys.stderr is not None
        bar = progress_bar(
            figures_.items(), desc=f"drawing {len(figures_)} figures", delay=2.0, leave=False, disable=not shown
        )
        for name, drawing in bar:
            png, pdf = (temporary[paths[f"{name}.{kind}"]] for kind in ("png", "pdf"))
            figure = drawing.draw()
            save(figure, png, pdf)
            images[f"{name}.png"], captions[f"{name}.png"] = png.read_bytes(), drawing.caption(figure)
        if first := next((name for name, caption in captions.items() if "diverged" in caption), None):
            captions[first] += f" {markdown.DIVERGED}"
        of_axes = importance.blocks(matter(), markup.picture("importance.png", captions.pop("importance.png", "")))
        text = markdown.page(runs, summary, provenance, captions, goal, without_clock(provenance), of_axes)
        temporary[paths["report.md"]].write_text(text, encoding="utf-8")
        part = interactive.part(runs, curves, summary, provenance.get("loss_name", "evaluation loss"))
        temporary[paths["report.html"]].write_text(html.render(text, images, part), encoding="utf-8")

    files.replace_all(paths.values(), fill)
    return list(paths.values())


def save(figure: Figure, png: Path, pdf: Path) -> None:
    """Write a figure as PNG, for screens, and as PDF, for papers."""
    with style.context(STYLE):
        figure.savefig(png, format="png")
        # Without a date, equal results give equal files.
        figure.savefig(pdf, format="pdf", metadata={"CreationDate": None})


def drawings(
    runs: pd.DataFrame,
    curves: pd.DataFrame,
    provenance: dict,
    reached: pd.DataFrame | None,
    target: Target | None,
    order: pd.DataFrame | None = None,
    matter: Callable[[], list[importance.Importance]] | None = None,
) -> dict[str, Drawing]:
    """Return the figures of a report, by name. If there are several optimizers, some show the best.

    Args:
        reached: the table that `steps_to_target.reach` returns; None without a target.
        order: as of `aggregation.ranked`.
        matter: returns `importance.of_each`, from a caller that needs it, too.
    """
    order = ranked(runs, order)
    matter = matter or functools.cache(partial(importance.of_each, runs, order))
    pictures, one = {}, of_one(runs, order, provenance)
    loss_name, sampled = one.loss_name, one.sampled
    curves = curves.assign(run_seconds=aggregation.run_seconds(runs, curves))
    clock = Drawing(partial(training_figures.wall_clock, runs, curves, loss_name, None, order))
    if several := runs["optimizer"].nunique() > 1:
        pictures |= of_several(runs, curves, loss_name, sampled, order)
        chosen, lines = comparison.tuned(runs, order)
        clock = Drawing(partial(training_figures.wall_clock, chosen, curves, loss_name, lines))
    if target and reached is not None:
        draw = partial(steps_to_target.figure, reached, target, int(curves["step"].max()), sampled, order)
        pictures["target"] = Drawing(draw)
    clocks = {} if without_clock(provenance) else {"wall_clock": clock}
    convergence = partial(training_figures.convergence, one.runs, curves, loss_name, one.order, one.note)
    pictures |= clocks if several else {}
    pictures |= {"convergence": Drawing(convergence, one.before)} | clocks
    if diagnostics.columns_of(curves):
        draw = partial(diagnostic_figures.diagnostics, runs, curves, order, provenance.get("class_groups"))
        pictures["diagnostics"] = Drawing(draw)
    if importance.samples(runs, order):
        pictures["importance"] = Drawing(partial(importance.figure, runs, order, matter))
    varied = aggregation.varied_axes(one.runs)
    pictures |= {f"sensitivity_{axis}": one.against(axis) for axis in varied}
    kind, of_pairs = "pair" if sampled else "heatmap", one
    if len(varied) > PAIRED:
        varied, which = paired(str(one.runs["optimizer"].iloc[0]), varied, matter())
        said = f"{one.before}Pairs of {which} alone; `--figure heatmap` draws any other. "
        of_pairs = one._replace(before=said)
    return pictures | {f"{kind}_{x}_{y}": of_pairs.over(x, y) for x, y in itertools.combinations(varied, 2)}


def paired(optimizer: str, axes: list[str], found: list[importance.Importance]) -> tuple[list[str], str]:
    """Return `PAIRED` of an optimizer's axes, in their order, and which these are, in words.

    They are those that matter most, if that is known. found: as of `importance.of_each`, which leaves out optimizers
    with few configurations.
    """
    for one in found:
        if one.optimizer == optimizer:
            most = [*one.shares.index][:PAIRED]
            return [axis for axis in axes if axis in most], "the axes that matter most"
    return axes[:PAIRED], "the first axes"


def of_several(
    runs: pd.DataFrame, curves: pd.DataFrame, loss_name: str, sampled: bool, order: pd.DataFrame
) -> dict[str, Drawing]:
    """Return the figures that compare optimizers, by name. order: as of `aggregation.ranked`."""
    found = {"optimizers": Drawing(partial(comparison.figure, runs, curves, loss_name, sampled, order))}
    if order["optimizer"].nunique() > looks.MOST:
        found["lr_panels"] = Drawing(partial(comparison.lr_panels, runs, loss_name, sampled, order))
    return found | {"budget": Drawing(partial(comparison.budget, runs, loss_name, order))}
