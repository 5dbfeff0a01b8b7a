"""Tests of the numbers that the claim on Adam's bias correction rests on."""

import math

import pandas as pd
import pytest
import torch

from experiments.papers import bias_correction
from experiments.papers.bias_correction import EQUAL, UNEQUAL, rho
from optim import Adam


def test_rho_peaks_at_step_12_with_6_57():
    values = {step: rho(step, *UNEQUAL) for step in range(1, 10001)}
    assert max(values, key=lambda step: values[step]) == 12
    assert values[12] == pytest.approx(6.57, abs=5e-3)
    assert values[1] == pytest.approx(math.sqrt(10))


def test_rho_of_equal_betas_never_exceeds_1():
    assert rho(1, *EQUAL) == pytest.approx(math.sqrt(0.05))
    assert all(rho(step, *EQUAL) == pytest.approx(math.sqrt(1 - 0.95**step)) for step in range(1, 100))
    assert max(rho(step, *EQUAL) for step in range(1, 10001)) <= 1


@pytest.mark.parametrize("betas", [UNEQUAL, EQUAL])
def test_rho_is_the_ratio_of_steps_of_both_optimizers(betas):
    grads = torch.randn(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    both = []
    for bias_correction_ in (True, False):
        p = torch.zeros(5, dtype=torch.float64, requires_grad=True)
        optimizer = Adam([p], lr=1.0, betas=betas, eps=0.0, bias_correction=bias_correction_)
        steps = []
        for grad in grads:
            before, p.grad = p.detach().clone(), grad.clone()
            optimizer.step()
            steps.append(p.detach() - before)
        both.append(torch.stack(steps))
    expected = torch.tensor([rho(step, *betas) for step in range(1, 21)], dtype=torch.float64)
    torch.testing.assert_close(both[1], both[0] * expected[:, None], rtol=1e-9, atol=1e-12)


def test_stable_range_counts_stable_rates():
    # The second seed has a hole, as wide as one ratio.
    losses = {0: [1.0, 1.0, 1.0, 3.0], 1: [1.0, 3.0, 1.0, 3.0], 2: [3.0, 3.0, 3.0, 3.0]}
    rows = [(seed, lr, loss) for seed, found in losses.items() for lr, loss in zip((1, 2, 4, 8), found, strict=True)]
    runs = pd.DataFrame(rows, columns=["seed", "lr", "eval_loss"]).assign(status="ok", initial_eval_loss=2.3)
    assert bias_correction.stable_range(runs).tolist() == [4.0, 2.0, 0.5]
