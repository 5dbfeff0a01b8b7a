"""What is measured of Adam's VAE: the bound against torch.distributions, and shares of losses worked out by hand."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from experiments.papers import adam_vae


def test_bound_is_the_likelihood_and_the_divergence_of_torch():
    torch.manual_seed(0)
    logits, mean, log_var = torch.randn(5, 7), torch.randn(5, 2), torch.randn(5, 2)
    x = (torch.rand(5, 7) > 0.5).float()
    divergence = kl_divergence(Normal(mean, (log_var / 2).exp()), Normal(0.0, 1.0)).sum(1)
    expected = (divergence - Bernoulli(logits=logits).log_prob(x).sum(1)).mean()
    torch.testing.assert_close(adam_vae.bound((logits, mean, log_var), x), expected)


@pytest.fixture
def table() -> pd.DataFrame:
    """Runs of two seeds, all with the loss 10 but for some, from 20."""
    cells = itertools.product(("true", "false"), (0, 1), (0.0, 0.9), (0.99, 0.999, 0.9999), (1e-3, 1e-2))
    runs = pd.DataFrame(cells, columns=["bias_correction", "seed", "beta1", "beta2", "lr"])
    runs = runs.assign(initial_eval_loss=20.0, run_id=[f"r{i}" for i in range(len(runs))])
    return runs.sample(frac=1, random_state=0, ignore_index=True)


def curves(runs: pd.DataFrame, loss: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"run_id": runs["run_id"], "step": 200, "eval_loss": loss})


def test_losses_are_at_most_those_of_the_untrained_networks(table):
    loss = np.full(len(table), 10.0)
    loss[:3] = math.nan, math.inf, 25.0
    # The run 4 has diverged before, so that its curve has ended.
    points = curves(table, loss).drop(4)
    found = adam_vae.losses(table, points, {"late": 200})["late"].to_numpy()
    assert found[[0, 1, 2, 4]].tolist() == [20.0] * 4
    assert (np.delete(found, [0, 1, 2, 4]) == 10).all()


def test_effects_are_shares_of_the_best_fall(table):
    unstable = (table["bias_correction"] == "false") & (table["beta2"] == 0.9999) & (table["lr"] == 1e-2)
    better = (table["bias_correction"] == "true") & (table["lr"] == 1e-2)
    loss = np.where(unstable, 18.0, np.where(better, 10.0, 12.0))
    found = adam_vae.losses(table, curves(table, loss), {"early": 200, "late": 200})
    samples, _ = adam_vae.effects_of(found)
    # At 1e-2, which is best with correction: 18 - 10, and 12 - 10, of a fall by 10.
    assert samples[adam_vae.UNSTABLE] == pytest.approx([0.8, 0.8])
    assert samples[adam_vae.UNCHANGED] == pytest.approx([0.2, 0.2])
    assert samples[adam_vae.CLOSER_TO_1] == pytest.approx([0.0, 0.0])
    assert samples[adam_vae.WORST] == pytest.approx([0.0, 0.0])
