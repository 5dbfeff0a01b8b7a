"""Rare classes: steps to a loss and their slope, the gradient by hand, and the rule by which lr is chosen."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from experiments.papers import heavy_tailed as claim


def test_the_smallest_data_of_the_authors():
    data = claim.with_random_inputs(5, range(2))
    assert data.x.shape == (2, 160, 193)
    assert len(data.frequency) == 31
    assert data.frequency.max() / data.frequency.min() == pytest.approx(16)
    # Every frequency has as many examples.
    examples = np.unique((data.y.bincount()).numpy(), return_counts=True)
    assert set(np.prod(examples, axis=0)) == {32}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_training_is_that_of_autograd(optimizer):
    data, lr = claim.with_random_inputs(3, range(2)), 0.02
    start = claim.initial(data, range(2))
    found = claim.losses(data, start, optimizer, (0.5, lr), 6)[:, 1, 1]
    w = start[1].clone().requires_grad_()
    made = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]([w], lr=lr)
    frequency = data.frequency[data.y]
    for losses in found:
        each = F.cross_entropy(data.x[1] @ w.mT, data.y, reduction="none")
        of_frequency = [each.detach()[frequency == f].mean().item() for f in sorted(set(frequency), reverse=True)]
        assert losses == pytest.approx(of_frequency, rel=1e-4)
        made.zero_grad()
        each.mean().backward()
        made.step()


def test_steps_lie_between_those_at_which_a_loss_is_passed():
    curves = np.array([[4.0, 4.0], [2.0, 3.0], [1.0, 3.0]])
    assert claim.steps_to(curves, 1.5).tolist() == [1.5, math.inf]


def test_slopes_are_of_powers():
    frequency = np.array([0.5, 0.25, 0.125])
    steps = np.stack([10 / frequency, np.full(3, 7.0), np.array([1.0, 2.0, math.inf])])
    assert claim.slopes(frequency, steps) == pytest.approx([-1.0, 0.0, -math.inf])


def test_the_largest_lr_is_taken_with_which_no_loss_rises():
    falls, rises, slow = (np.array(of)[:, None] for of in ([3.0, 2.0, 1.0], [3.0, 0.5, 0.6], [3.0, 2.9, 2.8]))
    curves = np.stack([slow, falls, rises], axis=1)[:, None]
    assert claim.largest_falling(curves) == 1
    assert claim.largest_falling(curves[:, :, 2:]) == 0


def test_alike_inputs_give_the_known_slopes():
    measured = claim.measure_alike(claim.Runs(None, 1), size=4, steps=400)
    assert measured.samples[claim.NAMES["sgd"]] == pytest.approx(-1.0, abs=0.02)
    assert measured.samples[claim.NAMES["adam"]] == pytest.approx(0.0, abs=1e-4)
