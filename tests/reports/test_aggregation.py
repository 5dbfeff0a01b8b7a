"""Do tables agree with the runs?"""

import numpy as np
import pytest

from experiments.reports import aggregation
from tests.reports.artificial import GRID, OPTIMUM, sweep


@pytest.mark.parametrize("task", ["mnist", "regression"])
@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_summarise_agrees_with_a_loop_and_puts_the_best_first(task, seeds):
    runs, _ = sweep(seeds, task, **GRID)
    summary = aggregation.summarise(runs)
    assert len(summary) == 45
    assert summary["eval_loss_median"].is_monotonic_increasing
    assert task != "mnist" or dict(summary.loc[0, list(OPTIMUM)]) == OPTIMUM
    for _, row in summary.iterrows():
        group = runs[(runs[list(OPTIMUM)] == row[list(OPTIMUM)]).all(axis=1)]
        ok = (group["status"] == "ok").to_numpy()
        loss, train = (np.where(ok, group[name], np.inf) for name in ("eval_loss", "train_loss"))
        assert (row["n_seeds"], row["n_diverged"]) == (seeds, seeds - ok.sum())
        assert row["eval_loss_median"] == pytest.approx(np.median(loss))
        assert row["train_loss_median"] == pytest.approx(np.median(train))
        if ok.all():
            quartiles = row["eval_loss_q25"], row["eval_loss_q75"]
            np.testing.assert_allclose(quartiles, np.quantile(loss, [0.25, 0.75]))
        else:
            assert row["diverged_step_median"] == group["diverged_step"].median()
        accuracy = -np.median(np.where(ok, -group["eval_accuracy"], np.inf))
        expected = accuracy if np.isfinite(accuracy) else np.nan
        assert row["eval_accuracy_median"] == pytest.approx(expected, nan_ok=True)


def test_summarise_gives_the_range_of_three_seeds_with_its_level():
    runs, _ = sweep(3, lr=[1e-3, 1e-2], diverged=lambda row: row["lr"] == 1e-3 and row["seed"] > 0)
    best, worst = (row for _, row in aggregation.summarise(runs).iterrows())
    losses = runs.loc[runs["lr"] == 1e-2, "eval_loss"]
    assert (best["eval_loss_low"], best["eval_loss_high"]) == (losses.min(), losses.max())
    assert (worst["eval_loss_low"], worst["eval_loss_high"]) == (runs.loc[0, "eval_loss"], np.inf)
    assert best["eval_loss_level"] == worst["eval_loss_level"] == 0.75
    alone = aggregation.summarise(sweep(1, lr=[1e-3, 1e-2])[0])
    assert alone[["eval_loss_low", "eval_loss_high", "eval_loss_level"]].isna().to_numpy().all()


def test_lr_sensitivity_by_hand():
    runs, _ = sweep(lr=[1e-3, 1e-2, 1e-1, 1.0], beta1=[0.9, 0.5], diverged=lambda row: row["lr"] == 1)
    runs["initial_eval_loss"] = 2.0
    runs["eval_loss"] = runs["lr"].map({1e-3: 0.5, 1e-2: 0.1, 1e-1: 7.0, 1.0: np.nan})
    # These runs are better at some lr, but not with the best configuration's beta1, so they must not count.
    runs.loc[runs["beta1"] == 0.5, "eval_loss"] = 0.2
    assert aggregation.lr_sensitivity(runs) == pytest.approx((0.4 + 0.0 + 1.9 + 1.9) / 4)
    assert np.isnan(aggregation.lr_sensitivity(runs.assign(status="diverged")))


def test_console_table_shows_only_what_varies():
    header, *rows = aggregation.console_table(aggregation.summarise(sweep(**GRID)[0]), n=3).splitlines()
    assert header.split() == ["#", "lr", "β1", "β2", "eval", "loss", "train", "loss", "accuracy", "diverged"]
    assert [len(row) for row in rows] == [len(header)] * 3
