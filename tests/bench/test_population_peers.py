"""What a population is timed against computes what it computes."""

import numpy as np
import pytest
import torch

import optim
from experiments.bench import population_peers, population_time
from experiments.tasks import model
from experiments.training import population

LANES, STEPS = 3, 4
INDUCTOR = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
"""Importing torch's own compiler warns of torch's own code."""


def ours(problem, lrs, batches) -> list[torch.Tensor]:
    params = model.stack(problem.model, [0], LANES)
    optimizer = optim.Adam(params, lr=lrs)
    for index in batches:
        x, y = problem.data.x_train[index[None]], problem.data.y_train[index[None]]
        population.step_(params, optimizer, x, y, model=problem.model)
    return params


def vmapped(*args):
    return population_peers.torch_vmap(*args)


def compiled(*args):
    return population_peers.torch_vmap(*args, compiled=True)


@pytest.mark.parametrize(
    "peer",
    [
        vmapped,
        pytest.param(compiled, marks=[pytest.mark.slow, INDUCTOR]),
        pytest.param(population_peers.jax_scan, marks=pytest.mark.slow),
    ],
)
def test_a_peer_trains_to_the_same_weights(peer):
    problem = population_time.problem_of("mlp", 8, None, download=False)
    lrs = torch.logspace(-4, -2, LANES)
    batches = torch.randint(1000, (STEPS, 32), generator=torch.Generator().manual_seed(0))
    start = model.stack(problem.model, [0], LANES)
    run = peer(problem, start, lrs)
    expected = ours(problem, lrs, batches)
    for p, found, before in zip(expected, run(batches), start, strict=True):
        moved = (p - before).detach()
        assert moved.abs().max() > 1e-3
        torch.testing.assert_close(torch.tensor(np.asarray(found)) - before.detach(), moved, rtol=1e-2, atol=1e-5)
    # It goes on where it was.
    twice = ours(problem, lrs, torch.cat([batches, batches]))[0].detach()
    torch.testing.assert_close(torch.tensor(np.asarray(run(batches)[0])), twice, rtol=1e-3, atol=1e-4)
