"""Problems that are quickly trained, and configurations that differ in every axis."""

import io

import pandas as pd
import torch

from experiments.tasks import cnn, data, gru, mlp, problems
from experiments.tasks.model import Model

CONFIGS = pd.DataFrame(
    {
        "lr": [1e-3, 1e-2, 3e-4],
        "beta1": [0.9, 0.0, 0.5],
        "beta2": [0.999, 0.99, 0.9],
        "eps": [1e-8, 1e-3, 1e-6],
        "weight_decay": [0.0, 0.1, 0.01],
        "momentum": [0.9, 0.5, 0.99],
    }
)


def digits(model: Model | None = None) -> problems.Problem:
    """Make noise in the shape of MNIST, with labels that depend on it, so that no files are needed."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(700, 784, generator=generator)
    y = (x @ torch.randn(784, 10, generator=generator)).argmax(dim=1)
    dataset = data.Dataset("noise", "a test", x[:600], y[:600], x[600:], y[600:])
    return problems.Problem("mnist", dataset, model or mlp.mlp(784, 16, 16, 10))


def regression() -> problems.Problem:
    return problems.make("regression")


def linear() -> problems.Problem:
    return problems.make("regression", "linear")


def logistic() -> problems.Problem:
    return digits(mlp.mlp(784, 10))


def small_cnn() -> problems.Problem:
    return digits(cnn.cnn((2, 3)))


def small_gru() -> problems.Problem:
    return digits(gru.gru(5))


def clone(state: dict) -> dict:
    """Return the state of a training as a checkpoint holds it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)
