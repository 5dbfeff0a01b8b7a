"""Norms and totals of sharded tensors are those of the whole, in two processes."""

import itertools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

import optim
from kernels.rule import tl
from tests.optim.ranks import N_RANKS, alone, assert_same, launch, make, make_model, sharded, train


def shard_and_clip(rank: int, folder: Path) -> None:
    """The norm is that of all shards, and of parameters that are not sharded."""
    model = make_model()
    for layer in (model[0], model[4]):
        fully_shard(layer)
    optimizer = make(optim, "AdamW", model, max_grad_norm=0.3)
    for step in range(5):
        train(model, Averaging(optimizer, model[2]), range(step, step + 1), rank)
    assert_same(model, alone("AdamW", 5, clip=0.3)[0])


class Averaging:
    """An optimizer that averages the gradients of a layer that nobody shards before each step."""

    def __init__(self, optimizer: torch.optim.Optimizer, layer: torch.nn.Module):
        self.optimizer, self.layer, self.zero_grad = optimizer, layer, optimizer.zero_grad

    def step(self) -> None:
        for p in self.layer.parameters():
            assert p.grad is not None
            dist.all_reduce(p.grad)
            p.grad /= N_RANKS
        self.optimizer.step()


def shard_and_sum(rank: int, folder: Path) -> None:
    """Totals of a tensor, and of a lane, are those of all shards."""
    for over, backend in itertools.product(("tensor", "lane"), ("cpu", "eager")):
        made = optim.from_rule(normalised, rate, sums=squares, over=over, defaults={"lr": 0.1}, name=f"by_{over}")
        model, reference = sharded(make_model()), make_model()
        train(model, made(model.parameters(), backend=backend), range(5), rank)
        train(reference, made(reference.parameters(), backend=backend), range(5))
        assert_same(model, reference)


def rate(hyper, step):
    return hyper


def squares(p, grad, state, coefficients):
    return (grad * grad, 1.0)


def normalised(p, grad, state, coefficients, totals):
    return p - coefficients[0] * tl.sqrt(totals[1] / totals[0]) * grad, state


@pytest.mark.slow
def test_norms_and_totals_are_those_of_all_shards(tmp_path):
    launch(tmp_path, shard_and_clip, shard_and_sum)
