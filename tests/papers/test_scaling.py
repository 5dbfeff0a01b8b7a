"""What the claims about scaling derive: hyperparameters for other batch sizes, and where the best value lies."""

import math

import numpy as np
import pytest

from experiments.papers import beta2_half_life, square_root_scaling
from experiments.papers.optimum import lowest


@pytest.mark.parametrize(
    ("k", "batch_size", "lr", "beta1", "beta2", "eps"),
    [(1, 16, 2e-3, 0.99, 0.999, 1e-4), (4, 64, 4e-3, 0.96, 0.996, 5e-5), (16, 256, 8e-3, 0.84, 0.984, 2.5e-5)],
)
def test_scaled_takes_the_square_root_rule(k, batch_size, lr, beta1, beta2, eps):
    found = square_root_scaling.scaled(16, k)
    expected = {"batch_size": batch_size, "lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps}
    assert found == pytest.approx(expected, rel=1e-12)


def test_scaled_keeps_the_drift_and_noise_of_an_example():
    # For an example, with gradients N(mean, 1) of examples: drift / mean, variance, and what exp_avg forgets.
    def drift_and_noise(batch_size, lr, beta1, **_):
        steps = 1 / batch_size
        return lr * math.sqrt(batch_size) * steps, lr**2 * steps, (1 - beta1) * steps

    base, scaled = (drift_and_noise(**square_root_scaling.scaled(16, k)) for k in (1, 16))
    assert scaled == pytest.approx(base, rel=1e-12)
    linear = drift_and_noise(**square_root_scaling.scaled(16, 16, power=1.0))
    assert linear[0] == pytest.approx(4 * base[0], rel=1e-12)


@pytest.mark.parametrize("batch_size", [8, 32, 128, 512])
def test_beta2_of_halves_the_memory_after_so_many_examples(batch_size):
    beta2 = beta2_half_life.beta2_of(8192, batch_size)
    assert beta2 ** (8192 / batch_size) == pytest.approx(0.5, rel=1e-12)
    assert beta2 == pytest.approx(beta2_half_life.beta2_of(8192, 128) ** (batch_size / 128), rel=1e-12)


def test_lowest_finds_the_minimum_of_a_parabola_between_values():
    x = np.arange(-4.0, 5.0)
    for minimum in (-3.3, 0.25, 2.0, 3.4):
        assert lowest(x, (x - minimum) ** 2) == pytest.approx(minimum, abs=1e-9)
        assert lowest(x, (x - minimum) ** 2, 3) == pytest.approx(minimum, abs=1e-9)


@pytest.mark.parametrize("x", [np.arange(3.0), np.arange(9.0)], ids=["as few as three", "more than five"])
def test_lowest_stays_within_the_values_tried(x):
    assert lowest(x, x) == 0.0
    assert lowest(x, -x) == x[-1]
    # A parabola that opens downwards has no minimum.
    assert lowest(x, -((x - 0.9) ** 2)) == x[-1]
