"""Do figures agree with the runs, and can any sweep be drawn?"""

from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot as plt

from experiments.reports import aggregation, figures, grid_figures, markdown, training_figures
from tests.reports.artificial import GRID, OPTIMUM, named, sweep


@pytest.mark.parametrize(
    ("axis", "values", "edge"),
    [
        ("lr", [1e-4, 1e-3, 1e-2], "largest"),
        ("lr", [1e-2, 1e-1], "smallest"),
        ("beta1", [0.9, 0.99, 0.999], "smallest"),
        ("lr", [1e-3, 1e-2, 1e-1], ""),
        ("weight_decay", [0.0, 1e-2], ""),  # there is nothing below 0
    ],
)
def test_edge_warnings(axis, values, edge):
    runs, _ = sweep(**{axis: values})
    warned = markdown.edge_warnings(runs)
    assert len(warned) == bool(edge)
    assert all(aggregation.axis_name(axis) in text and edge in text for text in warned)
    title = grid_figures.sensitivity(runs, axis, "loss").axes[0].get_title(loc="left")
    assert ("best value on the edge of the grid" in title) == bool(edge)


def test_convergence_draws_medians_and_every_run():
    runs, curves = sweep(3, **GRID)
    figure = training_figures.convergence(runs, curves, "a loss")
    losses, _, accuracies = figure.axes
    assert [ax.get_ylabel().split()[0] for ax in figure.axes] == ["a", "training", "evaluation"]
    for place, row in aggregation.summarise(runs).head(5).iterrows():
        ids = runs["run_id"][(runs[list(OPTIMUM)] == row[list(OPTIMUM)]).all(axis=1)]
        expected = curves[curves["run_id"].isin(ids)].groupby("step")[["eval_loss", "eval_accuracy"]].median()
        assert named(losses, f"{place + 1}. ").get_label().endswith(aggregation.label(row, ["lr", "beta1", "beta2"]))
        np.testing.assert_allclose(named(losses, f"{place + 1}. ").get_ydata(), expected["eval_loss"])
        np.testing.assert_allclose(1 - named(accuracies, f"{place + 1}. ").get_ydata(), expected["eval_accuracy"])
    default = named(losses, "torch's default")
    assert (default.get_color(), default.get_linestyle()) == ("black", "--")
    ends = runs["diverged_step"].dropna().to_list()
    assert list(named(losses, "diverged").get_xdata()) == ends
    grey, dotted = (np.concatenate([path.vertices for path in of.get_paths()]) for of in losses.collections[-2:])
    # Every path ends with a gap.
    assert np.isnan(grey[:, 0]).sum() == len(runs) - len(ends) - 6 * 3
    assert list(dotted[np.flatnonzero(np.isnan(dotted[:, 0])) - 1, 0]) == ends
    assert losses.get_ylim()[0] < runs["eval_loss"].min()
    assert 2.31 < losses.get_ylim()[1] < 2 * 2.31
    # The best differ in their marks and contrast, not in their width.
    best = [named(losses, f"{place}. ") for place in range(1, 6)]
    assert len({line.get_linewidth() for line in best}) == 1
    assert len({(line.get_color(), line.get_marker()) for line in best}) == 5


def test_convergence_of_a_configuration_stops_when_half_its_seeds_have_diverged():
    runs, curves = sweep(2, lr=[1e-3], beta2=[0.999], diverged=lambda row: row["seed"] == 1)
    default = named(training_figures.convergence(runs, curves, "loss").axes[0], "torch's default")
    assert default.get_xdata()[-1] <= runs["diverged_step"].max()


def test_sensitivity_draws_slice_and_envelope():
    runs, _ = sweep(3, **GRID)
    ax = grid_figures.sensitivity(runs, "beta2", "loss").axes[0]
    summary = aggregation.summarise(runs).sort_values("beta2")
    held = summary[(summary["lr"] == 1e-2) & (summary["beta1"] == 0.9)]
    thick, thin = named(ax, "with the best lr 1e-2, β1 0.9"), named(ax, "best over")
    np.testing.assert_allclose(thick.get_xdata(), [1, 2, 3])  # -log10(1 - beta2)
    np.testing.assert_allclose(thick.get_ydata(), held["eval_loss_median"])
    np.testing.assert_allclose(
        thin.get_ydata(), summary.groupby("beta2")[["eval_loss_median"]].agg("min").loc[:, "eval_loss_median"]
    )
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0.9", "0.99", "0.999"]
    diverged = runs[runs["status"] == "diverged"].groupby("beta2").size()
    assert [text.get_text().strip() for text in ax.texts] == [f"{n}/45" for n in diverged]
    assert len(named(ax, "one run").get_xdata()) == (runs["status"] == "ok").sum()
    assert named(ax, "torch's default").get_xdata()[0] == pytest.approx(3)
    # Zero is one step left of the other values.
    assert figures.positions(0.0, "weight_decay", np.array([0.0, 1e-4, 1e-2])) == pytest.approx(-6)


@pytest.mark.parametrize("task", ["mnist", "regression"])
def test_heatmap_cells_are_medians_of_the_slice(task):
    runs, _ = sweep(3, task, **GRID)
    ax = grid_figures.heatmap(runs, "lr", "beta1", "loss").axes[0]
    summary = aggregation.summarise(runs)
    best = summary.iloc[0]
    cells = summary[summary["beta2"] == best["beta2"]]
    expected = cells.pivot(index="beta1", columns="lr", values="eval_loss_median").replace(np.inf, np.nan)
    np.testing.assert_allclose(np.ma.asarray(ax.images[0].get_array()).filled(np.nan), expected)
    texts = [text.get_text() for text in ax.texts]
    assert f"{best['eval_loss_median']:.3g}" in texts
    assert any("%" in text for text in texts) == (task == "mnist")
    # Two of three seeds make a median infinite, too.
    steps = cells["diverged_step_median"][cells["n_diverged"] > 1]
    assert sum(patch.get_hatch() is not None for patch in ax.patches) == len(steps) == 3
    assert all(f"step {step:.0f}" in texts for step in steps)
    frame: Any = next(patch for patch in ax.patches if patch.get_label() == "best")
    centre = GRID["lr"].index(best["lr"]), GRID["beta1"].index(best["beta1"])
    assert frame.get_center() == pytest.approx(centre)


EXTREMES = {
    "every run diverged": sweep(lr=GRID["lr"], beta1=GRID["beta1"], diverged=lambda row: True),
    "one run": sweep(),
    "one run, which diverged": sweep(diverged=lambda row: True),
    "a loss of exactly zero": sweep(2, "regression", lr=[1e-3, 1e-2]),
}
EXTREMES["a loss of exactly zero"][0].loc[2:, "eval_loss"] = 0.0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", EXTREMES)
def test_extreme_sweeps_are_drawn_without_warnings_or_traces(case):
    runs, curves = EXTREMES[case]
    settings = dict(matplotlib.rcParams)
    drawn = [training_figures.convergence(runs, curves, "loss"), grid_figures.heatmap(runs)]
    drawn += [grid_figures.sensitivity(runs, axis, "loss") for axis in ("lr", "weight_decay")]
    assert aggregation.console_table(aggregation.summarise(runs))
    assert (dict(matplotlib.rcParams), plt.get_fignums()) == (settings, [])
    if "diverged" in case:
        assert all("every run diverged" in figure.axes[0].get_title(loc="left") for figure in drawn)
        assert markdown.edge_warnings(runs) == []
