"""The writer of a report's files: a table of configurations, the figures, and a page about them."""

import itertools
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib import style
from matplotlib.figure import Figure

from experiments.common import ambient, files
from experiments.common.figure_style import STYLE
from experiments.common.progress import progress_bar
from experiments.reports import (
    aggregation,
    comparison,
    diagnostic_figures,
    grid_figures,
    html,
    interactive,
    markdown,
    markup,
    sampled_figures,
    steps_to_target,
    training_figures,
)
from experiments.reports.aggregation import axis_name, ranked, summarise
from experiments.training import diagnostics, targets
from experiments.training.axes import WORDS, scale_of
from experiments.training.targets import Target

OPTIMIZERS = (
    "Left: final loss against lr, at each lr the best that an optimizer does with everything else; a star is its best "
    "lr, and a ✕ says that at least half of the seeds (small: fewer) diverged. Right: the best configuration of each "
    "while it trains. Lines are medians over seeds."
)
BUDGET = (
    "The lowest loss that one expects after trying so many of an optimizer's configurations in random order, and the "
    "inter-quartile range over orders, not over seeds: exact for these configurations and the medians that they have "
    "here. A configuration that is worse than no training counts as no training."
)
TARGET = (
    "Left: the share of runs that have reached the target by a step, in a band that holds at each step, with 95 % or "
    "more, the share of all runs like these (Clopper and Pearson 1934; as if no two runs shared a configuration or a "
    "seed). Right: the median over seeds of the steps to the target, of the fastest configuration."
)
CONVERGENCE = (
    "Losses (and accuracy) while training: coloured lines are the best configurations, medians over seeds; dashed "
    "black is the default, grey is every other run, and a ✕ is where a run diverged."
)
BEST_OF_EACH = "The best configuration of each. "
WALL_CLOCK = (
    "Losses (and accuracy) against the time that a run takes: its share of the time of the population trained with "
    "it, evaluations left out, compilation in the first steps included."
)
DIAGNOSTICS = (
    "The best configuration of each optimizer at its evaluations: the L2 norm of the gradient over all weights, the "
    "RMS (root mean square) of the update over that of the weights before it, and the share of weights whose update is "
    "over twice as large as its mean in the nine steps before. By classes: the mean evaluation loss of groups of "
    "classes, from the most to the least frequent in the training data, with about as many training examples each as "
    "whole classes allow. Lines are medians over seeds."
)
SENSITIVITY = (
    "Final loss against {0}: the thick line changes {0} alone, starting from the best configuration, the thin line "
    "is the best one can do by tuning everything else (both: medians over seeds), and the strip at the top counts "
    "diverged runs."
)
SENSITIVITY_TO_WORDS = (
    "Final loss against {0}: large dots change {0} alone, starting from the best configuration, small squares are the "
    "best one can do by tuning everything else (both: medians over seeds), and the strip at the top counts diverged "
    "runs."
)
HEATMAP = (
    "Final loss over {0} and {1}, everything else as in the best configuration: brighter is better, "
    "hatched cells diverged."
)
SCATTER = "Final loss of every configuration against {0}, median over seeds; those in the strip at the top diverged."
PAIR = "Final loss of every configuration over {0} and {1}; a ✕ diverged."


class Drawing(NamedTuple):
    """A function that draws a figure, and the caption of the figure."""

    draw: Callable[[], Figure]
    caption: str


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
    figures_ = drawings(runs, curves, provenance, reached, goal, summary)
    captions = {f"{name}.png": of.caption for name, of in figures_.items()}
    if first := next((name for name, caption in captions.items() if "diverged" in caption), None):
        captions[first] += f" {markdown.DIVERGED}"
    text = markdown.page(runs, summary, provenance, captions, goal)
    names = ["summary.csv", *(f"{name}.{kind}" for name in figures_ for kind in ("png", "pdf"))]
    paths = {name: folder / name for name in [*names, "report.md", "report.html"]}

    def fill(temporary: dict[Path, Path]) -> None:
        summary.to_csv(temporary[paths["summary.csv"]], index=False)
        images, shown = {}, progress and sys.stderr is not None
        bar = progress_bar(
            figures_.items(), desc=f"drawing {len(figures_)} figures", delay=2.0, leave=False, disable=not shown
        )
        for name, drawing in bar:
            png, pdf = (temporary[paths[f"{name}.{kind}"]] for kind in ("png", "pdf"))
            save(drawing.draw(), png, pdf)
            images[f"{name}.png"] = png.read_bytes()
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
) -> dict[str, Drawing]:
    """Return the figures of a report with their captions, by name. If there are several optimizers, some show the best.

    Args:
        reached: the table that `steps_to_target.reach` returns; None without a target.
        order: as of `aggregation.ranked`.
    """
    order = ranked(runs, order)
    pictures, of_best, sampled = {}, "", bool(markdown.sampled(provenance))
    loss_name = provenance.get("loss_name", "evaluation loss")
    curves = curves.assign(run_seconds=aggregation.run_seconds(runs, curves))
    clock = Drawing(partial(training_figures.wall_clock, runs, curves, loss_name, None, order), WALL_CLOCK)
    if several := runs["optimizer"].nunique() > 1:
        of_each = partial(comparison.figure, runs, curves, loss_name, sampled, order)
        pictures["optimizers"] = Drawing(of_each, OPTIMIZERS)
        pictures["budget"] = Drawing(partial(comparison.budget, runs, loss_name, order), BUDGET)
        chosen, lines = comparison.tuned(runs, order)
        clock = Drawing(
            partial(training_figures.wall_clock, chosen, curves, loss_name, lines), BEST_OF_EACH + WALL_CLOCK
        )
    of_all = runs, curves, order
    if target and reached is not None:
        draw = partial(steps_to_target.figure, reached, target, int(curves["step"].max()), sampled)
        pictures["target"] = Drawing(draw, TARGET)
    if several:
        pictures["wall_clock"] = clock
        best = order.loc[0, "optimizer"]
        order = aggregation.of_optimizer(order, best)
        runs, of_best = runs.loc[runs["optimizer"] == best], f"Of {markup.plain(best)} alone, the best optimizer. "
    pictures["convergence"] = Drawing(
        partial(training_figures.convergence, runs, curves, loss_name, order), of_best + CONVERGENCE
    )
    pictures.setdefault("wall_clock", clock)
    if diagnostics.columns_of(curves):
        draw = partial(diagnostic_figures.diagnostics, *of_all, provenance.get("class_groups"))
        pictures["diagnostics"] = Drawing(draw, DIAGNOSTICS)
    varied = aggregation.varied_axes(runs)
    against, over = (
        (sampled_figures.sensitivity, sampled_figures.pair)
        if sampled
        else (grid_figures.sensitivity, grid_figures.heatmap)
    )
    for axis in varied:
        of_grid = SENSITIVITY_TO_WORDS if scale_of(axis, runs[axis]) == WORDS else SENSITIVITY
        caption = of_best + (SCATTER if sampled else of_grid).format(axis_name(axis, runs))
        pictures[f"sensitivity_{axis}"] = Drawing(partial(against, runs, axis, loss_name, order), caption)
    for x, y in itertools.combinations(varied, 2):
        caption = of_best + (PAIR if sampled else HEATMAP).format(axis_name(x, runs), axis_name(y, runs))
        draw = partial(over, runs, x, y, loss_name, order)
        pictures[f"{'pair' if sampled else 'heatmap'}_{x}_{y}"] = Drawing(draw, caption)
    return pictures
