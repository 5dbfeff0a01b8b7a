"""Evaluations of a population: when, on which examples, and their losses and metrics."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from experiments.tasks.any_module import AnyModel
from experiments.tasks.problems import Problem


def evaluation_steps(steps: int, evaluations: int) -> list[int]:
    """Return the steps after which to evaluate: 0, then evenly spaced ones, the last step included."""
    evaluations = min(evaluations, steps)
    return sorted({0, *(round(steps * i / evaluations) for i in range(1, evaluations + 1))})


def subset(y: torch.Tensor, n: int) -> torch.Tensor:
    """Return the indices of n examples, always the same: of classes `[examples]` as many of each as its share."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randperm(len(y), generator=generator)
    if y.is_floating_point() or y.ndim != 1:
        return drawn[:n]
    by_class = drawn[y[drawn].argsort(stable=True)]
    sizes = y[by_class].unique_consecutive(return_counts=True)[1]
    # Examples of a class are spread evenly from 0 to 1, so that each beginning has every class in proportion. Each
    # class starts elsewhere: of many small classes, none is preferred.
    starts = torch.rand(len(sizes), generator=generator)
    position = torch.cat([(torch.arange(int(size)) + start) / size for size, start in zip(sizes, starts, strict=True)])
    return by_class[position.argsort(stable=True)][:n]


@contextmanager
def averaged(optimizer: torch.optim.Optimizer, params: Sequence[torch.Tensor]) -> Iterator[None]:
    """Have an optimizer with `eval` and `train`, such as Schedule-Free AdamW, put what is to be evaluated into params.

    Afterwards they have the bits of before: training does not depend on when it is evaluated.
    """
    if not (hasattr(optimizer, "eval") and hasattr(optimizer, "train")):
        yield
        return
    kept = [p.detach().clone() for p in params]
    optimizer.eval()  # pyright: ignore[reportAttributeAccessIssue]
    yield
    optimizer.train()  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        for p, trained in zip(params, kept, strict=True):
            p.copy_(trained)


def evaluate(
    problem: Problem,
    params: Sequence[torch.Tensor],
    x: torch.Tensor,
    y: torch.Tensor,
    others: Sequence[torch.Tensor] = (),
) -> dict[str, torch.Tensor]:
    """Return `means`, the loss as its excess over the known optimum if there is one."""
    found = means(problem.model, params, x, y, others)
    if floor := problem.data.loss_floor:
        # float32 cannot resolve losses closer to the optimum than this.
        found["loss"] = (found["loss"] - floor).clamp_min(abs(floor) * torch.finfo(torch.float32).eps)
    return found


def means(
    model: AnyModel,
    params: Sequence[torch.Tensor],
    x: torch.Tensor,
    y: torch.Tensor,
    others: Sequence[torch.Tensor] = (),
) -> dict[str, torch.Tensor]:
    """Return the means over examples of loss, accuracy, and so on.

    Args:
        x, y: examples on the device of the parameters.
        others: what the module holds beside trained parameters, as of `model.stack_others`.
    Returns: float64 `[lanes]` by name: always loss; accuracy for classes.
    """
    lanes = len(params[0])
    # No activation takes more than 16 MiB.
    at_once = min(lanes, model.at_once or lanes)
    batch = max(16, 2**22 // (at_once * max(model.widths[1:])))
    sums: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for xb, yb in zip(x.split(batch), y.split(batch), strict=True):
            for name, value in model.measure(params, others, xb.unsqueeze(0), yb.unsqueeze(0)).items():
                sums[name] = sums.get(name, 0.0) + value.double()
    return {name: value / len(x) for name, value in sums.items()}
