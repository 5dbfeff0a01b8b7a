"""Evaluations on some of the examples, and the last one on all."""

from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import optim
from experiments.common.errors import OptionError
from experiments.sweep import sweep
from experiments.training import evaluation, population
from tests.training.small_problems import CONFIGS, digits, linear


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.data())
def test_a_subset_has_each_class_by_its_share(sizes, data):
    y = torch.cat([torch.full((size,), 3 * label) for label, size in enumerate(sizes)])
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(1))]
    n = data.draw(st.integers(1, len(y)))
    chosen = evaluation.subset(y, n)
    assert len(chosen) == len(chosen.unique()) == n
    for label, size in enumerate(sizes):
        assert abs((y[chosen] == 3 * label).sum().item() - n * size / len(y)) <= len(sizes) + 1
    assert torch.equal(chosen, evaluation.subset(y, len(y))[:n])


def test_a_subset_prefers_no_class():
    """Check that half of 1,000 classes of one example are not the first half."""
    chosen = evaluation.subset(torch.arange(1000), 500)
    assert 200 < (chosen < 500).sum() < 300


@pytest.mark.parametrize("make", [digits, linear])
def test_all_but_the_last_evaluation_take_the_subset(make):
    problem = make()
    options: dict[str, Any] = {"steps": 6, "batch_size": 16, "evaluations": 3}
    _, of_all = population.train_lanes(problem, CONFIGS, [0], **options)
    _, of_some = population.train_lanes(problem, CONFIGS, [0], eval_examples=7, **options)
    columns = ["lane", "step", "train_loss", "eval_loss"]
    is_last = of_all["step"] == 6
    pd.testing.assert_frame_equal(of_all.loc[is_last, columns], of_some.loc[is_last, columns], check_exact=True)
    assert (of_all.loc[~is_last, "eval_loss"] != of_some.loc[~is_last, "eval_loss"]).all()
    pd.testing.assert_series_equal(of_all["train_loss"], of_some["train_loss"], check_exact=True)


def test_a_schedule_free_optimizer_is_evaluated_at_its_average_which_leaves_training_alone(monkeypatch):
    """Compare the end of runs that are evaluated at each step, at none between, and at what is trained."""
    options: dict[str, Any] = {"steps": 12, "batch_size": 16, "optimizer": "schedule-free"}
    lr = CONFIGS.assign(lr=[0.01, 0.03, 0.1], beta1=[0.9, 0.8, 0.95])
    (often, curves), (once, _) = (population.train(linear(), lr, [0], evaluations=n, **options) for n in (12, 1))
    pd.testing.assert_series_equal(often["eval_loss"], once["eval_loss"], check_exact=True)
    assert (curves.groupby("lane")["eval_loss"].first() > often["eval_loss"]).all()
    for name in ("eval", "train"):
        monkeypatch.setattr(optim.AdamWScheduleFree, name, lambda self: None)
    trained, _ = population.train(linear(), lr, [0], evaluations=12, **options)
    assert (trained["eval_loss"] != often["eval_loss"]).all()
    pd.testing.assert_series_equal(trained["train_loss"], often["train_loss"], check_exact=True)


def test_the_report_says_so(tmp_path):
    out = tmp_path / "some"
    sweep(
        "regression", lr=[1e-3, 1e-2], steps=4, evaluations=2, eval_examples=50, out=out, progress=False, device="cpu"
    )
    assert "50 of 2048 examples, always the same" in (out / "report.md").read_text(encoding="utf-8")


def test_too_many_examples_are_refused():
    with pytest.raises(OptionError, match="--eval-examples accepts at most the 2048 evaluation examples"):
        sweep("regression", lr=1e-3, eval_examples=2049)
