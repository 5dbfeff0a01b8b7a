"""Losses of all lanes from their outputs `[lanes, n_out, batch]`."""

import torch
import torch.nn.functional as F


def losses(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of each lane, `[lanes]`: cross-entropy for integer targets, mean squared error for floats.

    If there are no targets, `[n_inputs, batch, 0]`, the outputs are the loss.

    Args:
        output: `[lanes, n_out, batch]`.
        target: `[n_inputs, batch]` classes or `[n_inputs, batch, n_out]` values; lanes are divided
            evenly among the inputs.
    """
    if not target.shape[-1]:
        return output.mean(dim=(1, 2))
    if target.is_floating_point():
        return (output - per_lane(target.transpose(1, 2), len(output))).square().mean(dim=(1, 2))
    return F.cross_entropy(output, per_lane(target, len(output)), reduction="none").mean(dim=1)


def correct(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Count the examples of the batch that each lane classifies correctly, `[lanes]`."""
    # This is six times as fast on the CPU as argmax over a dimension that is not the last.
    return (output.max(dim=1).indices == per_lane(target, len(output))).sum(dim=1)


def per_lane(target: torch.Tensor, lanes: int) -> torch.Tensor:
    if len(target) == 1:
        return target.expand(lanes, *target.shape[1:])
    return target.repeat_interleave(lanes // len(target), dim=0)
