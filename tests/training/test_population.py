"""Does a lane of a population compute what the run computes on its own: same weights, batches and losses?"""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.tasks import cnn, gru, mlp, problems
from experiments.tasks.model import stack
from experiments.training import axes, evaluation, optimizers, population, reference
from tests.training.small_problems import CONFIGS, clone, digits, linear, logistic, regression, small_cnn, small_gru

ONEDNN = pytest.mark.skipif(not mlp.HAS_ONEDNN, reason="oneDNN, or its product, is missing")

PROBLEMS = [digits, logistic, regression, linear, small_cnn, small_gru]
CASES = [(make, "adam") for make in PROBLEMS]
CASES += [
    # Numba compiles each of them in float64.
    pytest.param(linear, name, marks=() if name in ("sgd", "nadam") else pytest.mark.slow)
    for name, choice in optimizers.OPTIMIZERS.items()
    if choice.alone and name != "adam"
]


@pytest.mark.parametrize(("make", "optimizer"), CASES)
def test_lanes_follow_solo_runs_of_torch_in_float64(make, optimizer):
    """Compare 30 steps, more than an epoch, of every lane of two seeds with nn.Sequential and torch.optim, to 1e-9."""
    problem, steps, seeds = make(), 30, [0, 5]
    options = {"steps": steps, "batch_size": 32, "dtype": torch.float64}
    runs, curves = population.train(problem, CONFIGS, seeds, optimizer=optimizer, evaluations=3, **options)
    assert len(runs) == len(CONFIGS) * len(seeds)
    for _, run in runs.iterrows():
        config = run.loc[list(CONFIGS)].astype(float).to_dict()
        module, losses = reference.train(problem, config, int(run.seed), optimizer=optimizer, **options)
        lane = curves[curves.lane == run.lane]
        expected = [losses[a:b].mean().item() for a, b in ((0, 10), (10, 20), (20, 30))]
        np.testing.assert_allclose(lane.train_loss[1:], expected, rtol=1e-9)
        output = module(problem.data.x_eval.double())
        y = problem.data.y_eval if problem.classifies else problem.data.y_eval.double()
        eval_loss = problem.model.loss_alone(module, problem.data.x_eval.double(), y).item() - problem.data.loss_floor
        np.testing.assert_allclose(run.eval_loss, eval_loss, rtol=1e-7)
        if problem.classifies:
            assert run.eval_accuracy == pytest.approx((output.argmax(1) == y).double().mean().item())
        else:
            assert np.isnan(run.eval_accuracy)


def test_lanes_of_lion_which_torch_lacks_follow_lanes_trained_alone():
    options = {"steps": 20, "batch_size": 32, "dtype": torch.float64, "optimizer": "lion"}
    runs, _ = population.train(linear(), CONFIGS, [0], **options)
    for k in CONFIGS.index:
        alone, _ = population.train(linear(), CONFIGS.iloc[k : k + 1], [0], **options)
        assert runs.eval_loss[k] == pytest.approx(alone.eval_loss[0], rel=1e-9)
    assert runs.eval_loss.nunique() == 3


def test_lanes_follow_solo_runs_in_float32():
    problem, steps = digits(), 60
    _, curves = population.train(problem, CONFIGS, [3], steps=steps, batch_size=32, evaluations=3)
    for k, config in CONFIGS.iterrows():
        _, losses = reference.train(problem, config.to_dict(), 3, steps, batch_size=32)
        expected = [losses[a:b].mean().item() for a, b in ((0, 20), (20, 40), (40, 60))]
        np.testing.assert_allclose(curves[curves.lane == k].train_loss[1:], expected, rtol=2e-3)


MODELS = {"mlp": mlp.mlp(784, 7, 5, 3), "cnn": cnn.cnn((3, 4)), "gru": gru.gru(6)}


@pytest.mark.parametrize("name", MODELS)
# One input for both seeds, or one each; numbers of lanes that divide into tiles, and that do not.
@pytest.mark.parametrize(("n_configs", "n_inputs"), [(2, 2), (2, 1), (5, 2), (18, 1)])
def test_forward_and_gradients_equal_the_module_for_every_lane_and_input(name, n_configs, n_inputs):
    model, seeds = MODELS[name], [0, 1]
    generator = torch.Generator().manual_seed(2)
    params = stack(model, seeds, n_configs, torch.float64)
    x = torch.randn(n_inputs, 3, 784, dtype=torch.float64, generator=generator)
    output = model.forward(params, x)
    weigh = torch.randn(output.shape, dtype=torch.float64, generator=generator)
    grads = torch.autograd.grad((output * weigh).sum(), params)
    for lane in range(len(output)):
        with torch.random.fork_rng():
            torch.manual_seed(seeds[lane // n_configs])
            module = model.build().double()
        expected = module(x[lane // n_configs % n_inputs]).T
        torch.testing.assert_close(output[lane], expected)
        of_module = torch.autograd.grad((expected * weigh[lane]).sum(), list(module.parameters()))
        for ours, theirs in zip(grads, of_module, strict=True):
            torch.testing.assert_close(ours[lane], theirs)


def test_convolution_gives_the_gradient_of_equal_maxima_to_the_first_as_torch_does():
    """Use blank parts of digits, which make all four outputs of a pooling window equal."""
    model = cnn.cnn((3, 4))
    params = stack(model, [0], 2, torch.float64)
    x = torch.zeros(1, 3, 784, dtype=torch.float64)
    x[0, 1, 300:320] = 1.0
    module = model.build().double()
    for p, q in zip(module.parameters(), params, strict=True):
        p.data.copy_(q[1])
    target = torch.tensor([[1, 2, 3]])
    ours = torch.autograd.grad(model.losses(params, (), x, target).sum(), params)
    theirs = torch.autograd.grad(model.loss_alone(module, x[0], target[0]), list(module.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a[1], b)


@pytest.mark.parametrize("by_onednn", [False, pytest.param(True, marks=ONEDNN)])
@pytest.mark.parametrize("n_inputs", [1, 2])
def test_first_layer_and_its_gradients_equal_a_plain_product_in_float32(n_inputs, by_onednn, monkeypatch):
    monkeypatch.setattr(mlp, "USES_ONEDNN", by_onednn)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 7, 30, generator=generator, requires_grad=True)
    bias = torch.randn(4, 7, generator=generator, requires_grad=True)
    x = torch.randn(n_inputs, 11, 30, generator=generator)
    weigh = torch.randn(4, 7, 11, generator=generator)
    output = mlp.first_layer(weight, bias, x).view(4, 7, 11)
    expected = weight.double() @ x.double().repeat_interleave(4 // n_inputs, 0).mT + bias.double().unsqueeze(2)
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad((output * weigh).sum(), (weight, bias))
    theirs = torch.autograd.grad((expected * weigh).sum(), (weight, bias))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_stack_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    stack(mlp.mlp(4, 3), [0, 1], 2)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("make", [digits, small_cnn, small_gru])
def test_a_run_does_not_depend_on_its_neighbours(make):
    """Check that other lanes keep their bits if one lane becomes NaN and stays."""
    problem = make()
    sick = CONFIGS.copy()
    sick.loc[1, "lr"] = 1e30
    options: dict[str, Any] = {"steps": 30, "batch_size": 32, "evaluations": 3, "keep_diverged": True}
    _, curves = population.train(problem, CONFIGS, [0], **options)
    sick_runs, sick_curves = population.train(problem, sick, [0], **options)
    assert list(sick_runs.status) == ["ok", "diverged", "ok"]
    assert 1 < sick_runs.diverged_step[1] <= 4
    assert not np.isfinite(sick_runs.eval_loss[1])
    for column in ("train_loss", "eval_loss", "eval_accuracy"):
        for lane in (0, 2):
            assert curves.loc[curves.lane == lane, column].equals(sick_curves.loc[sick_curves.lane == lane, column])


def test_divergence_is_the_first_loss_beyond_its_limit():
    problem = linear()
    configs = pd.DataFrame([{**axes.AXES, "lr": lr, "eps": 0.0} for lr in (0.01, 50.0)])
    runs, _ = population.train(problem, configs, [0], steps=20, batch_size=64, evaluations=1)
    _, losses = reference.train(problem, configs.loc[1].to_dict(), 0, 20, batch_size=64)
    first = int((losses > population.DIVERGED * losses[0]).nonzero()[0]) + 1
    assert runs.status.tolist() == ["ok", "diverged"]
    assert runs.diverged_step.tolist() == [pd.NA, first]


def test_least_squares_reaches_its_known_optimum():
    problem = linear()
    configs = pd.DataFrame([{**axes.AXES, "lr": 0.1}])
    n = len(problem.data.x_train)
    runs, _ = population.train(problem, configs, [0], steps=400, batch_size=n, evaluations=2)
    assert 0 < runs.eval_loss[0] < 1e-5
    assert runs.initial_eval_loss[0] > 0.1


def test_batches_are_epochs_of_distinct_indices_and_depend_on_the_seed():
    batches = population.batch_indices(10, 3, seed=1)
    epochs = [torch.stack([next(batches) for _ in range(3)]) for _ in range(2)]
    for epoch in epochs:
        assert len(epoch.unique()) == 9
    assert not torch.equal(*epochs)
    assert torch.equal(next(population.batch_indices(10, 3, seed=1)), epochs[0][0])
    assert not torch.equal(next(population.batch_indices(10, 3, seed=2)), epochs[0][0])


def test_evaluations_are_evenly_spaced_and_end_with_the_last_step():
    assert evaluation.evaluation_steps(100, 4) == [0, 25, 50, 75, 100]
    assert evaluation.evaluation_steps(3, 8) == [0, 1, 2, 3]
    assert evaluation.evaluation_steps(7, 1) == [0, 7]


RESUMED = [(regression, "adam"), (linear, "radam"), (digits, "nesterov")]


@pytest.mark.parametrize(
    ("make", "optimizer"), [*RESUMED, pytest.param(linear, "schedule-free", marks=pytest.mark.slow)]
)
def test_a_resumed_training_gives_the_bits_of_an_uninterrupted_one(make, optimizer, tmp_path):
    """Resume from a file between two evaluations, in the second epoch, with a schedule and a lane that diverges."""
    problem, sick = make(), CONFIGS.copy()
    sick.loc[1, "lr"] = 1e30
    if optimizer == "schedule-free":
        sick["beta1"] = sick["beta1"].clip(lower=0.1)
    options = {"steps": 40, "batch_size": 32, "accumulate": 2, "evaluations": 3, "schedule": "cosine", "warmup": 3}
    options["optimizer"] = optimizer
    whole = population.train(problem, sick, [0, 5], **options)
    asked = iter([False] * 21 + [True] + [False] * 18)
    population.train(
        problem, sick, [0, 5], due=lambda _: next(asked), keep=lambda s: torch.save(s, tmp_path / "state"), **options
    )
    state, seen = torch.load(tmp_path / "state", weights_only=True), []
    assert state["step"] == 22
    resumed = population.train(problem, sick, [0, 5], resume=state, on_step=seen.append, **options)
    assert seen == list(range(22, 41))
    assert (resumed[1].groupby("lane").seconds.diff().dropna() > 0).all()
    for a, b in zip(whole, resumed, strict=True):
        drop = [column for column in a if "seconds" in column]
        pd.testing.assert_frame_equal(a.drop(columns=drop), b.drop(columns=drop), check_exact=True)


def test_dropout_and_bounded_parameters_resume_to_the_same_bits():
    dropped = problems.make("regression", dropout=0.3)
    bounded = problems.make("function", "counter-example")
    for problem, batch_size in ((dropped, 32), (bounded, bounded.batch_size)):
        states: list[Any] = []
        options: dict[str, Any] = {"steps": 9, "batch_size": batch_size, "evaluations": 1}
        whole, _ = population.train(
            problem, CONFIGS, [0], due=lambda _: True, keep=lambda s, to=states: to.append(clone(s)), **options
        )
        assert [state["step"] for state in states] == list(range(1, 9))  # not after the last step
        resumed, _ = population.train(problem, CONFIGS, [0], resume=states[4], **options)
        pd.testing.assert_frame_equal(whole, resumed, check_exact=True)
