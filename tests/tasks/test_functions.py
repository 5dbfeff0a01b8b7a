"""Do optimizers converge, diverge and compare on functions with known minima as theory says?"""

import numpy as np
import pandas as pd
import pytest
import torch

from experiments import sweep
from experiments.tasks import data, functions, problems
from experiments.training import axes, population, reference


def train(problem: problems.Problem, configs: list[dict], optimizer: str, steps: int, seeds=(0,), **options):
    """Train in float64 with the task's own batch size; return the table of runs."""
    table = pd.DataFrame([{**axes.AXES, **config} for config in configs])
    options = {"batch_size": problem.batch_size, "evaluations": 1, "dtype": torch.float64, **options}
    return population.train(problem, table, list(seeds), optimizer=optimizer, steps=steps, **options)[0]


def full_batch_quadratic(*eigenvalues: float) -> problems.Problem:
    hessian, point = torch.diag(torch.tensor(eigenvalues)), torch.zeros(1, len(eigenvalues))
    return problems.Problem("function", functions.dataset("", "", point, point), functions.quadratic(hessian), 1)


@pytest.mark.parametrize("kind", functions.FUNCTIONS)
@pytest.mark.parametrize("optimizer", ["adam", "amsgrad", "momentum"])
def test_lanes_follow_solo_runs_in_float64(kind, optimizer):
    """Compare lanes of two seeds and three values of lr with torch: noise, order of batches and projection."""
    problem, steps = problems.make("function", kind), 40
    configs = pd.DataFrame([{**axes.AXES, "lr": lr} for lr in (1e-5, 1e-4, 3e-4)])
    options = {"steps": steps, "batch_size": problem.batch_size, "dtype": torch.float64, "optimizer": optimizer}
    runs, curves = population.train(problem, configs, [0, 5], evaluations=steps, **options)
    for _, run in runs.iterrows():
        _, losses = reference.train(problem, run.loc[list(configs)].astype(float).to_dict(), int(run.seed), **options)
        np.testing.assert_allclose(curves[curves.lane == run.lane].train_loss[1:], losses, rtol=1e-9)
    assert runs.eval_loss.nunique() == (3 if kind == "counter-example" else 6)


# Adam's bias correction makes its first steps larger, by orders of magnitude if beta1 is large: use momentum then.
EDGES = [("adam", 0.0, 2), ("adam", 0.5, 6), ("momentum", 0.5, 6), ("momentum", 0.9, 38), ("momentum", 0.95, 78)]


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "beta1", "threshold"), EDGES)
def test_half_a_percent_above_the_stability_edge_diverges_and_below_converges(optimizer, beta1, threshold):
    """Check Cohen's limit (2022, arXiv:2207.14484): (2 + 2 beta1) / ((1 - beta1) lr) with a frozen preconditioner.

    Adam's eps, far above all gradients, freezes it at 1 / eps. Momentum adds up what Adam averages: 1 - beta1 of lr.
    """
    eps = 1e9
    lr = eps * threshold if optimizer == "adam" else (1 - beta1) * threshold
    configs = [{"lr": lr * factor, "beta1": beta1, "momentum": beta1, "eps": eps} for factor in (0.995, 1.005)]
    runs = train(full_batch_quadratic(1.0), configs, optimizer, 1000, seeds=(0, 1))
    below, above = ((runs.eval_loss / runs.initial_eval_loss)[first::2] for first in (0, 1))
    assert (below < 1e-6).all()
    assert (above > 1e6).all()


@pytest.mark.parametrize(("optimizer", "sign"), [("adam", 1), pytest.param("amsgrad", -1, marks=pytest.mark.slow)])
def test_amsgrads_counter_example_leads_adam_to_the_worst_point(optimizer, sign):
    """Repeat Reddi et al. 2018 with twice their lr, so that 2,000 steps show the result of 500,000."""
    problem = problems.make("function", "counter-example")
    options = {"schedule": "rsqrt", "optimizer": optimizer}
    runs = train(problem, [{"lr": 1.0, "beta2": 0.99}], steps=2000, **options)
    w = (runs.eval_loss[0] + problem.data.loss_floor) * 101 / 10
    assert 0.65 < sign * w <= 1


def test_counter_example_keeps_its_order_and_its_bounds():
    problem = problems.make("function", "counter-example")
    _, losses = reference.train(problem, {**axes.AXES, "lr": 10.0}, 0, steps=203, batch_size=1)
    # The first step goes beyond -1 and is clamped to it.
    assert losses[:2].tolist() == [505.0, 10.0]
    assert (losses.abs() > 11).nonzero().flatten().tolist() == [0, 101, 202]
    assert (losses.abs() <= 1010).all()


@pytest.mark.slow
def test_noisy_quadratic_has_its_floor_and_sgds_stationary_loss_above_it():
    """Check the floor 1/2 noise^2 tr Q at w = 0; SGD settles 1/2 sum lr q^2 (noise^2 / batch) / (2 - lr q) above it."""
    dataset, model = functions.noisy_quadratic(n=20, noise=0.7)
    eigenvalues = 1 / np.arange(1, 21)
    floor = 0.5 * 0.7**2 * eigenvalues.sum()
    x, y = dataset.x_train.double().unsqueeze(0), dataset.y_train.unsqueeze(0)
    loss = model.losses([torch.zeros(1, 20, dtype=torch.float64)], (), x, y)
    assert loss.item() == pytest.approx(floor, rel=1e-6)
    lr, batch = 0.8, 2
    problem = problems.Problem("function", dataset, model, batch)
    runs = train(problem, [{"lr": lr}], "sgd", 300, seeds=range(100))
    expected = (0.5 * eigenvalues * lr * eigenvalues * 0.7**2 / batch / (2 - lr * eigenvalues)).sum()
    # The mean over 100 seeds of a sum dominated by a few squared normal variables.
    assert runs.eval_loss.mean() == pytest.approx(expected, rel=0.2)


@pytest.mark.slow
def test_adam_beats_sgd_by_orders_on_heterogeneous_blocks_and_not_on_homogeneous_ones():
    """Compare both at the best lr of their grids, with a cosine schedule; median of three seeds."""
    best = {}
    for kind in ("heterogeneous", "homogeneous"):
        problem = problems.make("function", kind)
        for optimizer, lrs in (("adam", np.logspace(-2, 0, 9)), ("momentum", np.logspace(-5, -3, 17))):
            runs = train(problem, [{"lr": lr} for lr in lrs], optimizer, 400, range(3), schedule="cosine")
            best[kind, optimizer] = runs.groupby("seed").eval_loss.min().median()
    assert best["heterogeneous", "adam"] < 1e-9 * best["heterogeneous", "momentum"]
    assert best["homogeneous", "adam"] > 0.1 * best["homogeneous", "momentum"]
    # Rotation and order of the same nine eigenvalues do not affect SGD.
    assert best["homogeneous", "momentum"] == pytest.approx(best["heterogeneous", "momentum"], rel=1)


def test_rosenbrock_is_zero_at_one_one_and_adam_gets_there():
    problem = problems.make("function", "rosenbrock")
    points = torch.tensor([[1.0, 1.0], [0.0, 0.0], [-1.0, 2.0]])
    values = problem.model.losses([points], (), torch.zeros(1, 1, 1), torch.zeros(1, 1, 0))
    assert values.tolist() == [0.0, 1.0, 104.0]
    runs = train(problem, [{"lr": lr} for lr in (0.1, 0.2, 0.4)], "adam", 1500, seeds=(0, 1), schedule="cosine")
    assert (runs.groupby("seed").eval_loss.min() < 1e-4).all()


@pytest.mark.slow
def test_adam_is_faster_than_sgd_on_heavy_tailed_classes():
    """Repeat Kunstner et al. 2024: full batches, each optimizer at the best lr of its grid."""
    problem, best = problems.make("heavy-tailed"), {}
    for optimizer, lrs in (("adam", (0.1, 0.3, 1.0)), ("sgd", (3, 10, 30, 100)), ("momentum", (1, 3, 10, 30))):
        runs = train(problem, [{"lr": lr} for lr in lrs], optimizer, 40, dtype=torch.float32)
        best[optimizer] = runs.eval_loss[runs.status == "ok"].min()
    assert best["adam"] < 0.6 * best["momentum"] < 0.6 * best["sgd"]


def test_heavy_tailed_classes_have_the_sizes_asked_for():
    dataset = data.heavy_tailed(n_classes=8, largest=120)
    assert dataset.y_train.bincount().tolist() == [120, 60, 40, 30, 24, 20, 17, 15]
    assert dataset.x_train.square().sum(1).mean() == pytest.approx(1.0, rel=0.05)
    assert torch.equal(dataset.x_train, data.heavy_tailed(n_classes=8, largest=120).x_train)
    # A batch of the task is the whole data set.
    problem = problems.make("heavy-tailed")
    assert problem.batch_size == len(problem.data.x_train)


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow if i else ()) for i, kind in enumerate(functions.FUNCTIONS)],
)
def test_functions_are_swept_with_defaults_of_their_own(kind, tmp_path):
    out = tmp_path / "out"
    words = ["function", "--model", kind, "--lr", "1e-4", "1e-3", "--steps", "30", "--out", str(out)]
    assert sweep.main(words) == 0
    runs = pd.read_parquet(out / "runs.parquet")
    assert (runs.status == "ok").all()
    assert (runs.eval_loss > 0).all()
    assert (out / "report.md").exists()
    problem = problems.make("function", kind)
    assert problem.batch_size <= len(problem.data.x_train)
    assert problem.steps is not None
    assert problem.steps >= 1000
