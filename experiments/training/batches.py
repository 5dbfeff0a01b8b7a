"""The data of training on its device: batches of examples, and the random numbers of a step."""

from collections.abc import Sequence

import torch

from experiments.tasks.any_module import AnyModel
from experiments.tasks.problems import Problem


def batch_indices(n: int, batch_size: int, seed: int, in_order: bool = False):
    """Yield int64 `[batch_size]` indices without end; each epoch is a new permutation, incomplete batches are dropped.

    They depend on the seed alone, not on the device or on other runs.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.arange(n) if in_order else torch.randperm(n, generator=generator)
        yield from order.split(batch_size)[: n // batch_size]


def tensors(
    problem: Problem, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    """Return x_train, y_train, x_eval and y_eval on the device, floating-point ones as dtype."""
    data = problem.data
    all_four = (data.x_train, data.y_train, data.x_eval, data.y_eval)
    return [t.to(device, dtype if t.is_floating_point() else None) for t in all_four]


def draws_of(model: AnyModel, seeds: Sequence[int], step: int, batch_size: int) -> list[torch.Tensor]:
    """Return the random numbers of a step, such as masks of dropout, on the CPU: `[n_seeds, ..., batch_size]` each."""
    return [torch.stack(of) for of in zip(*(model.draws(seed, step, batch_size) for seed in seeds), strict=True)]


def placed(draws: Sequence[torch.Tensor], device: str | torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return draws as training needs them: masks on its device; whole numbers seed generators, and stay on the CPU."""
    return [drawn.to(device, dtype) if drawn.is_floating_point() else drawn for drawn in draws]


def upload(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy a tensor from the CPU, in place into target, without waiting for work queued on a GPU."""
    # From pageable memory the copy would wait.
    target.copy_(source.pin_memory() if target.is_cuda else source, non_blocking=True)
