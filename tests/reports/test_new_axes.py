"""Do reports show axes of words, ties and options of a run as what they are?"""

import numpy as np
import pandas as pd
import pytest

from experiments.reports import aggregation, figures, grid_figures, markdown, sampled_figures, training_figures, writer
from tests.reports.artificial import GRID, named, sweep


def with_axis(runs, name, values):
    """Return the runs with another axis, whose values repeat from run to run."""
    runs = runs.copy()
    runs.insert(list(runs).index("seed"), name, np.resize(np.asarray(values, dtype=object), len(runs)))
    return runs.infer_objects()


def tied():
    runs, curves = sweep(2, lr=GRID["lr"], beta1=[0.9, 0.99])
    return runs.assign(beta2=runs["beta1"]), curves


def test_words_are_not_joined_by_lines():
    runs = with_axis(sweep(1, lr=GRID["lr"], beta1=GRID["beta1"])[0], "amsgrad", ["true", "false"])
    ax = grid_figures.sensitivity(runs, "amsgrad", "loss").axes[0]
    assert [named(ax, start).get_linestyle() for start in ("with the best", "best over")] == ["None"] * 2
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["false", "true"]
    assert list(named(ax, "torch's default, false").get_xdata()) == [0, 0]


def test_tied_axes_are_named_together_and_have_a_default_only_if_it_is_that_of_both():
    runs, curves = tied()
    ax = grid_figures.sensitivity(runs, "beta1", "loss").axes[0]
    assert ax.get_xlabel() == "β1 = β2, log scale in 1 - β1"
    assert ax.get_title(loc="left").startswith("best β1 = β2 0.9")
    assert not [line for line in ax.get_lines() if "default" in str(line.get_label())]
    heatmap = grid_figures.heatmap(runs, "lr", "beta1", "loss").axes[0]
    assert [patch.get_label() for patch in heatmap.patches if patch.get_label()] == ["best"]
    assert sampled_figures.pair(runs, "lr", "beta1", "loss").axes[0].get_ylabel() == ax.get_xlabel()
    assert named(training_figures.convergence(runs, curves, "loss").axes[0], "1. lr 1e-2, β1 = β2 0.9")


@pytest.mark.parametrize(
    ("axis", "values", "warned"),
    [
        ("batch_size", [32.0, 64.0], True),
        ("batch_size", [1.0, 64.0], False),  # nothing is smaller
        ("n_train", [1000.0, 60000.0], False),  # more data are no discovery
        ("schedule", ["constant", "cosine"], False),
    ],
)
def test_an_edge_is_one_only_if_something_better_may_lie_beyond(axis, values, warned):
    runs = with_axis(sweep(lr=[1e-3, 1e-2, 1e-1], beta1=[0.5, 0.9, 0.95])[0], axis, values)
    assert [text.split(",")[0] for text in markdown.edge_warnings(runs)] == (
        [f"The best {aggregation.axis_name(axis)}"] * warned
    )


def test_runs_of_other_lengths_keep_the_mark_of_their_divergence():
    parts = [sweep(lr=[1e-2, 1.0], diverged=lambda row: row["lr"] == 1.0, steps=steps) for steps in (3000, 1000)]
    runs = pd.concat([of.assign(run_id=of["run_id"] + 2 * i) for i, (of, _) in enumerate(parts)], ignore_index=True)
    runs = with_axis(runs, "batch_size", [32.0, 32.0, 96.0, 96.0]).assign(steps=[3000, 3000, 1000, 1000])
    curves = pd.concat([of.assign(run_id=of["run_id"] + 2 * i) for i, (_, of) in enumerate(parts)], ignore_index=True)
    curves["epoch"] *= curves["run_id"].map({0: 1, 1: 1, 2: 3, 3: 3})
    losses = training_figures.convergence(runs, curves, "loss").axes[0]
    assert losses.get_xlabel() == "epoch"
    ends = runs["diverged_step"].dropna().to_numpy(dtype=float)
    np.testing.assert_allclose(named(losses, "diverged").get_xdata(), ends / 469 * [1, 3])


def test_legends_and_titles_of_many_axes_stay_within_the_figure():
    runs, curves = sweep(lr=[1e-3, 1e-2], beta1=[0.9, 0.95], beta2=[0.9, 0.99], eps=[1e-8, 1e-6])
    for name in ("a_rather_long_argument", "another_long_argument"):
        runs = with_axis(runs, name, ["a long word", "another long word"])
    for figure in (
        training_figures.convergence(runs, curves, "loss"),
        grid_figures.sensitivity(runs, "lr", "loss"),
        grid_figures.heatmap(runs, "lr", "beta1", "loss"),
    ):
        box, (legend,) = figure.bbox, figure.legends
        extents = [legend.get_window_extent(), figure.get_tightbbox().transformed(figure.dpi_scale_trans)]
        assert all(one.x0 >= box.x0 - 1 and one.x1 <= box.x1 + 1 for one in extents)


def test_the_default_says_which_options_of_a_run_it_had():
    runs, _ = sweep(lr=[1e-3, 1e-2], beta2=[0.999])
    twice = pd.concat([runs, runs.assign(run_id=runs["run_id"] + 2, eval_loss=2 * runs["eval_loss"])])
    twice = with_axis(twice.reset_index(drop=True), "batch_size", [32.0, 32.0, 64.0, 64.0])
    labels = [name for _, name, *_ in training_figures.highlighted(twice)]
    assert labels[-1] == "torch's default with batch size 32 (number 3 of 4)"


@pytest.mark.parametrize(
    ("models", "text"),
    [
        (["mlp 784-32-32-10"], "mlp 784-32-32-10"),
        (["mlp 784-32-32-10", "mlp 784-64-64-10"], "mlp (2 variants)"),
        (["mlp 784-32-32-10", "mlp 784-32-32-10 init x2"], "mlp 784-32-32-10 (2 variants)"),
        (["mlp 784-32-32-10", "cnn 8-16"], "2 models"),
    ],
)
def test_models_are_listed_by_what_they_share(models, text):
    assert aggregation.listed(pd.Series(models, name="model")) == text


def test_words_are_close_to_themselves_alone():
    assert figures.is_close(["constant", None], "constant").tolist() == [True, False]
    assert figures.is_close(pd.Series(["true", "false"]), np.nan).tolist() == [False, False]


def test_no_sensitivity_of_configurations_that_share_little():
    runs, _ = sweep(lr=[1e-3, 1e-2, 1e-1])
    assert aggregation.lr_sensitivity(runs) > 0
    assert np.isnan(aggregation.lr_sensitivity(runs.assign(beta1=[0.9, 0.9, 0.5])))


def test_models_whose_loss_is_infinite_before_training_are_drawn(tmp_path):
    runs, curves = sweep(2, lr=GRID["lr"])
    wild = runs["lr"] > 1e-2
    runs.loc[wild, ["initial_eval_loss", "eval_loss"]] = np.inf
    runs.loc[wild, ["status", "diverged_step"]] = ["diverged", 1]
    assert np.isfinite(aggregation.initial_loss(runs))
    assert len(writer.write(tmp_path, runs.assign(initial_eval_loss=np.inf), curves, {})) > 7
