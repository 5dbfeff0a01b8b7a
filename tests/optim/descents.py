"""Steps with the same gradients by our classes and by the algorithms of papers that look at whole tensors."""

import pytest
import torch

from kernels.pieces import PIECE
from tests.optim import papers_sums

SHAPES = ((PIECE - 1,), (0,), (PIECE,), (), (3, 5), (PIECE + 1,), (2, 2500))
"""Around the border of a piece, empty, a single number, and of several pieces."""
INTERPRETED_SLOWLY = pytest.mark.parametrize(
    "backend", [pytest.param("triton", marks=pytest.mark.slow), "cpu", "eager"], indirect=True
)
"""Every backend in turn; Triton's interpreter takes seconds for each case."""


def gradient(p: torch.Tensor, i: int, step: int) -> torch.Tensor:
    """Return float64 gradients that agree enough from step to step for Prodigy's d to grow."""
    of_all, of_step = torch.Generator().manual_seed(i), torch.Generator().manual_seed(1000 * (step + 1) + i)
    grad = torch.randn(p.shape, generator=of_all) + 0.5 * torch.randn(p.shape, generator=of_step)
    return grad.to(p.dtype).double()


def descend(optimizer, params: list[torch.Tensor], steps: range, without: tuple = ()) -> None:
    """Take steps with these gradients. without: which parameters have none."""
    for step in steps:
        for i, p in enumerate(params):
            p.grad = None if i in without else gradient(p, i, step).to(p.device, p.dtype)
        optimizer.step()


def followed(name: str, params: list[torch.Tensor], steps: range, lane: int | None = None, **options) -> list:
    """Return float64 parameters, or a lane of them, after steps of the oracle."""
    own, sign = ... if lane is None else lane, -1.0 if options.pop("maximize", False) else 1.0
    found, states, state = [p.detach().double().cpu()[own] for p in params], [{} for _ in params], {}
    for step in steps:
        grads = [sign * gradient(p, i, step)[own] for i, p in enumerate(params)]
        if name == "Prodigy":
            found = papers_sums.prodigy(found, grads, state, **options)
        else:
            one = papers_sums.OF[name]
            found = [one(p, g, s, step + 1, **options) for p, g, s in zip(found, grads, states, strict=True)]
    return found


def start_of(params: list[torch.Tensor]) -> list[torch.Tensor]:
    return [p.detach().double().cpu().clone() for p in params]
