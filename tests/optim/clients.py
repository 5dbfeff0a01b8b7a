"""What the tests of clients share. A client is a program that drives optimizers: a trainer, or a wrapper around one."""

import pytest
import torch
from torch.nn import functional

import optim
from tests.oracle import assert_same_updates

RECIPES: dict[str, dict] = {
    "AdamW": {"lr": 0.02, "betas": (0.9, 0.99), "weight_decay": 0.1},
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
}
OWNERS = {"ours": optim, "torch's": torch.optim}
N_BATCHES, BATCH = 8, 6


def need(module: str):
    """The module, or skip the test that asks. It is imported by tests alone: a collection takes no half minute."""
    return pytest.importorskip(module, reason=f"{module} is not installed; pip install -e '.[clients]'")


def make_model(dtype: torch.dtype = torch.float32) -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 12), torch.nn.Tanh(), torch.nn.Linear(12, 3)).to(dtype)


def make(owner, name: str, params, **options) -> torch.optim.Optimizer:
    """The class of that name of `optim` or `torch.optim`, with its recipe."""
    return getattr(owner, name)(params, **(RECIPES.get(name, {"lr": 0.02}) | options))


def make_data() -> torch.utils.data.TensorDataset:
    """N_BATCHES * BATCH rows of three classes."""
    x = torch.randn(N_BATCHES * BATCH, 5, generator=torch.Generator().manual_seed(1))
    return torch.utils.data.TensorDataset(x, (x @ torch.linspace(-1, 1, 15).view(5, 3)).argmax(1))


def make_batches() -> torch.utils.data.DataLoader:
    """The data in batches, in the same order every time."""
    return torch.utils.data.DataLoader(make_data(), batch_size=BATCH)


def loss_of(model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(model(x).float(), y)


def assert_same_training(ours, theirs, before, steps: int, rtol: float = 1e-5) -> None:
    """Two models or lists of parameters that started as `before` have moved alike; see `assert_same_updates`."""
    start = [p.double() for p in parameters(before)]
    assert_same_updates(parameters(ours), parameters(theirs), start, steps, rtol)


def assert_same_bits(ours, theirs) -> None:
    assert all(map(torch.equal, parameters(ours), parameters(theirs)))


def parameters(model) -> list[torch.Tensor]:
    return [p.detach() for p in (model.parameters() if isinstance(model, torch.nn.Module) else model)]
