"""Do the figures of sampled sweeps show their runs?"""

import numpy as np
import pandas as pd
import pytest

from experiments.reports import sampled_figures
from tests.reports.artificial import sweep as of_one


def sampled_runs(seeds):
    rng = np.random.default_rng(0)
    runs, _ = of_one(seeds, lr=10 ** rng.uniform(-4, 0, 20), beta1=[0.9], diverged=lambda row: row["lr"] > 0.1)
    betas = dict(zip(runs["lr"].unique(), 1 - 10 ** rng.uniform(-3, 0, 20), strict=True))
    return runs.assign(beta1=runs["lr"].map(betas))


def test_points_are_the_medians_of_configurations():
    runs = sampled_runs(3)
    medians = runs[runs["status"] == "ok"].groupby(["lr", "beta1"])["eval_loss"].median().reset_index()
    n_diverged = runs.loc[runs["status"] != "ok", "lr"].nunique()
    assert n_diverged > 0
    ax = sampled_figures.sensitivity(runs, "beta1", "a loss").axes[0]
    points = next(dots for dots in ax.collections if str(dots.get_label()).startswith("a configuration")).get_offsets()
    expected = np.column_stack([-np.log10(1 - medians["beta1"]), medians["eval_loss"]])
    np.testing.assert_allclose(np.sort(np.asarray(points), axis=0), np.sort(expected, axis=0))
    assert np.size(next(line for line in ax.get_lines() if line.get_label() == "diverged").get_xdata()) == n_diverged
    ax = sampled_figures.pair(runs, "lr", "beta1", "a loss").axes[0]
    dots = ax.collections[0]
    drawn = pd.Series(dots.get_array(), np.round(np.asarray(dots.get_offsets())[:, 0], 6)).sort_index()
    wanted = medians.set_index(np.log10(medians["lr"]).round(6))["eval_loss"].sort_index()
    np.testing.assert_allclose(drawn, wanted)
    np.testing.assert_allclose(drawn.index, wanted.index)
    star = np.asarray(ax.collections[1].get_offsets())[0]
    best = medians.loc[medians["eval_loss"].idxmin()]
    assert tuple(star) == pytest.approx((np.log10(best["lr"]), -np.log10(1 - best["beta1"])))


@pytest.mark.filterwarnings("error")
def test_sampled_sweeps_in_which_every_run_diverged_are_drawn():
    runs = sampled_runs(1).assign(status="diverged", diverged_step=5)
    for figure in (sampled_figures.sensitivity(runs, "lr", "loss"), sampled_figures.pair(runs, "lr", "beta1", "loss")):
        assert figure.axes[0].get_title(loc="left") == "every run diverged"
