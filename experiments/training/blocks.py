"""How many lanes the CPU trains at once: as many as fit into blocks that malloc reuses."""

import torch

from experiments.tasks.any_module import AnyModel, AnyModule

KEPT_BLOCK = 32 * 2**20
"""Largest block, bytes, that glibc's malloc reuses; a larger one is mapped anew each time, with page faults."""


def most_lanes(model: AnyModel, batch_size: int) -> int:
    """Return how many lanes fit into blocks that malloc reuses; 0 if not even one does."""
    return KEPT_BLOCK // largest_block(model, batch_size)


def largest_block(model: AnyModel, batch_size: int) -> int:
    """Return the bytes of the largest tensor that a step makes for a lane: a gradient or an activation."""
    largest = max(p.numel() for p in shapes(model))
    return 4 * max(largest, 0 if model.at_once else batch_size * max(model.widths[1:]))


def shapes(model: AnyModel) -> list[torch.Tensor]:
    """Return the parameters of a model's module; of those that are built in, without their values."""
    if isinstance(model, AnyModule):
        return list(model.modules[True].parameters())
    with torch.device("meta"):
        return list(model.build().parameters())
