"""Is generated data what its options say, and does it depend on its seed alone?"""

import numpy as np
import pytest
import torch

from experiments.common import errors
from experiments.tasks import data


@pytest.mark.parametrize("make", [data.teacher_regression, data.least_squares])
def test_generated_data_depends_on_the_seed_alone(make):
    state = torch.get_rng_state()
    first, again, other = make(seed=3), make(seed=3), make(seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    for field in ("x_train", "y_train", "x_eval", "y_eval"):
        assert getattr(first, field).dtype == torch.float32
        assert torch.equal(getattr(first, field), getattr(again, field))
        assert not torch.equal(getattr(first, field), getattr(other, field))
    assert first.loss_floor == again.loss_floor


@pytest.mark.parametrize("seed", range(3))
def test_teacher_regression_is_standardised(seed):
    dataset = data.teacher_regression(n_train=1000, n_eval=500, seed=seed)
    assert dataset.x_train.shape == (1000, 10)
    assert dataset.y_train.shape == (1000, 1)
    assert dataset.x_eval.shape == (500, 10)
    assert dataset.y_eval.shape == (500, 1)
    assert dataset.y_train.double().mean().item() == pytest.approx(0, abs=1e-6)
    assert dataset.y_train.double().square().mean().item() == pytest.approx(1, abs=1e-6)
    assert 0.5 < dataset.y_eval.square().mean().item() < 2
    assert dataset.loss_floor == 0


def test_teacher_regression_can_be_learnt_but_not_by_a_line():
    dataset = data.teacher_regression()
    design = np.column_stack([dataset.x_train, np.ones(len(dataset.x_train))]).astype(np.float64)
    target = dataset.y_train.double().numpy()
    linear_mse = np.square(design @ np.linalg.lstsq(design, target, rcond=None)[0] - target).mean()
    assert 0.1 < linear_mse < 0.9
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = torch.nn.Sequential(
            torch.nn.Linear(10, 20), torch.nn.ReLU(), torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 1)
        )
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    for _ in range(300):
        batch = torch.randint(len(target), (256,), generator=generator)
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(student(dataset.x_train[batch]), dataset.y_train[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        eval_mse = torch.nn.functional.mse_loss(student(dataset.x_eval), dataset.y_eval).item()
    assert eval_mse < 0.2 * linear_mse


@pytest.mark.parametrize(("n_train", "n_eval"), [(1, 10), (10, 0)])
def test_teacher_regression_rejects_sizes(n_train, n_eval):
    with pytest.raises(errors.DataError, match=f"not {n_train} and {n_eval}"):
        data.teacher_regression(n_train=n_train, n_eval=n_eval)


@pytest.mark.parametrize(
    ("condition_number", "n_features", "n_train"),
    # 11 is the fewest rows for 10 features and a bias; 1e10 the largest condition number accepted.
    [(1.0, 10, 500), (100.0, 10, 8192), (100.0, 2, 50), (1e6, 10, 500), (1e4, 10, 11), (1e10, 10, 8192)],
)
def test_least_squares_has_the_condition_number(condition_number, n_features, n_train):
    dataset = data.least_squares(condition_number, n_features, n_train, seed=1)
    assert dataset.x_train.shape == (n_train, n_features)
    assert dataset.y_train.shape == (n_train, 1)
    x = dataset.x_train.double().numpy()
    for design in (x, np.column_stack([x, np.ones(n_train)])):
        # The square of the singular values: eigenvalues of X^T X lose 1e-10 of the largest to float64 rounding.
        singular = np.linalg.svd(design / np.sqrt(n_train), compute_uv=False)
        assert (singular[0] / singular[-1]) ** 2 == pytest.approx(condition_number, rel=1e-3)
    hessian = x.T @ x / n_train
    assert np.linalg.cond(hessian) == pytest.approx(condition_number, rel=1e-3)
    steps = np.diff(np.log(np.linalg.eigvalsh(hessian)))
    np.testing.assert_allclose(steps, np.log(condition_number) / (n_features - 1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("condition_number", [1.0, 100.0, 1e6])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_least_squares_floor_is_the_minimum(condition_number, noise):
    dataset = data.least_squares(condition_number, n_train=1000, noise=noise)
    assert dataset.x_eval is dataset.x_train
    assert dataset.y_eval is dataset.y_train
    design = np.column_stack([dataset.x_eval, np.ones(1000)]).astype(np.float64)
    target = dataset.y_eval.double().numpy()

    def loss(weights):
        return np.square(design @ weights - target).mean()

    best, residual, *_ = np.linalg.lstsq(design, target, rcond=None)
    assert dataset.loss_floor == pytest.approx(residual.item() / 1000, rel=1e-9)
    assert dataset.loss_floor == pytest.approx(noise**2, rel=0.1, abs=1e-12)
    rng = np.random.default_rng(0)
    for scale in (1e-3, 1e-1, 10):
        for _ in range(10):
            assert loss(best + scale * rng.normal(size=best.shape)) > dataset.loss_floor


@pytest.mark.parametrize("condition_number", [0.999, 0.0, -5.0, 2e10, float("inf"), float("nan")])
def test_least_squares_rejects_condition_numbers(condition_number):
    with pytest.raises(errors.DataError, match="--condition-number takes a number from 1 to 1e\\+10"):
        data.least_squares(condition_number)


@pytest.mark.parametrize(("n_features", "n_train"), [(1, 100), (10, 10)])
def test_least_squares_rejects_sizes_without_full_rank(n_features, n_train):
    with pytest.raises(errors.DataError, match=f"not {n_features} and {n_train}"):
        data.least_squares(n_features=n_features, n_train=n_train)
