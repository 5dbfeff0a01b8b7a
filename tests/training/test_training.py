"""Do schedules of lr, accumulation and dropout do what torch's own do?"""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, SequentialLR

from experiments.tasks import mlp, problems
from experiments.training import axes, population, reference, schedules
from tests.training.small_problems import CONFIGS, digits, regression, small_gru


def final(problem: problems.Problem, seeds=(0, 5), steps: int = 12, **options) -> tuple[pd.DataFrame, pd.DataFrame]:
    options = {"batch_size": 16, "dtype": torch.float64, "evaluations": steps, **options}
    return population.train(problem, CONFIGS, list(seeds), steps=steps, **options)


def dropping() -> problems.Problem:
    return digits(mlp.mlp(784, 16, 12, 10, dropout=0.3))


OPTIONS = [
    {"schedule": "rsqrt"},
    {"schedule": "cosine"},
    {"schedule": "cosine", "warmup": 4},
    {"warmup": 3},
    {"accumulate": 4},
    {"schedule": "rsqrt", "warmup": 2, "accumulate": 3},
]
CASES = [(digits, options) for options in OPTIONS]
CASES += [(small_gru, {"accumulate": 2}), (dropping, {}), (dropping, {"accumulate": 4})]


@pytest.mark.parametrize(("make", "options"), CASES)
@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("sgd", marks=pytest.mark.slow)])
def test_lanes_follow_solo_runs_with_torchs_schedulers_in_float64(make, options, optimizer):
    problem, steps = make(), 12
    runs, curves = final(problem, steps=steps, optimizer=optimizer, **options)
    plain, _ = final(problem, steps=steps, optimizer=optimizer)
    for _, run in runs.iterrows():
        config = run.loc[list(CONFIGS)].astype(float).to_dict()
        same = {"batch_size": 16, "dtype": torch.float64, "optimizer": optimizer, **options}
        _, losses = reference.train(problem, config, int(run.seed), steps, **same)
        np.testing.assert_allclose(curves[curves.lane == run.lane].train_loss[1:], losses, rtol=1e-9)
    if options:
        assert not np.isclose(runs.eval_loss, plain.eval_loss, rtol=1e-9, atol=0).any()


def lrs_of(schedule, steps: int) -> list[float]:
    """Return the lr of each step, counted from 1, under one of torch's schedulers."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    made, values = schedule(optimizer), []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    return values


def warm_cosine(optimizer) -> SequentialLR:
    first = LinearLR(optimizer, start_factor=0.2, total_iters=4)
    return SequentialLR(optimizer, [first, CosineAnnealingLR(optimizer, T_max=15)], milestones=[5])


TORCHS = {
    "constant": (lambda optimizer: LambdaLR(optimizer, lambda done: 1.0), 0),
    "rsqrt": (lambda optimizer: LambdaLR(optimizer, lambda done: 1 / (done + 1) ** 0.5), 0),
    "cosine": (lambda optimizer: CosineAnnealingLR(optimizer, T_max=20), 0),
    "cosine after warm-up": (warm_cosine, 5),
}


@pytest.mark.parametrize("name", TORCHS)
@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")
def test_schedules_are_torchs(name):
    schedule, warmup = TORCHS[name]
    ours = [schedules.factor(name.split()[0], step, 20, warmup) for step in range(1, 21)]
    np.testing.assert_allclose(ours, lrs_of(schedule, 20), rtol=1e-12)


def test_accumulated_batches_are_one_larger_batch():
    apart, together = (
        final(digits(), batch_size=batch_size, accumulate=accumulate)[0] for batch_size, accumulate in ((8, 6), (48, 1))
    )
    np.testing.assert_allclose(apart.eval_loss, together.eval_loss, rtol=1e-10)
    np.testing.assert_allclose(apart.train_loss, together.train_loss, rtol=1e-10)
    smaller, _ = final(digits(), batch_size=8)
    assert not np.isclose(smaller.eval_loss, together.eval_loss, rtol=1e-9, atol=0).any()


def test_masks_depend_on_seed_step_and_layer_alone_and_keep_the_mean():
    model = mlp.mlp(4, 200, 200, 3, dropout=0.25)
    masks = model.draws(3, 7, 64)
    assert [mask.shape for mask in masks] == [(200, 64), (200, 64)]
    for mask in masks:
        assert set(mask.unique().tolist()) == {0.0, np.float32(1 / 0.75)}
        # 12800 draws: the standard error of the mean is 0.005.
        assert mask.mean() == pytest.approx(1.0, abs=0.02)
    again, *others = model.draws(3, 7, 64)[0], model.draws(4, 7, 64)[0], model.draws(3, 8, 64)[0], masks[1]
    assert torch.equal(masks[0], again)
    for other in others:
        # Independent masks agree in 0.25^2 + 0.75^2 of all places.
        assert (masks[0] == other).double().mean() == pytest.approx(0.625, abs=0.03)
    assert mlp.mlp(4, 200, 3).draws(3, 7, 64) == []


def test_dropout_of_a_lane_does_not_depend_on_the_number_of_lanes():
    problem = dropping()
    all_lanes, _ = final(problem)
    for k in CONFIGS.index:
        options = {"steps": 12, "batch_size": 16, "dtype": torch.float64}
        alone, _ = population.train(problem, CONFIGS.iloc[k : k + 1], [5], **options)
        assert all_lanes.eval_loss[len(CONFIGS) + k] == pytest.approx(alone.eval_loss[0], rel=1e-9)


def test_dropout_is_off_in_evaluation_and_the_module_is_torchs():
    """Compare the first loss with that of nn.Dropout in eval mode, and the scale of masks with that of nn.Dropout."""
    problem = dropping()
    runs, _ = final(problem, seeds=[0], steps=1)
    module, _ = reference.make(problem, axes.AXES, seed=0, dtype=torch.float64)
    layers = list(module.children())
    ordinary = torch.nn.Sequential(*layers[:2], torch.nn.Dropout(0.3), *layers[2:4], torch.nn.Dropout(0.3), layers[4])
    x, y = problem.data.x_eval.double(), problem.data.y_eval
    np.testing.assert_allclose(
        runs.initial_eval_loss, problem.model.loss_alone(ordinary.eval(), x, y).item(), rtol=1e-9
    )
    dropped = torch.nn.Dropout(0.3)(torch.ones(1000))
    assert dropped.max().item() == problem.model.draws(0, 1, 16)[0].max().item()


def test_regression_takes_every_option_at_once():
    options = {"schedule": "cosine", "warmup": 5, "accumulate": 2, "batch_size": 64, "steps": 60}
    configs = pd.DataFrame([{**axes.AXES, "lr": 0.01}])
    runs, _ = population.train(regression(), configs, [0], **options)
    assert runs.eval_loss[0] < 0.7 * runs.initial_eval_loss[0]
