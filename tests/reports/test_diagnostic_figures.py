"""Does the figure of diagnostics show medians of the best configurations, for any sweep?"""

import numpy as np
import pytest

from experiments.reports import diagnostic_figures, writer
from experiments.training.diagnostics import OF_GROUP, OF_STEP
from tests.reports.artificial import GRID, PROVENANCE, named, sweep, sweep_of_several


def diagnosed(runs, curves, groups: int = 5):
    """Add columns of diagnostics, from 1e-6 to 1; those of steps begin after step 0."""
    rng = np.random.default_rng(0)
    columns = [*OF_STEP, *(f"{OF_GROUP}{number + 1}" for number in range(groups))]
    curves = curves.assign(**{name: 10 ** -rng.uniform(0, 6, len(curves)) for name in columns})
    curves.loc[curves["step"] == 0, list(OF_STEP)] = np.nan
    curves.loc[curves["eval_loss"].isna(), columns] = np.inf
    return runs, curves


def test_lines_are_medians_of_the_best_configuration_of_each_optimizer():
    runs, curves = diagnosed(*sweep_of_several())
    sizes = [{"classes": number, "examples": 1000 * number} for number in (1, 2, 3, 4, 5)]
    figure = diagnostic_figures.diagnostics(runs, curves, groups=sizes)
    of_steps, of_groups = figure.axes[:3], figure.axes[3:]
    assert [ax.get_title(loc="left").partition(":")[0] for ax in of_groups] == ["adam", "sgd", "momentum"]
    best = {"adam": runs[(runs["lr"] == 1e-2) & (runs["beta1"] == 0.9)]}
    best |= {name: runs[(runs["lr"] == 1e-2) & (runs["optimizer"] == name)] for name in ("sgd", "momentum")}
    for (name, chosen), ax_groups in zip(best.items(), of_groups, strict=True):
        mine = curves[curves["run_id"].isin(chosen["run_id"][chosen["optimizer"] == name])]
        medians = mine.groupby("step").median()
        for ax, column in zip(of_steps, OF_STEP, strict=True):
            np.testing.assert_allclose(named(ax, f"{name}: lr 1e-2").get_ydata(), medians[column][1:])
        for number, text in ((1, "most frequent: 1 class, 1,000"), (4, "fourth: 4 classes"), (5, "rarest: 5 classes")):
            np.testing.assert_allclose(named(ax_groups, text).get_ydata(), medians[f"{OF_GROUP}{number}"])
    assert [ax.get_yscale() for ax in figure.axes] == ["log", "log", "linear", "log", "log", "log"]


@pytest.mark.parametrize("groups", [0, 1, 3])
@pytest.mark.parametrize("ends", [None, lambda row: row["seed"] == 0, lambda row: True])
def test_one_optimizer_any_number_of_groups_and_diverged_runs(groups, ends):
    runs, curves = diagnosed(*sweep(3, diverged=ends or (lambda row: False), lr=[1e-3, 1e-2]), groups=groups)
    figure = diagnostic_figures.diagnostics(runs, curves)
    assert len(figure.axes) == 3 + bool(groups)
    crosses = [line for line in figure.axes[0].get_lines() if line.get_marker() == "x"]
    assert len(crosses) == 2 * (ends is not None)  # one is in the legend


def test_the_report_has_the_figure_if_there_are_columns():
    runs, curves = sweep(2, lr=GRID["lr"])
    assert "diagnostics" not in writer.drawings(runs, curves, PROVENANCE, None, None)
    drawing = writer.drawings(*diagnosed(runs, curves), PROVENANCE, None, None)["diagnostics"]
    drawn = drawing.draw()
    assert "over twice as large as its mean in the nine steps before" in drawing.caption(drawn)
    assert len(drawn.axes) == 4
