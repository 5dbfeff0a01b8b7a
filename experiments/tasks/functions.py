"""Functions with known minima as problems: a model's parameters are the point, its outputs the function's values.

The data are the noise of each step. Batches depend on the seed alone, and populations train these problems as they
train any other.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from experiments.tasks.data import Dataset
from experiments.tasks.model import Model

PERIOD = 101
"""The period of the counter-example, in steps."""
Value = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Point(nn.Module):
    """A module whose parameter w is the argument of a function: maps examples x `[batch, ...]` to values `[batch]`."""

    def __init__(self, start: torch.Tensor, value: Value):
        super().__init__()
        self.w = nn.Parameter(start)
        self.value = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.value(self.w, x)


def model(name: str, start: Callable[[], torch.Tensor], value: Value, bound: float | None = None) -> Model:
    """Return a function as a model.

    Args:
        start: draws the first point, `[n]`, from torch's global generator.
        value: maps w `[..., n]` and x `[..., m]` to the values `[...]`.
        bound: w stays in [-bound, bound].
    """

    def forward(params, x: torch.Tensor) -> torch.Tensor:
        (w,) = params
        by_input = w.unflatten(0, (len(x), -1)).unsqueeze(2)
        return value(by_input, x.unsqueeze(1)).flatten(0, 1).unsqueeze(1)

    with torch.device("meta"):
        widths = (start().numel(), 1)
    return Model(name, widths, lambda: Point(start(), value), forward, bound=bound)


def dataset(name: str, source: str, x: torch.Tensor, x_eval: torch.Tensor, **options) -> Dataset:
    """Return a data set without targets: the model's outputs are the loss."""
    x, x_eval = x.float(), x_eval.float()
    return Dataset(name, source, x, x.new_empty(len(x), 0), x_eval, x_eval.new_empty(len(x_eval), 0), **options)


def quadratic(hessian: torch.Tensor, name: str = "quadratic") -> Model:
    """Return 1/2 (w - x)^T hessian (w - x), started from N(0, 1); x is the noise on the position of the minimum."""
    copies = {}  # one per device and dtype, because copying to a GPU waits for the GPU

    def value(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        kind = w.device, w.dtype
        if kind not in copies:
            copies[kind] = hessian.to(w)
        return ((w - x) @ copies[kind] * (w - x)).sum(-1) / 2

    return model(name, lambda: torch.randn(len(hessian)), value)


def noisy_quadratic(n: int = 20, noise: float = 1.0, n_train: int = 8192, seed: int = 0):
    """Return a quadratic with eigenvalues 1, 1/2, ..., 1/n and noisy minima; its floor is noise^2 tr(hessian) / 2.

    The examples have exactly mean 0 and variance noise^2 in each coordinate; the evaluation has no noise.
    Reference: Zhang et al. 2019, arXiv:1907.04164.
    """
    half = torch.randn(n_train // 2, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    half *= noise / half.square().mean(0).sqrt()
    source = f"generated: eigenvalues 1/i, noise {noise:g}, seed {seed}"
    examples = dataset("noisy quadratic", source, torch.cat([half, -half]), torch.zeros(1, n))
    return examples, quadratic(torch.diag(1 / torch.arange(1, n + 1)), f"noisy quadratic {n}")


def blocks(name: str, *eigenvalues: tuple[float, ...]):
    """Return a quadratic whose Hessian has blocks with these eigenvalues, each block rotated at random.

    If the eigenvalues differ between blocks but not within them, Adam is faster than SGD by orders of magnitude; if
    every block has the whole range of them, it is not.
    Reference: Zhang et al. 2024, arXiv:2402.16788; Orvieto & Gower 2025, arXiv:2505.21829.
    """
    generator = torch.Generator().manual_seed(0)
    rotations = (torch.linalg.qr(torch.randn(len(e), len(e), generator=generator).double())[0] for e in eigenvalues)
    parts = [r @ torch.diag(torch.tensor(e).double()) @ r.T for r, e in zip(rotations, eigenvalues, strict=True)]
    point = torch.zeros(1, sum(map(len, eigenvalues)))
    examples = dataset(f"{name} quadratic", f"generated: blocks {eigenvalues}", point, point)
    return examples, quadratic(torch.block_diag(*parts), name)


def rosenbrock():
    """Return 100 (w2 - w1^2)^2 + (1 - w1)^2, started in [-2, 2]^2, with 0 at (1, 1). Reference: Rosenbrock 1960."""

    def value(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        a, b = w.unbind(-1)
        return (100 * (b - a * a).square() + (1 - a).square()) + 0 * x.sum(-1)

    point = torch.zeros(1, 1)
    examples = dataset("Rosenbrock", "its definition", point, point)
    return examples, model("rosenbrock", lambda: 4 * torch.rand(2) - 2, value)


def counter_example(period: int = PERIOD):
    """Return f_t(w) = 1010 w in every 101st step, from the first, else -10 w; w in [-1, 1], and -1 is best.

    Adam with betas (0.9, 0.99) and lr 0.5 / sqrt(t) goes to 1, the worst point; AMSGrad goes to -1. The evaluation loss
    is the mean over a period minus its value at -1. Reference: Reddi et al. 2018, section 6 (arXiv:1904.09237).
    """
    slopes = torch.full((period, 1), -10.0)
    slopes[0] = 10.0 * period
    options = {"loss_floor": -10 / period, "in_order": True}
    examples = dataset("AMSGrad's counter-example", f"its definition, period {period}", slopes, slopes, **options)
    point = model("counter-example", lambda: torch.full((1,), 0.5), lambda w, x: (w * x).sum(-1), bound=1.0)
    return examples, point


class Function(NamedTuple):
    """A function as data and a model, with the default batch size and number of steps of a run."""

    make: Callable[[], tuple[Dataset, Model]]
    batch_size: int
    steps: int


FUNCTIONS = {
    "noisy-quadratic": Function(noisy_quadratic, 32, 2000),
    "heterogeneous": Function(lambda: blocks("heterogeneous", (1, 2, 3), (99, 100, 101), (4998, 4999, 5000)), 1, 1000),
    "homogeneous": Function(lambda: blocks("homogeneous", (1, 99, 4998), (2, 100, 4999), (3, 101, 5000)), 1, 1000),
    "rosenbrock": Function(rosenbrock, 1, 5000),
    "counter-example": Function(counter_example, 1, 100 * PERIOD),
}
