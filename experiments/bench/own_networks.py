"""Networks on MNIST that `throughput sweep` times as problems of a user's own: lanes by `torch.vmap`."""

import torch
import torch.nn.functional as F
from torch import nn

from experiments.tasks import own
from experiments.tasks.data import Dataset
from experiments.tasks.problems import Problem


class Transformer(nn.Module):
    """A two-layer encoder that reads an image `[batch, 784]` as 28 tokens, its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(28, 32)
        layer = nn.TransformerEncoderLayer(32, nhead=4, dim_feedforward=64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(x.unflatten(1, (28, 28)))
        return self.head(self.encoder(tokens).mean(1))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        *(nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 10)),
    )


NETWORKS = {
    "own mlp": ("784-32-32-10", mlp),
    "own cnn": ("8-16", cnn),
    "own transformer": ("2 layers of 32", Transformer),
}
"""Size, as shown in tables, and module of each."""


def problem_of(kind: str, data: Dataset) -> Problem:
    """Return the problem of a kind in `NETWORKS` on MNIST, made as a sweep makes that of a user's function."""
    size, network = NETWORKS[kind]

    def function() -> own.Problem:
        return own.Problem(
            name=f"{kind} {size}",
            model=network,
            train=(data.x_train, data.y_train),
            evaluate=(data.x_eval, data.y_eval),
            loss=F.cross_entropy,
        )

    _, model, _ = own.make(own.name_of(function))
    return Problem("mnist", data, model)
