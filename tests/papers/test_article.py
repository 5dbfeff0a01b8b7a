"""Tests of what the article's claims are made of: capped losses, steps to a target, accumulated gradients, winners."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.papers.article import capped, grid
from experiments.papers.article_accumulation import LR, PARTS, train
from experiments.papers.article_beta1 import TARGET, slowdown, steps_to_target
from experiments.papers.claim import Runs
from experiments.tasks import problems


def test_grid_has_equal_ratios_and_round_ends():
    assert grid(-3, -1, 5) == (1e-3, 3.16e-3, 1e-2, 3.16e-2, 0.1)


def test_capped_takes_the_loss_before_training_for_what_is_no_lower():
    runs = pd.DataFrame({"status": ["ok", "ok", "ok", "diverged"], "eval_loss": [0.5, 3.0, math.nan, 0.1]})
    assert capped(runs.assign(initial_eval_loss=2.0)).to_list() == [0.5, 2, 2, 2]


def test_steps_to_target_are_those_of_the_first_evaluation_or_infinite():
    runs = pd.DataFrame({"run_id": [7, 8], "beta1": [0.0, 0.9], "lr": [1e-3, 1e-3], "seed": [0, 0]})
    losses = [(7, 8, 1.0), (7, 16, TARGET), (7, 24, 0.1), (8, 8, 0.31), (8, 16, math.nan)]
    curves = pd.DataFrame(losses, columns=["run_id", "step", "eval_loss"])
    assert steps_to_target(runs, curves)["steps"].to_list() == [16, math.inf]


def test_slowdown_is_paired_by_seed_and_takes_runs_that_miss_the_target():
    seeds = [2, 0, 1, 3]
    slow = pd.DataFrame({"beta1": 0.99, "lr": 1e-3, "seed": seeds, "steps": [math.inf, 80, 40, math.inf]})
    fast = pd.DataFrame({"beta1": 0.5, "lr": 1e-2, "seed": seeds, "steps": [10.0, 20, 40, math.inf]})
    found = slowdown(pd.concat([fast, slow]), (0.99, 1e-3), (0.5, 1e-2))
    np.testing.assert_array_equal(found, [2, 0, math.inf, 0])


@pytest.mark.parametrize("optimizer", LR)
def test_first_step_of_a_sum_is_that_of_a_gradient_four_times_as_large(optimizer):
    of = problems.make("regression"), optimizer, 1, 1, torch.float64
    at_once, total = train(*of), train(*of, PARTS)
    # Scaled at once: no batch is divided.
    torch.testing.assert_close(total.first, train(*of, 1, PARTS).first, rtol=1e-9, atol=1e-15)
    ratio = float(total.first.norm() / at_once.first.norm())
    assert ratio == pytest.approx(PARTS if optimizer in ("sgd", "nesterov") else 1, rel=1e-3)


def test_winners_are_the_best_of_each_optimizer_on_seeds_that_did_not_choose_them():
    runs = Runs(None, 2, {"progress": False, "steps": 20, "evaluations": 1})
    options = {"optimizer": ["adam", "sgd"], "lr": {"adam": [1e-6, 1e-2], "sgd": [1e-6, 1e-1]}}
    tuned = runs.sweep("x", "regression", seeds=3, **options).runs
    found, curves, _ = runs.again(tuned, "x", "regression", **options)
    assert set(zip(found["optimizer"], found["lr"], strict=True)) == {("adam", 1e-2), ("sgd", 1e-1)}
    assert sorted(found["seed"].unique()) == [3, 4]
    assert set(curves["run_id"]) == set(found["run_id"])
