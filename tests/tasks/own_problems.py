"""Problems such as users bring: one of each kind of module that lanes have to get right."""

import torch
import torch.nn.functional as F
from torch import nn

from experiments import Problem
from experiments.tasks import own as owns
from experiments.tasks import problems


class Encoder(nn.Module):
    """A transformer that reads 4 tokens of 5 numbers."""

    def __init__(self, dropout: float):
        super().__init__()
        self.up = nn.Linear(5, 8)
        self.attend = nn.MultiheadAttention(8, 2)
        self.norm, self.drop = nn.LayerNorm(8), nn.Dropout(dropout)
        self.feed = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 8))
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        tokens = self.up(x.unflatten(1, (4, 5)).transpose(0, 1).contiguous())
        tokens = self.norm(tokens + self.drop(self.attend(tokens, tokens, tokens, need_weights=False)[0]))
        return self.out((tokens + self.feed(tokens)).mean(0))


class Tied(nn.Module):
    """An autoencoder whose decoder is its encoder transposed; one layer has two names."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(20, 6)
        self.bias = nn.Parameter(torch.zeros(20))
        self.again = self.encoder

    def forward(self, x):
        return F.linear(torch.tanh(self.again(x)), self.encoder.weight.T, self.bias)


class Branching(nn.Module):
    """A module that looks at its data, which vmap cannot do."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(20, 6), nn.Dropout(0.3), nn.Linear(6, 3))

    def forward(self, x):
        output = self.layers(x)
        return 2 * output if output.mean().item() > 0 else output


class Averaging(nn.Module):
    """A module that assigns its running mean anew, and draws also in evaluations."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(20, 3)
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        output = self.layer(x)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * output.mean(0).detach()
        return output - self.mean


class Sampling(nn.Module):
    """A module that draws in evaluations, too."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(20, 3)

    def forward(self, x):
        output = self.layer(x)
        return output + 0.1 * torch.randn_like(output)


SHARED = nn.Linear(20, 6)
"""A part of several modules."""


def frozen() -> nn.Module:
    """A network whose first layer is not trained."""
    layers = nn.Sequential(nn.Linear(20, 6), nn.Tanh(), nn.Linear(6, 3))
    layers[0].requires_grad_(False)
    return layers


MODULES = {
    "mlp": lambda: nn.Sequential(nn.Linear(20, 6), nn.GELU(), nn.Dropout(0.2), nn.Linear(6, 3)),
    "cnn": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 4, 5)),
        *(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(6, 3)),
    ),
    "transformer": lambda: Encoder(0.1),
    "autoencoder": Tied,
    "branching": Branching,
    "frozen": frozen,
    "averaging": Averaging,
    "sampling": Sampling,
    "shared": lambda: nn.Sequential(SHARED, nn.Dropout(0.5), nn.BatchNorm1d(6), nn.Linear(6, 3)),
}


def accuracy(output, target):
    return (output.argmax(-1) == target).float().mean()


def own(module: str, **changes) -> Problem:
    """Return a problem with the module of this name on 120 examples of 20 numbers, in batches of 16."""
    x = torch.randn(120, 20, generator=torch.Generator().manual_seed(0))
    y = x if module == "autoencoder" else (x[:, :3] + x[:, 3:6]).argmax(-1)
    loss = F.mse_loss if module == "autoencoder" else F.cross_entropy
    given = {"name": module, "model": MODULES[module], "train": (x[:100], y[:100]), "evaluate": (x[100:], y[100:])}
    metrics = {} if module == "autoencoder" else {"accuracy": accuracy}
    return Problem(**{**given, "loss": loss, "metrics": metrics, "batch_size": 16, **changes})


def made(module: str) -> problems.Problem:
    """Return `own` as what a sweep trains."""

    def function():
        return own(module)

    function.__qualname__ = f"own_{module}"
    return problems.make(owns.name_of(function))
