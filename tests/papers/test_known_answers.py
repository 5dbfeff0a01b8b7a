"""Answers that are known: their digits, and the least loss by another computation."""

import numpy as np
import pytest
import torch

from experiments.papers import known_answers
from experiments.papers.claim import Runs
from experiments.tasks import data

FIRST_STEPS = {
    **{(0.0, 0.99): 10.0, (0.0, 0.999): 31.6, (0.0, 0.9999): 100.0},
    **{(0.9, 0.99): 1.0, (0.9, 0.999): 3.16, (0.9, 0.9999): 10.0},
}


def test_first_steps_have_these_digits():
    found = known_answers.first_steps(bias_correction=False)
    for beta1, beta2, _, ratio in found.itertuples(index=False):
        assert float(f"{ratio:.3g}") == FIRST_STEPS[beta1, beta2]
    assert known_answers.first_steps(bias_correction=True)["ratio"].to_numpy() == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("beta2", known_answers.BETA2)
def test_eps_inside_is_worth_more_than_outside(beta2):
    inside, outside = (
        known_answers.effective_eps(made, beta2, 1000) for made in (known_answers.EpsInside, known_answers.EpsOutside)
    )
    assert inside / outside == pytest.approx((1 - beta2 ** np.arange(1, 1001)) ** -0.5, rel=1e-10)
    assert outside == pytest.approx(known_answers.EPS, rel=1e-10)


def test_the_ratio_of_both_has_these_digits():
    inside = known_answers.effective_eps(known_answers.EpsInside, 0.999, 1000) / known_answers.EPS
    assert (f"{inside[0]:.1f}", f"{inside[-1]:.2f}") == ("31.6", "1.26")


def test_the_two_forms_are_the_papers():
    """With gradients that change: Algorithm 1 is torch's Adam, and the efficient form is written out here."""
    gradients = 1e-7 * torch.randn(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = (known_answers.EpsOutside, known_answers.EpsInside, torch.optim.Adam)
    params = [torch.zeros(5, dtype=torch.float64, requires_grad=True) for _ in made]
    optimizers = [of([p], lr=0.1, betas=(0.9, 0.999), eps=1e-8) for of, p in zip(made, params, strict=True)]
    m = v = efficient = torch.zeros(5, dtype=torch.float64)
    for step, gradient in enumerate(gradients, 1):
        for p, optimizer in zip(params, optimizers, strict=True):
            p.grad = gradient.clone()
            optimizer.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        lr = 0.1 * (1 - 0.999**step) ** 0.5 / (1 - 0.9**step)
        efficient = efficient - lr * m / (v.sqrt() + 1e-8)
    outside, inside, torchs = (p.detach() for p in params)
    torch.testing.assert_close(outside, torchs, rtol=1e-9, atol=0)
    torch.testing.assert_close(inside, efficient, rtol=1e-9, atol=0)
    assert (inside / outside - 1).abs().min() > 0.01


@pytest.mark.parametrize("condition_number", [1.0, 1e4])
def test_the_least_loss_is_that_of_normal_equations(condition_number):
    dataset = data.least_squares(condition_number, n_train=500)
    design = np.column_stack([dataset.x_train.double().numpy(), np.ones(500)])
    y = dataset.y_train.double().numpy()
    weights = np.linalg.solve(design.T @ design, design.T @ y)
    expected = np.square(design @ weights - y).mean()
    assert known_answers.least_loss(dataset) == pytest.approx(expected, rel=1e-9)
    assert dataset.loss_floor == pytest.approx(expected, rel=1e-9)


def test_exact_claims_are_confirmed_in_a_few_steps(tmp_path):
    for claim in known_answers.CLAIMS[:2]:
        measured = claim.measure(Runs(tmp_path, 1), **{**claim.quick, **claim.trial})
        for name, region in claim.effects.items():
            assert max(measured.samples[name]) <= region.high
