"""Do lanes that diverge leave their population, and do the others go on as if they had been alone?"""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.training import lanes, optimizers, population
from tests.tables import last, without_seconds
from tests.tasks.own_problems import made
from tests.training.small_problems import CONFIGS, clone, linear, regression, small_cnn

SEEDS = [0, 1, 2]
BORDER = pd.DataFrame([{**CONFIGS.loc[0], "lr": lr, "momentum": 0.0} for lr in (0.5, 0.93, 1.0, 1.1, 1.3, 2.0, 3.0)])
"""Learning rates of SGD at which all, some and none of three seeds diverge, early or late."""
OPTIONS: dict[str, Any] = {"steps": 40, "batch_size": 8, "evaluations": 8, "dtype": torch.float64}


def sizes_of_steps(monkeypatch) -> list[int]:
    """Return the number of lanes of each step from now on."""
    sizes, original = [], population.step_

    def step_(params, *arguments, **options):
        sizes.append(len(params[0]))
        return original(params, *arguments, **options)

    monkeypatch.setattr(population, "step_", step_)
    return sizes


def test_what_remains_of_a_population_is_as_many_lanes_of_each_seed():
    dead = np.array([[0, 1, 0, 1], [1, 1, 1, 0], [1, 1, 1, 1]], dtype=bool)
    left = lanes.remaining(dead.ravel(), 3)
    assert left.tolist() == [0, 2, 4, 7, 8, 9]
    assert lanes.remaining(np.ones(6, dtype=bool), 2).size == 0
    assert lanes.remaining(np.zeros(6, dtype=bool), 2).tolist() == [*range(6)]


def test_lanes_leave_at_the_evaluation_after_they_diverged_and_the_population_shrinks(monkeypatch):
    """Compare with a population that keeps them, also where only some seeds of a configuration diverge."""
    sizes = sizes_of_steps(monkeypatch)
    kept = population.train(linear(), BORDER, SEEDS, optimizer="sgd", keep_diverged=True, **OPTIONS)
    assert set(sizes) == {21}
    sizes.clear()
    runs, curves = population.train(linear(), BORDER, SEEDS, optimizer="sgd", **OPTIONS)
    ragged = runs.groupby("lr")["diverged_step"].count()
    assert {0, 3} < set(ragged)
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) >= 3
    assert sizes[0] == 21
    assert sizes[-1] < 12
    assert runs[["lr", "seed", "status", "diverged_step"]].equals(kept[0][["lr", "seed", "status", "diverged_step"]])
    ends = last(curves, "step")
    expected = np.ceil(runs["diverged_step"].astype(float).fillna(40) / 5) * 5
    assert ends.tolist() == expected.tolist()
    both = curves.merge(kept[1], on=["lane", "step"], suffixes=("", "_kept"))
    assert len(both) == len(curves)
    alive = both["lane"].map(runs["diverged_step"].isna())
    for column in ("train_loss", "eval_loss"):
        np.testing.assert_allclose(both[column][alive], both[f"{column}_kept"][alive], rtol=1e-9)
    assert (curves.groupby("lane")[["run_seconds"]].diff().dropna() > 0).all(axis=None)
    # A lane's seconds are its share of what its population took.
    assert last(curves, "run_seconds").sum() <= curves["seconds"].max() * (1 + 1e-9)


def test_nothing_is_trained_after_all_lanes_have_diverged(monkeypatch):
    sizes = sizes_of_steps(monkeypatch)
    runs, curves = population.train(linear(), BORDER.tail(2), [0], optimizer="sgd", **OPTIONS)
    assert set(runs["status"]) == {"diverged"}
    assert sizes == [2] * 5
    assert curves["step"].max() == 5


QUICK = [(regression, "adam"), (linear, "sgd"), (small_cnn, "muon"), (partial(made, "shared"), "adam")]
CASES = QUICK + [
    # Numba compiles each of them in float64.
    pytest.param(linear, name, marks=pytest.mark.slow)
    for name in optimizers.OPTIMIZERS
    if name not in ("adam", "sgd", "muon")
]


@pytest.mark.parametrize(("make", "optimizer"), CASES)
def test_survivors_are_what_they_would_have_been_alone_whatever_the_optimizer_keeps(make, optimizer, monkeypatch):
    """Use a schedule, diagnostics, dropout and BatchNorm, and sick lanes first, in the middle and last."""
    sick = pd.concat([CONFIGS.iloc[[1]], CONFIGS.iloc[[0]], CONFIGS.iloc[[1]], CONFIGS.iloc[[1, 2, 1]]])
    sick = sick.reset_index(drop=True)
    sick.loc[[0, 2, 3, 5], "lr"] = 1e30
    sick["beta1"] = sick["beta1"].clip(lower=0.1)
    options: dict[str, Any] = {"steps": 24, "batch_size": 32, "evaluations": 4, "schedule": "cosine", "warmup": 3}
    options |= {"dtype": torch.float64, "optimizer": optimizer, "diagnostics": True}
    sizes = sizes_of_steps(monkeypatch)
    runs, curves = population.train(make(), sick, [0, 5], **options)
    assert (sizes[0], sizes[-1]) == (12, 4)
    alone, expected = population.train(make(), sick.iloc[[1, 4]], [0, 5], **options)
    well = curves.loc[curves["lane"].isin([1, 4, 7, 10])]
    expected = expected.assign(lane=expected["lane"].map({0: 1, 1: 4, 2: 7, 3: 10}))
    assert runs.loc[[1, 4, 7, 10], "status"].tolist() == alone["status"].tolist() == ["ok"] * 4
    pd.testing.assert_frame_equal(
        without_seconds(well.reset_index(drop=True)), without_seconds(expected), rtol=1e-7, check_exact=False
    )


def test_a_training_resumed_before_or_after_lanes_have_left_has_the_same_bits():
    states: list[dict] = []
    options = {**OPTIONS, "optimizer": "sgd", "diagnostics": True}
    whole = population.train(
        linear(), BORDER, SEEDS, due=lambda _: True, keep=lambda state: states.append(clone(state)), **options
    )
    held = [len(state["lanes"]["numbers"]) for state in states]
    assert held[0] == 21
    assert held[-1] < 12
    for at in (3, 4, 5, 9, 17, 38):  # Lanes leave in the states after steps 5 and 10.
        resumed = population.train(linear(), BORDER, SEEDS, resume=states[at - 1], **options)
        for a, b in zip(whole, resumed, strict=True):
            pd.testing.assert_frame_equal(without_seconds(a), without_seconds(b), check_exact=True)
